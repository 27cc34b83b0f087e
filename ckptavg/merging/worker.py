"""Averages the spans of a unit in one thread, and checks all that it reads against the records."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ckptavg.errors import IntegrityError
from ckptavg.formats import CheckpointReader
from ckptavg.formats.tensors import TensorInfo, all_finite
from ckptavg.merging.digests import SpanDigests, UnitDigests
from ckptavg.merging.exact_mean import PIECE, Terms, WeightedMean
from ckptavg.merging.plan import COPY, MergePlan
from ckptavg.merging.tensor_rules import AVERAGE, disagreement
from ckptavg.merging.work import Segment, Span, WorkUnit
from ckptavg.runs.digest import digest
from ckptavg.runs.proof import Checksums, read_block

Advance = Callable[[int], None]
"""Called with the work done since the last call: bytes read (from any thread) or candidates
evaluated."""

Write = Callable[[str, int, memoryview], None]
"""Called with bytes of a tensor: its name, the place of the first byte in it, the bytes."""

BUFFER = PIECE * 4
"""Bytes of the buffer of one thread."""


class Worker:
    """Averages spans with the buffers of one thread."""

    def __init__(
        self,
        plan: MergePlan,
        readers: Sequence[CheckpointReader],
        checksums: Sequence[Checksums | None],
        write: Write,
        progress: Advance,
    ) -> None:
        self._plan = plan
        self._readers = readers
        self._checksums = checksums
        self._write = write
        self._progress = progress
        self._terms = Terms.of(plan.coefficients)
        self._sources_read = plan.sources_read
        self._buffer = memoryview(bytearray(BUFFER))
        self._mean = WeightedMean()

    def expect(self, unit: WorkUnit) -> None:
        """Lets the system read ahead what will be needed soon."""
        for span in unit.spans:
            for index in self._sources_read[span.item.action]:
                extent = self._stored(index, span).extent
                if extent is not None:
                    ahead = replace(extent, offset=extent.offset + span.start, nbytes=span.nbytes)
                    self._readers[index].expect(ahead)

    def run(self, unit: WorkUnit) -> UnitDigests:
        """Averages a unit, and gives the digests of what was written and read.

        Raises:
            IntegrityError: what was read is not what was saved, or not finite.
            MismatchError: values that have no mean differ between checkpoints.
        """
        # What overflows or is invalid is found in the results, and reported by name.
        with np.errstate(all="ignore"):
            return [found for span in unit.spans for found in self._run(span)]

    def _run(self, span: Span) -> Iterator[bytes]:
        """Writes the segments of a span, and gives their digests as `UnitDigests` holds them."""
        item = span.item
        average, dtype, written_as = item.action == AVERAGE, *item.dtypes
        sizes = [segment.block.nbytes for segment in span.segments]
        written = SpanDigests([item.in_output(size) for size in sizes])
        read = {
            index: SpanDigests(sizes, self._checksums[index] is not None)
            for index in self._sources_read[item.action]
        }
        # A piece fits into the buffer of bytes and into those of the sum, whatever the dtype.
        step = min(PIECE * dtype.itemsize, BUFFER // dtype.itemsize * dtype.itemsize)
        for start in range(0, span.nbytes, step):
            nbytes = min(step, span.nbytes - start)
            parts = list(span.parts(start, nbytes))
            pieces = self._read(span, start, nbytes, parts, read)
            result = self._average(pieces, item.dtypes) if average else self._copy(pieces, span)
            for index, first, last in parts:
                segment = span.segments[index]
                values = result[item.in_output(first) : item.in_output(last)]
                place = segment.block.start + start + first - span.offsets[index]
                # Bytes between the tensors are summed along, but they may look like NaN.
                if average and not all_finite(np.frombuffer(values, written_as)):
                    self._explain_not_finite(segment, place, values, read)
                written.update(index, values)
                self._write(segment.item.tensor.name, item.in_output(place), values)
            self._progress(sum(last - first for _, first, last in parts) * len(read))
        for index, digests in read.items():
            self._check(index, span, digests)
        rows = zip(*(digests.finish() for digests in (written, *read.values())), strict=True)
        return map(b"".join, rows)

    def _read(
        self,
        span: Span,
        start: int,
        nbytes: int,
        parts: Sequence[tuple[int, int, int]],
        read: Mapping[int, SpanDigests],
    ) -> Iterator[tuple[int, memoryview]]:
        """A piece of a span from each source; each is valid until the next one."""
        data = self._buffer[:nbytes]
        for index, digests in read.items():
            self._readers[index].read_into(self._stored(index, span), span.start + start, data)
            for part, first, last in parts:
                digests.update(part, data[first:last])
            yield index, data

    def _average(
        self, pieces: Iterable[tuple[int, memoryview]], dtypes: tuple[np.dtype, np.dtype]
    ) -> memoryview:
        stored, written = dtypes
        for index, data in pieces:
            self._mean.add(np.frombuffer(data, stored), self._terms.factors[index])
        result = self._mean.result(
            self._terms.divisor, keep_equal=self._terms.normalized, dtype=written
        )
        return result.view(np.uint8).data

    def _copy(self, pieces: Iterable[tuple[int, memoryview]], span: Span) -> memoryview:
        (segment,) = span.segments
        origin, first = -1, b""
        for index, data in pieces:
            if origin < 0:
                origin, first = index, bytes(data)
            # Damage first: a flipped bit is not a disagreement of checkpoints.
            elif first != data:
                self._check_damage(origin, segment)
                self._check_damage(index, segment)
                paths = self._readers[origin].path, self._readers[index].path
                raise disagreement(segment.item.tensor, *paths)
        return memoryview(first)

    def _check(self, index: int, span: Span, found: SpanDigests) -> None:
        """Compares what was read of a source with its record, or with its format's checksums."""
        source, checksums = self._plan.sources[index], self._checksums[index]
        if source.proof is not None:
            for segment, value in zip(span.segments, found.finish(), strict=True):
                source.proof.check(source.path, segment.item.tensor, segment.block, value)
        elif checksums is not None:
            for segment, crc in zip(span.segments, found.checksums, strict=True):
                tensor = source.structure.tensors[segment.item.tensor.name]
                checksums.add(tensor, segment.block, crc)

    def _stored(self, index: int, span: Span) -> TensorInfo:
        """What is read from a source for a span: a tensor, or many as if they were one."""
        tensor = self._plan.sources[index].structure.tensors[span.item.tensor.name]
        return tensor if span.extent is None else replace(tensor, extent=span.extent)

    def _check_damage(self, index: int, segment: Segment) -> None:
        source, name = self._plan.sources[index], segment.item.tensor.name
        if source.proof is not None:
            stored = source.structure.tensors[name]
            found = digest(read_block(self._readers[index], stored, segment.block))
            source.proof.check(source.path, stored, segment.block, found)

    def _explain_not_finite(
        self, segment: Segment, start: int, result: memoryview, chosen: Iterable[int]
    ) -> None:
        """Raises the error that names the cause: damage first, because it may look like NaN.

        None for a copy in another dtype that is not finite only where the checkpoint is not.
        """
        tensor, written = segment.item.tensor, segment.item.output
        found = np.frombuffer(result, written.numpy_dtype).astype(np.float64)
        nbytes = len(found) * tensor.numpy_dtype.itemsize
        for index in chosen:
            source = self._plan.sources[index]
            data = bytearray(nbytes)
            stored = source.structure.tensors[tensor.name]
            self._readers[index].read_into(stored, start, memoryview(data))
            values = np.frombuffer(data, tensor.numpy_dtype).astype(np.float64)
            if np.isfinite(values).all():
                continue
            self._check_damage(index, segment)
            if self._plan.recipe == COPY:
                if np.array_equal(np.isfinite(values), np.isfinite(found)):
                    return
                continue
            raise not_finite(source.path, tensor.name, values)
        # Every source is finite, so it is the sum that left the range of the dtype.
        what = f"'{tensor.name}'" if self._plan.recipe == COPY else f"the mean of '{tensor.name}'"
        raise IntegrityError(f"{what} overflows {written.dtype}")


def not_finite(path: Path, name: str, values: np.ndarray) -> IntegrityError:
    """The error for a tensor with such values."""
    kind = "NaN" if np.isnan(values).any() else "infinity"
    return IntegrityError(f"'{name}' in {path} holds {kind}: leave this checkpoint out")
