"""Checkpoint formats: one table, suffix to format, each imported when a file of it comes up."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ckptavg.errors import FormatError
from ckptavg.formats.model_config import ModelConfig
from ckptavg.formats.reader import LEGACY, TENSORFLOW, CheckpointReader, FileSkeleton, Structure
from ckptavg.formats.tensorflow.paths import INDEX_SUFFIX, has_index
from ckptavg.formats.tensorflow.state_file import STATE_FILE, read_state
from ckptavg.formats.writer import CheckpointWriter

_READERS = {
    ".weights.h5": "hdf5.keras3.WeightsH5Reader",
    ".weights.json": "hdf5.keras3_shards.ShardedH5Reader",
    ".h5": "hdf5.keras3.WeightsH5Reader",
    ".hdf5": "hdf5.keras3.WeightsH5Reader",
    ".keras": "hdf5.keras_archive.KerasArchiveReader",
    ".safetensors": "safetensors.checkpoint.SafetensorsReader",
    ".safetensors.index.json": "safetensors.checkpoint.ShardedSafetensorsReader",
    INDEX_SUFFIX: "tensorflow.checkpoint.TensorFlowReader",
}
_LEGACY_WRITER = "hdf5.keras2.LegacyH5Writer"
_WRITERS = {
    ".weights.h5": "hdf5.keras3.WeightsH5Writer",
    ".weights.json": "hdf5.keras3_shards.ShardedH5Writer",
    ".h5": _LEGACY_WRITER,
    ".hdf5": _LEGACY_WRITER,
    ".keras": "hdf5.keras_archive.KerasArchiveWriter",
    ".safetensors": "safetensors.checkpoint.SafetensorsWriter",
    ".safetensors.index.json": "safetensors.checkpoint.ShardedSafetensorsWriter",
    INDEX_SUFFIX: "tensorflow.checkpoint.TensorFlowWriter",
}
_OF_KERAS = (".weights.h5", ".keras")
READ_SUFFIXES = tuple(_READERS)
"""Of the files that `open_reader` can read."""

__all__ = [
    "LEGACY",
    "READ_SUFFIXES",
    "STATE_FILE",
    "CheckpointReader",
    "CheckpointWriter",
    "FileSkeleton",
    "ModelConfig",
    "Structure",
    "check_keras_output",
    "named_like",
    "open_reader",
    "open_writer",
    "read_state",
    "writer_of",
]


def open_reader(
    path: Path, structure: Structure | None = None, like: FileSkeleton | None = None
) -> CheckpointReader:
    """Opens a checkpoint of any format that can be read; arguments are those of its reader.

    Raises:
        FormatError: the suffix is of no known format, or the file is damaged.
    """
    if has_index(path) and not path.is_file():  # a prefix, whatever it ends in
        return _load(_READERS[INDEX_SUFFIX])(path, structure, like)
    for suffix, reader in _READERS.items():
        if path.name.endswith(suffix):
            return _load(reader)(path, structure, like)
    raise FormatError(f"cannot read {path}: expected a file that ends in {_listed(_READERS)}")


def named_like(output: Path, checkpoint: Path) -> Path:
    """An output whose name has no suffix at all, with that of a checkpoint; others as they are."""
    suffix = next((s for s in _WRITERS if checkpoint.name.endswith(s)), "")
    return output if "." in output.name else output.with_name(output.name + suffix)


def check_keras_output(path: Path) -> None:
    """Makes sure that Keras itself can write and load a file of this name.

    Raises:
        FormatError: it cannot.
    """
    if not path.name.endswith(_OF_KERAS) or path.name in _OF_KERAS:
        raise FormatError(
            f"cannot write {path}: name an output that ends in {_listed(_OF_KERAS)}, which a model "
            "can be saved to"
        )


def writer_of(path: Path, naming: str) -> type[CheckpointWriter]:
    """The writer of an output, by its suffix and by how its tensors are named.

    What is named as in TensorFlow checkpoints may be written to any prefix.

    Raises:
        FormatError: no format that can be written has this suffix.
    """
    for suffix, writer in _WRITERS.items():
        if path.name.endswith(suffix) and path.name != suffix:
            if suffix == ".weights.h5" and naming == LEGACY:  # as Keras did up to 2.12
                return _load(_LEGACY_WRITER)
            return _load(writer)
    if naming == TENSORFLOW and path.name:
        return _load(_WRITERS[INDEX_SUFFIX])
    raise FormatError(f"cannot write {path}: name an output that ends in {_listed(_WRITERS)}")


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
    writer = writer_of(path, structure.naming)
    if writer.needs_model_config:
        assert model_config is not None, "the plan makes sure of a configuration"
        return writer(path, structure, model_config=model_config, resume=resume)
    return writer(path, structure, resume=resume)


def _load(name: str) -> Any:
    """A class of one of the modules beside this one."""
    module, name = name.rsplit(".", 1)
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def _listed(suffixes: Iterable[str]) -> str:
    *most, last = suffixes
    return f"{', '.join(most)} or {last}"
