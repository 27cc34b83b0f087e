"""The configuration of a model, which a `.keras` file holds beside the weights."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ckptavg.errors import FormatError

METADATA = "metadata.json"
CONFIG = "config.json"
_CONFIG_LIMIT = 64 * 1024 * 1024
_MODEL_FORMAT = "ckptavg-model"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The configuration of a model as Keras serializes it, which is copied and never executed.

    Attributes:
        config: the result of `keras.saving.serialize_keras_object(model)`, as JSON.
        metadata: the version of Keras, as JSON.
        has_assets: whether the model has files, such as vocabularies, which are not included.
    """

    config: str
    metadata: str
    has_assets: bool = False

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the `model.json` of a run, or the configuration inside a `.keras` file.

        Raises:
            FormatError: the file is neither, or damaged.
        """
        try:
            return cls._from_archive(path) if path.name.endswith(".keras") else cls._from_json(path)
        except FormatError:
            raise
        except Exception as error:  # zipfile raises nearly anything on a damaged file
            raise FormatError(f"cannot read the model configuration {path}: {error!r}") from error

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
    def _from_json(cls, path: Path) -> Self:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _MODEL_FORMAT or content["version"] != 1:
            raise FormatError(f"{path} is not a model configuration written by ckptavg")
        if "class_name" not in content["config"]:
            raise FormatError(f"{path} does not hold the configuration of a model")
        config, metadata = json.dumps(content["config"]), json.dumps(content["metadata"])
        return cls(config, metadata, bool(content["has_assets"]))

    @classmethod
    def _from_archive(cls, path: Path) -> Self:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            config, metadata = (_small_member(archive, name) for name in (CONFIG, METADATA))
        return cls(config, metadata, any(name.startswith("assets/") for name in members))


def _small_member(archive: zipfile.ZipFile, name: str) -> str:
    if archive.getinfo(name).file_size > _CONFIG_LIMIT:
        raise ValueError(f"its {name} is larger than {_CONFIG_LIMIT} bytes")
    content = archive.read(name).decode("utf-8")
    json.loads(content)
    return content
