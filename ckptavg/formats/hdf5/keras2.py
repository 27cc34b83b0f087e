"""HDF5 files of Keras 2 and tf_keras, which find their weights by lists of names.

A file of weights has the attribute `layer_names`, and the folder of each layer `weight_names`. A
whole model, from `model.save("x.h5")`, has them below `model_weights`, those of the optimizer below
`optimizer_weights`, and its configuration as attributes, which are copied unread. Lists too long
for one attribute are split into `weight_names0`, `weight_names1`, ...
"""

from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.hdf5.walk import Tree
from ckptavg.formats.reader import LEGACY, Attributes, Structure

_MODEL = "model_weights"
_OPTIMIZER = "optimizer_weights"
_TOP_LEVEL = "top_level_model_weights"
_LAYERS, _WEIGHTS = "layer_names", "weight_names"
_CONFIG = "model_config"
_NEEDED = (_LAYERS, _WEIGHTS, _CONFIG, "training_config", "keras_version", "backend")
"""Attributes that Keras reads, or how their names begin: a damaged one makes a file unreadable."""


def is_legacy(tree: Tree) -> bool:
    """Whether an HDF5 file has lists of names."""
    keys = (key for attributes in tree.groups.values() for key in attributes)
    return any(key.startswith((_LAYERS, _WEIGHTS)) for key in keys)


def legacy_structure(path: Path, tree: Tree) -> Structure:
    """The structure of a file of Keras 2.

    Args:
        path: the file, for messages.
        tree: what it holds.

    Raises:
        FormatError: a list is missing or damaged, or the tensors are not the listed ones.
    """
    return _Legacy(path, tree).structure()


class _Legacy:
    """An HDF5 file with lists of names, whose tensors and lists must agree."""

    def __init__(self, path: Path, tree: Tree) -> None:
        self._path = path
        self._tensors = tree.tensors
        self._groups = {folder: self._intact(folder, tree) for folder in tree.groups}
        self._whole = _LAYERS not in self._groups[""] and _MODEL in self._groups

    def structure(self) -> Structure:
        if self._whole and _CONFIG not in self._groups[""]:
            raise self._refusal(f"it has '{_MODEL}' but not the attribute '{_CONFIG}'")
        self._check_lists()
        names = (*self._tensors, *self._groups)
        optimizer = (name for name in names if self._whole and name.split("/")[0] == _OPTIMIZER)
        return Structure(self._tensors, self._groups, LEGACY, frozenset(optimizer))

    def _intact(self, folder: str, tree: Tree) -> Attributes:
        intact = {}
        for key, value in tree.groups[folder].items():
            if value is not None:
                intact[key] = value
            elif key.startswith(_NEEDED):
                raise self._refusal(f"the attribute '{key}' of '{folder or '/'}' is damaged")
        return intact

    def _check_lists(self) -> None:
        listed: set[str] = set()
        for name in self._listed():
            if name in listed or name not in self._tensors:
                what = "twice" if name in listed else "but missing"
                raise self._refusal(f"'{name}' is listed {what}")
            listed.add(name)
        if left := self._tensors.keys() - listed:
            raise self._refusal(f"'{min(left)}' is not listed")

    def _listed(self) -> Iterator[str]:
        """The paths of all weights that the lists name."""
        prefix = f"{_MODEL}/" if self._whole else ""
        layers = [prefix + layer for layer in self._names(prefix.rstrip("/"), _LAYERS)]
        further = [prefix + _TOP_LEVEL, *([_OPTIMIZER] if self._whole else [])]
        for folder in (*layers, *(folder for folder in further if folder in self._groups)):
            if folder not in self._groups:
                raise self._refusal(f"the layer '{folder}' is listed but missing")
            for weight in self._names(folder, _WEIGHTS):
                yield f"{folder}/{weight}"

    def _names(self, folder: str, key: str) -> list[str]:
        attributes = self._groups[folder]
        parts = (f"{key}{number}" for number in count())
        keys = [key] if key in attributes else [*takewhile(attributes.__contains__, parts)]
        lists = [attributes[key] for key in keys]
        names = [name for found in lists if isinstance(found, tuple) for name in found]
        if not lists or not all(isinstance(found, tuple) for found in lists):
            raise self._refusal(f"'{folder or '/'}' lacks the list '{key}'")
        return [name.decode("utf-8", "replace") for name in names]

    def _refusal(self, why: str) -> FormatError:
        return FormatError(
            f"{self._path} is not an intact file of Keras 2: {why}. Save the checkpoint again"
        )
