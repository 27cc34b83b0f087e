"""Rows of float64 numbers, in memory or in an unnamed file."""

import os
import tempfile
from pathlib import Path

import numpy as np

from ckptavg.runs.outputs import writing

DEFAULT_MEMORY = 1024**3
"""Bytes that rows may take in memory by default."""


class RowStore:
    """Rows of numbers, which are read and written in pieces. They hold arbitrary numbers at first.

    Attributes:
        on_disk: whether they are in a file, because they do not fit into memory.
    """

    def __init__(self, count: int, length: int, *, folder: Path, max_memory: int) -> None:
        """Makes room for rows.

        Args:
            count: number of rows.
            length: numbers in each.
            folder: where the file goes if there is one. It has no name there, so nothing is left of
                it, however the process ends.
            max_memory: bytes that rows may take in memory.
        """
        nbytes = count * length * 8
        self.on_disk = nbytes > max_memory
        self._folder, self._length = folder, length
        self._values = np.empty(0 if self.on_disk else count * length, np.float64)
        if self.on_disk:
            # Not a mapped file, whose pages would count as memory of the process.
            with writing(folder):
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
                self._file.truncate(nbytes)

    def read(self, row: int, start: int, count: int) -> np.ndarray:
        """Numbers of a row, (count,) float64, which must not be changed."""
        place = row * self._length + start
        if not self.on_disk:
            return self._values[place : place + count]
        return np.frombuffer(os.pread(self._file.fileno(), 8 * count, 8 * place))

    def write(self, row: int, start: int, values: np.ndarray) -> None:
        """Sets numbers of a row; several threads may write different ones at once."""
        place = row * self._length + start
        if not self.on_disk:
            self._values[place : place + len(values)] = values
            return
        data, written = np.ascontiguousarray(values).data.cast("B"), 0
        with writing(self._folder):
            while written < len(data):
                written += os.pwrite(self._file.fileno(), data[written:], place * 8 + written)

    def close(self) -> None:
        """Frees the memory or the file."""
        del self._values
        if self.on_disk:
            self._file.close()
