"""The digests of a merge: of a span while it is read, of a unit of work, of the whole."""

from collections.abc import Callable, Iterator, Sequence

import xxhash

from ckptavg.formats.crc32c import crc32c
from ckptavg.formats.tensors import blocks
from ckptavg.merging.plan import MergePlan
from ckptavg.merging.tensor_rules import AVERAGE, DROP
from ckptavg.merging.work import Segment, WorkUnit, total_blocks
from ckptavg.runs.digest import DIGEST_SIZE, digest
from ckptavg.runs.record import TensorRecord


class SpanDigests:
    """Digests of the segments of a span, while their bytes are read or written in order.

    Attributes:
        checksums: CRC-32C of the segments, if they are wanted; else empty.
    """

    def __init__(self, sizes: Sequence[int], with_checksums: bool = False) -> None:
        """Begins with no bytes of any segment.

        Args:
            sizes: bytes of each segment.
            with_checksums: whether checksums are wanted.
        """
        self._sizes = sizes
        self._digests = [b""] * len(sizes)
        self._hashers: dict[int, xxhash.xxh3_128] = {}
        self.checksums = [0] * len(sizes) if with_checksums else []

    def update(self, index: int, data: memoryview) -> None:
        """Takes in further bytes of a segment."""
        # All of them at once, as those of small tensors, need no state of a hasher.
        if len(data) == self._sizes[index]:
            self._digests[index] = digest(data)
        else:
            self._hashers.setdefault(index, xxhash.xxh3_128()).update(data)
        if self.checksums:
            self.checksums[index] = crc32c(data, self.checksums[index])

    def finish(self) -> list[bytes]:
        """The digests, segment by segment."""
        for index, hasher in self._hashers.items():
            self._digests[index] = hasher.digest()
        return self._digests


UnitDigests = Sequence[bytes]
"""For each segment of a unit the digest of what was written, and then of what was read, source by
source, without anything between them."""


def by_segment(
    plan: MergePlan, unit: WorkUnit, found: UnitDigests
) -> Iterator[tuple[Segment, bytes, list[tuple[int, bytes]]]]:
    """Each segment with the digest of what was written, and of what was read by source.

    Raises:
        ValueError: there are not as many digests as the unit needs.
    """
    sources_read = plan.sources_read
    for segment, digests in zip(unit.segments, found, strict=True):
        written, *read = _unpack(digests)
        yield segment, written, list(zip(sources_read[segment.item.action], read, strict=True))


Read = Callable[[str, int, int], bytes | bytearray | memoryview]
"""Reads bytes of a tensor of the output: its name, the first byte, how many."""


class MergeDigests:
    """Collects the digests of units: 16 bytes for each block of the output and of each source."""

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan
        size = total_blocks(plan.items) * DIGEST_SIZE
        self._written = bytearray(size)
        self._read = [bytearray(size) for _ in plan.sources]

    def add(self, unit: WorkUnit, found: UnitDigests) -> None:
        """Takes in the digests of a finished unit."""
        for segment, written, read in by_segment(self._plan, unit, found):
            here = slice(segment.number * DIGEST_SIZE, (segment.number + 1) * DIGEST_SIZE)
            self._written[here] = written
            for index, value in read:
                # Of tensors that are only compared, the last source gives the bytes.
                if segment.item.action == AVERAGE or index == len(self._read) - 1:
                    self._read[index][here] = value

    def source(self, index: int) -> str | None:
        """One digest of all that went into the output from a source; None if nothing did.

        It is the xxh3-128 of the digests of all blocks in the order of the plan, zeros for those
        that came from other sources alone. See docs/decisions/0026-one-digest-per-source.md.
        """
        return digest(self._read[index]).hex() if any(self._read[index]) else None

    def tensor_records(self, read: Read) -> dict[str, TensorRecord]:
        """Shape, dtype and digests of every tensor of the output.

        Args:
            read: reads bytes of the output. Of tensors in another dtype than that of the
                checkpoints other bytes make up a block, so that their digests are found anew.
        """
        records, digests = {}, _unpack(self._written)
        for item in self._plan.items:
            if item.action == DROP:
                continue
            name, written = item.tensor.name, item.output
            found = [next(digests) for _ in blocks(item.tensor.nbytes)]
            if item.converted is not None:
                parts = blocks(written.nbytes)
                found = [digest(read(name, part.start, part.nbytes)) for part in parts]
            hexadecimal = tuple(value.hex() for value in found)
            records[name] = TensorRecord(written.shape, written.dtype, hexadecimal)
        return records


def _unpack(digests: bytes | bytearray) -> Iterator[bytes]:
    return (bytes(digests[n : n + DIGEST_SIZE]) for n in range(0, len(digests), DIGEST_SIZE))
