"""Files that appear whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


def temporary_sibling(path: Path) -> Path:
    """A new, random hidden name beside `path`, for who does not own `path` alone."""
    # Keras and the readers here recognize a format by the last two suffixes.
    suffixes = "".join(path.suffixes[-2:])
    return path.with_name(f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}{suffixes}")


def partial(path: Path) -> Path:
    """The hidden name beside `path` under which its owner writes it until it is complete.

    It is the same each time, so that what a killed process left is replaced by the next.
    """
    return path.with_name(TEMPORARY_PREFIX + path.name)


def commit(temporary: Path, path: Path) -> None:
    """Gives a finished temporary file its name, durably."""
    # Without fsync of the file, a crash could leave its name with no bytes; without that of the
    # folder, the bytes with the old name.
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_file(path: Path) -> bool:
    """Whether a file of this name exists."""
    return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises if the name is impossible)


def write_text(path: Path, text: str) -> None:
    """Replaces a small file as a whole: readers find the new content or the former.

    As of all that is staged, there must be one writer at a time.
    """
    with staged_text(path, text) as place:
        place()


@contextmanager
def staged_text(path: Path, text: str) -> Iterator[Callable[[], None]]:
    """Writes a small file under a temporary name; the yielded function gives it its own.

    Leaving the context without calling it removes the file.
    """
    temporary = partial(path)
    temporary.unlink(missing_ok=True)
    try:
        # "x", not "w": whoever puts a link there chooses no file to be overwritten.
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # a full disk may be reported only now
        yield lambda: commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
