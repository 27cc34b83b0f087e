"""The files of a TensorFlow checkpoint: an index and shards, which share a prefix."""

from pathlib import Path

from ckptavg.storage.files import is_file

INDEX_SUFFIX = ".index"
"""Of the main file of a TensorFlow checkpoint, which is named by what stands before it."""


def checkpoint_path(path: str | Path) -> Path:
    """What names a checkpoint: its path, without the suffix of TensorFlow's index."""
    path = Path(path)
    stem = path.name.removesuffix(INDEX_SUFFIX)
    return path.with_name(stem) if stem and stem != path.name else path


def main_file(path: Path) -> Path:
    """The file that must exist for a checkpoint to exist."""
    index = Path(f"{path}{INDEX_SUFFIX}")
    return index if is_file(index) and not is_file(path) else path


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
