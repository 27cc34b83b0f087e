"""Puts files into the kernel's page cache or out of it, and sees where they are."""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

_CHUNK = 1 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)


def resident(path: Path) -> float:
    """The share of a file's pages that are in the page cache, by mincore."""
    size = path.stat().st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    # Writable only because ctypes finds the address of no other mapping; nothing is written.
    access = mmap.PROT_READ | mmap.PROT_WRITE
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, access) as map_:
        start = ctypes.c_char.from_buffer(map_)
        failed = _LIBC.mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages
        )
        del start  # a mapping with an open view cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), f"mincore of {path} failed")
    return bytes(pages).count(1) / len(pages)


def warm(paths: Iterable[Path]) -> None:
    """Reads what is not in the page cache."""
    for path in paths:
        if resident(path) < 1.0:
            with path.open("rb", buffering=0) as file:
                while file.read(_CHUNK):
                    pass


def evict(paths: Iterable[Path]) -> None:
    """Drops files from the page cache; ends the program if they stay there."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not yet on disk are not dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if left := resident(path):
            sys.exit(f"{left:.1%} of {path} stayed in the page cache: choose another --folder")
