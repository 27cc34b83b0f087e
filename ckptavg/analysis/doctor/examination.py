"""One pass over checkpoints side by side: how large they are, where they lie, what is wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from ckptavg.formats.layers import layer_of
from ckptavg.merging.exact_mean import PIECE
from ckptavg.merging.lockstep import read_side_by_side
from ckptavg.merging.plan import plan_average
from ckptavg.merging.tensor_rules import AVERAGE, DROP, PlanItem
from ckptavg.merging.worker import Progress
from ckptavg.recipes.recipe import UNIFORM, uniform
from ckptavg.runs.checkpoint import Checkpoint

_MEMORY = 64 * 1024 * 1024
"""Bytes of the pieces of all checkpoints that are held side by side."""


@dataclass
class Examination:
    """What one pass finds; every array has a place for each checkpoint.

    Attributes:
        layers: names; a layer's tensors are those of one folder.
        squares: layers x checkpoints: squared norm of the weights.
        products: layers x checkpoints: inner product with the mean.
        mean_squares: layers: squared norm of the mean.
        to_mean: squared distance to the mean.
        steps: squared distance to the checkpoint before; 0 for the first.
        not_finite: name of the first tensor that holds NaN or infinity; None if none does.
        damaged: name of the first tensor that is not what the record says; None if none is.
        contents: a digest of all tensors.
    """

    layers: list[str]
    squares: np.ndarray
    products: np.ndarray
    mean_squares: np.ndarray
    to_mean: np.ndarray
    steps: np.ndarray
    not_finite: list[str | None]
    damaged: list[str | None]
    contents: list[bytes] = field(default_factory=list)

    @property
    def norms(self) -> np.ndarray:
        """Of all weights."""
        return np.sqrt(self.squares.sum(axis=0))

    @property
    def cosines(self) -> np.ndarray:
        """Of all weights to the mean."""
        below = self.norms * np.sqrt(self.mean_squares.sum())
        return _divided(self.products.sum(axis=0), below)

    @property
    def layer_cosines(self) -> np.ndarray:
        """Layers x checkpoints: of a layer's weights to those of the mean; 1 where both are 0."""
        return _divided(self.products, np.sqrt(self.squares * self.mean_squares[:, None]))


def examine(checkpoints: Sequence[Checkpoint], progress: Progress | None = None) -> Examination:
    """Reads checkpoints of one model once, side by side, in fixed memory.

    Values that are NaN or infinite count as 0, and their checkpoint is named; so does one that is
    not what its record says.

    Args:
        checkpoints: those that can be read and have the same tensors.
        progress: called with numbers of bytes as they have been read.

    Raises:
        CkptavgError: as `merge` does, before anything is read.
    """
    count = len(checkpoints)
    plan = plan_average(checkpoints, Path(), recipe=UNIFORM, coefficients=uniform(count))
    items = [item for item in plan.items if item.action != DROP]
    layers = list(dict.fromkeys(layer_of(i.tensor.name) for i in items if i.action == AVERAGE))
    numbers = {name: number for number, name in enumerate(layers)}
    shape = len(layers), count
    found = Examination(
        layers,
        np.zeros(shape),
        np.zeros(shape),
        np.zeros(len(layers)),
        np.zeros(count),
        np.zeros(count),
        [None] * count,
        [None] * count,
    )
    whole = [xxhash.xxh3_128() for _ in range(count)]

    def take(item: PlanItem, pieces: Iterator[np.ndarray]) -> None:
        for values in pieces:
            _take(found, numbers[layer_of(item.tensor.name)], item, values)

    piece = max(1, min(PIECE, _MEMORY // (8 * count)))
    for region in read_side_by_side(plan, items, take, piece=piece, progress=progress):
        name = region.item.tensor.name
        for index in region.damaged:
            found.damaged[index] = found.damaged[index] or name
        for hasher, digest in zip(whole, region.digests, strict=True):
            hasher.update(digest)
    found.contents = [hasher.digest() for hasher in whole]
    return found


def _take(found: Examination, layer: int, item: PlanItem, values: np.ndarray) -> None:
    """Adds a piece to all sums."""
    finite = np.isfinite(values)
    for index in np.flatnonzero(~finite.all(axis=1)):
        found.not_finite[index] = found.not_finite[index] or item.tensor.name
    values = np.where(finite, values, 0.0)
    good = [name is None for name in found.not_finite]
    mean = values[good].mean(axis=0) if any(good) else values.mean(axis=0)
    found.squares[layer] += np.einsum("kn,kn->k", values, values)
    # einsum, because BLAS would start threads of its own for as little as this.
    found.products[layer] += np.einsum("kn,n->k", values, mean)
    found.mean_squares[layer] += np.einsum("n,n->", mean, mean)
    steps = np.diff(values, axis=0)
    found.steps[1:] += np.einsum("kn,kn->k", steps, steps)
    values -= mean
    found.to_mean += np.einsum("kn,kn->k", values, values)


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.ones_like(above), where=below > 0)
