"""Sums of checkpoints in float64, from which the mean of any window is a difference away."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from ckptavg.errors import MismatchError
from ckptavg.merging.engine import divide_plan, stream
from ckptavg.merging.exact_mean import PIECE, WeightedMean, round_once
from ckptavg.merging.merge import check_unchanged, open_sources
from ckptavg.merging.plan import MergePlan, plan_average
from ckptavg.merging.tensor_rules import AVERAGE, DROP, EQUAL, PlanItem
from ckptavg.merging.worker import Progress
from ckptavg.recipes import UNIFORM, uniform
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.outputs import writing
from ckptavg.search.row_store import make_rows

Tensor = tuple[str, np.ndarray]
"""Stored name and values."""


class Sums:
    """Rows of sums of checkpoints of one model; row 0 is the empty sum.

    A sum of float32 values is exact in float64 as long as those of one place differ in magnitude
    by less than 2^29 / K, and so is the difference of two: the mean of a window is then that of a
    merge, to the bit. Sums of float64 tensors carry their rounding errors along.

    Attributes:
        plan: of the plain mean of all checkpoints.
        on_disk: whether the rows are in a file, because they do not fit into memory.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        *,
        rows: int,
        folder: Path,
        max_memory: int,
    ) -> None:
        """Finds out what the checkpoints hold; none is read yet.

        Args:
            checkpoints: of one model.
            rows: how many sums to hold, the empty one among them.
            folder: where the file goes that holds rows which do not fit into memory. It has no
                name there, so that nothing is left of it, however the process ends.
            max_memory: bytes that the rows may take.

        Raises:
            CkptavgError: as `merge` does.
        """
        self.plan = plan_average(
            checkpoints,
            folder,
            recipe=UNIFORM,
            coefficients=uniform(len(checkpoints)),
        )
        self._items = {i.tensor.name: i for i in self.plan.items if i.action != DROP}
        self._places: dict[str, int] = {}
        length = 0
        for name, item in self._items.items():
            if item.action == AVERAGE:
                self._places[name] = length
                length += _count(item) * (2 if _is_double(item) else 1)
        self._rows = make_rows(rows, length, folder=folder, max_memory=max_memory)
        self.on_disk = self._rows.on_disk
        self._copies: dict[int, dict[str, bytearray]] = {0: {}}
        self._equal: dict[str, tuple[bytes, Path]] = {}

    def add(self, checkpoint: int, *, to: int, into: int, progress: Progress | None = None) -> None:
        """Makes row `into` the sum of row `to` and a checkpoint, which is read and proven once.

        Raises:
            IntegrityError: the checkpoint differs from its record, or holds NaN or infinity.
            MismatchError: integers or texts differ from those of a checkpoint before.
        """
        plan = _of_some(self.plan, {checkpoint: 1.0})  # whose mean is itself
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

        with writing(plan.output), ExitStack() as stack:
            readers = open_sources(plan, stack)
            stream(plan, readers, divide_plan(plan), take, lambda *_: None, progress=progress)
            check_unchanged(plan, readers)
        self._check_equal(copies, plan.sources[0].path)
        self._copies[into] = copies

    def mean(self, upper: int, lower: int, count: int) -> Iterator[Tensor]:
        """The mean of the `count` checkpoints that row `upper` has and row `lower` has not.

        What has no mean is as in the checkpoint that was added to row `upper` last.
        """
        exact = WeightedMean()
        for name, item in self._items.items():
            tensor = item.tensor
            if item.action != AVERAGE:
                values = np.frombuffer(self._copies[upper][name], tensor.numpy_dtype)
                yield name, values.reshape(tensor.shape)
                continue
            size, dtype = _count(item), tensor.numpy_dtype
            found = np.empty(size, dtype)
            for start in range(0, size, PIECE):
                piece = slice(start, min(start + PIECE, size))
                above, below = (
                    self._rows.read(row, self._places[name] + piece.start, piece.stop - start)
                    for row in (upper, lower)
                )
                if not _is_double(item):
                    found[piece] = round_once((above - below) / count, dtype)
                    continue
                carries = (
                    self._rows.read(row, self._places[name] + size + start, piece.stop - start)
                    for row in (upper, lower)
                )
                for values, carry, sign in zip((above, below), carries, (1.0, -1.0), strict=True):
                    exact.add(values, sign)
                    exact.add(carry, sign)
                found[piece] = exact.result(float(count), keep_equal=False)
            yield name, found.reshape(tensor.shape)

    def close(self) -> None:
        self._rows.close()

    def _add(self, item: PlanItem, start: int, values: np.ndarray, to: int, into: int) -> None:
        place = self._places[item.tensor.name] + start
        before = self._rows.read(to, place, len(values))
        if not _is_double(item):
            self._rows.write(into, place, before + values)
            return
        carry_place = place + _count(item)
        carry = self._rows.read(to, carry_place, len(values))
        total = before + values
        part = total - before
        error = (before - (total - part)) + (values - part)  # Knuth's TwoSum
        self._rows.write(into, place, total)
        self._rows.write(into, carry_place, carry + error)

    def _check_equal(self, copies: dict[str, bytearray], path: Path) -> None:
        """Makes sure that what has no mean agrees, and holds it but once."""
        for name, data in copies.items():
            if self._items[name].action != EQUAL:
                continue
            first, origin = self._equal.setdefault(name, (bytes(data), path))
            if first != data:
                raise MismatchError(
                    f"'{name}' ({self._items[name].tensor.dtype}) differs between {origin} and "
                    f"{path}: values of this type have no mean, so all checkpoints must agree"
                )
            copies[name] = first


def weighted_mean(plan: MergePlan, coefficients: Sequence[float]) -> Iterator[Tensor]:
    """The mean of a plan's checkpoints with these coefficients, read afresh, in memory.

    Checkpoints whose coefficient is 0 are left out.
    """
    chosen = _of_some(plan, {n: c for n, c in enumerate(coefficients) if c != 0.0})
    items = {item.tensor.name: item for item in plan.items if item.action != DROP}
    found = {name: bytearray(item.tensor.nbytes) for name, item in items.items()}

    def take(name: str, start: int, data: memoryview) -> None:
        found[name][start : start + len(data)] = data

    with ExitStack() as stack:
        readers = open_sources(chosen, stack)
        stream(chosen, readers, divide_plan(chosen), take, lambda *_: None)
        check_unchanged(chosen, readers)
    for name, item in items.items():
        values = np.frombuffer(found.pop(name), item.tensor.numpy_dtype)
        yield name, values.reshape(item.tensor.shape)


def _of_some(plan: MergePlan, coefficients: Mapping[int, float]) -> MergePlan:
    """A plan of some of its checkpoints, by their numbers, with these coefficients.

    Tensors lie in each file at places of their own: the items are those of the last one, as in any
    plan.
    """
    sources = tuple(replace(plan.sources[n], coefficient=c) for n, c in coefficients.items())
    tensors = sources[-1].structure.tensors
    items = (i for i in plan.items if i.action != DROP)
    return replace(
        plan,
        sources=sources,
        items=tuple(replace(item, tensor=tensors[item.tensor.name]) for item in items),
    )


def _count(item: PlanItem) -> int:
    return item.tensor.nbytes // item.tensor.numpy_dtype.itemsize


def _is_double(item: PlanItem) -> bool:
    return item.tensor.dtype == "float64"
