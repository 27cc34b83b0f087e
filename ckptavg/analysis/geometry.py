"""Where checkpoints lie to each other: algebra on inner products of their deviations."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ckptavg.checkpoints import Checkpoint


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """Inner products of checkpoints, layer by layer, from which lengths and angles follow.

    They are of deviations from the plain mean of all checkpoints, so that the distance of
    neighbours is no difference of two large squares. Lengths and distances are Euclidean over the
    numbers that the weights are ("parameter units"). Statistics of BatchNorm are no weights.

    Attributes:
        checkpoints: in their order.
        labels: of the checkpoints: epochs where all are known, else names of files.
        positions: of the checkpoints in training: steps, else epochs, else their order from 1.
        position_unit: `step`, `epoch` or `checkpoint`.
        layers: names; a layer's tensors are those of one folder.
        parameters: number of weights of each layer.
        gram: (layers, K, K) float64: inner products of the deviations.
        along: (layers, K) float64: inner products of the deviations with the mean.
        mean_squares: (layers,) float64: squared norm of the mean.
        averages: coefficients of averages by name, each with sum 1.
        left_out: names of tensors that were not counted.
    """

    checkpoints: tuple[Checkpoint, ...] = field(repr=False)
    labels: tuple[str, ...]
    positions: tuple[float, ...] = field(repr=False)
    position_unit: str
    layers: tuple[str, ...] = field(repr=False)
    parameters: tuple[int, ...] = field(repr=False)
    gram: np.ndarray = field(repr=False)
    along: np.ndarray = field(repr=False)
    mean_squares: np.ndarray = field(repr=False)
    averages: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = field(default=(), repr=False)
