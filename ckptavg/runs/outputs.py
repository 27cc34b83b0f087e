"""Where an output and the record beside it may go."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptavg.errors import CkptavgError, OutputError, ResourceError
from ckptavg.runs.record_files import is_record, record_path
from ckptavg.runs.run import CHECKPOINT_FOLDER, record_files


def check_output(path: Path, overwrite: bool) -> None:
    """Refuses an output that would replace, or be mistaken for, something else.

    Raises:
        OutputError: as for `check_place`, or a file that is not a record stands where the record
            goes.
    """
    check_place(path, overwrite)
    record = record_path(path)
    if os.path.lexists(record) and not (record.is_file() and is_record(record)):
        raise OutputError(
            f"{record} is in the way of the record of {path.name}: move it or choose another name"
        )


def check_place(path: Path, overwrite: bool) -> None:
    """Refuses a place for a file of any kind, where it would replace something else.

    Raises:
        OutputError: the file exists and `overwrite` is false; it is a folder or a link; or its
            folder is missing, not writable, or the checkpoint folder of a run.
    """
    folder = path.parent
    # Before the others, which follow links: a rename would replace the link, not its target.
    if path.is_symlink():
        raise OutputError(f"{path} is a symbolic link: name the file that it points to")
    if path.is_dir():
        raise OutputError(f"{path} is a directory: name a file to write")
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: the folder {folder} does not exist")
    if folder.resolve().name == CHECKPOINT_FOLDER and record_files(folder):
        raise OutputError(
            f"cannot write {path}: in the checkpoint folder of a run it would be taken for one "
            "of the checkpoints. Name another folder"
        )
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} exists already: choose another name or overwrite it (--overwrite, in Python "
            "overwrite=True)"
        )
    # The file itself may be read-only: it is replaced, not written.
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission to write to {folder}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of the system, which often lack a name, into errors that name the output.

    Raises:
        ResourceError: the disk is full.
        OutputError: it cannot be written for another reason.
    """
    try:
        yield
    except (CkptavgError, ConnectionError):  # such as the broken pipe of a progress
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"cannot write {path}: the disk of {path.parent} is full. Make room, or name an "
                "output elsewhere"
            ) from error
        place = f" ({error.filename})" if error.filename else ""
        raise OutputError(f"cannot write {path}: {error.strerror or error}{place}") from error
