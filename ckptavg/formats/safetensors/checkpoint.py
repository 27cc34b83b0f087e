"""`.safetensors` files, single or as shards that a `.safetensors.index.json` names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.names import check_tree
from ckptavg.formats.reader import FLAT, KERAS, Attributes, CheckpointReader, Structure
from ckptavg.formats.safetensors.file import (
    CODES,
    HEADER_LIMIT,
    METADATA,
    SUFFIX,
    is_strings,
    lay_out,
    read_header,
    refusal,
)
from ckptavg.formats.shards import assign, shard_paths
from ckptavg.formats.strict_json import parse_object
from ckptavg.formats.tensors import Extent, TensorInfo
from ckptavg.formats.writer import CheckpointWriter

_INDEX_SUFFIX = ".safetensors.index.json"
_SHARD_LIMIT = 5 * 10**9
"""Bytes of tensors in a shard, as by default in Hugging Face's libraries."""

_INDEX_KEY = "ckptavg.index"
"""Attribute of a checkpoint: the metadata of its index, as JSON."""
_SHARDS_KEY = "ckptavg.shards"
"""Attribute of a checkpoint: the strings in which its shards differ, as JSON, shard by shard."""
_GROUPS_KEY = "ckptavg.groups"
"""String in a file: the folders of the Keras checkpoint that it was made from, as JSON."""
_GROUPS_LIMIT = 16 * 1024 * 1024
_ATTRIBUTE_LIMIT = 64 * 1024
_LABEL_LIMIT = 255


class SafetensorsReader(CheckpointReader):
    """Reads a `.safetensors` file."""

    def _read_structure(self) -> Structure:
        tensors, strings = read_header(self._opened[0], self._sizes[0], 0)
        return _structure(self.path, tensors, strings)


class ShardedSafetensorsReader(CheckpointReader):
    """Reads the shards that a `.safetensors.index.json` names.

    Strings that all shards share become attributes of the checkpoint.
    """

    def _further_files(self) -> Sequence[Path]:
        index = parse_object(self.path, "index", self._read_file(0, HEADER_LIMIT))
        shard_of, about = index.pop("weight_map", None), index.pop("metadata", {})
        if not isinstance(shard_of, dict) or not isinstance(about, dict) or index:
            raise FormatError(
                f"{self.path} is not an index of shards: expected a JSON object of 'weight_map' "
                "and 'metadata', both objects themselves"
            )
        self._shard_of: dict[str, object] = shard_of
        # Its total size is ignored: published ones are often wrong.
        self._about = {key: value for key, value in about.items() if key != "total_size"}
        return shard_paths(self.path, self._shard_of.values())

    def _read_structure(self) -> Structure:
        tensors: list[TensorInfo] = []
        strings: list[dict[str, str]] = []
        for number, file in list(enumerate(self._opened))[1:]:
            found, about = read_header(file, self._sizes[number], number)
            for tensor in found:  # each is in the shard that the index names, and so in one only
                if self._shard_of.get(tensor.name) != file.path.name:
                    raise FormatError(
                        f"{self.path} does not place {tensor.name!r:.80} in {file.path.name}: its "
                        "shards are not those that it was written for"
                    )
            tensors += found
            strings.append(about)
        if len(tensors) < len(self._shard_of):
            missing = self._shard_of.keys() - {tensor.name for tensor in tensors}
            raise FormatError(
                f"{self.path} names {min(missing)!r:.80}, which none of its shards has"
            )
        return _structure(self.path, tensors, self._joined(strings))

    def _joined(self, strings: Sequence[dict[str, str]]) -> dict[str, str]:
        """The strings about the checkpoint: shared ones, and as JSON what its files differ in."""
        shared = {
            key: value
            for key, value in (strings[0] if strings else {}).items()
            if all(other.get(key) == value for other in strings)
        }
        own = [{key: about[key] for key in about if key not in shared} for about in strings]
        if any(own):
            shared[_SHARDS_KEY] = json.dumps(own)
        if self._about:
            shared[_INDEX_KEY] = json.dumps(self._about)
        return shared


class SafetensorsWriter(CheckpointWriter):
    """Writes a `.safetensors` file, byte for byte as the format's own library does."""

    def _check(self) -> None:
        for tensor in self.structure.tensors.values():
            if tensor.dtype not in CODES:
                raise FormatError(
                    f"cannot write {self.path}: the format has no type for '{tensor.name}', a "
                    f"{tensor.dtype}"
                )
        if METADATA in self.structure.tensors:
            raise FormatError(f"cannot write {self.path}: the format reserves the name {METADATA}")
        self._strings = self._find_strings()

    def _find_strings(self) -> dict[str, str]:
        """The strings from which `_structure` finds folders and attributes again."""
        strings = dict(self.structure.groups.get("", {}))
        if not is_strings(strings):
            raise FormatError(
                f"cannot write {self.path}: the format holds only strings as attributes"
            )
        if self.structure.naming == KERAS:
            check_tree(self.path, self.structure)
            folders = {n: dict(found) if n else {} for n, found in self.structure.groups.items()}
            strings[_GROUPS_KEY] = json.dumps(_checked_folders(self.path, folders))
            if len(strings[_GROUPS_KEY]) > _GROUPS_LIMIT:
                raise FormatError(f"cannot write {self.path}: it has too many folders")
        return strings

    def _lay_out(
        self, file: Path, number: int, tensors: Sequence[TensorInfo]
    ) -> Mapping[str, Extent]:
        return lay_out(file, number, tensors, self._strings)


class ShardedSafetensorsWriter(SafetensorsWriter):
    """Writes shards named `NAME-00001-of-00002.safetensors`, and then their index."""

    def _check(self) -> None:
        super()._check()
        self._about = self._strings.pop(_INDEX_KEY, "{}")  # belongs to the index, not to shards

    @classmethod
    def _split(cls, structure: Structure) -> list[list[TensorInfo]]:
        return assign(structure.tensors.values(), _SHARD_LIMIT)

    @classmethod
    def _data_files(cls, path: Path, structure: Structure) -> list[Path]:
        count = len(cls._split(structure))
        stem = path.name.removesuffix(_INDEX_SUFFIX)
        return [
            path.with_name(f"{stem}-{number:05}-of-{count:05}{SUFFIX}")
            for number in range(1, count + 1)
        ]

    def _index(self) -> bytes:
        index = {
            "metadata": {
                **parse_object(self.path, _INDEX_KEY, self._about.encode()),
                "total_size": sum(tensor.nbytes for tensor in self.structure.tensors.values()),
            },
            "weight_map": {
                name: self._targets[extent.file].name
                for name, extent in sorted(self._extents.items())
            },
        }
        return (json.dumps(index, indent=2) + "\n").encode()


def _structure(path: Path, tensors: Sequence[TensorInfo], strings: Mapping[str, str]) -> Structure:
    """The structure of a checkpoint; with folders, if it was made from a Keras checkpoint."""
    # See docs/decisions/0020-safetensors-keep-empty-layer-groups.md.
    by_name = {tensor.name: tensor for tensor in tensors}
    own = {key: value for key, value in strings.items() if key != _GROUPS_KEY}
    if _INDEX_KEY in own:
        parse_object(path, _INDEX_KEY, own[_INDEX_KEY].encode("utf-8"))
    if _GROUPS_KEY not in strings:
        return Structure(by_name, {"": own} if own else {}, FLAT)
    encoded = strings[_GROUPS_KEY].encode()
    if len(encoded) > _GROUPS_LIMIT:
        raise FormatError(f"refusing {path}: its {_GROUPS_KEY} has {len(encoded):,} bytes")
    found = _checked_folders(path, parse_object(path, _GROUPS_KEY, encoded))
    groups: dict[str, Attributes] = {"": own} if own or "" in found else {}
    groups |= {name: attributes for name, attributes in found.items() if name}
    structure = Structure(by_name, groups, KERAS)
    check_tree(path, structure)
    return structure


def _checked_folders(path: Path, folders: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """The folders, after making sure that HDF5 could hold their attributes.

    The checkpoint itself, "", has none among them: its attributes are strings of the file.
    """
    checked: dict[str, dict[str, str]] = {}
    for name, attributes in folders.items():
        if (
            not is_strings(attributes)
            or (attributes and not name)
            or not all(
                0 < len(key) <= _LABEL_LIMIT
                and len(value) <= _ATTRIBUTE_LIMIT
                and "\0" not in key + value
                for key, value in attributes.items()
            )
        ):
            raise refusal(path, name, "is not a folder whose attributes are short strings")
        checked[name] = attributes
    return checked
