"""The doctor: which checkpoints do not belong into an average, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptavg.analysis.geometry.geometry import Geometry
from ckptavg.analysis.geometry.measure import Survey, survey
from ckptavg.batch_norm.options import BatchNormOptions
from ckptavg.errors import CkptavgError, RunError, SpecError
from ckptavg.formats.tensorflow.paths import main_file
from ckptavg.merging.planned_sources import SourcePlan, check_same_model, plan_sources
from ckptavg.merging.worker import Progress
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.sources import Sources, resolve

if TYPE_CHECKING:
    import keras

KEEP, LEAVE_OUT = "keep", "leave out"

_FEWEST = 4
"""Checkpoints from which on one can be told to be unlike the others."""
_FACTOR = 6.0
"""Robust standard deviations beyond which a value is an outlier."""
_NORM_FLOOR, _DISTANCE_FLOOR = 0.05, 0.2
"""Of the median: the least standard deviation of norms, and of distances to the mean, so that
values that all but agree have no outliers among them."""
_BARRIER = 0.1
"""How much worse than both its neighbours a midpoint may be, as a share of the worse one."""
_UNRELATED = 0.5
"""Cosine to the mean below which checkpoints have little in common."""
_MEAN = "\0mean"
"""Label of the mean of sound checkpoints; no file, and so no checkpoint, can be called so."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found out about a checkpoint.

    Attributes:
        checkpoint: the checkpoint.
        reasons: why it does not belong; empty if it does.
        norm: of its weights; None if it could not be read, like all that follows.
        cosine: to the mean of all.
        worst_layer: the layer with the smallest cosine to the mean.
        worst_cosine: that cosine.
        to_mean: distance to the mean.
        step: distance to the checkpoint before it; None for the first.
        loss: on the evaluation data, if they were given.
        barrier: how much worse the midpoint to the next checkpoint is than the mean of both losses,
            negative if it is better; None without evaluation data, and for the last one.
    """

    checkpoint: Checkpoint
    reasons: tuple[str, ...] = ()
    norm: float | None = None
    cosine: float | None = None
    worst_layer: str | None = None
    worst_cosine: float | None = None
    to_mean: float | None = None
    step: float | None = None
    loss: float | None = None
    barrier: float | None = None

    @property
    def verdict(self) -> str:
        return LEAVE_OUT if self.reasons else KEEP


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """All diagnoses, in the order of training.

    Attributes:
        diagnoses: of each checkpoint.
        warnings: what is to be said of all of them.
    """

    diagnoses: tuple[Diagnosis, ...] = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def keep(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that belong together."""
        return tuple(d.checkpoint for d in self.diagnoses if d.verdict == KEEP)


def doctor(
    sources: Sources,
    *,
    model: "keras.Model | str | Path | None" = None,
    data: Any = None,
    eval_data: Any = None,
    steps: int | None = None,
    bn_mode: str = "batch",
    mixed_precision: bool = False,
    progress: Progress | None = None,
) -> DoctorReport:
    """Examines checkpoints before they are averaged.

    One pass reads all of them side by side and finds: files that cannot be read, are damaged or of
    another model; NaN and infinity; duplicates; norms and distances to the mean unlike those of
    the others (beyond 6 robust standard deviations: 1.4826 times the median deviation from the
    median, at least 5 % of it for norms, 20 % for distances; from 4 checkpoints on). With a model
    and data to evaluate on, the loss in the middle between neighbours tells whether they lie in one
    basin: a midpoint worse than both by 10 % is a barrier (linear mode connectivity, Frankle et
    al., arXiv 1912.05671), and only the longest row without one is kept.

    Args:
        sources: checkpoints, as in `merge`, in the order of training.
        model: a compiled model, or its SPEC; it keeps the weights of the last midpoint.
        data: training inputs for BatchNorm passes, as in `update_batch_norm`.
        eval_data: `(x, y)`.
        steps: number of batches of `data` to see in each pass; all by default.
        bn_mode: the `mode` of `update_batch_norm`: `batch`, `population` or `cumulative`.
        mixed_precision: as in `update_batch_norm`; evaluations are not meant.
        progress: called with numbers of bytes as they have been read.

    Raises:
        RunError: there are no checkpoints, or none that can be read.
        SpecError: of model and evaluation data only one is given.
    """
    if (model is None) != (eval_data is None) or (data is not None and eval_data is None):
        raise SpecError("midpoints need both a model (--model) and data (--eval-data)")
    checkpoints = resolve(sources)
    diagnoses = {
        n: Diagnosis(checkpoint, reasons)
        for n, (checkpoint, reasons) in enumerate(
            zip(checkpoints, _unreadable(checkpoints), strict=True)
        )
    }
    readable = [n for n, found in diagnoses.items() if not found.reasons]
    if not readable:
        raise RunError(f"no checkpoint can be read: {diagnoses[0].reasons[0]}")
    judged = _judge(survey([checkpoints[n] for n in readable], progress))
    diagnoses.update(zip(readable, judged, strict=True))
    good = [n for n, found in diagnoses.items() if not found.reasons]
    if model is not None and len(good) > 1:
        from ckptavg.analysis.doctor.midpoints import measure_midpoints
        from ckptavg.models.specs import as_data, as_inputs, as_model

        model = as_model(model)
        measured = measure_midpoints(
            [checkpoints[n] for n in good],
            model,
            data=as_inputs(data, model=model),
            eval_data=as_data(eval_data, model=model),
            options=BatchNormOptions(steps=steps, bn_mode=bn_mode, mixed_precision=mixed_precision),
        )
        found = _with_barriers([diagnoses[n] for n in good], measured.losses, measured.midpoints)
        diagnoses.update(zip(good, found, strict=True))
    return DoctorReport(tuple(diagnoses.values()), _general(judged))


def outliers(values: Sequence[float] | np.ndarray, floor: float) -> np.ndarray:
    """How many robust standard deviations each value is from the median; 0 for few values.

    One is at least `floor` times the median.
    """
    array = np.asarray(values, np.float64)
    if len(array) < _FEWEST:
        return np.zeros(len(array))
    median = np.median(array)
    scale = max(1.4826 * np.median(np.abs(array - median)), floor * abs(median))
    return (array - median) / scale if scale > 0 else np.zeros(len(array))


def _unreadable(checkpoints: Sequence[Checkpoint]) -> list[tuple[str, ...]]:
    """Why each checkpoint cannot be examined with the others; nothing for those that can."""
    try:
        plan_sources(checkpoints, [1.0] * len(checkpoints))
    except CkptavgError:
        pass
    else:
        return [()] * len(checkpoints)
    sources: dict[int, SourcePlan] = {}
    reasons: list[tuple[str, ...]] = []
    for number, checkpoint in enumerate(checkpoints):
        same = next((c for c in checkpoints[:number] if _is_same_file(c, checkpoint)), None)
        try:
            (source,) = plan_sources([checkpoint], [1.0])
        except CkptavgError as error:
            reasons.append((str(error),))
            continue
        reasons.append(() if same is None else (f"is the same file as {same.path}",))
        if same is None:
            sources[number] = source
    usual = Counter(map(_tensors, sources.values())).most_common(1)
    model = next((s for s in sources.values() if _tensors(s) == usual[0][0]), None)
    for number, source in sources.items():
        try:
            check_same_model(model or source, source)
        except CkptavgError as error:
            reasons[number] = (str(error),)
    return reasons


def _tensors(source: SourcePlan) -> tuple[tuple[object, ...], ...]:
    tensors = source.structure.model_tensors
    return tuple(sorted((name, t.shape, t.dtype) for name, t in tensors.items()))


def _is_same_file(one: Checkpoint, other: Checkpoint) -> bool:
    try:
        return main_file(one.path).samefile(main_file(other.path))
    except OSError:
        return False


def _judge(found: Survey) -> list[Diagnosis]:
    """What a survey says of each checkpoint, held against the mean of those that are sound."""
    geometry = found.geometry
    sound = np.array(
        [a is None and b is None for a, b in zip(found.not_finite, found.damaged, strict=True)]
    )
    counted = sound if sound.any() else np.ones(len(sound), bool)
    mean = {_MEAN: (counted / counted.sum()).tolist()}
    distances = geometry.distances(averages=mean).values[:-1, -1]
    cosines = _to_mean(geometry, None, mean)
    by_layer = np.array([_to_mean(geometry, layer, mean) for layer in geometry.layers])
    norms, steps = geometry.norms().values, geometry.step_sizes().values
    by_norm = _among(sound, norms, _NORM_FLOOR)
    by_distance = _among(sound, distances, _DISTANCE_FLOOR)
    first: dict[bytes, Path] = {}
    judged = []
    for n, checkpoint in enumerate(geometry.checkpoints):
        reasons = []
        if found.damaged[n] is not None:
            reasons.append(f"is damaged: '{found.damaged[n]}' is not what was saved")
        if found.not_finite[n] is not None:
            reasons.append(f"holds NaN or infinity in '{found.not_finite[n]}'")
        origin = first.setdefault(found.contents[n], checkpoint.path)
        if origin != checkpoint.path:
            reasons.append(f"is a duplicate of {origin}")
        if abs(by_norm[n]) > _FACTOR:
            kind = "larger" if by_norm[n] > 0 else "smaller"
            reasons.append(f"norm {norms[n]:.4g} is much {kind} than the others'")
        if by_distance[n] > _FACTOR:
            times = distances[n] / np.median(distances[sound])
            reasons.append(f"lies {times:.3g} times as far from the mean as the others")
        worst = int(np.argmin(by_layer[:, n]))
        judged.append(
            Diagnosis(
                checkpoint,
                tuple(reasons),
                norm=float(norms[n]),
                cosine=float(cosines[n]),
                worst_layer=geometry.layers[worst],
                worst_cosine=float(by_layer[worst, n]),
                to_mean=float(distances[n]),
                step=float(steps[n]) if n else None,
            )
        )
    return judged


def _to_mean(
    geometry: Geometry, layer: str | None, mean: Mapping[str, Sequence[float]]
) -> np.ndarray:
    """Cosines of the checkpoints to the mean; 1 where one of both is 0, which has no direction."""
    found = geometry.cosines(layer, mean).values[:-1, -1]
    return np.where(np.isnan(found), 1.0, found)


def _among(sound: np.ndarray, values: np.ndarray, floor: float) -> np.ndarray:
    """Outliers among sound checkpoints; the others count as usual."""
    result = np.zeros(len(values))
    result[sound] = outliers(values[sound], floor)
    return result


def _general(judged: Sequence[Diagnosis]) -> tuple[str, ...]:
    """Warnings that concern all checkpoints."""
    cosine = float(np.median([d.cosine for d in judged if d.cosine is not None]))
    if len(judged) < 2 or cosine >= _UNRELATED:
        return ()
    return (
        f"the checkpoints have little in common (cosine to the mean {cosine:.2f}): they come from "
        "different trainings, or from one that moved far",
    )


def _with_barriers(
    diagnoses: Sequence[Diagnosis], losses: Sequence[float], midpoints: Sequence[float]
) -> list[Diagnosis]:
    """Diagnoses with losses and barriers; what is beyond a barrier does not belong."""
    rows: list[list[int]] = [[0]]
    found = []
    for n, (diagnosis, loss) in enumerate(zip(diagnoses, losses, strict=True)):
        barrier = None
        if n < len(midpoints):
            barrier = midpoints[n] - (loss + losses[n + 1]) / 2
            worse = max(loss, losses[n + 1])
            if midpoints[n] > worse + _BARRIER * abs(worse):
                rows.append([])
            rows[-1].append(n + 1)
        found.append(replace(diagnosis, loss=loss, barrier=barrier))
    longest = max(reversed(rows), key=len)
    ends = found[longest[0]].checkpoint.path.name, found[longest[-1]].checkpoint.path.name
    reason = f"a barrier of the loss lies between it and {ends[0]} to {ends[1]}: another basin"
    return [
        diagnosis if n in longest else replace(diagnosis, reasons=(*diagnosis.reasons, reason))
        for n, diagnosis in enumerate(found)
    ]
