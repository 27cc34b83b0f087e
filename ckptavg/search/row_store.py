"""Rows of float64 numbers, in memory or in an unnamed file."""

import os
import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np

from ckptavg.runs.outputs import writing

DEFAULT_MEMORY = 1024**3
"""Bytes that rows may take in memory by default."""


class Rows(Protocol):
    """Rows of numbers, which are read and written in pieces.

    Attributes:
        on_disk: whether they are in a file, because they do not fit into memory.
    """

    on_disk: bool

    def read(self, row: int, start: int, count: int) -> np.ndarray:
        """Numbers of a row, (count,) float64, which must not be changed."""
        ...

    def write(self, row: int, start: int, values: np.ndarray) -> None:
        """Sets numbers of a row."""
        ...

    def close(self) -> None:
        """Frees the memory or the file."""
        ...


def make_rows(rows: int, length: int, *, folder: Path, max_memory: int) -> Rows:
    """Makes rows that hold arbitrary numbers.

    Args:
        rows: their number.
        length: numbers in each.
        folder: where the file goes if there is one. It has no name there, so nothing is left of
            it, however the process ends.
        max_memory: bytes that rows may take in memory.
    """
    if rows * length * 8 > max_memory:
        return _FileRows(rows, length, folder)
    return _MemoryRows(rows, length)


class _MemoryRows:
    on_disk = False

    def __init__(self, rows: int, length: int) -> None:
        self._values = np.empty((rows, length), np.float64)

    def read(self, row: int, start: int, count: int) -> np.ndarray:
        return self._values[row, start : start + count]

    def write(self, row: int, start: int, values: np.ndarray) -> None:
        self._values[row, start : start + len(values)] = values

    def close(self) -> None:
        del self._values


class _FileRows:
    on_disk = True

    def __init__(self, rows: int, length: int, folder: Path) -> None:
        with writing(folder):
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            self._file.truncate(rows * length * 8)
        self._folder, self._length = folder, length

    def read(self, row: int, start: int, count: int) -> np.ndarray:
        values = np.empty(count, np.float64)
        view, filled = values.data.cast("B"), 0
        while filled < len(view):
            offset = (row * self._length + start) * 8 + filled
            filled += os.preadv(self._file.fileno(), [view[filled:]], offset)
        return values

    def write(self, row: int, start: int, values: np.ndarray) -> None:
        data, written = np.ascontiguousarray(values).data.cast("B"), 0
        with writing(self._folder):
            while written < len(data):
                offset = (row * self._length + start) * 8 + written
                written += os.pwrite(self._file.fileno(), data[written:], offset)

    def close(self) -> None:
        self._file.close()
