"""Writes the history of a run, one line for each epoch."""

import os
from pathlib import Path

from ckptavg.errors import RecordError, SaverError
from ckptavg.runs.history import HISTORY_FILE, EpochLog, read_history
from ckptavg.storage.files import write_text
from ckptavg.storage.open_file import read_small_file


class HistoryWriter:
    """Appends to the history file of a run.

    A line goes to the system as its epoch ends, which takes microseconds and survives a kill. It is
    made durable before the next checkpoint is, so that a training that resumes from a checkpoint
    finds the epochs before it.
    """

    # See docs/decisions/0049-history-is-written-in-the-training-thread.md.

    def __init__(self, directory: Path) -> None:
        self._path = directory / HISTORY_FILE
        self._is_durable = True

    def begin(self, epochs: int) -> None:
        """Removes the lines that follow the first `epochs` epochs, which are trained again.

        Raises:
            SaverError: the history is damaged.
        """
        if not epochs or not self._path.exists():
            self._path.unlink(missing_ok=True)
            return
        try:
            logs = read_history(self._path)
        except RecordError as error:
            raise SaverError(str(error)) from error
        content = "".join(log.to_line() for log in logs if log.epoch <= epochs)
        if content.encode() != read_small_file(self._path):
            write_text(self._path, content)

    def append(self, log: EpochLog) -> None:
        """Adds a line, whole or not at all.

        Raises:
            OSError: the system refuses.
        """
        line = log.to_line().encode()
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                written = 0
                while written < len(line):
                    written += file.write(line[written:])
            except OSError:
                os.ftruncate(file.fileno(), end)  # the next line must not follow half of this one
                raise
        self._is_durable = False

    def sync(self) -> None:
        """Makes durable what was appended."""
        if not self._is_durable:
            self._is_durable = True  # first: a line that comes meanwhile is not
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
