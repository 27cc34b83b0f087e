"""Files that appear whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


def temporary_sibling(path: Path) -> Path:
    """A fresh hidden name in the folder of `path`, with its last two suffixes."""
    suffixes = "".join(path.suffixes[-2:])
    return path.with_name(f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}{suffixes}")


def partial(path: Path) -> Path:
    """The hidden name in the folder of `path` under which it is written until it is complete."""
    return path.with_name(TEMPORARY_PREFIX + path.name)


def commit(temporary: Path, path: Path) -> None:
    """Gives a finished temporary file its name: fsync, rename, fsync of the folder."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    _fsync_folder(path.parent)


def is_file(path: Path) -> bool:
    """Whether there is such a file. `Path.is_file` raises for names that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that a reader finds all of it or its former content."""
    with staged_text(path, text) as place:
        place()


@contextmanager
def staged_text(path: Path, text: str) -> Iterator[Callable[[], None]]:
    """Writes a small file beside its place, where it goes when the yielded function is called."""
    temporary = temporary_sibling(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # some systems find out only now that the disk is full
        yield lambda: commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
