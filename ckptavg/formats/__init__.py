"""Checkpoint formats: bytes on disk to named tensors and back, without Keras or TensorFlow.

`_FORMATS` is the single table of them: the suffix of a file's name, its reader and writer, and the
ways of naming tensors that can be written. A conversion is possible where a format can hold the
names that the checkpoints have. To add a format:

1. Write a module with a subclass of `CheckpointReader`, which finds tensors (`_read_structure`),
   and one of `CheckpointWriter`, which makes the files to be filled (`_lay_out`).
2. Add a line to `_FORMATS`. Modules are imported when a file of their format is opened.
3. Add a test class that inherits `ReaderContract` and `WriterContract` (tests/formats/contract.py).
"""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ckptavg.errors import FormatError
from ckptavg.formats.model_config import ModelConfig
from ckptavg.formats.reader import (
    FLAT,
    KERAS,
    LEGACY,
    TENSORFLOW,
    CheckpointReader,
    FileSkeleton,
    Structure,
)
from ckptavg.formats.tensorflow.paths import INDEX_SUFFIX, has_index
from ckptavg.formats.tensorflow.state_file import STATE_FILE, read_state
from ckptavg.formats.writer import CheckpointWriter


class _Format(NamedTuple):
    name: str
    """What precedes `Reader` and `Writer` in the names of the classes, after their module."""
    namings: tuple[str, ...]
    """The ways of naming tensors that can be written."""


_FORMATS = {
    # Files of Keras 2 are read under this name, too, but no Keras loads them: by the name, all
    # expect the layout of Keras 3.
    ".weights.h5": _Format("hdf5.keras3.WeightsH5", (KERAS, FLAT)),
    ".weights.json": _Format("hdf5.keras3_shards.ShardedH5", (KERAS, FLAT)),
    ".h5": _Format("hdf5.keras3.WeightsH5", (LEGACY,)),
    ".hdf5": _Format("hdf5.keras3.WeightsH5", (LEGACY,)),
    ".keras": _Format("hdf5.keras_archive.KerasArchive", (KERAS, FLAT)),
    ".safetensors": _Format("safetensors.checkpoint.Safetensors", (KERAS, FLAT)),
    ".safetensors.index.json": _Format("safetensors.checkpoint.ShardedSafetensors", (KERAS, FLAT)),
    INDEX_SUFFIX: _Format("tensorflow.checkpoint.TensorFlow", (TENSORFLOW,)),
}
_NAMED_AS_IN = {
    KERAS: "Keras 3 files",
    LEGACY: "Keras 2 files",
    TENSORFLOW: "TensorFlow checkpoints",
    FLAT: "safetensors files",
}
_SAVED_BY_KERAS = (".weights.h5", ".keras")
READ_SUFFIXES = tuple(_FORMATS)
"""Suffixes of the files that `open_reader` can read."""

__all__ = [
    "LEGACY",
    "READ_SUFFIXES",
    "STATE_FILE",
    "CheckpointReader",
    "CheckpointWriter",
    "ModelConfig",
    "Structure",
    "check_keras_output",
    "named_like",
    "open_reader",
    "open_writer",
    "read_state",
    "suffix_of",
    "writer_of",
]


def open_reader(
    path: Path, structure: Structure | None = None, like: FileSkeleton | None = None
) -> CheckpointReader:
    """Opens a checkpoint of any format that can be read.

    Args:
        path: a file, the index of several files, or the prefix of a TensorFlow checkpoint.
        structure: of this very checkpoint, if it is known; the files are not searched again.
        like: of a checkpoint that this one may resemble; it is searched only if it does not.

    Raises:
        FormatError: the suffix is unknown, or the file is not an intact checkpoint.
    """
    # A TensorFlow checkpoint is named by a prefix, which may end like a file of another format.
    is_prefix = has_index(path) and not path.is_file()
    suffix = INDEX_SUFFIX if is_prefix else suffix_of(path)
    if suffix not in _FORMATS:
        raise FormatError(f"cannot read {path}: expected a file that ends in {_listed(_FORMATS)}")
    reader: type[CheckpointReader] = _load(f"{_FORMATS[suffix].name}Reader")
    return reader(path, structure, like)


def named_like(output: Path, checkpoint: Path) -> Path:
    """The output, with a suffix if its own name has none: that of a checkpoint, if it can be.

    Raises:
        FormatError: the checkpoint cannot be read.
    """
    if "." in output.name:
        return output
    suffix = suffix_of(checkpoint)
    if suffix:
        with open_reader(checkpoint) as reader:
            naming = reader.structure.naming
        # A file of Keras 2 may have a name that no Keras would load it by.
        if naming not in _FORMATS[suffix].namings:
            suffix = next(other for other, found in _FORMATS.items() if naming in found.namings)
    return output.with_name(output.name + suffix)


def check_keras_output(path: Path) -> None:
    """Makes sure that Keras itself can save a model to a file of this name.

    Raises:
        FormatError: it cannot.
    """
    if not path.name.endswith(_SAVED_BY_KERAS) or path.name in _SAVED_BY_KERAS:
        raise FormatError(
            f"cannot save a model to {path}: name an output that ends in {_listed(_SAVED_BY_KERAS)}"
        )


def writer_of(path: Path, naming: str) -> type[CheckpointWriter]:
    """The writer of an output.

    Args:
        path: the output. Its suffix chooses the format; tensors that are named as in TensorFlow
            checkpoints may be written to any prefix.
        naming: how the tensors are named: `KERAS`, `LEGACY`, `TENSORFLOW` or `FLAT`.

    Raises:
        FormatError: the suffix is unknown, or its format cannot hold tensors with such names.
    """
    suffix = suffix_of(path)
    if suffix in ("", path.name) and naming == TENSORFLOW and path.name:
        suffix = INDEX_SUFFIX
    elif suffix in ("", path.name):
        raise FormatError(f"cannot write {path}: name an output that ends in {_listed(_FORMATS)}")
    if naming not in _FORMATS[suffix].namings:
        possible = [other for other, found in _FORMATS.items() if naming in found.namings]
        raise FormatError(
            f"cannot write {path}: tensors named as in {_NAMED_AS_IN[naming]} would not be found "
            f"there. Name an output that ends in {_listed(possible)}"
        )
    writer: type[CheckpointWriter] = _load(f"{_FORMATS[suffix].name}Writer")
    return writer


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
        structure: its tensors (whose extents are ignored) and folders.
        model_config: needed for `.keras`.
        resume: whether to continue the partial files of an interrupted writer.

    Raises:
        FormatError: the suffix is unknown, or the format cannot hold these tensors.
    """
    return writer_of(path, structure.naming)(path, structure, model_config, resume=resume)


def suffix_of(path: Path) -> str:
    """The suffix by which the format of a file is known, or ""."""
    return next((suffix for suffix in _FORMATS if path.name.endswith(suffix)), "")


def _load(name: str) -> Any:
    """A class, by the name of its module below this one and its own."""
    module, _, name = name.rpartition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def _listed(suffixes: Iterable[str]) -> str:
    *most, last = suffixes
    return f"{', '.join(most)} or {last}" if most else last
