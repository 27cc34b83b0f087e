"""`.safetensors` files, single or as shards that a `.safetensors.index.json` names."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.names import check_tree
from ckptavg.formats.reader import FLAT, KERAS, Attributes, CheckpointReader, Structure
from ckptavg.formats.safetensors.file import (
    CODES,
    HEADER_LIMIT,
    SUFFIX,
    TEXTS,
    is_texts,
    lay_out,
    read_header,
    refusal,
)
from ckptavg.formats.shards import assign, shard_paths
from ckptavg.formats.strict_json import parse_object
from ckptavg.formats.tensors import Extent, TensorInfo
from ckptavg.formats.writer import CheckpointWriter
from ckptavg.storage.files import partial

_INDEX_SUFFIX = ".safetensors.index.json"
_SHARD_LIMIT = 5 * 10**9
"""Bytes of tensors in a shard, as Hugging Face splits them."""

_INDEX_TEXT = "ckptavg.index"
"""Among the texts of a checkpoint: what its index says of the whole, as JSON."""
_SHARDS_TEXT = "ckptavg.shards"
"""Among the texts of a checkpoint: those in which its shards differ, as JSON, shard by shard."""
_GROUPS_TEXT = "ckptavg.groups"
"""Among the texts in a file: the folders that a Keras checkpoint had, as JSON."""
_GROUPS_LIMIT = 16 * 1024 * 1024
_ATTRIBUTE_LIMIT = 64 * 1024
_LABEL_LIMIT = 255


class SafetensorsReader(CheckpointReader):
    """Reads a `.safetensors` file."""

    def _read_structure(self) -> Structure:
        tensors, texts = read_header(self._opened[0], self._sizes[0], 0)
        return _structure(self.path, tensors, texts)


class ShardedSafetensorsReader(CheckpointReader):
    """Reads the shards that a `.safetensors.index.json` names.

    Texts that all shards share are those of the checkpoint. The size that the index gives is not
    looked at: published ones are often wrong.
    """

    def _further_files(self) -> Sequence[Path]:
        index = parse_object(self.path, "index", self._read_file(0, HEADER_LIMIT))
        self._shard_of = index.pop("weight_map", None)
        self._about = index.pop("metadata", {})
        if not isinstance(self._shard_of, dict) or not isinstance(self._about, dict) or index:
            raise FormatError(
                f"{self.path} is no index of shards: expected a JSON object of 'weight_map' and "
                "'metadata', both objects themselves"
            )
        return shard_paths(self.path, self._shard_of.values())

    def _read_structure(self) -> Structure:
        tensors: list[TensorInfo] = []
        texts: list[dict[str, str]] = []
        for number, file in list(enumerate(self._opened))[1:]:
            found, said = read_header(file, self._sizes[number], number)
            self._check_listed(file.path, found)
            tensors += found
            texts.append(said)
        if len(tensors) < len(self._shard_of):
            missing = self._shard_of.keys() - {tensor.name for tensor in tensors}
            raise FormatError(
                f"{self.path} names {min(missing)!r:.80}, which none of its shards has"
            )
        return _structure(self.path, tensors, self._joined(texts))

    def _check_listed(self, file: Path, tensors: Iterable[TensorInfo]) -> None:
        """Every tensor is in the one shard where the index says; so none can be there twice."""
        for tensor in tensors:
            if self._shard_of.get(tensor.name) != file.name:
                raise FormatError(
                    f"{self.path} does not say that {tensor.name!r:.80} is in {file.name}: "
                    "its shards are not those that it was written for"
                )

    def _joined(self, texts: Sequence[dict[str, str]]) -> dict[str, str]:
        shared = {
            key: text
            for key, text in (texts[0] if texts else {}).items()
            if all(other.get(key) == text for other in texts)
        }
        own = [{k: text for k, text in said.items() if k not in shared} for said in texts]
        about = {key: value for key, value in self._about.items() if key != "total_size"}
        if any(own):
            shared[_SHARDS_TEXT] = json.dumps(own)
        if about:
            shared[_INDEX_TEXT] = json.dumps(about)
        return shared


class SafetensorsWriter(CheckpointWriter):
    """Writes a `.safetensors` file, byte for byte as the format's own library lays it out."""

    def __init__(self, path: Path, structure: Structure, *, resume: bool = False) -> None:
        _check_writable(path, structure)
        super().__init__(path, structure, resume=resume)

    def _lay_out(self, files: Sequence[Path]) -> Mapping[str, Extent]:
        texts = _texts(self.path, self.structure)
        return lay_out(files[0], 0, self.structure.tensors.values(), texts)


class ShardedSafetensorsWriter(SafetensorsWriter):
    """Writes shards named `NAME-00001-of-00002.safetensors`, and at last their index."""

    @classmethod
    def _data_files(cls, path: Path, structure: Structure) -> list[Path]:
        count = len(assign(structure.tensors.values(), _SHARD_LIMIT))
        stem = path.name.removesuffix(_INDEX_SUFFIX)
        return [
            path.with_name(f"{stem}-{number:05}-of-{count:05}{SUFFIX}")
            for number in range(1, count + 1)
        ]

    def _lay_out(self, files: Sequence[Path]) -> Mapping[str, Extent]:
        texts = _texts(self.path, self.structure)
        texts.pop(_INDEX_TEXT, None)
        extents: dict[str, Extent] = {}
        shards = assign(self.structure.tensors.values(), _SHARD_LIMIT)
        for number, (file, tensors) in enumerate(zip(files, shards, strict=True)):
            extents |= lay_out(file, number, tensors, texts)
        return extents

    def _complete(self) -> Sequence[tuple[Path, Path]]:
        about = self.structure.groups.get("", {}).get(_INDEX_TEXT)
        index = {
            "metadata": {
                **({} if about is None else parse_object(self.path, _INDEX_TEXT, about.encode())),
                "total_size": sum(tensor.nbytes for tensor in self.structure.tensors.values()),
            },
            "weight_map": {
                name: self._targets[extent.file].name
                for name, extent in sorted(self._extents.items())
            },
        }
        unfinished = partial(self.path)
        unfinished.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return [(unfinished, self.path)]


def _structure(path: Path, tensors: Sequence[TensorInfo], texts: Mapping[str, str]) -> Structure:
    """The checkpoint of these tensors; its folders, if a Keras checkpoint was its source."""
    by_name = {tensor.name: tensor for tensor in tensors}
    own = {key: text for key, text in texts.items() if key != _GROUPS_TEXT}
    if _INDEX_TEXT in own:
        parse_object(path, _INDEX_TEXT, own[_INDEX_TEXT].encode("utf-8"))
    if _GROUPS_TEXT not in texts:
        return Structure(by_name, {"": own} if own else {}, FLAT)
    encoded = texts[_GROUPS_TEXT].encode()
    if len(encoded) > _GROUPS_LIMIT:
        raise FormatError(f"refusing {path}: its {_GROUPS_TEXT} has {len(encoded):,} bytes")
    found = parse_object(path, _GROUPS_TEXT, encoded)
    _check_folders(path, found)
    groups: dict[str, Attributes] = {"": own} if own or "" in found else {}
    groups |= {name: attributes for name, attributes in found.items() if name}
    structure = Structure(by_name, groups, KERAS)
    check_tree(path, structure)
    return structure


def _texts(path: Path, structure: Structure) -> dict[str, str]:
    """What `_structure` makes folders and their attributes of."""
    texts = dict(structure.groups.get("", {}))
    if not is_texts(texts):
        raise FormatError(f"cannot write {path}: the format holds no attributes but texts")
    if structure.naming == KERAS:
        folders = {n: dict(found) if n else {} for n, found in structure.groups.items()}
        _check_folders(path, folders)
        texts[_GROUPS_TEXT] = json.dumps(folders)
        if len(texts[_GROUPS_TEXT]) > _GROUPS_LIMIT:
            raise FormatError(f"cannot write {path}: it has too many folders")
    return texts


def _check_folders(path: Path, folders: Mapping[str, object]) -> None:
    """Folders have short texts, and the checkpoint itself none: its texts are beside them."""
    for name, attributes in folders.items():
        if (
            not is_texts(attributes)
            or (attributes and not name)
            or not all(
                0 < len(key) <= _LABEL_LIMIT
                and len(text) <= _ATTRIBUTE_LIMIT
                and "\0" not in key + text
                for key, text in attributes.items()
            )
        ):
            raise refusal(path, name, "is not a folder with short texts")


def _check_writable(path: Path, structure: Structure) -> None:
    if structure.naming not in (FLAT, KERAS):
        raise FormatError(
            f"cannot write {path}: tensors with names of the {structure.naming} format would not "
            "be found again there. Write the format that the checkpoints have"
        )
    for tensor in structure.tensors.values():
        if tensor.dtype not in CODES:
            raise FormatError(
                f"cannot write {path}: it has no type for '{tensor.name}', a {tensor.dtype}"
            )
    if TEXTS in structure.tensors:
        raise FormatError(f"cannot write {path}: the format keeps the name {TEXTS} for itself")
    if structure.naming == KERAS:
        check_tree(path, structure)
