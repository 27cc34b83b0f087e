"""The files of a TensorFlow checkpoint: an index and shards, which share a prefix."""

from pathlib import Path

from ckptavg.checkpoints import INDEX_SUFFIX
from ckptavg.files import is_file


def index_file(path: Path) -> Path:
    """The index of a checkpoint that is named by its prefix or by that index."""
    return Path(f"{_prefix(path)}{INDEX_SUFFIX}")


def data_file(path: Path, shard: int, shards: int) -> Path:
    """The file that holds a shard of such a checkpoint's tensors."""
    return Path(f"{_prefix(path)}.data-{shard:05}-of-{shards:05}")


def has_index(path: Path) -> bool:
    """Whether a checkpoint is there that is named by this prefix or index."""
    return is_file(index_file(path))


def _prefix(path: Path) -> str:
    return str(path).removesuffix(INDEX_SUFFIX)
