"""The doctor: which checkpoints should be left out of an average, and why."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ckptavg.analysis.geometry.geometry import Geometry
from ckptavg.analysis.geometry.measure import Survey, survey
from ckptavg.analysis.geometry.path import Drift, find_drift
from ckptavg.errors import CkptavgError, RunError
from ckptavg.formats.tensorflow.paths import main_file
from ckptavg.merging.plan import plan_mean
from ckptavg.merging.planned_sources import SourcePlan, check_same_model, plan_sources
from ckptavg.merging.tensor_rules import EQUAL, LAST
from ckptavg.merging.worker import Advance
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import describe_epochs
from ckptavg.runs.selection import training_order
from ckptavg.runs.sources import Sources, resolve
from ckptavg.search.weight_rows import weighted_mean

if TYPE_CHECKING:
    from ckptavg.search.judge import Judge

KEEP, LEAVE_OUT = "keep", "leave out"

_FEWEST = 4
"""The fewest checkpoints among which one can be unlike the others."""
_FACTOR = 6.0
"""Robust standard deviations beyond which a value is an outlier."""
_NORM_FLOOR, _DISTANCE_FLOOR = 0.05, 0.2
"""Least standard deviation of norms, and of distances to the mean, as fractions of the median:
values that nearly agree have no outliers.
See docs/decisions/0043-outliers-by-robust-deviations.md"""
_BARRIER = 0.1
"""How much worse than both neighbours a midpoint may be, as a fraction of the worse one."""
_UNRELATED = 0.5
"""Cosine to the mean below which checkpoints have little in common."""
_MEAN = "\0mean"
"""Label of the mean of sound checkpoints; no file, and so no checkpoint, can be called so."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found out about a checkpoint.

    Weights do not include the moving statistics of BatchNorm layers; lengths are Euclidean.

    Attributes:
        checkpoint: the checkpoint.
        reasons: why it should be left out; empty if it should be kept.
        norm: of its weights. None, like all that follows, if it could not be read.
        cosine: to the mean of the checkpoints that are neither damaged nor NaN or infinite.
        worst_layer: the layer with the smallest cosine to the mean.
        worst_cosine: that cosine.
        to_mean: distance to the mean.
        step: distance to the previous checkpoint; None for the first.
        loss: on the evaluation data, if there are any.
        barrier: loss at the midpoint to the next checkpoint minus the mean of both losses, so
            negative if the midpoint is better; None for the last one.
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
        """`keep` or `leave out`."""
        return LEAVE_OUT if self.reasons else KEEP


@dataclass(frozen=True, slots=True, repr=False)
class DoctorReport:
    """The diagnoses of all checkpoints.

    Attributes:
        diagnoses: of each checkpoint, in the order of training.
        warnings: what concerns all of them.
        window: of those to keep, the ones at the end that stay about one place, if the training
            was on its way before; empty if it was not, or if no 4 do.
        non_float: `last` if a merge needs `non_float="last"`, because integers or strings differ.
    """

    diagnoses: tuple[Diagnosis, ...]
    warnings: tuple[str, ...] = ()
    window: tuple[Checkpoint, ...] = ()
    non_float: str = EQUAL

    @property
    def keep(self) -> tuple[Checkpoint, ...]:
        """The checkpoints to average."""
        return tuple(d.checkpoint for d in self.diagnoses if d.verdict == KEEP)

    def __repr__(self) -> str:
        lines = [f"DoctorReport: keep {len(self.keep)} of {len(self.diagnoses)} checkpoints"]
        lines += [
            f"  leave out {d.checkpoint.path.name}: {reason}"
            for d in self.diagnoses
            for reason in d.reasons
        ]
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])


def diagnose(
    sources: Sources,
    *,
    judge: "Judge | None" = None,
    non_float: str = EQUAL,
    progress: Advance | None = None,
) -> DoctorReport:
    """Finds checkpoints that should be left out of an average; see `ckptavg.doctor`.

    Args:
        sources: checkpoints, as in `merge`, in the order of training.
        judge: evaluates midpoints; without one, there are no barriers.
        non_float: as in `merge`.
        progress: called with the number of bytes read since the last call.

    Raises:
        RunError: there are no checkpoints, or none that can be read.
    """
    checkpoints = resolve(sources)
    diagnoses = list(map(Diagnosis, checkpoints, _unreadable(checkpoints)))
    readable = [d.checkpoint for d in diagnoses if not d.reasons]
    if not readable:
        raise RunError(f"no checkpoint can be read: {diagnoses[0].reasons[0]}")
    found = survey(readable, progress, non_float=non_float)
    judged = _judge(found)
    diagnoses = _replaced(diagnoses, judged)
    good = [d for d in diagnoses if not d.reasons]
    if judge is not None and len(good) > 1:
        # Where integers differ, midpoints take the last one's, and a warning says so.
        rule = LAST if found.differing else non_float
        diagnoses = _replaced(diagnoses, _with_barriers(good, judge, rule))
    kept = [d.checkpoint for d in diagnoses if not d.reasons]
    drift = _drift(found.geometry, kept)
    warnings = [*_general(judged), *_of_differing(found)]
    warnings += [] if drift is None else [_told(drift, kept)]
    window = tuple(kept[len(kept) - drift.window :]) if drift is not None else ()
    return DoctorReport(
        tuple(diagnoses), tuple(warnings), window, LAST if found.differing else non_float
    )


def _replaced(diagnoses: Sequence[Diagnosis], better: Sequence[Diagnosis]) -> list[Diagnosis]:
    """Diagnoses in which those without reasons are replaced, in order, by others."""
    others = iter(better)
    return [found if found.reasons else next(others) for found in diagnoses]


def outliers(values: Sequence[float] | np.ndarray, floor: float) -> np.ndarray:
    """How many robust standard deviations each value is from the median; 0 for few values.

    A standard deviation is at least `floor` times the median.
    """
    array = np.asarray(values, np.float64)
    if len(array) < _FEWEST:
        return np.zeros(len(array))
    median = np.median(array)
    scale = max(1.4826 * np.median(np.abs(array - median)), floor * abs(median))
    return (array - median) / scale if scale > 0 else np.zeros(len(array))


def _unreadable(checkpoints: Sequence[Checkpoint]) -> list[tuple[str, ...]]:
    """Why each checkpoint cannot be measured with the others; no reason for those that can."""
    try:
        # The usual case: all are readable, and one plan for all is the cheapest.
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
    usual = Counter(map(_tensors, sources.values())).most_common(1)[0][0] if sources else ()
    for number, source in sources.items():
        try:
            # The model is that of most checkpoints: a first one of another model is the odd one.
            check_same_model(next(s for s in sources.values() if _tensors(s) == usual), source)
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
    sound = np.array([not any(_broken(found, n)) for n in range(len(geometry.checkpoints))])
    # Without any sound checkpoint, all of them are the measure.
    counted = sound if sound.any() else np.ones(len(sound), bool)
    mean = {_MEAN: (counted / counted.sum()).tolist()}
    distances = geometry.distances(averages=mean).values[:-1, -1]
    cosines = _to_mean(geometry, None, mean)
    by_layer = np.array([_to_mean(geometry, layer, mean) for layer in geometry.layers])
    norms, steps = geometry.norms().values, geometry.step_sizes().values
    by_norm, by_distance = np.zeros(len(sound)), np.zeros(len(sound))
    # Those that are not sound have a reason already, and would hide other outliers.
    by_norm[sound] = outliers(norms[sound], _NORM_FLOOR)
    by_distance[sound] = outliers(distances[sound], _DISTANCE_FLOOR)
    first: dict[bytes, Path] = {}
    judged = []
    for n, checkpoint in enumerate(geometry.checkpoints):
        reasons = list(_broken(found, n))
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


def _broken(found: Survey, number: int) -> Iterator[str]:
    """Why a checkpoint cannot be held against others."""
    if found.damaged[number] is not None:
        yield f"is damaged: '{found.damaged[number]}' is not what was saved"
    if found.not_finite[number] is not None:
        yield f"holds NaN or infinity in '{found.not_finite[number]}'"


def _to_mean(
    geometry: Geometry, layer: str | None, mean: Mapping[str, Sequence[float]]
) -> np.ndarray:
    """Cosines of the checkpoints to the mean; 1 where one of both is 0, which has no direction."""
    found = geometry.cosines(layer, mean).values[:-1, -1]
    return np.where(np.isnan(found), 1.0, found)


def _general(judged: Sequence[Diagnosis]) -> tuple[str, ...]:
    """Warnings that concern all checkpoints."""
    cosine = np.median([d.cosine for d in judged if d.cosine is not None])
    if len(judged) < 2 or cosine >= _UNRELATED:
        return ()
    return (
        f"the checkpoints have little in common (cosine to the mean {cosine:.2f}): they come from "
        "different trainings, or from one that moved far",
    )


def _of_differing(found: Survey) -> tuple[str, ...]:
    if not found.differing:
        return ()
    first, *others = found.differing
    which = f"'{first}' differs"
    if others:
        which = f"'{first}' and {len(others)} other tensor{'s' * (len(others) > 1)} differ"
    return (
        f"{which} between the checkpoints, but integers and strings have no mean: a merge needs "
        "--non-float last (in Python non_float='last')",
    )


def _drift(geometry: Geometry, kept: Sequence[Checkpoint]) -> Drift | None:
    """The drift of those to keep; None if they stay about one place, or if their order is unknown.

    Files of several trainings have no path.
    """
    order = training_order(kept)
    if order is None or list(order) != sorted(set(order)):
        return None
    places = [geometry.checkpoints.index(checkpoint) for checkpoint in kept]
    distances = geometry.distances(averages={}).values[np.ix_(places, places)]
    return find_drift(distances, geometry.norms().values[places])


def _told(drift: Drift, kept: Sequence[Checkpoint]) -> str:
    first, last = drift.norms
    advice = (
        "no 4 checkpoints at the end stay about one place: train longer at a constant or cyclic "
        "learning rate, or average fewer"
    )
    if drift.window:
        window = describe_epochs(kept[-drift.window :])
        advice = f"average the last {drift.window}, which stay about one place ({window})"
    return (
        f"the training was still on its way: {drift.straightness:.0%} of the path through the "
        f"checkpoints is displacement, and the norm of the weights goes from {first:.4g} to "
        f"{last:.4g}. The mean of all lies behind the last checkpoint: {advice}"
    )


def _with_barriers(
    diagnoses: Sequence[Diagnosis], judge: "Judge", non_float: str
) -> list[Diagnosis]:
    """Diagnoses with losses and barriers; all but the longest sequence without one is left out.

    Checkpoints are evaluated like midpoints, after a BatchNorm pass if there are data for it, so
    that losses differ by the weights only.
    """
    count = len(diagnoses)
    plan = plan_mean([diagnosis.checkpoint for diagnosis in diagnoses], non_float=non_float)

    def loss(*numbers: int) -> float:
        coefficients = [1 / len(numbers) if n in numbers else 0.0 for n in range(count)]
        return judge.score(weighted_mean(plan, coefficients)).metrics["loss"]

    losses = [loss(n) for n in range(count)]
    basins = [[0]]
    barriers: list[float | None] = []
    for n, (one, other) in enumerate(pairwise(losses)):
        midpoint, worse = loss(n, n + 1), max(one, other)
        barriers.append(midpoint - (one + other) / 2)
        if midpoint > worse + _BARRIER * abs(worse):
            basins.append([])
        basins[-1].append(n + 1)
    longest = max(reversed(basins), key=len)  # of equally long ones the last
    first, last = (diagnoses[longest[end]].checkpoint.path.name for end in (0, -1))
    reason = f"a barrier of the loss lies between it and {first} to {last}: another basin"
    return [
        replace(
            diagnosis,
            loss=losses[n],
            barrier=barrier,
            reasons=diagnosis.reasons if n in longest else (*diagnosis.reasons, reason),
        )
        for n, (diagnosis, barrier) in enumerate(zip(diagnoses, [*barriers, None], strict=True))
    ]
