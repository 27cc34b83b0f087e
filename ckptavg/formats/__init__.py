"""Checkpoint formats: one table, suffix to format."""

from collections.abc import Iterable
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.interface import (
    CheckpointReader,
    CheckpointWriter,
    Layout,
    Structure,
    is_optimizer,
)
from ckptavg.formats.keras_archive import KerasArchiveReader, KerasArchiveWriter, ModelConfig
from ckptavg.formats.weights_h5 import WeightsH5Reader, WeightsH5Writer

_READERS: dict[str, type[CheckpointReader]] = {
    ".weights.h5": WeightsH5Reader,
    ".keras": KerasArchiveReader,
}
_WRITTEN = (".weights.h5", ".keras")

__all__ = [
    "CheckpointReader",
    "CheckpointWriter",
    "Layout",
    "ModelConfig",
    "Structure",
    "is_optimizer",
    "open_reader",
    "open_writer",
    "output_suffix",
]


def open_reader(
    path: Path, structure: Structure | None = None, like: Layout | None = None
) -> CheckpointReader:
    """Opens a checkpoint of any format that can be read; arguments are those of its reader.

    Raises:
        FormatError: the suffix is of no known format, or the file is damaged.
    """
    for suffix, reader in _READERS.items():
        if path.name.endswith(suffix):
            return reader(path, structure, like)
    raise FormatError(f"cannot read {path}: expected a file that ends in {_listed(_READERS)}")


def output_suffix(path: Path) -> str:
    """The suffix that decides the format of an output.

    Raises:
        FormatError: no format that can be written has this suffix.
    """
    for suffix in _WRITTEN:
        if path.name.endswith(suffix) and path.name != suffix:
            return suffix
    raise FormatError(f"cannot write {path}: name an output that ends in {_listed(_WRITTEN)}")


def open_writer(
    path: Path, structure: Structure, model_config: ModelConfig | None = None
) -> CheckpointWriter:
    """Opens an output of any format that can be written.

    Args:
        path: the file to write; it appears at `commit()`.
        structure: its tensors (extents are not looked at) and groups.
        model_config: needed for `.keras`.

    Raises:
        FormatError: the suffix is of no known format.
    """
    if output_suffix(path) == ".weights.h5":
        return WeightsH5Writer(path, structure)
    assert model_config is not None, "the plan makes sure of a configuration"
    return KerasArchiveWriter(path, structure, model_config)


def _listed(suffixes: Iterable[str]) -> str:
    return " or ".join(suffixes)
