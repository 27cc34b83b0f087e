"""The lock of a run's directory: one training at a time writes into it."""

import errno
import fcntl
import os
import socket
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from ckptavg.errors import SaverError

LOCK_FILE = ".lock"

_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems say that have no locks."""


class RunLock:
    """Held by a training until it ends, however it ends.

    It is a lock of the process (POSIX), which a crash releases even where workers that the
    training had forked live on, as one of the open file would not be. Such a lock goes when any
    descriptor of the file is closed, so that a process has one only.
    """

    _held: ClassVar[dict[tuple[int, int], "RunLock"]] = {}

    def __init__(self, directory: Path, finish: Callable[[], object]) -> None:
        """Locks a directory.

        A training in this thread that an exception ended holds its lock for nothing, and loses it.

        Args:
            directory: of the run.
            finish: ends the work of this training, before another one takes the lock.

        Raises:
            SaverError: another training writes there.
            OSError: the lock cannot be written.
        """
        self._directory = directory
        self._finish = finish
        self._thread = threading.get_ident()
        path = directory / LOCK_FILE
        former = self._held.get(_identity(path))
        if former is not None:
            if former._thread != self._thread and former._thread in _living_threads():
                raise SaverError(
                    f"another training of this process writes to {directory} now: wait for it, or "
                    "name another directory"
                )
            former._finish()
            former.release()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor: int | None = os.open(path, flags, 0o666)
        try:
            self._lock()
        except BaseException:
            os.close(self._descriptor)
            raise
        self._key = _identity(path)
        self._held[self._key] = self
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def renew(self) -> None:
        """Takes the lock again if it went: another part of the process may have read its file.

        Raises:
            SaverError: another training has taken it meanwhile.
        """
        self._lock()

    def release(self) -> None:
        """Gives the lock up; nothing happens if that was done before."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            del self._held[self._key]

    def _lock(self) -> None:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNKNOWN:
                warnings.warn(
                    f"the file system of {self._directory} has no locks: make sure that no other "
                    "training writes there",
                    stacklevel=2,
                )
                return
            owner = os.pread(self._descriptor, 200, 0).decode("utf-8", "replace")
            raise SaverError(
                f"another training ({owner or 'of an unknown process'}) writes to "
                f"{self._directory} now: wait for it, end it, or name another directory"
            ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _living_threads() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate()}
