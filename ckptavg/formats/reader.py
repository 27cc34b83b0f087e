"""What every checkpoint format provides: a reader of any range of a tensor's bytes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

from ckptavg.errors import FormatError, IntegrityError
from ckptavg.formats.tensors import Extent, TensorInfo
from ckptavg.formats.zip_archive import Member
from ckptavg.storage.open_file import OpenFile, Range, Stamp, gaps_between

Attribute = str | bytes | tuple[bytes, ...]
"""A string in UTF-8; bytes, as TensorFlow stores, or a string in ASCII; a list of names."""

Attributes = Mapping[str, Attribute]

KERAS, LEGACY, TENSORFLOW, FLAT = "keras", "legacy", "tensorflow", "flat"
"""Ways of naming tensors: Keras 3, `layers/dense/vars/0`; Keras 2, `dense/dense/kernel:0` and lists
of names; TensorFlow, object paths or names of variables; safetensors, any names."""

_OUTSIDE_LIMIT = 16 * 1024 * 1024
"""Bytes outside tensors up to which it pays to compare them with those of another checkpoint."""


class Part(NamedTuple):
    """What a checkpoint holds beside tensors, and what the network depends on."""

    name: str
    pieces: Iterable[bytes]


@dataclass(frozen=True, slots=True)
class Structure:
    """The contents of a checkpoint, without the bytes of its tensors.

    Attributes:
        tensors: by stored name.
        groups: folders with their attributes, parents first; "" is the checkpoint itself. Folders
            without tensors are included, because Keras looks for the folder of every layer.
        naming: how tensors are named: `KERAS`, `LEGACY`, `TENSORFLOW` or `FLAT`.
        optimizer: names of the tensors and folders that are optimizer state, which averages omit.
    """

    tensors: Mapping[str, TensorInfo]
    groups: Mapping[str, Attributes]
    naming: str = KERAS
    optimizer: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def model_tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors without optimizer state, in the order of the checkpoint."""
        if not self.optimizer:
            return self.tensors
        return {n: tensor for n, tensor in self.tensors.items() if n not in self.optimizer}

    def with_tensors(self, tensors: Mapping[str, TensorInfo]) -> "Structure":
        """This structure with other tensors, and without optimizer state."""
        groups = {n: found for n, found in self.groups.items() if n not in self.optimizer}
        return replace(self, tensors=tensors, groups=groups, optimizer=frozenset())


@dataclass(frozen=True, slots=True)
class FileSkeleton:
    """The structure of a checkpoint, and all bytes of its files that belong to no tensor.

    The structure follows from these bytes: another checkpoint with files of the same sizes and the
    same bytes there has the same structure, and its files need not be searched.

    Attributes:
        structure: of the checkpoint.
        sizes: of its files, in bytes.
        gaps: for each file, the ranges outside its tensors.
        outside: for each file, the bytes in these ranges.
    """

    # See docs/decisions/0008-one-search-of-hdf5-serves-equal-files.md.

    structure: Structure
    sizes: tuple[int, ...]
    gaps: tuple[Sequence[Range], ...]
    outside: tuple[bytes, ...]


class CheckpointReader(ABC):
    """An open checkpoint of one or more files, which any number of threads may read.

    Attributes:
        path: the checkpoint: its file, the index of its shards, or the prefix of its files.
        files: all of its files, in the order of their numbers in an `Extent`.
        structure: its tensors and folders.
        stamps: of the files when they were opened.
    """

    def __init__(
        self, path: Path, structure: Structure | None = None, like: FileSkeleton | None = None
    ) -> None:
        """Opens a checkpoint.

        Args:
            path: the checkpoint.
            structure: of this very checkpoint, if it is known; the files are not searched again.
            like: of a checkpoint that this one may resemble; it is searched only if it does not.

        Raises:
            FormatError: a file cannot be opened, or the checkpoint is not intact.
        """
        self.path = path
        self.files: tuple[Path, ...] = ()
        self._opened: list[OpenFile] = []
        try:
            self._open([self._main_file()])
            self._open(self._further_files())
            self.stamps = tuple(file.stamp for file in self._opened)
            if structure is None and like is not None and self._resembles(like):
                structure = like.structure
            self.structure = self._read_structure() if structure is None else structure
        except BaseException:
            self.close()
            raise

    def _main_file(self) -> Path:
        """The file that is opened first: the only one, or the index of the others."""
        return self.path

    def _further_files(self) -> Sequence[Path]:
        """The other files of the checkpoint, as the main file, which is open, names them."""
        return ()

    @abstractmethod
    def _read_structure(self) -> Structure:
        """Finds the tensors; everything that the files declare is checked against their sizes."""

    def _decode(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        """Does what `read_into` does for a tensor without an extent."""
        raise AssertionError(f"{type(self).__name__} finds an extent for every tensor")

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(self._sizes)

    @property
    def checksums(self) -> Mapping[str, int]:
        """CRC-32C of whole tensors by name, where the format itself stores them."""
        return {}

    @property
    def remark(self) -> str:
        """What the checkpoint is, if its name does not tell; else empty."""
        return ""

    @property
    def members(self) -> Mapping[str, Member]:
        """The files in the checkpoint by name, if it is an archive; else empty."""
        return {}

    def parts(self) -> Iterator[Part]:
        """What a record proves beside the tensors: the configuration, vocabularies, names."""
        return attribute_parts(self.structure)

    def check_members(self) -> None:
        """Reads an archive as a whole and compares the checksums of its members.

        Raises:
            FormatError: a member cannot be read.
            IntegrityError: a member is damaged.
        """
        return

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        """Fills `buffer` with the bytes of a tensor, beginning at its byte `start`.

        Raises:
            IntegrityError: the file was truncated, or cannot be read.
        """
        if tensor.extent is None:
            self._decode(tensor, start, buffer)
            return
        file = self._opened[tensor.extent.file]
        try:
            count = file.read_into(tensor.extent.offset + start, buffer)
        except OSError as error:
            raise IntegrityError(
                f"cannot read '{tensor.name}' in {self.path}: {error.strerror}"
            ) from error
        if count < len(buffer):
            raise IntegrityError(
                f"{self.path} ends in the middle of '{tensor.name}': "
                "it was truncated while it was read"
            )

    def expect(self, extent: Extent) -> None:
        """Lets the system read ahead bytes that will be asked for soon."""
        self._opened[extent.file].will_need(extent.offset, extent.nbytes)

    def skeleton(self) -> FileSkeleton | None:
        """What similar checkpoints are recognized by; None if it takes too many bytes."""
        extents = [t.extent for t in self.structure.tensors.values() if t.extent]
        if self.size - sum(extent.nbytes for extent in extents) > _OUTSIDE_LIMIT:
            return None
        gaps = gaps_by_file(extents, self._sizes)
        return FileSkeleton(self.structure, self._sizes, gaps, self._read_gaps(gaps))

    def check_unchanged(self, stamps: Sequence[Stamp]) -> None:
        """Makes sure that the files have not changed since `stamps` were taken.

        Raises:
            IntegrityError: a file was changed, replaced or removed.
        """
        for file, stamp in zip(self._opened, stamps, strict=True):
            if file.stamp != stamp or not file.is_in_place():
                raise IntegrityError(f"{file.path} was changed while it was read: average it again")

    def close(self) -> None:
        while self._opened:
            self._opened.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(stamp.size for stamp in self.stamps)

    def _open(self, files: Iterable[Path]) -> None:
        for file in files:
            try:
                self._opened.append(OpenFile(file))
            except OSError as error:
                raise FormatError(f"cannot open {file}: {error.strerror}") from error
            self.files = (*self.files, file)

    def _read_file(self, file: int, limit: int) -> bytes:
        """All bytes of a small file, such as an index.

        Raises:
            FormatError: it is larger than `limit` bytes.
        """
        size = self._opened[file].size
        if size > limit:
            raise FormatError(
                f"refusing {self.files[file]}: it has {size:,} bytes, more than the {limit:,} "
                "that are reasonable for such a file"
            )
        return self._opened[file].read(0, size)

    def _resembles(self, like: FileSkeleton) -> bool:
        return self._sizes == like.sizes and self._read_gaps(like.gaps) == like.outside

    def _read_gaps(self, gaps: Iterable[Sequence[Range]]) -> tuple[bytes, ...]:
        return tuple(map(OpenFile.read_ranges, self._opened, gaps))


def gaps_by_file(extents: Iterable[Extent], sizes: Sequence[int]) -> tuple[list[Range], ...]:
    """For each file of a checkpoint, the ranges of bytes that belong to no tensor."""
    ranges: list[list[Range]] = [[] for _ in sizes]
    for extent in extents:
        ranges[extent.file].append(Range(extent.offset, extent.nbytes))
    return tuple(map(gaps_between, ranges, sizes))


def attribute_parts(structure: Structure) -> Iterator[Part]:
    """What a network depends on among the attributes of a checkpoint.

    These are its configuration and the order of its weights (Keras 2), and its object graph
    (TensorFlow). Keras 3 finds variables by the names of tensors alone.
    """
    if structure.naming not in (LEGACY, TENSORFLOW):
        return
    of_layers: list[bytes] = []
    for folder, attributes in sorted(structure.groups.items()):
        if folder in structure.optimizer:
            continue
        for key, value in sorted(attributes.items()):
            items = value if isinstance(value, tuple) else (value,)
            texts = [item.encode() if isinstance(item, str) else item for item in items]
            # Each follows its length: otherwise names could move from one to the next.
            pieces = [p for text in texts for p in (len(text).to_bytes(8, "little"), text)]
            if folder:
                of_layers += [f"{folder}/{key}\n".encode(), *pieces]
            else:
                yield Part(key, pieces)
    if of_layers:  # one part for all: a model has hundreds of layers
        yield Part("the lists of its layers", of_layers)


def check_disjoint(path: Path, tensors: Iterable[TensorInfo], sizes: Sequence[int]) -> None:
    """Makes sure that extents lie within their files, and that no two share a byte.

    Args:
        path: the checkpoint, for messages.
        tensors: those without an extent, or with an empty one, are skipped.
        sizes: of the files, in bytes.

    Raises:
        FormatError: an extent overlaps another one or the end of its file.
    """
    ends = [0] * len(sizes)
    stored = [(t.extent, t.name) for t in tensors if t.extent is not None and t.extent.nbytes]
    for extent, name in sorted(stored, key=lambda found: (found[0].file, found[0].offset)):
        if extent.offset < ends[extent.file]:
            raise FormatError(f"refusing {path}: '{name}' overlaps another tensor")
        ends[extent.file] = extent.offset + extent.nbytes
        if ends[extent.file] > sizes[extent.file]:
            raise FormatError(f"refusing {path}: '{name}' reaches beyond the end of the file")
