"""Reads checkpoints of one model side by side: a piece of all of them at a time, each byte once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import xxhash

from ckptavg.formats import CheckpointReader
from ckptavg.formats.tensors import Block, blocks
from ckptavg.merging.ordered import run_in_order
from ckptavg.merging.plan import MergePlan
from ckptavg.merging.planned_sources import SourcePlan, open_sources
from ckptavg.merging.tensor_rules import AVERAGE, PlanItem
from ckptavg.merging.worker import Advance

T = TypeVar("T")

Measure = Callable[[PlanItem, Iterator[np.ndarray]], T]
"""Measures a block, given a tensor and, piece by piece, float64 values (checkpoints, values). It
may write to a piece, which is valid until the next one."""

AHEAD = 2
"""Finished blocks for each thread that may wait for those before them."""


@dataclass(frozen=True, slots=True)
class BlockRead(Generic[T]):
    """A block of a tensor that was read from all checkpoints.

    Attributes:
        item: the tensor and what an average makes of it.
        block: the block.
        measured: what `measure` returned; None where the tensor has no mean.
        digests: digests of its bytes in each checkpoint.
        damaged: numbers of the checkpoints whose records say that other bytes were saved.
    """

    item: PlanItem
    block: Block
    measured: T | None
    digests: tuple[bytes, ...]
    damaged: tuple[int, ...]

    def check_intact(self, sources: Sequence[SourcePlan]) -> None:
        """Refuses what is not as it was saved. Call it before looking for NaN, which damage may be.

        Args:
            sources: those of the plan that was read.

        Raises:
            IntegrityError: a checkpoint differs from its record; the message says where.
        """
        for number in self.damaged:
            source, digest = sources[number], self.digests[number]
            assert source.proof is not None, "without a proof nothing is known to be damaged"
            source.proof.check(source.path, self.item.tensor, self.block, digest)


def read_side_by_side(
    plan: MergePlan,
    items: Iterable[PlanItem],
    measure: Measure[T],
    *,
    piece: int,
    jobs: int = 1,
    progress: Advance | None = None,
) -> Iterator[BlockRead[T]]:
    """Reads tensors from all checkpoints of a plan, block by block.

    Args:
        plan: of an average of the checkpoints.
        items: of the plan, to be read.
        measure: called for each block of a tensor that has a mean; by several threads at once
            if there are several, else in order.
        piece: number of values of one checkpoint that are held at once, beside those of the others.
        jobs: number of threads.
        progress: called with the number of bytes read since the last call.

    Returns:
        Blocks in the order of the items, whatever the number of threads.

    Raises:
        IntegrityError: a checkpoint cannot be read, or changed meanwhile.
        ResourceError: there are more files than a process may open.
    """
    work = ((item, block) for item in items for block in blocks(item.tensor.nbytes))
    with ExitStack() as stack:
        readers = stack.enter_context(open_sources(plan.sources))
        workers = [_Worker(plan, readers, measure, piece) for _ in range(jobs)]

        def task(place: tuple[PlanItem, Block]) -> Callable[[_Worker[T]], BlockRead[T]]:
            return lambda worker: worker.run(*place)

        # One thread needs no queue: `measure` then runs in order in the thread of the caller.
        ahead = AHEAD * jobs - 1 if jobs > 1 else 0
        # Closed before the readers are: no thread reads from what is closed.
        results = stack.enter_context(closing(run_in_order(workers, map(task, work), ahead)))
        for found in results:
            yield found
            if progress is not None:
                progress(found.block.nbytes * len(readers))


class _Worker(Generic[T]):
    """Reads blocks with the buffers of one thread."""

    def __init__(
        self, plan: MergePlan, readers: Sequence[CheckpointReader], measure: Measure[T], piece: int
    ) -> None:
        self._sources = plan.sources
        self._readers = readers
        self._measure = measure
        self._piece = piece
        self._buffer = memoryview(bytearray(8 * max(piece, 2)))  # the widest number has 16 bytes
        self._values = np.empty(piece * len(readers))

    def run(self, item: PlanItem, block: Block) -> BlockRead[T]:
        hashers = [xxhash.xxh3_128() for _ in self._readers]
        pieces = self._pieces(item, block, hashers)
        # What overflows or is invalid is found in the results, and reported by name.
        with np.errstate(all="ignore"):
            measured = self._measure(item, pieces) if item.action == AVERAGE else None
            for _ in pieces:  # the digests are of all bytes
                pass
        digests = tuple(hasher.digest() for hasher in hashers)
        damaged = tuple(
            number
            for number, (source, digest) in enumerate(zip(self._sources, digests, strict=True))
            if source.proof is not None and not source.proof.holds(item.tensor.name, block, digest)
        )
        return BlockRead(item, block, measured, digests, damaged)

    def _pieces(
        self, item: PlanItem, block: Block, hashers: Sequence[xxhash.xxh3_128]
    ) -> Iterator[np.ndarray]:
        dtype, has_mean = item.tensor.numpy_dtype, item.action == AVERAGE
        stored = [source.structure.tensors[item.tensor.name] for source in self._sources]
        step = min(self._piece, len(self._buffer) // dtype.itemsize) * dtype.itemsize
        for start in range(0, block.nbytes, step):
            view = self._buffer[: min(step, block.nbytes - start)]
            count = len(view) // dtype.itemsize
            values = self._values[: len(stored) * count].reshape(len(stored), count)
            for number, (tensor, hasher) in enumerate(zip(stored, hashers, strict=True)):
                self._readers[number].read_into(tensor, block.start + start, view)
                hasher.update(view)
                if has_mean:
                    values[number] = np.frombuffer(view, dtype)
            yield values
