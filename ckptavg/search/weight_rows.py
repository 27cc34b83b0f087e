"""Rows of a model's weights in float64: sums of checkpoints, or the corners of a loss surface."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np

from ckptavg.merging.engine import stream
from ckptavg.merging.exact_mean import PIECE, WeightedMean, round_once
from ckptavg.merging.plan import MergePlan
from ckptavg.merging.tensor_rules import AVERAGE, DROP, EQUAL, PlanItem, disagreement
from ckptavg.merging.worker import Write
from ckptavg.search.row_store import RowStore

Tensor = tuple[str, np.ndarray]
"""Stored name and values."""


class WeightRows:
    """Rows of weights of one model, combined with coefficients and rounded once.

    A sum of float32 values is exact in float64 as long as those of one place differ in magnitude
    by less than 2^29 / K, and so is the difference of two sums: the mean of a window of checkpoints
    is then the mean that a merge writes, to the bit. Sums of float64 tensors keep their rounding
    errors in a second number beside each value.

    See docs/decisions/0038-window-means-are-differences-of-sums.md and
    docs/decisions/0057-loss-surfaces-are-coefficients-over-corners.md

    Attributes:
        plan: the plain mean of all checkpoints.
        on_disk: whether the rows are in a file, because they do not fit into memory.
    """

    def __init__(self, plan: MergePlan, count: int, *, folder: Path, max_memory: int) -> None:
        """Makes room for rows; reads no checkpoint.

        Args:
            plan: the plain mean of all checkpoints.
            count: number of rows.
            folder: where the file goes that holds rows which do not fit into memory. It has no
                name there, so nothing is left of it, however the process ends.
            max_memory: bytes that the rows may take in memory.
        """
        self.plan = plan
        self._items = {i.tensor.name: i for i in plan.items if i.action != DROP}
        self._places: dict[str, int] = {}
        length = 0
        for name, item in self._items.items():
            if item.action == AVERAGE:
                self._places[name] = length
                length += _size(item) * (2 if _is_double(item) else 1)
        self._rows = RowStore(count, length, folder=folder, max_memory=max_memory)
        self.on_disk = self._rows.on_disk
        self._copies: dict[int, dict[str, bytes]] = {}
        self._equal: dict[str, tuple[bytes, Path]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Stored names of the tensors that have a mean."""
        return tuple(self._places)

    def add(self, coefficients: Mapping[int, float], *, into: int, to: int | None = None) -> None:
        """Makes a row the sum of another one and an average, as a merge rounds it.

        Every checkpoint of the average is read and verified once.

        Args:
            coefficients: of the average, by the number of the checkpoint in the plan.
            into: the row that is written.
            to: the row that the average is added to; None for nothing.

        Raises:
            IntegrityError: a checkpoint differs from its record, or holds NaN or infinity.
            MismatchError: integers or texts differ from those of an earlier checkpoint.
        """
        copies = {
            name: bytearray(item.tensor.nbytes)
            for name, item in self._items.items()
            if item.action != AVERAGE
        }

        def take(name: str, start: int, data: memoryview) -> None:
            item = self._items[name]
            if item.action == AVERAGE:
                values = np.frombuffer(data, item.tensor.numpy_dtype)
                self._add(item, start // values.itemsize, values, to, into)
            else:
                copies[name][start : start + len(data)] = data

        _stream(self.plan, coefficients, take)
        path = self.plan.sources[next(iter(coefficients))].path
        self._copies[into] = {
            name: self._agreed(name, bytes(d), path) for name, d in copies.items()
        }

    def combine(self, coefficients: Mapping[int, float], divisor: float = 1.0) -> Iterator[Tensor]:
        """All tensors of a sum of rows, rounded once; numbers beyond their dtype become infinite.

        Args:
            coefficients: by row; what has no mean is as in the first of them.
            divisor: of the sum.
        """
        exact = WeightedMean()
        first = next(iter(coefficients))
        chosen = {row: c for row, c in coefficients.items() if c != 0.0}
        for name, item in self._items.items():
            dtype = item.tensor.numpy_dtype
            if item.action != AVERAGE:
                values = np.frombuffer(self._copies[first][name], dtype)
                yield name, values.reshape(item.tensor.shape)
                continue
            values = np.empty(_size(item), dtype)
            for piece, rows in self.pieces(name, chosen):
                with np.errstate(over="ignore", invalid="ignore"):
                    if _is_double(item):
                        errors = self._read(chosen, self._places[name] + len(values), piece)
                        for row, error, c in zip(rows, errors, chosen.values(), strict=True):
                            exact.add(row, c)
                            exact.add(error, c)
                        values[piece] = exact.result(divisor, keep_equal=False)
                        continue
                    terms = [
                        row if c == 1.0 else c * row
                        for row, c in zip(rows, chosen.values(), strict=True)
                    ]
                    values[piece] = round_once(reduce(np.add, terms) / divisor, dtype)
            yield name, values.reshape(item.tensor.shape)

    def pieces(self, name: str, rows: Iterable[int]) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """Pieces of a tensor that has a mean: their places in it, and their numbers in each row."""
        size = _size(self._items[name])
        for start in range(0, size, PIECE):
            piece = slice(start, min(start + PIECE, size))
            yield piece, self._read(rows, self._places[name], piece)

    def close(self) -> None:
        """Frees the memory or the file of the rows."""
        self._rows.close()

    def _read(self, rows: Iterable[int], place: int, piece: slice) -> list[np.ndarray]:
        count = piece.stop - piece.start
        return [self._rows.read(row, place + piece.start, count) for row in rows]

    def _add(
        self, item: PlanItem, start: int, values: np.ndarray, to: int | None, into: int
    ) -> None:
        place, total = self._places[item.tensor.name] + start, values.astype(np.float64)
        if to is not None:
            before = self._rows.read(to, place, len(values))
            total = before + total
        self._rows.write(into, place, total)
        if not _is_double(item):
            return
        place += _size(item)
        error = np.zeros(len(values))
        if to is not None:
            part = total - before  # Knuth's TwoSum
            error = (before - (total - part)) + (values - part)
            error += self._rows.read(to, place, len(values))
        self._rows.write(into, place, error)

    def _agreed(self, name: str, data: bytes, path: Path) -> bytes:
        """Values without a mean, of which all rows share one copy where they must agree."""
        if self._items[name].action != EQUAL:
            return data
        first, origin = self._equal.setdefault(name, (data, path))
        if first != data:
            raise disagreement(self._items[name].tensor, origin, path)
        return first


def weighted_mean(plan: MergePlan, coefficients: Sequence[float]) -> Iterator[Tensor]:
    """The mean of a plan's checkpoints with these coefficients, in memory.

    Checkpoints whose coefficient is 0 are not read.
    """
    items = {item.tensor.name: item for item in plan.items if item.action != DROP}
    found = {name: bytearray(item.tensor.nbytes) for name, item in items.items()}

    def take(name: str, start: int, data: memoryview) -> None:
        found[name][start : start + len(data)] = data

    _stream(plan, {n: c for n, c in enumerate(coefficients) if c != 0.0}, take)
    for name, item in items.items():
        values = np.frombuffer(found.pop(name), item.tensor.numpy_dtype)
        yield name, values.reshape(item.tensor.shape)


def _stream(plan: MergePlan, coefficients: Mapping[int, float], take: Write) -> None:
    """Streams the average of some of a plan's checkpoints, by their numbers, piece by piece."""
    sources = tuple(replace(plan.sources[n], coefficient=c) for n, c in coefficients.items())
    # Every file has its tensors at places of its own, and items are those of the last source.
    tensors = sources[-1].structure.tensors
    items = (i for i in plan.items if i.action != DROP)
    chosen = replace(
        plan,
        sources=sources,
        items=tuple(replace(item, tensor=tensors[item.tensor.name]) for item in items),
    )
    stream(chosen, take, lambda *_: None)


def _size(item: PlanItem) -> int:
    return item.tensor.nbytes // item.tensor.numpy_dtype.itemsize


def _is_double(item: PlanItem) -> bool:
    return item.tensor.dtype == "float64"
