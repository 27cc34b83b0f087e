"""How far the moving statistics of BatchNorm layers differ between two checkpoints."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ckptavg.analysis.average import Average
from ckptavg.analysis.tables import Column, frame
from ckptavg.errors import FormatError, IntegrityError
from ckptavg.formats.layers import moving_statistics
from ckptavg.merging.exact_mean import PIECE
from ckptavg.merging.lockstep import read_side_by_side
from ckptavg.merging.plan import MergePlan, plan_mean
from ckptavg.merging.tensor_rules import PlanItem
from ckptavg.merging.worker import not_finite
from ckptavg.runs.checkpoint import Checkpoint

if TYPE_CHECKING:
    import pandas as pd

MEAN_UNIT = "standard deviations"
VARIANCE_UNIT = "log ratio"

_EPSILON = 1e-3
"""What Keras' BatchNormalization adds to variances by default."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BatchNormShift:
    """How far the statistics of each channel moved from one checkpoint to another.

    Attributes:
        layers: names of the BatchNorm layers.
        means: for each layer (channels,) float64: (mean after - mean before) / deviation, where the
            deviation is sqrt(variance after + epsilon), which the layer divides by.
        variances: for each layer (channels,) float64: the natural logarithm of (variance after +
            epsilon) / (variance before + epsilon).
        before: label of the first checkpoint.
        after: label of the second.
        epsilon: what was added to variances.
    """

    layers: tuple[str, ...]
    means: tuple[np.ndarray, ...]
    variances: tuple[np.ndarray, ...]
    before: str
    after: str
    epsilon: float

    def __repr__(self) -> str:
        mean, variance = (
            max(float(np.abs(values).max()) for values in found)
            for found in (self.means, self.variances)
        )
        return (
            f"BatchNormShift from {self.before} to {self.after}, {len(self.layers)} layers\n"
            f"  means moved by up to {mean:.3g} {MEAN_UNIT}\n"
            f"  variances moved by up to {variance:.3g} ({VARIANCE_UNIT})"
        )

    def by_layer(self) -> "pd.DataFrame":
        """A row for each layer: the root mean square over its channels, and the largest.

        Columns: `mean_shift`, `variance_log_ratio`, `worst_mean_shift`,
        `worst_variance_log_ratio`; `attrs["units"]` has their units.
        """
        columns: dict[str, Column] = {}
        units: dict[str, str] = {}
        for name, unit, found in (
            ("mean_shift", MEAN_UNIT, self.means),
            ("variance_log_ratio", VARIANCE_UNIT, self.variances),
        ):
            columns[name] = [np.sqrt(np.mean(np.square(values))) for values in found]
            columns[f"worst_{name}"] = [np.abs(values).max() for values in found]
            units |= {name: unit, f"worst_{name}": unit}
        attrs = {"units": units, "before": self.before, "after": self.after}
        return frame(columns, attrs, index=self.layers)

    def to_frame(self) -> "pd.DataFrame":
        """A row for each channel of each layer; `attrs["units"]` has units by column.

        Columns: `layer`, `channel` (from 0), `mean_shift`, `variance_log_ratio`.
        """
        sizes = [len(means) for means in self.means]
        columns: dict[str, Column] = {
            "layer": [n for n, size in zip(self.layers, sizes, strict=True) for _ in range(size)],
            "channel": [channel for size in sizes for channel in range(size)],
            "mean_shift": np.concatenate(self.means),
            "variance_log_ratio": np.concatenate(self.variances),
        }
        units = {"mean_shift": MEAN_UNIT, "variance_log_ratio": VARIANCE_UNIT}
        attrs = {"units": units, "before": self.before, "after": self.after}
        return frame(columns, attrs)


def batch_norm_shift(
    before: str | Path | Checkpoint, after: str | Path | Checkpoint, *, epsilon: float = _EPSILON
) -> BatchNormShift:
    """Measures how far BatchNorm statistics moved between two checkpoints of one model.

    This is of interest for an average, whose statistics were averaged like weights, and the same
    average after a BatchNorm pass. Statistics are recognized by the records of both checkpoints, by
    their own names, and by the names of their layers.

    Args:
        before: a checkpoint.
        after: another one; shifts of means are measured in its standard deviations.
        epsilon: what the layers add to variances; the default of Keras is 0.001.

    Returns:
        Shifts by layer and channel.

    Raises:
        RunError: a file is missing.
        FormatError: a file is not a checkpoint, or no BatchNorm statistics are found in it.
        MismatchError: the checkpoints belong to different models, or are the same file.
        IntegrityError: a file differs from its record, or its statistics hold NaN or infinity.

    Example:
        >>> shift = ckptavg.analysis.batch_norm_shift("mean.weights.h5", "refreshed.weights.h5")
        >>> shift.by_layer().sort_values("mean_shift")
    """
    checkpoints = [c if isinstance(c, Checkpoint) else Checkpoint.open(c) for c in (before, after)]
    return _shift(checkpoints, (1.0,), checkpoints[0].path.name, epsilon)


def shift_of_pass(average: Average) -> BatchNormShift:
    """How far a BatchNorm pass moved the statistics of an average from the mean of its sources'.

    Raises:
        CkptavgError: as `batch_norm_shift` does, also for the sources.
    """
    before = "the mean of its sources"
    return _shift([*average.open_sources(), average], average.coefficients, before, _EPSILON)


def mean_statistics(average: Average) -> dict[str, np.ndarray]:
    """What the mean of its sources has as moving statistics, by stored name, (values,) float64.

    Raises:
        CkptavgError: as `batch_norm_shift` does.
    """
    plan = plan_mean(average.open_sources())
    found = _read(plan, {name for names in statistics_in(plan).values() for name in names})
    return {name: np.asarray(average.coefficients) @ rows for name, rows in found.items()}


def _shift(
    checkpoints: Sequence[Checkpoint], coefficients: Sequence[float], before: str, epsilon: float
) -> BatchNormShift:
    """The shift from the average of all checkpoints but the last one to the last one."""
    plan = plan_mean(checkpoints)
    # Mean and variance come first; renorm keeps three further statistics.
    layers = {layer: names[:2] for layer, names in statistics_in(plan).items() if len(names) > 1}
    if not layers:
        raise FormatError(
            f"no moving statistics of BatchNorm layers found in {plan.sources[-1].path}: neither "
            "its record nor the names of its tensors show any"
        )
    values = _read(plan, {name for names in layers.values() for name in names})
    means, variances = [], []
    for names in layers.values():
        mean, variance = (values[name] for name in names)
        if (variance < 0).any():
            number = int(np.argmax((variance < 0).any(axis=1)))
            raise IntegrityError(
                f"'{names[1]}' in {plan.sources[number].path} is a variance, but has values below 0"
            )
        first_mean, first_variance = (np.asarray(coefficients) @ v[:-1] for v in (mean, variance))
        means.append((mean[-1] - first_mean) / np.sqrt(variance[-1] + epsilon))
        variances.append(np.log((variance[-1] + epsilon) / (first_variance + epsilon)))
    return BatchNormShift(
        layers=tuple(layers),
        means=tuple(means),
        variances=tuple(variances),
        before=before,
        after=checkpoints[-1].path.name,
        epsilon=epsilon,
    )


def statistics_in(plan: MergePlan) -> dict[str, tuple[str, ...]]:
    """Stored names of moving statistics in the checkpoints of a plan, by layer.

    What one of the records lists holds for all, as they belong to one model.
    """
    states = [source.record.batch_norm for source in plan.sources if source.record is not None]
    # What a saver saw in the model, and what a pass changed.
    known = {name for s in states if s is not None for name in (*s.moving, *s.tensors)}
    return moving_statistics(plan.sources[-1].structure, known)


def _read(plan: MergePlan, names: Collection[str]) -> dict[str, np.ndarray]:
    """Tensors by name, (checkpoints, values) float64 each."""
    items = [item for item in plan.items if item.tensor.name in names]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for found in read_side_by_side(plan, items, _collected, piece=PIECE):
        found.check_intact(plan.sources)  # first, because damage may look like NaN
        name = found.item.tensor.name
        if found.measured is None:
            continue
        for source, values in zip(plan.sources, found.measured, strict=True):
            if not np.isfinite(values).all():
                raise not_finite(source.path, name, values)
        parts[name].append(found.measured)
    return {name: np.concatenate(values, axis=1) for name, values in parts.items()}


def _collected(_: PlanItem, pieces: Iterator[np.ndarray]) -> np.ndarray:
    """(checkpoints, values) of a block, which is small, as a layer has few channels."""
    # Copies, because the next piece is read into the same memory.
    return np.concatenate([values.copy() for values in pieces], axis=1)
