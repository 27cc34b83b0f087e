"""The lock of a run's directory: one training at a time writes into it."""

import os
import socket
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from ckptavg.errors import SaverError
from ckptavg.storage.lock import ProcessLock

LOCK_FILE = ".lock"


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
        self._lock = ProcessLock(path)
        try:
            self.renew()
        except BaseException:
            self._lock.release()
            raise
        self._key = self._lock.identity
        self._held[self._key] = self
        self._lock.write_note(f"process {os.getpid()} on {socket.gethostname()}")

    def renew(self) -> None:
        """Takes the lock again if it went: another part of the process may have read its file.

        Raises:
            SaverError: another training has taken it meanwhile.
        """
        try:
            locked = self._lock.acquire()
        except BlockingIOError as error:
            raise SaverError(
                f"another training ({self._lock.read_note() or 'of an unknown process'}) writes to "
                f"{self._directory} now: wait for it, end it, or name another directory"
            ) from error
        if not locked:
            warnings.warn(
                f"the file system of {self._directory} has no locks: make sure that no other "
                "training writes there",
                stacklevel=2,
            )

    def release(self) -> None:
        """Gives the lock up; nothing happens if that was done before."""
        self._lock.release()
        if self._held.get(self._key) is self:
            del self._held[self._key]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _living_threads() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate()}
