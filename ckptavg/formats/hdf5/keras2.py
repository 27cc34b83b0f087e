"""HDF5 files of Keras 2 and tf_keras, and whole models by `model.save("x.h5")`: lists of names.

A file of weights has the attribute `layer_names`, each layer's folder `weight_names`. A whole model
has them under `model_weights`, the optimizer's under `optimizer_weights`, and its configuration as
texts, which are carried and never looked at. Long lists are split: `weight_names0`, and so on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.hdf5.preallocate import lay_out
from ckptavg.formats.reader import LEGACY, Attributes, Structure
from ckptavg.formats.tensors import Extent
from ckptavg.formats.writer import CheckpointWriter

_MODEL = "model_weights"
_OPTIMIZER = "optimizer_weights"
_TOP_LEVEL = "top_level_model_weights"
_LAYERS, _WEIGHTS = "layer_names", "weight_names"
_CONFIG = "model_config"
_NEEDED = (_LAYERS, _WEIGHTS, _CONFIG, "training_config", "keras_version", "backend")
"""Attributes that Keras reads, or the beginnings of their names: none may be lost."""


def is_legacy(found: Structure) -> bool:
    """Whether an HDF5 file has lists of names, whatever it is called."""
    keys = (key for texts in found.groups.values() for key in texts)
    return any(key.startswith((_LAYERS, _WEIGHTS)) for key in keys)


def legacy_structure(path: Path, found: Structure) -> Structure:
    """What Keras 2 makes of an HDF5 file: the weights are those that the lists name.

    Raises:
        FormatError: a list is missing or damaged, or tensors are not those that are listed.
    """
    return _Legacy(path, found).structure()


class LegacyH5Writer(CheckpointWriter):
    """Writes files of weights and whole models, as they were read."""

    def __init__(self, path: Path, structure: Structure, *, resume: bool = False) -> None:
        if structure.naming != LEGACY:
            raise FormatError(
                f"cannot write {path}: Keras reads files of this name only as it wrote them up to "
                "Keras 2, which the checkpoints are not. Name an output that ends in .weights.h5"
            )
        super().__init__(path, structure, resume=resume)

    def _lay_out(self, files: Sequence[Path]) -> Mapping[str, Extent]:
        return lay_out(files[0], self.structure.tensors, self.structure.groups)


class _Legacy:
    """An HDF5 file with lists of names, whose tensors and lists must agree."""

    def __init__(self, path: Path, found: Structure) -> None:
        self._path = path
        self._found = found
        self._groups = {folder: self._carried(folder) for folder in found.groups}
        self._whole = _LAYERS not in self._groups[""] and _MODEL in self._groups

    def structure(self) -> Structure:
        if self._whole and _CONFIG not in self._groups[""]:
            raise self._refusal(f"it has '{_MODEL}' but not the attribute '{_CONFIG}'")
        self._check_lists()
        names = (*self._found.tensors, *self._groups)
        optimizer = (name for name in names if self._whole and name.split("/")[0] == _OPTIMIZER)
        return replace(
            self._found, groups=self._groups, naming=LEGACY, optimizer=frozenset(optimizer)
        )

    def _carried(self, folder: str) -> Attributes:
        texts = self._found.groups[folder]
        for key, text in texts.items():
            if text is None and key.startswith(_NEEDED):
                raise self._refusal(f"the attribute '{key}' of '{folder or '/'}' is damaged")
        return {key: text for key, text in texts.items() if text is not None}

    def _check_lists(self) -> None:
        listed: set[str] = set()
        for name in self._listed():
            if name in listed:
                raise self._refusal(f"'{name}' is listed twice")
            if name not in self._found.tensors:
                raise self._refusal(f"'{name}' is listed but not there")
            listed.add(name)
        for name in self._found.tensors:
            if name not in listed:
                raise self._refusal(f"'{name}' is there but not listed")

    def _listed(self) -> Iterator[str]:
        """Every weight by its place in the file."""
        prefix = f"{_MODEL}/" if self._whole else ""
        layers = [prefix + layer for layer in self._names(prefix.rstrip("/"), _LAYERS)]
        further = [prefix + _TOP_LEVEL, *([_OPTIMIZER] if self._whole else [])]
        for folder in (*layers, *(folder for folder in further if folder in self._groups)):
            if folder not in self._groups:
                raise self._refusal(f"the layer '{folder}' is listed but not there")
            for weight in self._names(folder, _WEIGHTS):
                yield f"{folder}/{weight}"

    def _names(self, folder: str, key: str) -> list[str]:
        texts = self._groups[folder]
        parts = [key] if key in texts else list(takewhile(texts.__contains__, _numbered(key)))
        found = [texts[part] for part in parts]
        if not found or not all(isinstance(names, tuple) for names in found):
            raise self._refusal(f"'{folder or '/'}' lacks the list '{key}'")
        return [name.decode("utf-8", "replace") for names in found for name in names]

    def _refusal(self, why: str) -> FormatError:
        return FormatError(
            f"{self._path} is not an intact file of Keras 2: {why}. Save the checkpoint again"
        )


def _numbered(key: str) -> Iterator[str]:
    return (f"{key}{number}" for number in count())
