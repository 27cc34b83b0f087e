"""`.weights.h5` files of Keras 3: a folder for each layer, its variables in `vars`, numbered."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.hdf5.keras2 import is_legacy, legacy_structure
from ckptavg.formats.hdf5.optimizers import optimizer_folders
from ckptavg.formats.hdf5.preallocate import lay_out
from ckptavg.formats.hdf5.reader import Hdf5Reader
from ckptavg.formats.hdf5.walk import Place
from ckptavg.formats.names import check_tree
from ckptavg.formats.reader import FLAT, LEGACY, Attribute, Structure, check_disjoint
from ckptavg.formats.tensors import Extent, TensorInfo
from ckptavg.formats.writer import CheckpointWriter

_VARIABLES = "vars"


class WeightsH5Reader(Hdf5Reader):
    """Reads a file of weights; one that Keras 2 wrote is recognized by its lists of names."""

    def _read_structure(self) -> Structure:
        tree = self._search(self._weights)
        check_disjoint(self.path, tree.tensors.values(), self._sizes)
        if is_legacy(tree):
            return legacy_structure(self.path, tree)
        return keras_structure(tree.tensors, tree.groups)

    @cached_property
    def _weights(self) -> Place:
        """Where the HDF5 file lies in the checkpoint."""
        return Place(0, 0, self.size)

    def _place_of(self, tensor: TensorInfo) -> Place:
        return self._weights


class WeightsH5Writer(CheckpointWriter):
    """Writes a file of weights: HDF5 lays it out, then the tensors are written into it.

    A file of Keras 2 keeps the lists of names that were read, as attributes.
    """

    def _check(self) -> None:
        check_keras_names(self.path, self.structure)

    def _lay_out(
        self, file: Path, number: int, tensors: Sequence[TensorInfo]
    ) -> Mapping[str, Extent]:
        groups = {} if number else dict(self.structure.groups)
        if self.structure.naming != LEGACY:
            # Keras 3 gives the file itself no attributes; those of other formats may not fit into
            # HDF5.
            groups.pop("", None)
        return lay_out(file, tensors, groups, number)


def keras_structure(
    tensors: Mapping[str, TensorInfo], groups: Mapping[str, Mapping[str, Attribute | None]]
) -> Structure:
    """The structure of a file of Keras 3; every optimizer in it has a folder.

    Args:
        tensors: of the file.
        groups: the attributes of its folders, None where they are damaged.
    """
    folders = optimizer_folders(tensors, groups)
    below = tuple(f"{folder}/" for folder in folders)
    optimizer = frozenset(n for n in (*tensors, *groups) if n in folders or n.startswith(below))
    # Keras 3 finds its variables without attributes: a damaged one is left out.
    intact = {
        folder: {key: value for key, value in attributes.items() if value is not None}
        for folder, attributes in groups.items()
    }
    return Structure(tensors, intact, optimizer=optimizer)


def check_keras_names(path: Path, structure: Structure) -> None:
    """Makes sure that Keras would find the tensors: their names end in `/vars/NAME`.

    Raises:
        FormatError: the tensors have the names of another format.
    """
    if structure.naming != FLAT:
        return
    for name in structure.tensors:
        if name.split("/")[-2:-1] != [_VARIABLES]:
            raise FormatError(
                f"cannot write {path}: its tensors have names of another format, such as "
                f"'{name}', which Keras would not find. Write the format of the checkpoints"
            )
    check_tree(path, structure)
