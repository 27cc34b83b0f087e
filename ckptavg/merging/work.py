"""The work of a merge, divided into units, which are independent of each other.

A unit is one or several spans, a span one or several segments, a segment one block of one tensor.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ckptavg.formats import Structure
from ckptavg.formats.tensors import BLOCK_SIZE, Block, Extent, blocks, count_blocks
from ckptavg.merging.tensor_rules import AVERAGE, DROP, PlanItem

_GAP_LIMIT = 4096
"""Bytes between two small tensors that are read along rather than skipped."""

_SEGMENTS_LIMIT = 512
"""Segments of a span at most: their digests are held at once for all sources."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One block of one tensor.

    Attributes:
        item: the tensor and what becomes of it.
        block: the block.
        number: number of the block among all blocks of the merge, in the order of the plan.
    """

    item: PlanItem
    block: Block
    number: int


@dataclass(frozen=True, slots=True)
class Span:
    """Segments that lie in a row in the files: one block, or many small tensors.

    Small tensors of one dtype are read together with the few bytes between them, and the sum runs
    over all of it: what it gives for the bytes between them is thrown away. See
    docs/decisions/0022-small-tensors-are-read-in-spans.md.

    Attributes:
        segments: in the order of their bytes.
        offsets: where each begins, counted from the first byte of the span.
        nbytes: length of the span.
        extent: the span in every source; None for one segment, which may lie elsewhere in each.
    """

    segments: tuple[Segment, ...]
    offsets: tuple[int, ...]
    nbytes: int
    extent: Extent | None = None

    @property
    def item(self) -> PlanItem:
        """The first tensor; dtype and action are those of all tensors in the span."""
        return self.segments[0].item

    @property
    def start(self) -> int:
        """The first byte of the span, counted from the first byte of the first tensor."""
        return self.segments[0].block.start

    def parts(self, start: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
        """The segments that a range of the span touches: index, first byte, byte after the last.

        Bytes are counted from the beginning of the range.
        """
        for index, (segment, offset) in enumerate(zip(self.segments, self.offsets, strict=True)):
            first = max(offset - start, 0)
            last = min(offset + segment.block.nbytes - start, nbytes)
            if first < last:
                yield index, first, last


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Spans that one thread reads, averages and writes before its results are noted.

    Attributes:
        number: number of the unit in the merge.
        spans: of about one block together.
    """

    number: int
    spans: tuple[Span, ...]

    @property
    def segments(self) -> list[Segment]:
        """The segments of all spans, in order."""
        return [segment for span in self.spans for segment in span.segments]


def total_blocks(items: Iterable[PlanItem]) -> int:
    """How many blocks the tensors that are not dropped have."""
    return sum(count_blocks(item.tensor.nbytes) for item in items if item.action != DROP)


def divide(items: Sequence[PlanItem], structures: Iterable[Structure]) -> list[WorkUnit]:
    """Divides a merge into units of about one block each, in the order of the files' bytes.

    The division depends on the plan alone, not on threads or memory, so that a journal of units
    stays valid whatever these are.

    Args:
        items: of the plan.
        structures: of the sources; tensors share spans only if all sources have one structure.
    """
    # Disks and the read-ahead of the system are fastest in the order of the bytes.
    segments = sorted(_segments(items), key=_place)
    # Equal structures are one object: see `plan_sources`.
    shared = len({id(structure) for structure in structures}) == 1
    groups: list[list[Span]] = []
    nbytes = BLOCK_SIZE
    for span in _spans(segments, shared):
        if nbytes >= BLOCK_SIZE:
            groups.append([])
            nbytes = 0
        groups[-1].append(span)
        nbytes += span.nbytes
    return [WorkUnit(number, tuple(spans)) for number, spans in enumerate(groups)]


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


def _spans(segments: Iterable[Segment], shared: bool) -> Iterator[Span]:
    rows: list[list[Segment]] = []
    for segment in segments:
        if not (rows and shared and _continues(rows[-1], segment)):
            rows.append([])
        rows[-1].append(segment)
    return map(_span, rows)


def _continues(row: Sequence[Segment], segment: Segment) -> bool:
    """Whether a segment can be read along with those before it."""
    (first, last), tensor = (row[0].item.tensor, row[-1].item.tensor), segment.item.tensor
    if not (first.extent and tensor.extent and last.extent):
        return False
    same = (
        row[0].item.action == segment.item.action == AVERAGE
        and first.dtype == tensor.dtype
        and row[0].item.converted == segment.item.converted
        and first.extent.file == tensor.extent.file
        and max(first.nbytes, tensor.nbytes) < BLOCK_SIZE
    )
    distance = tensor.extent.offset - first.extent.offset
    gap = tensor.extent.offset - last.extent.offset - last.nbytes
    # The whole span is summed as one array, of which each tensor must be whole elements.
    aligned = distance % tensor.numpy_dtype.itemsize == 0
    short = len(row) < _SEGMENTS_LIMIT and distance + tensor.nbytes <= BLOCK_SIZE
    return same and aligned and gap <= _GAP_LIMIT and short


def _span(row: Sequence[Segment]) -> Span:
    extents = [extent for s in row if (extent := s.item.tensor.extent) is not None]
    if len(row) == 1:
        return Span(tuple(row), (0,), row[0].block.nbytes)
    begin, end = extents[0], extents[-1]
    nbytes = end.offset + end.nbytes - begin.offset
    offsets = tuple(extent.offset - begin.offset for extent in extents)
    return Span(tuple(row), offsets, nbytes, Extent(begin.offset, nbytes, begin.file))
