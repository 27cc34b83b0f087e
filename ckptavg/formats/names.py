"""Makes sure that names of tensors and folders form a tree, as in HDF5."""

from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.reader import Structure

_DEPTH_LIMIT = 64
_NAME_LIMIT = 4096


def check_tree(path: Path, structure: Structure) -> None:
    """Makes sure that every name is a path of folders, and that none leads through a tensor.

    Args:
        path: the file, for messages.
        structure: its tensors and folders.

    Raises:
        FormatError: a name is not such a path, or it is too long or too deep.
    """
    for name in (*structure.tensors, *filter(None, structure.groups)):
        parts = name[: _NAME_LIMIT + 1].split("/")  # hostile names may have any length
        if len(name) > _NAME_LIMIT or len(parts) > _DEPTH_LIMIT:
            raise FormatError(f"refusing {path}: the name {name!r:.80} is too long or too deep")
        if {"", ".", ".."}.intersection(parts) or "\0" in name:
            raise FormatError(f"refusing {path}: {name!r:.80} is not a path of folders")
        above = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        if not structure.tensors.keys().isdisjoint(above):
            raise FormatError(f"refusing {path}: {name!r:.80} lies inside a tensor")
    both = structure.tensors.keys() & structure.groups.keys()
    if both:
        raise FormatError(f"refusing {path}: {min(both)!r:.80} is both a folder and a tensor")
