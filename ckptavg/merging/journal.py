"""The journal of a merge: which units of work are done, on disk, so that it can be resumed."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from ckptavg.errors import OutputError
from ckptavg.formats.strict_json import parse
from ckptavg.runs.digest import digest
from ckptavg.storage.files import partial
from ckptavg.storage.lock import open_own

_FORMAT = "ckptavg-journal 2"
_LINE_LIMIT = 64 * 1024 * 1024
"""Bytes of a line: that of a unit of 10,000 small tensors of 100 checkpoints has 35 million."""


class Journal:
    """The journal of a merge into one output, for whoever owns the output.

    Its first line names the plan. Each further line is a finished unit of work: its number, for
    each segment the digests of what was written and read, and a digest of the line itself, because
    what was read goes into the record. What of it is trusted is decided in
    `ckptavg.merging.resuming`.

    Attributes:
        entries: finished units of an earlier merge of the very same plan, by number.
        keep: whether to leave the journal for a later merge when this one leaves its `with`.
    """

    entries: Mapping[int, Sequence[bytes]]
    keep: bool = False

    def __init__(self, output: Path, fingerprint: str, *, resume: bool) -> None:
        """Opens the journal of an output; without `resume` it is emptied.

        Raises:
            OutputError: something else has its name.
        """
        self.path = partial(output.with_name(f"{output.name}.journal"))
        self._descriptor = _open(self.path)
        self._header = f"{_FORMAT} {fingerprint}\n".encode()
        try:
            self.entries = self._read() if resume else {}
            if not self.entries:
                self.restart()
        except BaseException:
            self.__exit__()
            raise

    def restart(self) -> None:
        """Forgets all that an earlier merge did."""
        self.entries = {}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, self._header, 0)

    def add(self, unit: int, digests: Iterable[bytes]) -> None:
        """Notes that a unit is finished, with the digests of its segments, see `UnitDigests`."""
        # A unit that was recalled is in the file already.
        if unit in self.entries:
            return
        entry = [unit, *(found.hex() for found in digests)]
        line = json.dumps([*entry, self._seal(entry)]) + "\n"
        # At the end, one line in one write: a kill can cut off the last line only.
        os.lseek(self._descriptor, 0, os.SEEK_END)
        os.write(self._descriptor, line.encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.keep:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _read(self) -> dict[int, list[bytes]]:
        """The entries, as far as they are whole, if they are of the same plan."""
        with open(os.dup(self._descriptor), "rb") as file:  # noqa: PTH123
            file.seek(0)
            if file.readline(len(self._header)) != self._header:
                return {}
            entries, end = {}, file.tell()
            while line := file.readline(_LINE_LIMIT):
                try:
                    *entry, seal = parse(line)
                    if seal != self._seal(entry):
                        break
                    unit, *digests = entry
                    entries[unit] = [bytes.fromhex(found) for found in digests]
                except (ValueError, TypeError, RecursionError):
                    break  # a kill cut the line off, or what follows is not to be trusted
                end += len(line)
        # What is not trusted goes: the next line must follow a whole one.
        os.ftruncate(self._descriptor, end)
        return entries

    def _seal(self, entry: list[object]) -> str:
        return digest(self._header + json.dumps(entry).encode()).hex()


def _open(path: Path) -> int:
    try:
        return open_own(path)
    except FileExistsError as error:
        raise OutputError(f"{path} is in the way and is not a journal: remove it") from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}. Remove it") from error
