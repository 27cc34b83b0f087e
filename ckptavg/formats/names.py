"""Names of tensors and folders that make a tree, as files of folders need it."""

from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.reader import Structure

_DEPTH_LIMIT = 64
_NAME_LIMIT = 4096


def check_tree(path: Path, structure: Structure) -> None:
    """Makes sure that every name is a path downwards, and that nothing lies inside a tensor.

    Args:
        path: the file that the names come from or go to, for messages.
        structure: what it holds; the folder "" is the file itself.

    Raises:
        FormatError: they do not.
    """
    for name in (*structure.tensors, *filter(None, structure.groups)):
        parts = name[: _NAME_LIMIT + 1].split("/")
        if len(name) > _NAME_LIMIT or len(parts) > _DEPTH_LIMIT:
            raise FormatError(f"refusing {path}: the name {name!r:.80} is too long or too deep")
        if {"", ".", ".."}.intersection(parts) or "\0" in name:
            raise FormatError(f"refusing {path}: {name!r:.80} is not a path of folders")
        above = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        if not structure.tensors.keys().isdisjoint(above):
            raise FormatError(f"refusing {path}: {name!r:.80} lies inside of a tensor")
    both = structure.tensors.keys() & structure.groups.keys()
    if both:
        raise FormatError(f"refusing {path}: {min(both)!r:.80} is both a folder and a tensor")
