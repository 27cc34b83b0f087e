"""The configuration of a model, which a `.keras` file holds beside the weights."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ckptavg.errors import CkptavgError, FormatError, MemoryLimitError
from ckptavg.formats.strict_json import memory_to_parse, parse
from ckptavg.formats.zip_archive import ZipArchive
from ckptavg.storage.open_file import OpenFile, read_small_file

METADATA = "metadata.json"
CONFIG = "config.json"
ASSETS = "assets/"
_OF_TRAINING = ("compile_config", "build_config")
_DEPTH_LIMIT = 200
"""Values within values, which functions follow by calling themselves; Keras nests about 20."""
_CONFIG_LIMIT = 32 * 1024 * 1024
_MODEL_FORMAT = "ckptavg-model"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The configuration of a model as Keras serializes it, which is copied and never executed.

    Attributes:
        config: the result of `keras.saving.serialize_keras_object(model)`, as JSON.
        metadata: the version of Keras, as JSON.
        has_assets: whether the model has files, such as vocabularies.
        archive: the `.keras` file that it was read from; None for a `model.json`, which holds no
            assets.
        assets: sizes of the assets in that file, by name.
    """

    config: str
    metadata: str
    has_assets: bool = False
    archive: Path | None = None
    assets: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, max_memory: int | None = None) -> Self:
        """Reads the `model.json` of a run, or the configuration inside a `.keras` file.

        Args:
            path: the file.
            max_memory: bytes that this may take.

        Raises:
            FormatError: the file is neither, or is damaged.
            IntegrityError: a part of the `.keras` file fails its checksum.
            MemoryLimitError: it takes more memory.
        """
        read = cls._from_archive if path.name.endswith(".keras") else cls._from_json
        with _damage_explained(path):
            return read(path, max_memory)

    def to_json(self) -> str:
        """The content of a run's `model.json`."""
        content = {
            "format": _MODEL_FORMAT,
            "version": 1,
            "has_assets": self.has_assets,
            "metadata": json.loads(self.metadata),
            "config": json.loads(self.config),
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def _from_json(cls, path: Path, max_memory: int | None) -> Self:
        content = _parse(read_small_file(path, _CONFIG_LIMIT), max_memory)
        if content["format"] != _MODEL_FORMAT or content["version"] != 1:
            raise FormatError(f"{path} is not a model configuration written by ckptavg")
        _check_config(content["config"])
        config, metadata = json.dumps(content["config"]), json.dumps(content["metadata"])
        return cls(config, metadata, bool(content["has_assets"]))

    @classmethod
    def _from_archive(cls, path: Path, max_memory: int | None) -> Self:
        with closing(OpenFile(path)) as file:
            archive = ZipArchive(file)
            config, metadata = (archive.read(name, _CONFIG_LIMIT) for name in (CONFIG, METADATA))
            _check_config(_parse(config, max_memory))
            _parse(metadata, max_memory)
            assets = {n: m.size for n, m in archive.members.items() if n.startswith(ASSETS)}
        for name in assets:
            if {"", ".", ".."}.intersection(name.split("/")) or set(name) & set("\\\0"):
                raise FormatError(f"refusing {path}: {name!r:.80} is not a path of folders")
        return cls(config.decode(), metadata.decode(), bool(assets), path, assets)


def parse_config(path: Path, max_memory: int | None = None) -> dict[str, Any]:
    """The configuration in a file, as in `ModelConfig.read`, as JSON values."""
    if not path.name.endswith(".keras"):
        return _check_config(parse(ModelConfig.read(path, max_memory).config.encode()))
    with _damage_explained(path), closing(OpenFile(path)) as file:
        return _check_config(_parse(ZipArchive(file).read(CONFIG, _CONFIG_LIMIT), max_memory))


def without_training(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, or that of a layer in it, without what the network does not depend on."""
    return {key: value for key, value in config.items() if key not in _OF_TRAINING}


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except CkptavgError:
        raise
    except OSError as error:
        raise FormatError(
            f"cannot read the model configuration {path}: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"the model configuration {path} is damaged: {error!r:.200}") from error


def _check_config(config: Any) -> dict[str, Any]:
    """Makes sure that a configuration is one, as far as anything here relies on it."""
    if not isinstance(config, dict) or "class_name" not in config:
        raise ValueError("it does not hold the configuration of a model")
    if not isinstance(config.get("compile_config") or {}, dict):
        raise ValueError("its compile_config is not an object")
    level: list[Any] = [config]
    for _ in range(_DEPTH_LIMIT):
        level = [inner for value in level for inner in _values(value)]
    if level:
        raise ValueError("it is nested too deeply")
    return config


def _values(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _parse(data: bytes, max_memory: int | None) -> Any:
    needed = memory_to_parse(data)
    if max_memory is not None and needed > max_memory:
        raise MemoryLimitError(needed, max_memory)
    return parse(data)
