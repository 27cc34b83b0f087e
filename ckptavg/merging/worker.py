"""Averages strips of tensors with the buffers of one thread, and takes the digests of all bytes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from ckptavg.errors import IntegrityError, MismatchError
from ckptavg.formats import CheckpointReader
from ckptavg.formats.crc32c import crc32c
from ckptavg.formats.tensors import TensorInfo, all_finite
from ckptavg.merging.exact_mean import PIECE, Terms, WeightedMean
from ckptavg.merging.plan import MergePlan
from ckptavg.merging.tensor_rules import AVERAGE, EQUAL, LAST
from ckptavg.merging.work import Segment, Strip
from ckptavg.runs.proof import Checksums, block_digest

Progress = Callable[[int], None]
"""Is told how much more is done: of bytes that were read, from any thread, of candidates."""

Write = Callable[[str, int, memoryview], None]
"""Takes the bytes of a tensor: its name, the first byte's place in it, the bytes."""

BUFFER = PIECE * 4
"""Bytes of the buffer of one thread."""


@dataclass(frozen=True, slots=True)
class GroupDigests:
    """Digests of a group of blocks, packed in the order of its segments.

    Attributes:
        written: of the output.
        read: of the sources that were read for each segment, one after the other.
    """

    written: bytes
    read: bytes


def chosen_sources(plan: MergePlan, action: str) -> list[int]:
    """Which sources are read for a tensor."""
    factors = Terms.of(plan.coefficients).factors
    if action == LAST:
        return [len(factors) - 1]
    if action == AVERAGE:
        return [n for n, factor in enumerate(factors) if factor != 0.0] or [len(factors) - 1]
    return list(range(len(factors)))


class Worker:
    """Averages strips with the buffers of one thread."""

    def __init__(
        self,
        plan: MergePlan,
        readers: Sequence[CheckpointReader],
        checksums: Sequence[Checksums | None],
        write: Write,
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._readers = readers
        self._checksums = checksums
        self._write = write
        self._progress = progress
        self._terms = Terms.of(plan.coefficients)
        self._chosen = {a: chosen_sources(plan, a) for a in (AVERAGE, EQUAL, LAST)}
        self._buffer = memoryview(bytearray(BUFFER))
        self._mean = WeightedMean()
        self._numbers: dict[int, dict[str, int]] = {}

    def expect(self, group: Sequence[Strip]) -> None:
        """Lets the system read ahead what will be needed soon."""
        for strip in group:
            block = strip.segments[0].block
            for index in self._chosen[strip.segments[0].item.action]:
                extent = self._stored(index, strip).extent
                if extent is not None:
                    ahead = replace(extent, offset=extent.offset + block.start, nbytes=strip.nbytes)
                    self._readers[index].expect(ahead)

    def run(self, group: Sequence[Strip]) -> GroupDigests:
        digests = [self._run(strip) for strip in group]
        return GroupDigests(
            b"".join(found.written for found in digests), b"".join(found.read for found in digests)
        )

    def _run(self, strip: Strip) -> GroupDigests:
        """Writes the segments of a strip."""
        tensor, action = strip.segments[0].item.tensor, strip.segments[0].item.action
        chosen = self._chosen[action]
        read = {
            index: _Digests(len(strip.segments), self._checksums[index] is not None)
            for index in chosen
        }
        written = _Digests(len(strip.segments))
        stored = {index: self._stored(index, strip) for index in chosen}
        itemsize = tensor.numpy_dtype.itemsize
        step = min(PIECE * itemsize, BUFFER // itemsize * itemsize)
        for start in range(0, strip.nbytes, step):
            nbytes = min(step, strip.nbytes - start)
            parts = list(strip.parts(start, nbytes))
            result = (
                self._average(strip, stored, start, nbytes, parts, read)
                if action == AVERAGE
                else self._copy(strip, stored, start, nbytes, read)
            )
            for index, first, last in parts:
                segment = strip.segments[index]
                place = segment.block.start + start + first - strip.offsets[index]
                whole = last - first == segment.block.nbytes
                written.update(index, result[first:last], whole=whole)
                self._write(segment.item.tensor.name, place, result[first:last])
            useful = sum(last - first for _, first, last in parts)
            self._progress(useful * len(chosen))
        for index, digests in read.items():
            self._check(index, strip, digests)
        order = [digests.packed() for digests in read.values()]
        return GroupDigests(
            b"".join(written.packed()),
            b"".join(b"".join(each) for each in zip(*order, strict=True)),
        )

    def _check(self, index: int, strip: Strip, found: "_Digests") -> None:
        source, checksums = self._plan.sources[index], self._checksums[index]
        if source.proof is not None:
            for segment, digest in zip(strip.segments, found.packed(), strict=True):
                source.proof.check(source.path, segment.item.tensor, segment.block, digest)
        elif checksums is not None:
            for segment, crc in zip(strip.segments, found.checksums, strict=True):
                tensor = source.structure.tensors[segment.item.tensor.name]
                checksums.add(self._number(index, tensor), tensor, segment.block, crc)

    def _number(self, index: int, tensor: TensorInfo) -> int:
        """The place of a tensor in the structure of a source."""
        structure = self._plan.sources[index].structure
        if id(structure) not in self._numbers:
            names = {name: number for number, name in enumerate(structure.tensors)}
            self._numbers[id(structure)] = names
        return self._numbers[id(structure)][tensor.name]

    def _average(
        self,
        strip: Strip,
        stored: Mapping[int, TensorInfo],
        start: int,
        nbytes: int,
        parts: Sequence[tuple[int, int, int]],
        read: Mapping[int, "_Digests"],
    ) -> memoryview:
        dtype = strip.segments[0].item.tensor.numpy_dtype
        begin = strip.segments[0].block.start + start
        for index, digests in read.items():
            data = self._read(index, stored[index], begin, nbytes)
            for part, first, last in parts:
                whole = last - first == strip.segments[part].block.nbytes
                digests.update(part, data[first:last], whole=whole)
            self._mean.add(np.frombuffer(data, dtype), self._terms.factors[index])
        result = self._mean.result(self._terms.divisor, keep_equal=self._terms.normalized)
        size = dtype.itemsize
        for part, first, last in parts:
            if not all_finite(result[first // size : last // size]):
                place = strip.segments[part].block.start + start + first - strip.offsets[part]
                self._explain_not_finite(strip.segments[part], place, last - first, read)
        return result.view(np.uint8).data

    def _copy(
        self,
        strip: Strip,
        stored: Mapping[int, TensorInfo],
        start: int,
        nbytes: int,
        read: Mapping[int, "_Digests"],
    ) -> memoryview:
        segment = strip.segments[0]
        tensor = segment.item.tensor
        first: bytes | None = None
        for index, digests in read.items():
            data = self._read(index, stored[index], segment.block.start + start, nbytes)
            digests.update(0, data, whole=nbytes == segment.block.nbytes)
            if first is None:
                first, origin = bytes(data), index
            elif first != data:
                self._check_damage(origin, segment)
                self._check_damage(index, segment)
                raise MismatchError(
                    f"'{tensor.name}' ({tensor.dtype}) differs between "
                    f"{self._readers[origin].path} and {self._readers[index].path}: values of this "
                    "type have no mean, so all checkpoints must agree. Leave out those that do "
                    "not, or take the last one's (--non-float last, in Python non_float='last')"
                )
        return memoryview(first)

    def _stored(self, index: int, strip: Strip) -> TensorInfo:
        """What is read from a source for a strip: a tensor, or many as if they were one."""
        name = strip.segments[0].item.tensor.name
        tensor = self._plan.sources[index].structure.tensors[name]
        return tensor if strip.extent is None else replace(tensor, extent=strip.extent)

    def _read(self, index: int, tensor: TensorInfo, start: int, nbytes: int) -> memoryview:
        buffer = self._buffer[:nbytes]
        assert len(buffer) == nbytes
        self._readers[index].read_into(tensor, start, buffer)
        return buffer

    def _check_damage(self, index: int, segment: Segment) -> None:
        source, name = self._plan.sources[index], segment.item.tensor.name
        if source.proof is not None:
            stored = source.structure.tensors[name]
            found = block_digest(self._readers[index], stored, segment.block)
            source.proof.check(source.path, stored, segment.block, found)

    def _explain_not_finite(
        self, segment: Segment, start: int, nbytes: int, chosen: Iterable[int]
    ) -> None:
        """Raises the error that names the culprit: damage first, which may look like NaN."""
        tensor = segment.item.tensor
        for index in chosen:
            source = self._plan.sources[index]
            data = bytearray(nbytes)
            stored = source.structure.tensors[tensor.name]
            self._readers[index].read_into(stored, start, memoryview(data))
            values = np.frombuffer(data, tensor.numpy_dtype).astype(np.float64)
            if np.isfinite(values).all():
                continue
            self._check_damage(index, segment)
            raise not_finite(source.path, tensor.name, values)
        raise IntegrityError(f"the mean of '{tensor.name}' overflows {tensor.dtype}")


def not_finite(path: Path, name: str, values: np.ndarray) -> IntegrityError:
    """The error for a tensor with such values."""
    kind = "NaN" if np.isnan(values).any() else "infinity"
    return IntegrityError(f"'{name}' in {path} holds {kind}: leave this checkpoint out")


class _Digests:
    """Digests of the segments of a strip, as their bytes come by in order.

    Attributes:
        checksums: CRC-32C of the segments, if they are wanted.
    """

    def __init__(self, count: int, with_checksums: bool = False) -> None:
        self._digests: list[bytes] = [b""] * count
        self._hashers: dict[int, xxhash.xxh3_128] = {}
        self.checksums = [0] * count if with_checksums else None

    def update(self, index: int, data: memoryview, *, whole: bool) -> None:
        """Takes in further bytes of a segment, or all of them at once, which needs no state."""
        if whole:
            self._digests[index] = xxhash.xxh3_128_digest(data)
        else:
            self._hashers.setdefault(index, xxhash.xxh3_128()).update(data)
        if self.checksums is not None:
            self.checksums[index] = crc32c(data, self.checksums[index])

    def packed(self) -> list[bytes]:
        for index, hasher in self._hashers.items():
            self._digests[index] = hasher.digest()
        return self._digests
