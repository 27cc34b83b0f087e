"""The power-function averages that a saver tracks: their values, and when to save them.

Saved averages are checkpoints of the run, of some step each. Averages are updated after each
optimizer step by `average += (1 - decay) * (weights - average)`, with the decay of
`power_profiles.decay_over` (Karras et al., arXiv 2312.02696, section 3.1).
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from ckptavg.errors import SaverError, warn
from ckptavg.formats import Structure
from ckptavg.models.placement import Placement
from ckptavg.recipes.power_profiles import decay_over, gamma_of
from ckptavg.runs.checkpoint import TrackedCheckpoint
from ckptavg.runs.proof import read_proven
from ckptavg.saving.framework import DeviceAverages, Training
from ckptavg.saving.host_copy import HostCopy
from ckptavg.saving.options import Options
from ckptavg.saving.weight_placement import PlacementFinder, WeightPlacement

LEAST_SAVES = 64
"""Saves in a training: with fewer, averages of other widths cannot be combined well enough."""


class SaveKind(Enum):
    """Why averages are saved."""

    KEPT = "asked for by the schedule"
    PASSING = "there to resume from until the next ones are saved"


@dataclass(frozen=True, slots=True)
class TrackingSchedule:
    """Averages are saved every `freq` steps, or else at least 64 times, with the ends of epochs.

    Trainings of fewer than 64 epochs save them at equal distances in every epoch, and those of 128
    and more every second, third ... epoch. How long an epoch is may be unknown until the
    first one has ended; until then they are saved at its end only.

    Attributes:
        freq: optimizer steps from one save to the next; None for the rule above.
        epochs: number of epochs in the whole training, where it is known.
    """

    freq: int | None
    epochs: int | None

    def within(self, steps: tuple[int, int], batches: tuple[int, int], length: int | None) -> bool:
        """Whether a save is due after some batches.

        Args:
            steps: steps that the averages had seen before these batches, and have seen now.
            batches: batches of the epoch that had been trained before, and have been now.
            length: batches in an epoch, where it is known.
        """
        if self.freq is not None:
            return steps[0] // self.freq < steps[1] // self.freq
        if length is None or self.epochs is None or self.epochs >= LEAST_SAVES:
            return False
        each = math.ceil(LEAST_SAVES / self.epochs)
        return batches[0] * each // length < batches[1] * each // length

    def at_end(self, epoch: int) -> bool:
        """Whether a save is due at the end of a 0-based epoch, whatever `within` says."""
        if self.freq is not None:
            return False
        return (epoch + 1) % max(1, (self.epochs or 0) // LEAST_SAVES) == 0


@dataclass(frozen=True, slots=True)
class _Resumed:
    """What the averages of a training start from.

    Attributes:
        step: the step that training resumes from, as the averages count it.
        averaged: the step of the saved averages that they resume from; 0 without any.
        values: the values of these by stored name, one mapping for each average.
    """

    step: int = 0
    averaged: int = 0
    values: Sequence[Mapping[str, np.ndarray]] = ()


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """Averages on the device, and the variables that they follow.

    Attributes:
        placement: of the model when the averages were made.
        files: where the files of averages put the variables.
        variables: those that are averaged, by the stored name of a tensor that each fills.
        averages: their values.
    """

    placement: WeightPlacement
    files: Placement
    variables: Mapping[str, Any]
    averages: DeviceAverages


class TrackedAverages:
    """The averages of one training.

    Time is counted in optimizer steps from the first one tracked. Steps that no callback saw,
    within an execution of several or since the save that a training resumes from, count with the
    weights at their end.

    Attributes:
        step: the step that the averages have come to; 0 before the first.
        placements: where the model's variables go in the files of averages.
    """

    def __init__(
        self, training: Training, options: Options, saved: Sequence[TrackedCheckpoint], step: int
    ) -> None:
        """Resumes from what an earlier training has saved, if it has.

        Args:
            training: the training whose weights are averaged.
            options: its options.
            saved: all averages that the resumed training has saved; none for a new one.
            step: optimizer steps that training resumes from.

        Warns:
            CkptavgWarning: nothing was saved at this very step.

        Raises:
            SaverError: the saved averages are of other widths.
            IntegrityError: a saved average differs from its record.
        """
        self._training = training
        self._sigmas = options.tracked_sigmas
        self._gammas = [gamma_of(sigma) for sigma in self._sigmas]
        self._schedule = TrackingSchedule(options.track_freq, training.epochs)
        plain = replace(options, include_optimizer=False, save_dtype="float32")
        self.placements = PlacementFinder(training, plain)
        self._resumed = _resumed(saved, self._sigmas, step) if saved else _Resumed()
        self._device: _OnDevice | None = None
        self._is_due = False
        self.step = self._resumed.step
        self._averaged = self._saved = self._resumed.averaged

    def end_batch(
        self, steps: int, batches: tuple[int, int], length: int | None
    ) -> SaveKind | None:
        """Takes in the weights if optimizer steps were taken; returns which save is due, if any.

        Args:
            steps: optimizer steps taken since the last call.
            batches: batches of the epoch that had been trained before, and have been now.
            length: batches in an epoch, where it is known.

        Raises:
            SaverError: the averages of this model cannot be tracked.
        """
        former = self.step
        self.step += steps
        if steps:
            self._update()
        due = self._schedule.within((former, self.step), batches, length)
        self._is_due = self._is_due or due
        if not self._is_due or not self._has_news or batches[1] == length:
            return None  # at the end of an epoch, averages are saved with the checkpoint
        self._is_due = False
        return SaveKind.KEPT

    def end_epoch(self, epoch: int, saves: bool) -> SaveKind | None:
        """Which save is due at the end of an epoch, if any.

        Args:
            epoch: 0-based.
            saves: whether its checkpoint is saved.
        """
        due, self._is_due = self._is_due or self._schedule.at_end(epoch), False
        if not self._has_news:
            return None
        if due:
            return SaveKind.KEPT
        # Whoever resumes from this checkpoint needs the averages of its step.
        # See docs/decisions/0058-averages-are-tracked-after-every-step.md.
        return SaveKind.PASSING if saves else None

    def end(self) -> SaveKind | None:
        """Which save is due at the end of training, if any."""
        return SaveKind.KEPT if self._has_news else None

    def copy_to(self, copies: Sequence[HostCopy], placement: WeightPlacement) -> Structure:
        """Copies the averages as they are, each to memory of its own; they count as saved.

        Args:
            copies: memory for the average of each width.
            placement: where `placements` says that variables go now.

        Returns:
            The structure of their files, floating-point tensors in float32.

        Raises:
            SaverError: the model has other variables than at the first step.
        """
        self._saved = self.step
        device = self._device
        if device is None or placement is not device.placement:
            raise SaverError(
                "layers were built while averages were tracked, which lack their weights: build "
                "the whole model before training, or omit tracked_sigmas"
            )
        places = {id(variable): place for place, variable in enumerate(device.variables.values())}
        for number, copy in enumerate(copies):

            def view(variable: Any, number: int = number) -> np.ndarray:
                place = places.get(id(variable))
                if place is None:  # integers, which have no average
                    return self._training.framework.host_view(variable)
                return device.averages.host_view(number, place)

            copy.take(view, device.files.variables)
        return device.files.structure

    @property
    def _has_news(self) -> bool:
        """Whether the averages have changed since they were saved last."""
        return self._device is not None and self.step > self._saved

    def _update(self) -> None:
        if self._device is None:
            # Only now, after a training step, are all variables certain to exist.
            self._device = self._on_device()
        decays = [decay_over(self._averaged, self.step, gamma) for gamma in self._gammas]
        self._device.averages.update([1.0 - decay for decay in decays])
        self._averaged = self.step

    def _on_device(self) -> _OnDevice:
        placement = self.placements.current()
        files = placement.files
        if files is None:
            raise SaverError(
                "tracked_sigmas: a layer of the model saves more than its variables, so that its "
                "averages cannot be tracked: omit tracked_sigmas"
            )
        tensors = files.structure.tensors
        # A variable may fill several tensors, but is averaged once.
        names = {id(files.variables[n]): n for n, tensor in tensors.items() if tensor.is_float}
        variables = {name: files.variables[name] for name in names.values()}
        averages = self._training.framework.device_averages(
            self._training.model, [*variables.values()], len(self._sigmas)
        )
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        for number, values in enumerate(self._resumed.values):
            if {name: value.shape for name, value in values.items()} != shapes:
                raise SaverError(
                    "the averages of the run are those of another model: resume with the model "
                    "that wrote the run, or begin a new run"
                )
            averages.set(number, [values[name] for name in variables])
        self._resumed = _Resumed()  # its values are as large as the model
        return _OnDevice(placement, files, variables, averages)


def _resumed(saved: Sequence[TrackedCheckpoint], sigmas: Sequence[float], step: int) -> _Resumed:
    """Finds the saved averages of the last step that a training at `step` can resume from."""
    groups: dict[int, dict[float, TrackedCheckpoint]] = defaultdict(dict)
    for average in sorted(saved, key=lambda average: average.ema.step):
        groups[average.ema.step][average.ema.sigma_rel] = average
    wanted, known = set(sigmas), {average.ema.sigma_rel for average in saved}
    if not wanted <= known and len(groups) > 1:  # a kill may have left half of the first one
        raise SaverError(
            f"the run tracks averages of sigma_rel {_listed(sorted(known))}, but tracked_sigmas "
            f"is {_listed(sigmas)}: resume with the same, or begin a new run"
        )
    usable = [g for g in groups.values() if wanted <= g.keys() and _is_usable(g, step)]
    last = next(iter((usable or [groups[max(groups)]])[-1].values()))
    # Averages count from the first step tracked, which may have been later than the first of all.
    resumed = max(0, last.ema.step + step - (last.step or last.ema.step))
    found = _Resumed(resumed)
    if usable:
        values = [read_proven(usable[-1][s].path, usable[-1][s].record) for s in sigmas]
        found = _Resumed(resumed, last.ema.step, values)
    if found.step > found.averaged:
        warn(
            f"tracked averages resume from step {found.averaged}, training from step "
            f"{found.step}: the steps between count with the weights that follow. Averages are "
            "saved with the checkpoints of epochs, and as track_freq says"
        )
    return found


def _is_usable(group: Mapping[float, TrackedCheckpoint], step: int) -> bool:
    """Whether the averages of one step exist, hold no NaN, and are not of a step after `step`."""
    return all(
        not average.non_finite
        and average.step is not None
        and average.step <= step
        and TrackedCheckpoint.exists(average.path)
        for average in group.values()
    )


def _listed(sigmas: Sequence[float]) -> str:
    return ", ".join(f"{sigma:g}" for sigma in sigmas)
