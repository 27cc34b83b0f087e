"""The power-function averages that a saver tracks: their time, their values, when to note them.

Updated after each optimizer step by `average += (1 - decay) * (weights - average)`, with the decay
of `power_profiles.decay_over` (Karras et al., arXiv 2312.02696, section 3.1).
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ckptavg.errors import CkptavgWarning, SaverError
from ckptavg.formats import Structure
from ckptavg.models.placement import Placement
from ckptavg.recipes.power_profiles import decay_over, gamma_of
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.proof import read_proven
from ckptavg.runs.record import EmaRecord
from ckptavg.saving.framework import DeviceAverages, Framework
from ckptavg.saving.note_schedule import NoteSchedule
from ckptavg.saving.options import Options
from ckptavg.saving.weight_placement import Layout

KEPT, PASSING = "kept", "passing"
"""Kinds of notes: those of the schedule; and those that are there to go on from, until the next."""


@dataclass(frozen=True, slots=True)
class Note:
    """One average, ready to be copied.

    Attributes:
        ema: which it is.
        structure: of its file, floating-point tensors in float32.
        variables: what each tensor holds, by its stored name.
        view: a variable's values in the average on the host.
    """

    ema: EmaRecord
    structure: Structure
    variables: Mapping[str, Any]
    view: Callable[[Any], np.ndarray]

    @property
    def stem(self) -> str:
        """Of the names of its file and its record."""
        return f"ema-{self.ema.sigma_rel:.3f}-step-{self.ema.step:08d}"


class Tracking:
    """The averages of one training.

    Time is counted in optimizer steps from the first one tracked. Steps that no callback saw,
    within an execution of several, or since the note that a training goes on from, count with the
    weights at their end.

    Attributes:
        layout: of the notes.
        step: that averages have come to; 0 before the first.
    """

    def __init__(
        self, framework: Framework, options: Options, model: Any, params: Mapping[str, Any]
    ) -> None:
        """Begins a training.

        Raises:
            SaverError: the averages of this model cannot be tracked.
        """
        framework.check_tracking(model)
        self._framework = framework
        self._model = model
        self._sigmas = options.tracked_sigmas
        self._gammas = [gamma_of(sigma) for sigma in self._sigmas]
        self._schedule = NoteSchedule(options.track_freq, (params or {}).get("epochs"))
        self._length: int | None = (params or {}).get("steps")
        plain = replace(options, include_optimizer=False, save_dtype="float32")
        self.layout = Layout(framework, plain, model)
        self._averages: DeviceAverages | None = None
        self._placement: Placement | None = None
        self._variables: list[Any] = []
        self._values: list[Mapping[str, np.ndarray]] = []
        self._batches = 0
        self._is_due = False
        self.step = self._averaged = self._noted = 0

    def go_on(self, notes: Sequence[Checkpoint], step: int) -> None:
        """Goes on from what a training before has noted.

        Args:
            notes: all that there are.
            step: optimizer steps that the training goes on from.

        Warns:
            CkptavgWarning: none was noted at this very step.

        Raises:
            SaverError: the notes are of other lengths.
            IntegrityError: a note is not what its record says.
        """
        if not notes:
            return
        groups: dict[int, dict[float, Checkpoint]] = defaultdict(dict)
        for note in sorted(notes, key=lambda note: note.record.ema.step):
            groups[note.record.ema.step][note.record.ema.sigma_rel] = note
        wanted, known = set(self._sigmas), {note.record.ema.sigma_rel for note in notes}
        if not wanted <= known and len(groups) > 1:  # a kill may have left half of the first one
            raise SaverError(
                f"the run tracks averages of sigma_rel {_listed(sorted(known))}, but "
                f"tracked_sigmas are {_listed(self._sigmas)}: go on with the same, or begin "
                "anew in another run"
            )
        usable = [g for g in groups.values() if wanted <= g.keys() and _is_usable(g, step)]
        record = next(iter((usable or [groups[max(groups)]])[-1].values())).record
        self.step = max(0, record.ema.step + step - (record.step or record.ema.step))
        if usable:
            self._averaged = self._noted = record.ema.step
            found = [usable[-1][sigma] for sigma in self._sigmas]
            self._values = [read_proven(note.path, note.record) for note in found]
        if self.step > self._averaged:
            warnings.warn(
                f"tracked averages go on from step {self._averaged}, training from step "
                f"{self.step}: the steps between count with the weights that follow. Averages are "
                "noted when a checkpoint is saved at the end of an epoch, and as track_freq says",
                CkptavgWarning,
                stacklevel=2,
            )

    def end_batch(self, batch: int, steps: int) -> str | None:
        """Takes in the weights, if optimizer steps were taken; returns which note is due, if any.

        Raises:
            SaverError: the averages of this model cannot be tracked.
        """
        former = self.step, self._batches
        self.step += steps
        seen = min(batch + 1, self._length or batch + 1)
        self._batches = 0 if seen == self._length else seen
        if steps:
            self._update()
        due = self._schedule.within((former[0], self.step), (former[1], seen), self._length)
        self._is_due = self._is_due or due
        if not self._is_due or not self._has_news or seen == self._length:
            return None  # at the end of an epoch, a note is written with the checkpoint
        self._is_due = False
        return KEPT

    def end_epoch(self, epoch: int, saves: bool) -> str | None:
        """Which note is due at the end of an epoch, if any.

        Args:
            epoch: 0-based.
            saves: whether its checkpoint is saved.
        """
        self._length, self._batches = self._length or self._batches or None, 0
        due, self._is_due = self._is_due or self._schedule.at_end(epoch), False
        if not self._has_news:
            return None
        return KEPT if due else PASSING if saves else None

    def end(self) -> str | None:
        """Which note is due at the end of training, if any."""
        return KEPT if self._has_news else None

    def notes(self) -> list[Note]:
        """The averages as they are; they count as noted. `layout` must have been found anew.

        Raises:
            SaverError: the model has other variables than at the first step.
        """
        self._noted = self.step
        if self.layout.placement is not self._placement:
            raise SaverError(
                "layers were built while averages were tracked, which hold nothing of them: build "
                "the whole model before training, or leave tracked_sigmas away"
            )
        places = {id(variable): place for place, variable in enumerate(self._variables)}

        def view(number: int) -> Callable[[Any], np.ndarray]:
            def values(variable: Any) -> np.ndarray:
                place = places.get(id(variable))
                if place is None:
                    return self._framework.host_view(variable)
                return self._averages.host_view(number, place)

            return values

        return [
            Note(
                EmaRecord(sigma, self.step),
                self.layout.structure,
                self._placement.variables,
                view(number),
            )
            for number, sigma in enumerate(self._sigmas)
        ]

    @property
    def _has_news(self) -> bool:
        """Whether the averages are not those that were noted last."""
        return self._averages is not None and self.step > self._noted

    def _update(self) -> None:
        if self._averages is None:
            self._start()
        decays = [decay_over(self._averaged, self.step, gamma) for gamma in self._gammas]
        self._averages.update([1.0 - decay for decay in decays])
        self._averaged = self.step

    def _start(self) -> None:
        """Makes the averages, which only now have variables for certain."""
        try:
            self.layout.find()
        except SaverError as error:
            raise SaverError(
                "tracked_sigmas: a layer of the model saves more than its variables, so that its "
                "averages cannot be tracked: leave tracked_sigmas away"
            ) from error
        placement = self._placement = self.layout.placement
        held = {
            id(placement.variables[name]): (name, placement.variables[name])
            for name, tensor in placement.structure.tensors.items()
            if tensor.is_float
        }
        names = [name for name, _ in held.values()]
        self._variables = [variable for _, variable in held.values()]
        count = len(self._sigmas)
        self._averages = self._framework.device_averages(self._model, self._variables, count)
        for number, values in enumerate(self._values):
            tensors = self.layout.structure.tensors
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            if {name: value.shape for name, value in values.items()} != shapes:
                raise SaverError(
                    "the averages that were tracked are of another model: go on with the model "
                    "that wrote the run, or begin anew in another run"
                )
            self._averages.set(number, [values[name] for name in names])
        self._values = []


def _is_usable(group: Mapping[float, Checkpoint], step: int) -> bool:
    """Whether notes of one step are there, hold no NaN, and are not of a step after `step`."""
    for note in group.values():
        record = note.record
        if record.non_finite or record.step is None or record.step > step:
            return False
    return all(Checkpoint.exists(note.path) for note in group.values())


def _listed(sigmas: Sequence[float]) -> str:
    return ", ".join(f"{sigma:g}" for sigma in sigmas)
