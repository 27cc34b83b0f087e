"""Files and folders that owners hold locked; however an owner ends, the system unlocks them."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_NOTE_LIMIT = 200


class ProcessLock:
    """A lock file that one process at a time holds, with a note that says who.

    It is a POSIX record lock (`lockf`), which excludes other processes but not other threads of
    this one. It is lost when the process closes any descriptor of the file, so a process must
    open the file only once.
    """

    # Unlike flock, lockf is not inherited by forked data loaders, which may outlive a killed owner.
    # See docs/decisions/0033-a-posix-record-lock-guards-the-run.md.

    def __init__(self, path: Path) -> None:
        """Opens the lock file, or makes it; it is not locked yet.

        Raises:
            OSError: the file cannot be opened for writing.
        """
        self._descriptor = os.open(path, _FLAGS, 0o666)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the file."""
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino

    def acquire(self) -> bool:
        """Takes the lock, or makes sure of it, without waiting.

        Returns:
            False if the file system has no locks.

        Raises:
            BlockingIOError: another process holds the lock.
        """
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise BlockingIOError(error.errno, error.strerror) from error
        return True

    def read_note(self) -> str:
        """What the owner of the lock wrote about itself."""
        return os.pread(self._descriptor, _NOTE_LIMIT, 0).decode("utf-8", "replace")

    def write_note(self, note: str) -> None:
        """Says who holds the lock, for whoever fails to take it."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, note.encode(), 0)

    def release(self) -> None:
        """Gives the lock up; nothing happens if that was done before."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def open_locked(path: Path) -> int:
    """Opens or makes a file that no other open of it, in this process or another, holds locked.

    Returns:
        A descriptor for reading and writing. Closing it gives the lock up; whoever removes the file
        does so before.

    Raises:
        BlockingIOError: the file is locked.
        FileExistsError: something other than a regular file with a single name is there.
        OSError: the file cannot be opened.
    """
    while True:
        descriptor = os.open(path, _FLAGS | os.O_NONBLOCK, 0o666)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise FileExistsError(errno.EEXIST, "not a regular file of its own", str(path))
            # flock, unlike lockf, also excludes other threads of this process.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _names(path, status):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the former owner removed the file between open and flock: try again


@contextmanager
def lock_folder(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Holds a folder itself locked, which needs no right to write there.

    Shared locks stand beside each other, in this process and others; an exclusive one stands alone.
    A folder that cannot be locked, or not be opened, is used without a lock.

    Raises:
        BlockingIOError: it is locked in a way that excludes this one.
    """
    # See docs/decisions/0078-readers-lock-the-folder-of-checkpoints.md.
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks, or without those of folders
        yield
    finally:
        # Closing alone would leave the lock to data loaders that were forked meanwhile.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _names(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except FileNotFoundError:
        return False
