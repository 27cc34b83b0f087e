"""The digests of a merge: of a span while it is read, of a unit of work, of the whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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

    def __init__(self, count: int, with_checksums: bool = False) -> None:
        self._digests: list[bytes] = [b""] * count
        self._hashers: dict[int, xxhash.xxh3_128] = {}
        self.checksums = [0] * count if with_checksums else []

    def update(self, index: int, data: memoryview, *, whole: bool) -> None:
        """Takes in further bytes of a segment, or all of them at once, which needs no state."""
        if whole:
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


@dataclass(frozen=True, slots=True)
class UnitDigests:
    """Digests of a unit of work, packed in the order of its segments.

    Attributes:
        written: of the output.
        read: of the sources that were read for each segment, one after the other.
    """

    written: bytes
    read: bytes

    def by_segment(
        self, plan: MergePlan, unit: WorkUnit
    ) -> Iterator[tuple[Segment, bytes, list[tuple[int, bytes]]]]:
        """Each segment with the digest of what was written, and of what was read by source.

        Raises:
            ValueError: there are not as many digests as the unit needs.
        """
        segments, sources_read = unit.segments, plan.sources_read
        sources = [sources_read[segment.item.action] for segment in segments]
        expected = len(segments), sum(map(len, sources))
        if (len(self.written), len(self.read)) != tuple(n * DIGEST_SIZE for n in expected):
            raise ValueError("there are more or fewer digests than the unit has segments")
        written, read = _unpack(self.written), _unpack(self.read)
        for segment, indexes in zip(segments, sources, strict=True):
            yield segment, next(written), [(index, next(read)) for index in indexes]


class MergeDigests:
    """Collects the digests of units: 16 bytes for each block of the output and of each source."""

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan
        size = total_blocks(plan.items) * DIGEST_SIZE
        self._written = bytearray(size)
        self._read = [bytearray(size) for _ in plan.sources]

    def add(self, unit: WorkUnit, found: UnitDigests) -> None:
        """Takes in the digests of a finished unit."""
        for segment, written, read in found.by_segment(self._plan, unit):
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

    def tensor_records(self) -> dict[str, TensorRecord]:
        """Shape, dtype and digests of every tensor of the output."""
        digests = _unpack(self._written)
        return {
            item.tensor.name: TensorRecord(
                item.tensor.shape,
                item.tensor.dtype,
                tuple(next(digests).hex() for _ in blocks(item.tensor.nbytes)),
            )
            for item in self._plan.items
            if item.action != DROP
        }


def pack(segments: Sequence[Sequence[bytes]]) -> bytes:
    """Digests by segment and source as the bytes of `UnitDigests.read`."""
    return b"".join(b"".join(digests) for digests in segments)


def _unpack(digests: bytes | bytearray) -> Iterator[bytes]:
    return (bytes(digests[n : n + DIGEST_SIZE]) for n in range(0, len(digests), DIGEST_SIZE))
