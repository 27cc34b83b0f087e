"""Keras 3 `.keras` files without Keras: an uncompressed zip of configuration and weights."""

import io
import json
import os
import shutil
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from ckptavg.errors import FormatError
from ckptavg.files import commit, temporary_sibling
from ckptavg.formats.interface import CheckpointWriter, Structure
from ckptavg.formats.weights_h5 import WeightsH5Reader, WeightsH5Writer

_METADATA = "metadata.json"
_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
_CONFIG_LIMIT = 64 * 1024 * 1024
_MODEL_FORMAT = "ckptavg-model"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a zip member: signature, and the lengths of the name and the extra field that follow."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The configuration of a model, as Keras serializes it; it is carried, never run.

    Attributes:
        config: what `keras.saving.serialize_keras_object(model)` gave, as JSON.
        metadata: the Keras version that did, as JSON.
        has_assets: the model also keeps files, such as vocabularies, which are not part of this.
    """

    config: str
    metadata: str
    has_assets: bool = False

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the `model.json` of a run, or the configuration inside a `.keras` file.

        Raises:
            FormatError: the file is neither.
        """
        return cls._from_archive(path) if path.name.endswith(".keras") else cls._from_json(path)

    def to_json(self) -> str:
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
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _MODEL_FORMAT or content["version"] != 1:
                raise FormatError(f"{path} is not a model configuration that ckptavg wrote")
            if "class_name" not in content["config"]:
                raise FormatError(f"{path} holds no configuration of a model")
            config, metadata = json.dumps(content["config"]), json.dumps(content["metadata"])
            return cls(config, metadata, bool(content["has_assets"]))
        except FormatError:
            raise
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise FormatError(f"cannot read the model configuration {path}: {error!r}") from error

    @classmethod
    def _from_archive(cls, path: Path) -> Self:
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
                config, metadata = (_small_member(archive, name) for name in (_CONFIG, _METADATA))
        except Exception as error:  # zipfile raises nearly anything on a damaged file
            raise FormatError(f"{path} is not an intact .keras file: {error}") from error
        return cls(config, metadata, any(name.startswith("assets/") for name in members))


class KerasArchiveReader(WeightsH5Reader):
    """Reads the weights of a `.keras` file in place; its configuration is not looked at."""

    def _read_structure(self) -> Structure:
        with self.path.open("rb") as file:
            base, size = self._find_weights(file)
            window = _Window(file, base, size)
            return self._walk(window, base, size)

    def _find_weights(self, file: BinaryIO) -> tuple[int, int]:
        """Offset and size of the member that holds the weights."""
        try:
            with zipfile.ZipFile(file) as archive:
                member = archive.getinfo(_WEIGHTS)
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                    raise FormatError(
                        f"refusing {self.path}: its {_WEIGHTS} is compressed or encrypted"
                    )
            file.seek(member.header_offset)
            header = file.read(_LOCAL_HEADER.size)
            signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        except FormatError:
            raise
        except Exception as error:  # zipfile raises nearly anything on a damaged file
            raise FormatError(f"{self.path} is not an intact .keras file: {error}") from error
        base = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if signature != b"PK\3\4" or base + member.file_size > self.size:
            raise FormatError(f"{self.path} is not an intact .keras file: it is truncated")
        return base, member.file_size


class KerasArchiveWriter(CheckpointWriter):
    """Writes a `.keras` file: the weights beside it first, then the archive around them."""

    def __init__(self, path: Path, structure: Structure, model_config: ModelConfig) -> None:
        if model_config.has_assets:
            raise FormatError(
                f"cannot write {path}: the model keeps files of its own (such as a vocabulary), "
                "which its configuration lacks. Pass --model file.py:callable"
            )
        self.path = path
        self._config = model_config
        self._temporary = temporary_sibling(path)
        self._inner = temporary_sibling(path.with_name(_WEIGHTS))
        self._weights = WeightsH5Writer(self._inner, structure)

    def write(self, name: str, start: int, data: memoryview) -> None:
        self._weights.write(name, start, data)

    def finish(self) -> int:
        self._weights.finish()
        self._weights.commit()
        with zipfile.ZipFile(self._temporary, "w", zipfile.ZIP_STORED) as archive:
            # ZipInfo's fixed date keeps the bytes of equal models equal.
            archive.writestr(zipfile.ZipInfo(_METADATA), self._config.metadata)
            archive.writestr(zipfile.ZipInfo(_CONFIG), self._config.config)
            member = zipfile.ZipInfo(_WEIGHTS)
            member.file_size = self._inner.stat().st_size
            with self._inner.open("rb") as weights, archive.open(member, "w") as stored:
                shutil.copyfileobj(weights, stored, 1024 * 1024)
        self._inner.unlink()
        return self._temporary.stat().st_size

    def commit(self) -> None:
        commit(self._temporary, self.path)

    def discard(self) -> None:
        self._weights.discard()
        self._inner.unlink(missing_ok=True)
        self._temporary.unlink(missing_ok=True)


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: BinaryIO, base: int, size: int) -> None:
        self._file = file
        self._base = base
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        count = max(0, min(len(buffer), self._size - self._position))
        data = os.pread(self._file.fileno(), count, self._base + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _small_member(archive: zipfile.ZipFile, name: str) -> str:
    if archive.getinfo(name).file_size > _CONFIG_LIMIT:
        raise ValueError(f"its {name} is larger than {_CONFIG_LIMIT} bytes")
    content = archive.read(name).decode("utf-8")
    json.loads(content)
    return content
