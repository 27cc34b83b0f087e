"""Files and folders that owners hold locked; however an owner ends, the system unlocks them."""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""

# Without O_NONBLOCK, opening some devices would wait.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NOTE_LIMIT = 200

_held: dict[tuple[int, int, str], object] = {}
"""Lock files that this process holds, by device and inode of their folder and their name."""
os.register_at_fork(after_in_child=_held.clear)  # a lock is not inherited either


class ProcessLock:
    """A lock file that one process at a time holds, with a note that says who.

    It is a POSIX record lock (`lockf`), which excludes other processes but not other threads of
    this one. It is lost when the process closes any descriptor of the file, so a process must
    open the file only once.

    Attributes:
        descriptor: of the open file, -1 once it was released.
    """

    # Unlike flock, lockf is not inherited by forked data loaders, which may outlive a killed owner.
    # See docs/decisions/0033-a-posix-record-lock-guards-the-run.md.

    def __init__(self, path: Path) -> None:
        """Opens the lock file, or makes it; it is not locked yet.

        Raises:
            OSError: the file cannot be opened for writing.
        """
        self.descriptor = os.open(path, _FLAGS, 0o666)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the file."""
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino

    def acquire(self) -> bool:
        """Takes the lock, or makes sure of it, without waiting.

        Returns:
            False if the file system has no locks.

        Raises:
            BlockingIOError: another process holds the lock.
        """
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise BlockingIOError(error.errno, error.strerror) from error
        return True

    def read_note(self) -> str:
        """What the owner of the lock wrote about itself."""
        return os.pread(self.descriptor, _NOTE_LIMIT, 0).decode("utf-8", "replace")

    def write_note(self, note: str) -> None:
        """Says who holds the lock, for whoever fails to take it."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, note.encode(), 0)

    def release(self) -> None:
        """Gives the lock up; nothing happens if that was done before."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a lock file that other processes, and other callers of this one, cannot hold meanwhile.

    The file is removed at the end. One that a killed process left is taken over.

    Yields:
        False if the file system has no locks: then only this process is excluded.

    Raises:
        BlockingIOError: somebody holds it; `strerror` says who.
        FileExistsError: as for `open_own`.
        OSError: the file cannot be opened for writing.
    """
    folder, mine = path.parent.stat(), object()
    key = folder.st_dev, folder.st_ino, path.name
    # Asked before the file is opened: closing it again would give up the lock of this process.
    if _held.setdefault(key, mine) is not mine:
        raise BlockingIOError(errno.EAGAIN, "another thread of this process", str(path))
    try:
        lock, is_locked = _lock_named(path)
        try:
            lock.write_note(f"process {os.getpid()} on {socket.gethostname()}")
            yield is_locked
        finally:
            # Before it is unlocked: whoever locks it then sees that it has lost its name.
            with suppress(OSError):  # its folder may be gone; what is left of it locks nobody out
                path.unlink()
            lock.release()
    finally:
        _held.pop(key, None)


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


def open_own(path: Path) -> int:
    """Opens or makes a regular file that has no other name; returns its descriptor.

    Raises:
        FileExistsError: something else is there: what is written to it might be somebody's file.
        OSError: the file cannot be opened for reading and writing.
    """
    descriptor = os.open(path, _FLAGS, 0o666)
    try:
        _check_own(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock_named(path: Path) -> tuple[ProcessLock, bool]:
    """The lock of the file that has this name, and whether the file system has locks."""
    while True:
        lock = ProcessLock(path)
        try:
            _check_own(lock.descriptor, path)
            try:
                is_locked = lock.acquire()
            except BlockingIOError as error:
                who = lock.read_note() or "an unknown process"
                raise BlockingIOError(error.errno, who, str(path)) from error
            if _names(path, lock.descriptor):
                return lock, is_locked
        except BaseException:
            lock.release()
            raise
        lock.release()  # the former owner removed the file after it was opened here: try again


def _check_own(descriptor: int, path: Path) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise FileExistsError(errno.EEXIST, "not a regular file of its own", str(path))


def _names(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
