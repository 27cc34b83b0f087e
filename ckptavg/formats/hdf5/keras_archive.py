"""`.keras` files without Keras: an uncompressed zip of the configuration and a file of weights."""

import io
import os
import shutil
import struct
import zipfile
from functools import cached_property
from typing import TYPE_CHECKING

from ckptavg.errors import FormatError
from ckptavg.formats.hdf5.keras3 import WeightsH5Reader, WeightsH5Writer
from ckptavg.formats.hdf5.walk import Place
from ckptavg.formats.model_config import CONFIG, METADATA
from ckptavg.storage.files import partial
from ckptavg.storage.open_file import OpenFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_WEIGHTS = "model.weights.h5"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Header of a zip member: signature, and the lengths of the name and extra field after it."""


class KerasArchiveReader(WeightsH5Reader):
    """Reads the weights inside a `.keras` file; its configuration is ignored."""

    @cached_property
    def _weights(self) -> Place:
        try:
            with zipfile.ZipFile(_Stream(self._opened[0])) as archive:
                member = archive.getinfo(_WEIGHTS)
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                    raise FormatError(
                        f"refusing {self.path}: its {_WEIGHTS} is compressed or encrypted"
                    )
            header = self._opened[0].read(member.header_offset, _LOCAL_HEADER.size)
            signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        except FormatError:
            raise
        except Exception as error:  # zipfile raises nearly anything on a damaged file
            raise FormatError(f"{self.path} is not an intact .keras file: {error}") from error
        # The extra field may differ from that of the central directory, which zipfile has read.
        base = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if signature != b"PK\3\4" or base + member.file_size > self.size:
            raise FormatError(f"{self.path} is not an intact .keras file: it is truncated")
        return Place(0, base, member.file_size)


class KerasArchiveWriter(WeightsH5Writer):
    """Writes a `.keras` file: first the weights, then the archive around them."""

    needs_model_config = True

    def _check(self) -> None:
        super()._check()
        assert self._model_config is not None, "the plan finds the configuration"
        self._config = self._model_config
        if self._config.has_assets:
            raise FormatError(
                f"cannot write {self.path}: the model has assets (such as a vocabulary), which are "
                "not part of its configuration. Pass --model file.py:name"
            )

    def finish(self) -> int:
        # The bytes are written twice: see
        # docs/decisions/0015-keras-archives-are-written-without-keras.md.
        weights = self._partial[0]
        whole = partial(weights)
        self._moves = [(whole, self.path)]
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
            # ZipInfo's fixed date keeps the bytes of equal models equal.
            archive.writestr(zipfile.ZipInfo(METADATA), self._config.metadata)
            archive.writestr(zipfile.ZipInfo(CONFIG), self._config.config)
            member = zipfile.ZipInfo(_WEIGHTS)
            member.file_size = weights.stat().st_size
            with weights.open("rb") as source, archive.open(member, "w") as stored:
                shutil.copyfileobj(source, stored, 1024 * 1024)
        return whole.stat().st_size


class _Stream(io.RawIOBase):
    """An open file as zipfile wants it, which is the very file that was opened and stamped."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            offset += self._position if whence == os.SEEK_CUR else self._file.size
        self._position = offset
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        count = self._file.read_into(self._position, memoryview(buffer))
        self._position += count
        return count
