"""Keras 3 `.weights.h5` files: one HDF5 file, a folder of variables for each layer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.hdf5.attributes import Place
from ckptavg.formats.hdf5.keras2 import is_legacy, legacy_structure
from ckptavg.formats.hdf5.preallocate import lay_out
from ckptavg.formats.hdf5.reader import Hdf5Reader
from ckptavg.formats.names import check_tree
from ckptavg.formats.reader import FLAT, KERAS, Structure, check_disjoint
from ckptavg.formats.tensors import Extent
from ckptavg.formats.writer import CheckpointWriter

_OPTIMIZER = "optimizer"
_VARIABLES = "vars"


class WeightsH5Reader(Hdf5Reader):
    """Reads a `.weights.h5` file."""

    def _read_structure(self) -> Structure:
        found = self._search(Place(0, 0, self.size))
        check_disjoint(self.path, found.tensors.values(), self._sizes)
        return found

    def _interpret(self, found: Structure) -> Structure:
        if is_legacy(found):
            return legacy_structure(self.path, found)
        return keras_structure(found)


class WeightsH5Writer(CheckpointWriter):
    """Writes a `.weights.h5` file: HDF5 lays it out, the bytes follow by positioned writes."""

    def __init__(self, path: Path, structure: Structure, *, resume: bool = False) -> None:
        check_keras_names(path, structure)
        super().__init__(path, structure, resume=resume)

    def _lay_out(self, files: Sequence[Path]) -> Mapping[str, Extent]:
        # Keras says nothing of the file itself, and texts of other formats may not fit into HDF5.
        folders = {name: found for name, found in self.structure.groups.items() if name}
        return lay_out(files[0], self.structure.tensors, folders)


def keras_structure(found: Structure) -> Structure:
    """What Keras 3 makes of an HDF5 file: the optimizer has a folder, layers may have names.

    The names are the users' own, which only people read: a damaged one is left out.
    """
    names = (*found.tensors, *found.groups)
    optimizer = frozenset(n for n in names if n == _OPTIMIZER or n.startswith(f"{_OPTIMIZER}/"))
    groups = {
        folder: {key: text for key, text in texts.items() if text is not None}
        for folder, texts in found.groups.items()
    }
    return replace(found, groups=groups, optimizer=optimizer)


def check_keras_names(path: Path, structure: Structure) -> None:
    """Makes sure that Keras can find the tensors again: `.../vars/NAME`.

    Raises:
        FormatError: they have the names of another format.
    """
    if structure.naming == KERAS:
        return
    strange = next(iter(_strange_names(structure)), None)
    if structure.naming != FLAT or strange is not None:
        raise FormatError(
            f"cannot write {path}: its tensors have names of another format, such as "
            f"'{strange or next(iter(structure.tensors), '')}', where Keras would not find them. "
            "Write the format that the checkpoints have"
        )
    check_tree(path, structure)


def _strange_names(structure: Structure) -> Iterable[str]:
    return (name for name in structure.tensors if name.split("/")[-2:-1] != [_VARIABLES])
