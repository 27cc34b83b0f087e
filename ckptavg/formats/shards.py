"""Checkpoints of several files: where the shards may lie, and which tensors share one."""

from collections.abc import Iterable
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.tensors import TensorInfo
from ckptavg.storage.files import is_file

_SHOWN = 3


def shard_paths(index: Path, names: Iterable[object]) -> list[Path]:
    """The shards that an index names, each once, in the order of their names.

    Args:
        index: the file that names them.
        names: as they were read from the index, of any type.

    Raises:
        FormatError: a shard is missing, or does not lie beside the index.
    """
    plain = sorted({_plain_name(index, name) for name in names})
    paths = [index.with_name(name) for name in plain]
    missing = [path.name for path in paths if not is_file(path)]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise FormatError(
            f"{index} is incomplete: {len(missing)} of its {len(paths)} shards are missing: "
            f"{shown}. Put them beside it"
        )
    # An index from elsewhere must not make us read other files of the user. In the cache of Hugging
    # Face, however, index and shards alike are links, to files that lie in one folder.
    # See docs/decisions/0021-shards-stay-in-their-folder.md.
    folders = {index.parent.resolve(), index.resolve().parent}
    for path in paths:
        if path.resolve().parent not in folders:
            raise FormatError(
                f"refusing {index}: its shard {path.name} is a link to another folder. "
                "Put the file itself there"
            )
    return paths


def assign(tensors: Iterable[TensorInfo], limit: int) -> list[list[TensorInfo]]:
    """Splits tensors among at least one shard, as they were split among the files they come from.

    Tensors of one file share a shard up to `limit` bytes; a tensor larger than that has its own.
    """
    by_file: dict[int, list[TensorInfo]] = {}
    for tensor in tensors:
        by_file.setdefault(tensor.extent.file if tensor.extent else 0, []).append(tensor)
    shards: list[list[TensorInfo]] = []
    for _, found in sorted(by_file.items()):
        size = limit + 1  # so that the first tensor of a file begins a shard
        for tensor in found:
            size += tensor.nbytes
            if size > limit:
                shards.append([])
                size = tensor.nbytes
            shards[-1].append(tensor)
    return shards or [[]]


def _plain_name(index: Path, name: object) -> str:
    if isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0"):
        return name
    raise FormatError(f"refusing {index}: it names the shard {name!r:.80}, not a file beside it")
