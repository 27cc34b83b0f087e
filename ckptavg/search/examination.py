"""One pass over checkpoints side by side: how large they are, where they lie, what is wrong."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from ckptavg.accumulate import PIECE
from ckptavg.checkpoints import Checkpoint
from ckptavg.formats import CheckpointReader
from ckptavg.merging import check_unchanged, open_sources
from ckptavg.plan import MergePlan, plan_average
from ckptavg.recipes import UNIFORM, uniform
from ckptavg.rules import AVERAGE, DROP, PlanItem
from ckptavg.tensors import Region, regions

_MEMORY = 64 * 1024 * 1024
"""Bytes of the pieces of all checkpoints that are held side by side."""

Progress = Callable[[int], None]


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
    layers = list(dict.fromkeys(_layer(i.tensor.name) for i in items if i.action == AVERAGE))
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
    with ExitStack() as stack, np.errstate(all="ignore"):
        readers = open_sources(plan, stack)
        for item in items:
            number = numbers.get(_layer(item.tensor.name)) if item.action == AVERAGE else None
            for region in regions(item.tensor.nbytes):
                partial = [xxhash.xxh3_128() for _ in range(count)]
                for stacked in _pieces(plan, readers, item, region, partial):
                    if number is not None:
                        _take(found, number, item, stacked)
                _check(plan, found, item, region, [p.digest() for p in partial], whole)
                if progress is not None:
                    progress(region.nbytes * count)
        check_unchanged(plan, readers)
    found.contents = [hasher.digest() for hasher in whole]
    return found


def _pieces(
    plan: MergePlan,
    readers: Sequence[CheckpointReader],
    item: PlanItem,
    region: Region,
    partial: Sequence[xxhash.xxh3_128],
) -> Iterator[np.ndarray]:
    """A region of all checkpoints, piece by piece, checkpoints x values; digests come along."""
    dtype = item.tensor.numpy_dtype
    step = max(1, min(PIECE, _MEMORY // (8 * len(readers)))) * dtype.itemsize
    buffer = bytearray(min(step, region.nbytes))
    for start in range(0, region.nbytes, step):
        view = memoryview(buffer)[: min(step, region.nbytes - start)]
        rows = []
        for source, reader, hasher in zip(plan.sources, readers, partial, strict=True):
            stored = source.structure.tensors[item.tensor.name]
            reader.read_into(stored, region.start + start, view)
            hasher.update(view)
            if item.action == AVERAGE:
                rows.append(np.frombuffer(view, dtype).astype(np.float64))
        yield np.array(rows)


def _take(found: Examination, layer: int, item: PlanItem, values: np.ndarray) -> None:
    """Adds a piece to all sums."""
    finite = np.isfinite(values)
    for index in np.flatnonzero(~finite.all(axis=1)):
        found.not_finite[index] = found.not_finite[index] or item.tensor.name
    values = np.where(finite, values, 0.0)
    good = [name is None for name in found.not_finite]
    mean = values[good].mean(axis=0) if any(good) else values.mean(axis=0)
    found.squares[layer] += np.einsum("kn,kn->k", values, values)
    found.products[layer] += values @ mean
    found.mean_squares[layer] += mean @ mean
    steps = np.diff(values, axis=0)
    found.steps[1:] += np.einsum("kn,kn->k", steps, steps)
    values -= mean
    found.to_mean += np.einsum("kn,kn->k", values, values)


def _check(
    plan: MergePlan,
    found: Examination,
    item: PlanItem,
    region: Region,
    digests: Sequence[bytes],
    whole: Sequence[xxhash.xxh3_128],
) -> None:
    """Holds a region against the records."""
    for index, (source, part, hasher) in enumerate(zip(plan.sources, digests, whole, strict=True)):
        hasher.update(part)
        if source.proof is not None and not source.proof.holds(item.tensor.name, region, part):
            found.damaged[index] = found.damaged[index] or item.tensor.name


def _layer(name: str) -> str:
    return name.rpartition("/vars/")[0] or name.rpartition("/")[0] or name


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.ones_like(above), where=below > 0)
