"""Where the record of a checkpoint lies, how it is found, and how it is written with its file."""

import errno
import re
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from ckptavg.errors import OutputError, RecordError
from ckptavg.runs.record import FORMAT, Record, TensorRecords
from ckptavg.storage.files import partial, staged_text
from ckptavg.storage.open_file import OpenFile

_MARKS = (FORMAT.encode(), b'"ckptavg":')
"""Either makes a file a record: damage to one would take a checkpoint's proof away unnoticed."""
_HEAD = 4096
"""Bytes in which marks stand, however long the name of the file between them is."""

_ABSENT = (errno.ENOENT, errno.ENAMETOOLONG)
"""Errors of names that no file has: that of a record is longer than that of its checkpoint."""

_SUFFIXES = re.compile(r"(\.weights)?\.\w+$")


def record_path(checkpoint: Path) -> Path:
    """Where the record of a file that is no checkpoint of a run stands."""
    return checkpoint.with_name(checkpoint.name + ".json")


def find_record(checkpoint: Path) -> Record | None:
    """The record of a checkpoint, wherever it came from; None if it has none.

    Raises:
        RecordError: there is a record, but it cannot be read.
    """
    # The record of a merged file first: it names its file in full, and cannot be of another.
    stem = _SUFFIXES.sub("", checkpoint.name)
    for path in (record_path(checkpoint), checkpoint.with_name(stem + ".json")):
        if is_record(path):
            record = Record.read(path)
            # Beside a file of its very name it is of that file, which may have been renamed.
            if record.file == checkpoint.name or path == record_path(checkpoint):
                return record
    return None


def commit_with_record(
    commit: Callable[[], None], record: Record, tensors: TensorRecords, place: Path
) -> Record:
    """Commits a file and its record, which goes to `place` and is returned.

    For the output of a merge `commit` is `CheckpointWriter.commit`.

    The record is written out before anything is replaced, because the disk may be full. A former
    file's record is taken away first: a crash on the way may leave a file without a record, but
    none with a wrong one.

    Raises:
        OutputError: a folder stands where the record is to go.
    """
    if place.is_dir():
        raise OutputError(f"{place} is in the way: the record goes there")
    # See docs/decisions/0024-outputs-are-replaced-as-a-whole.md.
    former = partial(place.with_name(f"{place.name}.former"))
    with staged_text(place, record.to_json(tensors)) as commit_record:
        with suppress(FileNotFoundError):
            place.replace(former)
        try:
            commit()
        # Nothing was replaced: the former file gets its record back.
        except BaseException:
            with suppress(FileNotFoundError):
                former.replace(place)
            raise
        former.unlink(missing_ok=True)
        commit_record()
    return replace(record, path=place)


def is_record(path: Path) -> bool:
    """Tells a record, even a damaged one, from somebody else's JSON file of the same name.

    Raises:
        RecordError: what is there cannot be read, or is not a regular file.
    """
    try:
        with closing(OpenFile(path)) as file:
            head = file.read(0, _HEAD)
    except OSError as error:
        if error.errno in _ABSENT or path.is_dir():
            return False
        raise RecordError(f"cannot read the record {path}: {error.strerror}") from error
    return any(mark in head for mark in _MARKS)
