"""Where an output and the record beside it may go, and who writes them."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ckptavg.errors import CkptavgError, OutputError, ResourceError, warn
from ckptavg.runs.record_files import is_record, record_path
from ckptavg.runs.run import CHECKPOINT_FOLDER, record_files
from ckptavg.storage.files import partial
from ckptavg.storage.lock import locked


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
        OutputError: the file exists and `overwrite` is false; it is a folder, a link, a pipe or a
            device; its name is not text; or its folder is missing, not writable, or the checkpoint
            folder of a run.
    """
    with writing(path):
        _check_place(path, overwrite)


def _check_place(path: Path, overwrite: bool) -> None:
    check_name(path)
    folder = path.parent
    # Before the others, which follow links: a rename would replace the link, not its target.
    if path.is_symlink():
        raise OutputError(f"{path} is a symbolic link: name the file that it points to")
    if path.exists() and not path.is_file():
        raise OutputError(
            f"{path} is not a regular file, but a device, a named pipe or a socket, which an "
            "output would replace: choose another name"
        )
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


def check_name(path: Path) -> None:
    """Refuses what cannot be the name of a file to write, whatever suffix it is given.

    Raises:
        OutputError: it is a directory, such as `.`, or not text.
    """
    with writing(path):
        is_folder = path.is_dir()
    if is_folder:
        raise OutputError(f"{path} is a directory: name a file to write")
    # A record holds names as JSON, which has no place for other bytes.
    if not is_text(path.name):
        raise OutputError(f"cannot write {os.fsencode(path)!r}: its name is not valid UTF-8")


def is_text(path: str | Path) -> bool:
    """Whether a path is valid UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def owning(
    output: Path,
    overwrite: bool,
    *,
    parts: Iterable[Path] = (),
    check: Callable[[Path, bool], None] = check_output,
) -> Iterator[None]:
    """Owns an output from its plan to its commit: nobody else writes it, its parts or its record.

    Everything that writes an output under a name that a user chose does it in here, and names its
    temporary files after the output. They are then written by one process at a time, and those
    that a killed one left are replaced by the next.

    Args:
        output: the file to write.
        overwrite: whether to replace an existing one.
        parts: files that it consists of.
        check: refuses an output that cannot be written; called before and after the lock is taken,
            because another process may have written the output in between.

    Raises:
        OutputError: another process or thread owns it, or as `check` does.
    """
    # See docs/decisions/0079-an-output-has-one-owner.md.
    check(output, overwrite)
    with ExitStack() as locks:
        for file in sorted({output, *parts}):
            _own(file, output, locks)
        check(output, overwrite)
        yield


def _own(file: Path, output: Path, locks: ExitStack) -> None:
    lock = partial(file.with_name(f"{file.name}.lock"))
    try:
        with writing(output):
            has_locks = locks.enter_context(locked(lock))
    except OutputError as error:
        if isinstance(error.__cause__, BlockingIOError):
            raise OutputError(
                f"{file} is being written by {error.__cause__.strerror}: wait for it, or name "
                "another output"
            ) from error.__cause__
        if lock.exists():
            raise OutputError(f"{error}. Remove {lock} if nobody is writing {file}") from error
        raise
    if not has_locks:
        warn(
            f"the file system of {output} has no locks: make sure that no other process writes it",
            4,
        )


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
        # HDF5 adds lines of its own to the text of an error.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OutputError(f"cannot write {path}: {reason}{place}") from error
