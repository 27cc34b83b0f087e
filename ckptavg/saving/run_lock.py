"""The lock of a run's directory: one training at a time writes to it."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from ckptavg.errors import SaverError, warn
from ckptavg.storage.lock import ProcessLock

LOCK_FILE = ".lock"


class RunLock:
    """Held by a training until it ends, however it ends.

    `ProcessLock` excludes other processes; trainings of this process are told apart here.
    """

    _held: ClassVar[dict[tuple[int, int], "RunLock"]] = {}

    def __init__(self, directory: Path, finish: Callable[[], object]) -> None:
        """Locks a directory.

        Args:
            directory: directory of the run.
            finish: ends the work of this training before another one takes the lock.

        Raises:
            SaverError: another training writes there.
            OSError: the lock cannot be written.
        """
        self._directory = directory
        self._finish = finish
        self._thread = threading.get_ident()
        self._is_released = False
        path = directory / LOCK_FILE
        if path.exists() and (former := self._held.get(_identity(path))) is not None:
            # No hook says that an exception has ended a training. One of this very thread must be
            # over, though, and so must one whose thread is.
            living = {thread.ident for thread in threading.enumerate()} - {self._thread}
            if former._thread in living:
                raise self._taken()
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
        """Takes the lock again if it was lost: another part of the process may have read its file.

        Raises:
            SaverError: another training has taken it meanwhile.
        """
        if self._is_released:
            raise self._taken()
        try:
            locked = self._lock.acquire()
        except BlockingIOError as error:
            raise SaverError(
                f"another training ({self._lock.read_note() or 'of an unknown process'}) writes to "
                f"{self._directory} now: wait for it, end it, or name another directory"
            ) from error
        if not locked:
            warn(
                f"the file system of {self._directory} has no locks: make sure that no other "
                "training writes there"
            )

    def release(self) -> None:
        """Gives the lock up; nothing happens if that was done before."""
        self._is_released = True
        self._lock.release()
        if self._held.get(self._key) is self:
            del self._held[self._key]

    def _taken(self) -> SaverError:
        return SaverError(
            f"another training or saver of this process writes to {self._directory} now: wait for "
            "it, or name another directory"
        )


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode of a file, which are the same by whatever name it is found."""
    status = path.stat()
    return status.st_dev, status.st_ino
