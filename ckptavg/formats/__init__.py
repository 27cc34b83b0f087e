"""Checkpoint formats: one table, suffix to format."""

from collections.abc import Iterable
from pathlib import Path

from ckptavg.checkpoints import INDEX_SUFFIX
from ckptavg.errors import FormatError
from ckptavg.formats.interface import LEGACY, CheckpointReader, Layout, Stamp, Structure
from ckptavg.formats.keras_archive import KerasArchiveReader, KerasArchiveWriter, ModelConfig
from ckptavg.formats.legacy_h5 import LegacyH5Writer
from ckptavg.formats.safetensors import (
    SafetensorsReader,
    SafetensorsWriter,
    ShardedSafetensorsReader,
    ShardedSafetensorsWriter,
)
from ckptavg.formats.sharded_h5 import ShardedH5Reader, ShardedH5Writer
from ckptavg.formats.tf_checkpoint import TensorFlowReader, TensorFlowWriter
from ckptavg.formats.tf_files import has_index
from ckptavg.formats.weights_h5 import WeightsH5Reader, WeightsH5Writer
from ckptavg.formats.writing import CheckpointWriter

_READERS: dict[str, type[CheckpointReader]] = {
    ".weights.h5": WeightsH5Reader,
    ".weights.json": ShardedH5Reader,
    ".h5": WeightsH5Reader,
    ".hdf5": WeightsH5Reader,
    ".keras": KerasArchiveReader,
    ".safetensors": SafetensorsReader,
    ".safetensors.index.json": ShardedSafetensorsReader,
    INDEX_SUFFIX: TensorFlowReader,
}
_WRITERS: dict[str, type[CheckpointWriter]] = {
    ".weights.h5": WeightsH5Writer,
    ".weights.json": ShardedH5Writer,
    ".h5": LegacyH5Writer,
    ".hdf5": LegacyH5Writer,
    ".keras": KerasArchiveWriter,
    ".safetensors": SafetensorsWriter,
    ".safetensors.index.json": ShardedSafetensorsWriter,
    INDEX_SUFFIX: TensorFlowWriter,
}
READ_SUFFIXES = tuple(_READERS)
"""Of the files that `open_reader` can read."""

__all__ = [
    "READ_SUFFIXES",
    "CheckpointReader",
    "CheckpointWriter",
    "Layout",
    "ModelConfig",
    "Stamp",
    "Structure",
    "open_reader",
    "open_writer",
    "output_files",
    "output_suffix",
]


def open_reader(
    path: Path, structure: Structure | None = None, like: Layout | None = None
) -> CheckpointReader:
    """Opens a checkpoint of any format that can be read; arguments are those of its reader.

    Raises:
        FormatError: the suffix is of no known format, or the file is damaged.
    """
    if has_index(path) and not path.is_file():  # a prefix, whatever it ends in
        return TensorFlowReader(path, structure, like)
    for suffix, reader in _READERS.items():
        if path.name.endswith(suffix):
            return reader(path, structure, like)
    raise FormatError(f"cannot read {path}: expected a file that ends in {_listed(_READERS)}")


def output_suffix(path: Path) -> str:
    """The suffix that decides the format of an output.

    Raises:
        FormatError: no format that can be written has this suffix.
    """
    for suffix in _WRITERS:
        if path.name.endswith(suffix) and path.name != suffix:
            return suffix
    raise FormatError(f"cannot write {path}: name an output that ends in {_listed(_WRITERS)}")


def output_files(path: Path, structure: Structure) -> list[Path]:
    """Every file that an output will consist of."""
    return _WRITERS[output_suffix(path)].output_files(path, structure)


def open_writer(
    path: Path,
    structure: Structure,
    model_config: ModelConfig | None = None,
    *,
    resume: bool = False,
) -> CheckpointWriter:
    """Opens an output of any format that can be written.

    Args:
        path: the file to write; it appears at `commit()`.
        structure: its tensors (extents are only hints) and groups.
        model_config: needed for `.keras`.
        resume: whether to go on with what an interrupted writer left.

    Raises:
        FormatError: the suffix is of no known format, or the format cannot hold these tensors.
    """
    writer = _WRITERS[output_suffix(path)]
    if writer is KerasArchiveWriter:
        assert model_config is not None, "the plan makes sure of a configuration"
        return KerasArchiveWriter(path, structure, model_config=model_config, resume=resume)
    if writer is WeightsH5Writer and structure.naming == LEGACY:  # as Keras did up to 2.12
        writer = LegacyH5Writer
    return writer(path, structure, resume=resume)


def _listed(suffixes: Iterable[str]) -> str:
    return " or ".join(suffixes)
