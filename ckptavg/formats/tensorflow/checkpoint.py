"""TensorFlow checkpoints without TensorFlow: an index, and shards of plain bytes.

See docs/decisions/0018-formats-without-their-libraries.md.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.crc32c import crc32c
from ckptavg.formats.reader import (
    TENSORFLOW,
    Attributes,
    CheckpointReader,
    Structure,
    check_disjoint,
)
from ckptavg.formats.tensorflow import protobuf, strings
from ckptavg.formats.tensorflow.object_graph import model_part
from ckptavg.formats.tensorflow.optimizer import optimizer_variables
from ckptavg.formats.tensorflow.paths import data_file, index_file
from ckptavg.formats.tensorflow.protobuf import BYTES, VARINT, BundleEntry, Refused
from ckptavg.formats.tensorflow.table import mask, read_table, unmask, write_table
from ckptavg.formats.tensors import STRING, Extent, TensorInfo, is_shape
from ckptavg.formats.writer import CheckpointWriter

OBJECT_GRAPH = "object_graph"
"""Attribute of the checkpoint that holds the object graph, without optimizer state."""

_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_HEADER_KEY = b""
_VERSION = 1
"""The only version of the checkpoint format that exists."""

_SLICE_MARK = b"\0"
"""The first byte of the keys of partitioned variables' slices."""

_NAMES = """
float32 float64 int32 uint8 int16 int8 string complex64 int64 bool qint8 quint8 qint32 bfloat16
qint16 quint16 uint16 complex128 float16 resource variant uint32 uint64 float8_e5m2 float8_e4m3fn
float8_e4m3fnuz float8_e4m3b11fnuz float8_e5m2fnuz int4 uint4
"""
_DTYPES = dict(enumerate(_NAMES.split(), start=1))
"""TensorFlow's dtypes by their numbers (`DataType` in types.proto)."""

_UNREADABLE = re.compile(r"complex.*|qu?int.*|resource|variant|u?int4")
_NUMBERS = {dtype: n for n, dtype in _DTYPES.items() if not _UNREADABLE.fullmatch(dtype)}
_SHARDS_LIMIT = 99_999
_INDEX_LIMIT = 16 * 1024 * 1024
_GRAPH_LIMIT = 16 * 1024 * 1024
_CHUNK = 1024 * 1024


class TensorFlowReader(CheckpointReader):
    """Reads a checkpoint of `tf.train.Checkpoint`, of `save_weights` or of TensorFlow 1's `Saver`.

    The path is its prefix or its `.index` file.
    """

    def _main_file(self) -> Path:
        return index_file(self.path)

    def _further_files(self) -> Sequence[Path]:
        with self._refusals():
            shards = _shard_count(self._table())
        return [data_file(self.path, shard, shards) for shard in range(shards)]

    @property
    def checksums(self) -> Mapping[str, int]:
        """CRC-32C of the stored bytes of each tensor, read again from the index each time."""
        tensors = self.structure.tensors
        with self._refusals():
            return {n: self._checksum(tensors[n], e) for n, e in self._entries() if n in tensors}

    def _read_structure(self) -> Structure:
        with self._refusals():
            entries = dict(self._entries())
            tensors = {name: self._tensor(name, entry) for name, entry in entries.items()}
            check_disjoint(self.path, tensors.values(), self._sizes)
            for tensor in tensors.values():
                if tensor.dtype == STRING:
                    strings.scan(tensor, partial(self._bytes, tensor))
            graph = tensors.pop(_GRAPH_KEY, None)
            if graph is None:
                return Structure(tensors, {}, TENSORFLOW, optimizer_variables(tensors.keys()))
            part = model_part(self._graph(graph, entries[_GRAPH_KEY]))
            for name in sorted(part.named ^ tensors.keys()):
                places = ("its object graph", "its index")
                here, lacking = places if name in part.named else reversed(places)
                raise Refused(f"'{name}' is in {here}, but not in {lacking}")
        groups: dict[str, Attributes] = {"": {OBJECT_GRAPH: part.graph}}
        return Structure(tensors, groups, TENSORFLOW, frozenset(tensors.keys() - part.kept))

    def _table(self) -> Iterator[tuple[bytes, bytes]]:
        return read_table(self._read_file(0, _INDEX_LIMIT))

    def _entries(self) -> Iterator[tuple[str, BundleEntry]]:
        table = self._table()
        _shard_count(table)
        for key, value in table:
            entry = BundleEntry.decode(value)
            if entry.sliced or key.startswith(_SLICE_MARK):
                raise Refused(
                    "it holds partitioned variables, which are stored in slices: save the "
                    "checkpoint without partitioning"
                )
            try:
                yield key.decode(), entry
            except UnicodeDecodeError as error:
                raise Refused(f"the name {key!r} is not valid UTF-8") from error

    def _tensor(self, name: str, entry: BundleEntry) -> TensorInfo:
        dtype = _DTYPES.get(entry.dtype, f"number {entry.dtype}")
        if dtype not in _NUMBERS:
            raise Refused(f"'{name}' has the type {dtype}, which cannot be averaged")
        if entry.shape is None:
            raise Refused(f"'{name}' has no shape")
        file = entry.shard + 1
        if file >= len(self.files):
            raise Refused(f"'{name}' lies in shard {entry.shard}, which does not exist")
        # TensorFlow gives empty tensors any offset, even one beyond the end of the file.
        extent = Extent(entry.offset if entry.size else 0, entry.size, file)
        tensor = TensorInfo(name, entry.shape, dtype, extent)
        if dtype != STRING and tensor.nbytes != entry.size:
            raise Refused(
                f"'{name}' is {dtype}{list(entry.shape)}, {tensor.nbytes:,} bytes, "
                f"but {entry.size:,} are stored"
            )
        if dtype != STRING and not is_shape(entry.shape, tensor.numpy_dtype.itemsize):
            raise Refused(f"'{name}' has the shape {list(entry.shape)}, which no array has")
        return tensor

    def _checksum(self, tensor: TensorInfo, entry: BundleEntry) -> int:
        """The CRC-32C of the stored bytes."""
        crc = unmask(entry.crc)
        if tensor.dtype == STRING:
            crc = strings.scan(tensor, partial(self._bytes, tensor)).translated(crc)
        return crc

    def _graph(self, tensor: TensorInfo, entry: BundleEntry) -> bytes:
        if tensor.dtype != STRING or tensor.shape or tensor.nbytes > _GRAPH_LIMIT:
            raise Refused(
                f"its object graph is not a single string of at most {_GRAPH_LIMIT:,} bytes"
            )
        stored = self._bytes(tensor, 0, tensor.nbytes)
        if crc32c(stored) != self._checksum(tensor, entry):
            raise Refused("its object graph is damaged: it fails its checksum")
        return strings.decode(stored)

    def _bytes(self, tensor: TensorInfo, start: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self.read_into(tensor, start, memoryview(buffer))
        return bytes(buffer)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except Refused as error:
            raise FormatError(f"refusing {self.path}: {error}") from error


class TensorFlowWriter(CheckpointWriter):
    """Writes a checkpoint of one shard, which every TensorFlow API for checkpoints restores.

    The path is its prefix or its `.index` file.
    """

    def _check(self) -> None:
        for name, tensor in self.structure.tensors.items():
            if tensor.dtype not in _NUMBERS:
                raise FormatError(
                    f"cannot write {self.path}: '{name}' has the type {tensor.dtype}, which "
                    "TensorFlow checkpoints cannot hold"
                )

    @classmethod
    def output_files(cls, path: Path, structure: Structure) -> list[Path]:
        return [*cls._data_files(path, structure), index_file(path)]

    @classmethod
    def _data_files(cls, path: Path, structure: Structure) -> list[Path]:
        return [data_file(path, 0, 1)]

    def _lay_out(
        self, file: Path, number: int, tensors: Sequence[TensorInfo]
    ) -> Mapping[str, Extent]:
        extents = {tensor.name: extent for tensor, extent in self._placed()}
        with file.open("wb") as opened:
            opened.truncate(sum(extent.nbytes for extent in extents.values()))
            if self._graph is not None:
                opened.seek(extents.pop(_GRAPH_KEY).offset)
                opened.write(strings.encode(self._graph))
        return extents

    def _index(self) -> bytes:
        entries = ((t.name.encode(), self._entry(t, at).encode()) for t, at in self._placed())
        header = protobuf.number(1, 1) + protobuf.text(3, protobuf.number(1, _VERSION))  # one shard
        return write_table([(_HEADER_KEY, header), *entries])

    @property
    def _graph(self) -> bytes | None:
        graph = self.structure.groups.get("", {}).get(OBJECT_GRAPH)
        assert graph is None or isinstance(graph, bytes), "the reader stores it as bytes"
        return graph

    def _placed(self) -> Iterator[tuple[TensorInfo, Extent]]:
        """All tensors in the order of the index, the object graph among them, without gaps."""
        tensors = dict(self.structure.tensors)
        if self._graph is not None:
            graph = Extent(0, len(strings.encode(self._graph)))
            tensors[_GRAPH_KEY] = TensorInfo(_GRAPH_KEY, (), STRING, graph)
        offset = 0
        for name in sorted(tensors, key=str.encode):
            yield tensors[name], Extent(offset, tensors[name].nbytes)
            offset += tensors[name].nbytes

    def _entry(self, tensor: TensorInfo, extent: Extent) -> BundleEntry:
        """The entry of a tensor that has been written."""
        crc = 0
        for start in range(0, extent.nbytes, _CHUNK):
            crc = crc32c(self._bytes(extent, start, min(_CHUNK, extent.nbytes - start)), crc)
        if tensor.dtype == STRING:
            try:
                crc = strings.scan(tensor, partial(self._bytes, extent)).translated(crc)
            except Refused as error:
                raise FormatError(f"cannot write {self.path}: {error}") from error
        return BundleEntry(
            dtype=_NUMBERS[tensor.dtype],
            shape=tensor.shape,
            shard=extent.file,
            offset=extent.offset,
            size=extent.nbytes,
            crc=mask(crc),
        )

    def _bytes(self, extent: Extent, start: int, nbytes: int) -> bytes:
        return self._opened[extent.file].read(extent.offset + start, nbytes)


def _shard_count(table: Iterator[tuple[bytes, bytes]]) -> int:
    """The number of shards, from the header, which is the first entry of a table."""
    key, value = next(table, (None, b""))
    if key != _HEADER_KEY:
        raise Refused("its index does not begin with a header")
    header = protobuf.last_fields(value, {1: VARINT, 2: VARINT, 3: BYTES})
    if header[2].integer:
        raise Refused("it was written on a big-endian machine")
    oldest_reader = protobuf.last_fields(header[3].content, {2: VARINT})[2].integer
    if oldest_reader > _VERSION:
        raise Refused("its format is newer than this version of ckptavg knows")
    if not 0 < header[1].integer <= _SHARDS_LIMIT:
        raise Refused(f"its index declares {header[1].integer:,} shards")
    return header[1].integer
