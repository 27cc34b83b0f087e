"""The work of a merge, divided: groups of strips that are read, averaged and written as a whole."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ckptavg.formats import Structure
from ckptavg.formats.tensors import BLOCK_SIZE, Block, Extent, blocks, count_blocks
from ckptavg.merging.tensor_rules import AVERAGE, DROP, PlanItem

_GAP_LIMIT = 4096
"""Bytes between two small tensors that are read along rather than skipped."""


_SEGMENTS_LIMIT = 512
"""Segments of a strip, whose digests are held at once for all sources."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One block of one tensor.

    Attributes:
        item: the tensor and what becomes of it.
        block: the block.
        number: of the block among all blocks of the merge, in the order of the plan.
    """

    item: PlanItem
    block: Block
    number: int


@dataclass(frozen=True, slots=True)
class Strip:
    """Segments that lie in one row in the files: one block, or many small tensors.

    Small tensors of one dtype are read together with the few bytes between them, and the sum
    runs over all of it: what it gives between them is thrown away.

    Attributes:
        segments: in the order of their bytes.
        offsets: where each begins, counted from the strip's first byte.
        nbytes: length of the strip.
        extent: the strip in every source; None for one segment, which may lie elsewhere in each.
    """

    segments: tuple[Segment, ...]
    offsets: tuple[int, ...]
    nbytes: int
    extent: Extent | None = None

    def parts(self, start: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
        """The segments that a range of the strip touches: index, first and last byte of the range.

        Bytes are counted from the beginning of the range.
        """
        for index, (segment, offset) in enumerate(zip(self.segments, self.offsets, strict=True)):
            first = max(offset - start, 0)
            last = min(offset + segment.block.nbytes - start, nbytes)
            if first < last:
                yield index, first, last


def total_blocks(items: Iterable[PlanItem]) -> int:
    """How many blocks the tensors that are not dropped have."""
    return sum(count_blocks(item.tensor.nbytes) for item in items if item.action != DROP)


def divide(items: Sequence[PlanItem], structures: Iterable[Structure]) -> list[list[Strip]]:
    """Divides a merge into groups of about one block each, in the order of the files' bytes.

    The division depends on the plan alone, not on threads or memory.

    Args:
        items: of the plan.
        structures: of the sources; tensors share strips only if all sources have one structure.
    """
    segments = list(_segments(items))
    segments.sort(key=_place)
    shared = len({id(structure) for structure in structures}) == 1
    groups: list[list[Strip]] = []
    nbytes = BLOCK_SIZE
    for strip in _strips(segments, shared):
        if nbytes >= BLOCK_SIZE:
            groups.append([])
            nbytes = 0
        groups[-1].append(strip)
        nbytes += strip.nbytes
    return groups


def _segments(items: Iterable[PlanItem]) -> Iterator[Segment]:
    number = 0
    for item in items:
        if item.action != DROP:
            for block in blocks(item.tensor.nbytes):
                yield Segment(item, block, number)
                number += 1


def _place(segment: Segment) -> tuple[int, int]:
    extent = segment.item.tensor.extent
    return (extent.file, extent.offset + segment.block.start) if extent else (-1, segment.number)


def _strips(segments: Iterable[Segment], shared: bool) -> Iterator[Strip]:
    row: list[Segment] = []
    for segment in segments:
        if row and not (shared and _continues(row, segment)):
            yield _strip(row)
            row = []
        row.append(segment)
    if row:
        yield _strip(row)


def _continues(row: Sequence[Segment], segment: Segment) -> bool:
    """Whether a segment can be read along with those before it."""
    (first, last), tensor = (row[0].item.tensor, row[-1].item.tensor), segment.item.tensor
    if not (first.extent and tensor.extent and last.extent):
        return False
    same = (
        row[0].item.action == segment.item.action == AVERAGE
        and first.dtype == tensor.dtype
        and first.extent.file == tensor.extent.file
        and max(first.nbytes, tensor.nbytes) < BLOCK_SIZE
    )
    distance = tensor.extent.offset - first.extent.offset
    gap = tensor.extent.offset - last.extent.offset - last.nbytes
    aligned = distance % tensor.numpy_dtype.itemsize == 0
    short = len(row) < _SEGMENTS_LIMIT and distance + tensor.nbytes <= BLOCK_SIZE
    return same and aligned and gap <= _GAP_LIMIT and short


def _strip(row: Sequence[Segment]) -> Strip:
    if len(row) == 1:
        return Strip(tuple(row), (0,), row[0].block.nbytes)
    begin, end = row[0].item.tensor.extent, row[-1].item.tensor.extent
    offsets = tuple(segment.item.tensor.extent.offset - begin.offset for segment in row)
    nbytes = end.offset + end.nbytes - begin.offset
    return Strip(tuple(row), offsets, nbytes, Extent(begin.offset, nbytes, begin.file))
