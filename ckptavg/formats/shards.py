"""Checkpoints of several files: where shards may lie, and which tensors share one."""

from collections.abc import Iterable
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.tensors import TensorInfo
from ckptavg.storage.files import is_file

_SHOWN = 3


def shard_paths(index: Path, names: Iterable[object]) -> list[Path]:
    """The shards that an index names, each once, in the order of their names.

    A shard may be a link, as all files of Hugging Face's cache are, but only to a file in the
    folder of the index or in the one where the index itself really lies: an index that came from
    elsewhere must not lead to other files of its reader.

    Args:
        index: the file that names them.
        names: as they were read there, of any type.

    Raises:
        FormatError: a name is not that of a file in this folder, or shards are missing.
    """
    plain = sorted({_plain_name(index, name) for name in names})
    paths = [index.with_name(name) for name in plain]
    missing = [path.name for path in paths if not is_file(path)]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise FormatError(
            f"{index} is not complete: {len(missing)} of its {len(paths)} shards are missing: "
            f"{shown}. Put them beside it"
        )
    folders = {index.parent.resolve(), index.resolve().parent}
    for path in paths:
        if path.resolve().parent not in folders:
            raise FormatError(
                f"refusing {index}: its shard {path.name} is a link to another folder. "
                "Put the file itself there"
            )
    return paths


def assign(tensors: Iterable[TensorInfo], limit: int) -> list[list[TensorInfo]]:
    """Splits tensors among shards, at least one, in order.

    Those that came from different files stay apart; those of one file share a shard up to `limit`
    bytes, and a tensor that is larger has one for itself.
    """
    by_file: dict[int, list[TensorInfo]] = {}
    for tensor in tensors:
        by_file.setdefault(tensor.extent.file if tensor.extent else 0, []).append(tensor)
    shards: list[list[TensorInfo]] = []
    for _, found in sorted(by_file.items()):
        size = limit + 1
        for tensor in found:
            size += tensor.nbytes
            if size > limit:
                shards.append([])
                size = tensor.nbytes
            shards[-1].append(tensor)
    return shards or [[]]


def _plain_name(index: Path, name: object) -> str:
    plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
    if not plain:
        raise FormatError(
            f"refusing {index}: it names the shard {name!r:.80}, not a file beside it"
        )
    return name
