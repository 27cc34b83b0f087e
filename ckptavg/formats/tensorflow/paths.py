"""The files of a TensorFlow checkpoint: an index and shards, which share a prefix."""

from pathlib import Path

from ckptavg.storage.files import is_file

INDEX_SUFFIX = ".index"
"""Suffix of the main file of a TensorFlow checkpoint; what precedes it names the checkpoint."""


def checkpoint_path(path: str | Path) -> Path:
    """The name of a checkpoint: its path, without the suffix of TensorFlow's index."""
    path = Path(path)
    stem = path.name.removesuffix(INDEX_SUFFIX)
    return path.with_name(stem) if stem and stem != path.name else path


def main_file(path: Path) -> Path:
    """The file whose existence makes the checkpoint exist."""
    index = Path(f"{path}{INDEX_SUFFIX}")
    return index if is_file(index) and not is_file(path) else path


def index_file(path: Path) -> Path:
    """The index of a checkpoint, from its prefix or from the path of the index itself."""
    return Path(f"{_prefix(path)}{INDEX_SUFFIX}")


def data_file(path: Path, shard: int, shards: int) -> Path:
    """The file that holds one shard of a checkpoint, from its prefix or its index."""
    return Path(f"{_prefix(path)}.data-{shard:05}-of-{shards:05}")


def has_index(path: Path) -> bool:
    """Whether this prefix or index names an existing checkpoint."""
    return is_file(index_file(path))


def _prefix(path: Path) -> str:
    return str(path).removesuffix(INDEX_SUFFIX)
