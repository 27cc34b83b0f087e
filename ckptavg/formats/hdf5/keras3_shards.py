"""Sharded weights of Keras 3: `x.weights.json` maps folders to `x_00000.weights.h5`, ...

Keras rewrites the index whenever it begins another shard. A checkpoint whose saving was interrupted
looks complete, except for its total size and for shards that the index does not name.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.hdf5.keras3 import WeightsH5Writer, keras_structure
from ckptavg.formats.hdf5.reader import Hdf5Reader
from ckptavg.formats.hdf5.walk import Place
from ckptavg.formats.reader import Attribute, Structure, check_disjoint
from ckptavg.formats.shards import assign, shard_paths
from ckptavg.formats.strict_json import parse_object
from ckptavg.formats.tensors import TensorInfo
from ckptavg.storage.open_file import Range

MAX_SHARD_SIZE = 5 * 1024**3
"""Bytes of the tensors in one shard, as by default in Keras."""

_INDEX_LIMIT = 64 * 1024 * 1024
_METADATA, _TOTAL, _MAP = "metadata", "total_size", "weight_map"


class ShardedH5Reader(Hdf5Reader):
    """Reads a `.weights.json` file and all of its shards."""

    def _further_files(self) -> Sequence[Path]:
        index = parse_object(self.path, "index", self._read_file(0, _INDEX_LIMIT))
        metadata, folders = index.get(_METADATA), index.get(_MAP)
        if not (isinstance(metadata, dict) and isinstance(folders, dict) and folders):
            raise FormatError(f"{self.path} is not an index of shards: it lacks '{_MAP}'")
        places = [
            (folder, shard)
            for folder, shards in folders.items()
            for shard in (shards if isinstance(shards, list) else [shards])
        ]
        paths = shard_paths(self.path, (shard for _, shard in places))
        self._total, self._stated = metadata.get(_TOTAL), set(places)
        unnamed = sorted(_shards_beside(self.path) - {path.name for path in paths})
        if unnamed:
            raise FormatError(
                f"refusing {self.path}: it does not name the shard {unnamed[0]} beside it. If "
                "saving was interrupted, save the checkpoint again; if the shard is a remnant of "
                "a former checkpoint, remove it"
            )
        return paths

    def _read_structure(self) -> Structure:
        tensors: dict[str, TensorInfo] = {}
        groups: dict[str, Mapping[str, Attribute | None]] = {}
        places: set[tuple[str, str]] = set()
        for number, shard in list(enumerate(self.files))[1:]:
            found = self._search(Place(number, 0, self._sizes[number]))
            for name, tensor in found.tensors.items():
                if name in tensors:
                    raise FormatError(f"refusing {self.path}: '{name}' lies in two shards")
                tensors[name] = tensor
                places.add((_key(name), shard.name))
            for folder, attributes in found.groups.items():  # a layer may span several shards
                groups[folder] = {**attributes, **groups.get(folder, {})}
        check_disjoint(self.path, tensors.values(), self._sizes)
        self._check_index(places, _total_size(tensors.values()))
        return keras_structure(tensors, groups)

    def _check_index(self, places: set[tuple[str, str]], total: float) -> None:
        for folder, shard in sorted(places ^ self._stated):
            named = (folder, shard) in self._stated
            raise FormatError(
                f"refusing {self.path}: it does {'' if named else 'not '}place '{folder}' in "
                f"{shard}, which {'lacks' if named else 'holds'} it. Saving was interrupted, or "
                "files of several checkpoints are mixed: save the checkpoint again"
            )
        if self._total != total:
            raise FormatError(
                f"refusing {self.path}: its shards hold {total:,} bytes but it declares "
                f"{self._total!r:.40}. Saving was interrupted: save the checkpoint again"
            )

    def _place_of(self, tensor: TensorInfo) -> Place:
        key = _key(tensor.name)
        places = (
            Place(number, 0, self._sizes[number])
            for number, file in enumerate(self.files)
            if (key, file.name) in self._stated
        )
        return next(place for place in places if tensor.name in self._tree(place).encoded)

    def _read_gaps(self, gaps: Iterable[Sequence[Range]]) -> tuple[bytes, ...]:
        # The index names its shards, so that two alike differ in these names only.
        index, *shards = super()._read_gaps(gaps)
        own_names = f'"{_base(self.path)}_'.encode()
        return index.replace(own_names, b'"_'), *shards


class ShardedH5Writer(WeightsH5Writer):
    """Writes shards, split as those of the checkpoints are, and then their index."""

    def _check(self) -> None:
        super()._check()
        written = {file.name for file in self._data_files(self.path, self.structure)}
        left = sorted(_shards_beside(self.path) - written)
        if left:
            raise FormatError(
                f"cannot write {self.path}: {left[0]} beside it would be taken for one of its "
                "shards. Remove it or choose another name"
            )

    @classmethod
    def _split(cls, structure: Structure) -> list[list[TensorInfo]]:
        return assign(structure.tensors.values(), MAX_SHARD_SIZE)

    @classmethod
    def _data_files(cls, path: Path, structure: Structure) -> list[Path]:
        count = len(cls._split(structure))
        return [path.with_name(f"{_base(path)}_{n:05}.weights.h5") for n in range(count)]

    def _index(self) -> bytes:
        folders: dict[str, dict[str, None]] = {}
        for name, extent in self._extents.items():
            folders.setdefault(_key(name), {})[self._targets[extent.file].name] = None
        index = {
            _METADATA: {_TOTAL: _total_size(self.structure.tensors.values())},
            _MAP: {
                key: list(shards) if len(shards) > 1 else next(iter(shards))
                for key, shards in folders.items()
            },
        }
        return json.dumps(index, indent=4).encode()


def _key(tensor: str) -> str:
    """The folder of a tensor, as the index names it."""
    return "/" + tensor.rpartition("/")[0]


def _base(index: Path) -> str:
    """The beginning of the names of shards."""
    return index.name.removesuffix(".json").replace(".weights", "")


def _shards_beside(index: Path) -> set[str]:
    """The files beside the index whose names could be those of its shards."""
    pattern = re.compile(re.escape(_base(index)) + r"_\d{5,}\.weights\.h5")
    return {file.name for file in index.parent.iterdir() if pattern.fullmatch(file.name)}


def _total_size(tensors: Iterable[TensorInfo]) -> float:
    """Bytes of tensors as Keras counts them: a boolean takes one bit."""
    return sum(t.nbytes / (8 if t.dtype == "bool" else 1) for t in tensors)
