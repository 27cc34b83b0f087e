"""What every checkpoint format provides: a reader and a writer of regions of tensors."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ckptavg.errors import FormatError, IntegrityError
from ckptavg.tensors import TensorInfo

Attributes = Mapping[str, object]

_OUTSIDE_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Structure:
    """What a checkpoint holds, without the bytes of its tensors.

    Attributes:
        tensors: by stored name.
        groups: the folders of an HDF5 file with their attributes, parents first; also those that
            hold no tensor, because Keras looks for the folder of every layer when it loads.
    """

    tensors: Mapping[str, TensorInfo]
    groups: Mapping[str, Attributes]


@dataclass(frozen=True, slots=True)
class Layout:
    """A file's structure with all of its bytes that belong to no tensor.

    They are what HDF5 finds the structure from: a file of the same size with the same bytes there
    has the same structure, and need not be searched.
    """

    structure: Structure
    size: int
    outside: bytes


class CheckpointReader(ABC):
    """An open checkpoint, safe to read from several threads.

    Attributes:
        path: the file.
        structure: what it holds.
        stamp: device, inode, size and time of change: equal stamps mean an unchanged file.
    """

    path: Path
    structure: Structure

    def __init__(
        self, path: Path, structure: Structure | None = None, like: Layout | None = None
    ) -> None:
        """Opens a file.

        Args:
            path: the file.
            structure: what an earlier reader of this very file found; it is not searched again.
            like: of a file that this one may resemble; it is searched only if it does not.

        Raises:
            FormatError: the file cannot be opened, or is no intact checkpoint.
        """
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise FormatError(f"cannot open {path}: {error.strerror}") from error
        try:
            self.stamp = self._current_stamp()
            if structure is None and like is not None and self._resembles(like):
                structure = like.structure
            self.structure = self._read_structure() if structure is None else structure
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _read_structure(self) -> Structure:
        """Finds the tensors, trusting nothing that the file says about itself."""

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self.stamp[2]

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        """Fills `buffer` with the bytes of a tensor from its byte `start` on.

        Raises:
            IntegrityError: the file ends before the tensor does, or cannot be read.
        """
        offset = tensor.extent.offset + start
        filled = 0
        while filled < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[filled:]], offset + filled)
            except OSError as error:
                raise IntegrityError(
                    f"cannot read '{tensor.name}' in {self.path}: {error.strerror}"
                ) from error
            if count == 0:
                raise IntegrityError(
                    f"{self.path} ends in the middle of '{tensor.name}': "
                    "it was truncated while it was read"
                )
            filled += count

    def layout(self) -> Layout | None:
        """What a file that resembles this one is recognized by; None where that is much to hold."""
        outside = self.size - sum(t.extent.nbytes for t in self.structure.tensors.values())
        if outside > _OUTSIDE_LIMIT:
            return None
        return Layout(self.structure, self.size, self._outside(self.structure))

    def _resembles(self, like: Layout) -> bool:
        return self.size == like.size and self._outside(like.structure) == like.outside

    def _outside(self, structure: Structure) -> bytes:
        parts, position = [], 0
        extents = sorted((t.extent.offset, t.extent.nbytes) for t in structure.tensors.values())
        for offset, nbytes in (*extents, (self.size, 0)):
            if offset > position:
                parts.append(os.pread(self._descriptor, offset - position, position))
            position = max(position, offset + nbytes)
        return b"".join(parts)

    def check_unchanged(self, stamp: tuple[int, ...]) -> None:
        """Makes sure that the file is the one, and as it was, when `stamp` was taken.

        Raises:
            IntegrityError: it was changed, replaced or removed since.
        """
        if self._current_stamp() != stamp or not self._still_named():
            raise IntegrityError(f"{self.path} was changed while it was read: average it again")

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _current_stamp(self) -> tuple[int, ...]:
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _still_named(self) -> bool:
        try:
            status = self.path.stat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.stamp[:2]


class CheckpointWriter(ABC):
    """A checkpoint being written beside its target, safe to write from several threads.

    It is used in a `with`: leaving it without `commit()` removes all that was written.
    """

    path: Path

    @abstractmethod
    def write(self, name: str, start: int, data: memoryview) -> None:
        """Writes bytes of the tensor `name`, from its byte `start` on."""

    @abstractmethod
    def finish(self) -> int:
        """Completes the file under its temporary name; returns its size in bytes."""

    @abstractmethod
    def commit(self) -> None:
        """Makes the finished file durable and gives it its name."""

    @abstractmethod
    def discard(self) -> None:
        """Removes everything that was not committed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()


def is_optimizer(name: str) -> bool:
    """Whether a tensor or folder is optimizer state, which an average does not keep."""
    return name == "optimizer" or name.startswith("optimizer/")
