"""The corners of a line or plane in the space of weights, and the points that they span."""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckptavg.errors import MismatchError, RecipeError
from ckptavg.merging.exact_mean import PIECE, round_once
from ckptavg.merging.plan import MergePlan, plan_average
from ckptavg.merging.tensor_rules import AVERAGE, DROP, EQUAL, PlanItem
from ckptavg.merging.weighting import Weighted, weigh
from ckptavg.recipes import COEFFICIENTS, UNIFORM, Recipe, uniform
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.record import digest
from ckptavg.runs.run import CHECKPOINT_FOLDER
from ckptavg.runs.sources import Sources, stem
from ckptavg.search.row_store import make_rows
from ckptavg.search.window_sums import Tensor, weighted_mean

Corner = Sources | tuple[Sources, Sequence[float] | Recipe]
"""A checkpoint, or several for their plain mean; or checkpoints with coefficients or a recipe."""

Vector = Sequence[float]
"""Coefficients, with sum 1; they may be negative."""


@dataclass(frozen=True, slots=True)
class CornerPlan:
    """What corners are made of.

    Attributes:
        labels: their names, each another one.
        vectors: coefficients of each over all checkpoints.
        plan: of the checkpoints' plain mean.
    """

    labels: tuple[str, ...]
    vectors: tuple[Vector, ...]
    plan: MergePlan

    @property
    def run_folder(self) -> Path | None:
        """Of the first run that a checkpoint belongs to; None if none does."""
        folders = (source.path.parent for source in self.plan.sources if source.record)
        return next((f.parent for f in folders if f.name == CHECKPOINT_FOLDER), None)

    def read(self, *, folder: Path, max_memory: int) -> "Corners":
        """Reads all corners, each checkpoint once for every corner that it belongs to.

        Args:
            folder: where weights go that do not fit into memory, in a file without a name.
            max_memory: bytes that they may take in memory.

        Raises:
            CkptavgError: as `merge` does.
        """
        corners = Corners(self.plan, len(self.vectors), folder=folder, max_memory=max_memory)
        try:
            for number, vector in enumerate(self.vectors):
                corners.fill(number, weighted_mean(self.plan, vector))
        except BaseException:
            corners.close()
            raise
        return corners


def plan_corners(corners: Sequence[Corner], labels: Sequence[str] | None = None) -> CornerPlan:
    """Opens the checkpoints of all corners and holds them against each other.

    Args:
        corners: of one model.
        labels: what to call them; by default their epochs or files, or what they are means of.

    Raises:
        RecipeError: labels are not as many as corners, or not each another one.
        CkptavgError: as `merge` does.
    """
    weighted = [_weighted(corner) for corner in corners]
    numbers: dict[str, int] = {}
    checkpoints: list[Checkpoint] = []
    shares: list[dict[int, float]] = []
    for found in weighted:
        shares.append({})
        for checkpoint, share in zip(found.checkpoints, found.coefficients, strict=True):
            number = numbers.setdefault(os.path.realpath(checkpoint.path), len(numbers))
            if number == len(checkpoints):
                checkpoints.append(checkpoint)
            shares[-1][number] = shares[-1].get(number, 0.0) + share
    count = len(checkpoints)
    return CornerPlan(
        _labels(weighted, labels),
        tuple(tuple(share.get(n, 0.0) for n in range(count)) for share in shares),
        plan_average(checkpoints, Path(), recipe=UNIFORM, coefficients=uniform(count)),
    )


class Corners:
    """The weights of some corners in float64, as a merge would give each of them.

    A point is their sum by coefficients, rounded once. What has no mean is that of the first.

    Attributes:
        contents: of each corner, a digest of all that has a mean.
    """

    contents: list[str]

    def __init__(self, plan: MergePlan, count: int, *, folder: Path, max_memory: int) -> None:
        """Makes room for corners; arguments are those of `CornerPlan.read`."""
        self._items = {i.tensor.name: i for i in plan.items if i.action != DROP}
        self._places: dict[str, int] = {}
        length = 0
        for name, item in self._items.items():
            if item.action == AVERAGE:
                self._places[name] = length
                length += _size(item)
        self._rows = make_rows(count, length, folder=folder, max_memory=max_memory)
        self._count = count
        self.contents = []
        self._copies: dict[str, np.ndarray] = {}

    def fill(self, corner: int, tensors: Iterator[Tensor]) -> None:
        """Takes in a corner, the first one first.

        Raises:
            MismatchError: integers or texts differ from those of the first.
        """
        digests = {}
        for name, values in tensors:
            item = self._items[name]
            if name in self._places:
                digests[name] = _digest(values)
                self._rows.write(corner, self._places[name], values.reshape(-1).astype(np.float64))
            elif corner == 0:
                self._copies[name] = values
            elif item.action == EQUAL and _digest(values) != _digest(self._copies[name]):
                raise MismatchError(
                    f"'{name}' ({item.tensor.dtype}) differs between the corners: "
                    "values of this type have no mean, so all checkpoints must agree"
                )
        self.contents.append(_digest_of_all(digests))

    @property
    def rest(self) -> str:
        """A digest of what has no mean."""
        return _digest_of_all({name: _digest(values) for name, values in self._copies.items()})

    def products(self, left_out: Collection[str]) -> np.ndarray:
        """Inner products of the ways from the first corner to the others.

        Args:
            left_out: stored names of tensors that do not count.

        Returns:
            (corners - 1, corners - 1) float64.
        """
        found = np.zeros((self._count - 1, self._count - 1))
        for name in (name for name in self._places if name not in left_out):
            for _, rows in self._pieces(name):
                ways = np.stack(rows[1:]) - rows[0]
                found += ways @ ways.T
        return found

    def point(self, coefficients: Vector) -> Iterator[Tensor]:
        """All tensors of a point; numbers beyond their dtype become infinite."""
        for name, item in self._items.items():
            if name not in self._places:
                yield name, self._copies[name]
                continue
            values = np.empty(_size(item), item.tensor.numpy_dtype)
            for piece, rows in self._pieces(name):
                terms = (c * row for c, row in zip(coefficients, rows, strict=True) if c != 0.0)
                with np.errstate(over="ignore", invalid="ignore"):
                    values[piece] = round_once(sum(terms), values.dtype)
            yield name, values.reshape(item.tensor.shape)

    def close(self) -> None:
        """Gives the place of the weights back."""
        self._rows.close()

    def _pieces(self, name: str) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """Pieces of a tensor, with their numbers in all corners."""
        size = _size(self._items[name])
        for start in range(0, size, PIECE):
            count, place = min(PIECE, size - start), self._places[name] + start
            rows = [self._rows.read(row, place, count) for row in range(self._count)]
            yield slice(start, start + count), rows


def _digest(values: np.ndarray) -> str:
    return digest(values.tobytes()).hex()


def _digest_of_all(digests: Mapping[str, str]) -> str:
    """One digest of all tensors, in whatever order they were stored."""
    return digest(json.dumps(sorted(digests.items())).encode()).hex()


def _size(item: PlanItem) -> int:
    return item.tensor.nbytes // item.tensor.numpy_dtype.itemsize


def _weighted(corner: Corner) -> Weighted:
    if isinstance(corner, tuple) and len(corner) == 2:
        sources, share = corner
        if isinstance(share, Recipe):
            return weigh(sources, share)
        if isinstance(share, Sequence | np.ndarray) and all(
            isinstance(c, int | float | np.number) for c in share
        ):
            return weigh(sources, coefficients=share)
    return weigh(corner)


def _labels(weighted: Sequence[Weighted], labels: Sequence[str] | None) -> tuple[str, ...]:
    found = tuple(map(_label, weighted)) if labels is None else tuple(labels)
    if len(found) != len(weighted):
        raise RecipeError(f"there are {len(found)} labels for {len(weighted)} corners")
    if len(set(found)) == len(found):
        return found
    if labels is not None:
        raise RecipeError(f"labels must differ, but are {', '.join(found)}")
    return tuple(f"{label} ({number})" for number, label in enumerate(found, 1))


def _label(weighted: Weighted) -> str:
    if len(weighted.checkpoints) > 1:
        recipe = {UNIFORM: "mean", COEFFICIENTS: "average"}.get(weighted.recipe, weighted.recipe)
        return f"{recipe} of {len(weighted.checkpoints)}"
    (checkpoint,) = weighted.checkpoints
    return stem(checkpoint.path) if checkpoint.epoch is None else f"epoch {checkpoint.epoch}"
