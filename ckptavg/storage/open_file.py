"""An open file that any number of threads read and write at positions."""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

SMALL_FILE_LIMIT = 64 * 1024 * 1024
"""Bytes of a file that is read as a whole: the record of a model of 10 TB has as many."""


class Range(NamedTuple):
    """Consecutive bytes of a file."""

    offset: int
    nbytes: int


class Stamp(NamedTuple):
    """Identity, size and times of change of a file: equal stamps mean an unchanged file."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    """Set by the kernel alone: unlike the time of modification, it cannot be set back."""


class OpenFile:
    """A regular file, open for positioned reads and, if asked for, writes.

    Every call names its position, so threads share no file offset and need no lock.

    Attributes:
        path: the file, as it was named when it was opened.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Opens an existing file.

        Args:
            path: the file.
            writable: whether to open it for writing too; a symbolic link is then refused.

        Raises:
            OSError: the file cannot be opened, or it is not a regular file.
        """
        self.path = path
        # Without O_NONBLOCK, opening a named pipe would wait forever for someone to write to it.
        flags = os.O_RDWR | os.O_NOFOLLOW if writable else os.O_RDONLY | os.O_NONBLOCK
        try:
            self._descriptor = os.open(path, flags | os.O_CLOEXEC)
        except ValueError as error:  # the name holds a null byte
            raise OSError(errno.EINVAL, str(error), str(path)) from error
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            self.close()
            raise OSError(errno.EINVAL, "not a regular file", str(path))

    @property
    def size(self) -> int:
        """The present size in bytes."""
        return os.fstat(self._descriptor).st_size

    @property
    def stamp(self) -> Stamp:
        """The present stamp of the file."""
        status = os.fstat(self._descriptor)
        times = status.st_mtime_ns, status.st_ctime_ns
        return Stamp(status.st_dev, status.st_ino, status.st_size, *times)

    def is_in_place(self) -> bool:
        """Whether the path still names this very file."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def read(self, offset: int, nbytes: int) -> bytes:
        """The bytes of a small range; fewer where the file ends before."""
        return os.pread(self._descriptor, nbytes, offset)

    def read_ranges(self, ranges: Iterable[Range]) -> bytes:
        """The bytes of several small ranges, joined."""
        return b"".join(self.read(*found) for found in ranges)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fills a buffer from `offset`; returns how many bytes it read, fewer only at the end."""
        filled = count = os.preadv(self._descriptor, [buffer], offset)
        while count and filled < len(buffer):  # Linux reads at most 2 GiB in one call
            count = os.preadv(self._descriptor, [buffer[filled:]], offset + filled)
            filled += count
        return filled

    def write(self, offset: int, data: memoryview) -> None:
        """Writes all of `data` at `offset`."""
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor, data[written:], offset + written)

    def will_need(self, offset: int, nbytes: int) -> None:
        """Lets the system read ahead a range that will be asked for soon."""
        self._advise(offset, nbytes, os.POSIX_FADV_WILLNEED)

    def begin_writeback(self, offset: int, nbytes: int) -> None:
        """Lets the system start writing a range to the disk: a later fsync has less to wait for."""
        # On pages still to be written, DONTNEED starts the writing and waits for nothing.
        # See docs/decisions/0025-writeback-begins-block-by-block.md.
        self._advise(offset, nbytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Closes the file; nothing happens if that was done before."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _advise(self, offset: int, nbytes: int, advice: int) -> None:
        with suppress(OSError):  # advice is a hint, which some file systems do not take
            os.posix_fadvise(self._descriptor, offset, nbytes, advice)


def gaps_between(ranges: Iterable[Range], size: int) -> list[Range]:
    """The parts of a file of `size` bytes that lie in none of the ranges, in order."""
    gaps, position = [], 0
    for offset, nbytes in (*sorted(ranges), Range(size, 0)):
        if offset > position:
            gaps.append(Range(position, offset - position))
        position = max(position, offset + nbytes)
    return gaps


def read_small_file(path: Path, limit: int = SMALL_FILE_LIMIT) -> bytes:
    """All bytes of a file that belongs to checkpoints without being one, such as a record.

    What stands there may be anything: a named pipe would be waited for, a device never ends.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be opened, is not a regular file, or has more than `limit` bytes.
    """
    with closing(OpenFile(path)) as file:
        if file.size > limit:
            why = f"it has {file.size:,} bytes, but at most {limit:,} are expected"
            raise OSError(errno.EFBIG, why, str(path))
        # Room is made for as many bytes as are asked for, 64 MiB for each record.
        return file.read(0, file.size)
