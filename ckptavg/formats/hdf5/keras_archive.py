"""`.keras` files without Keras: an uncompressed zip of the configuration and a file of weights."""

import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import cached_property

from ckptavg.errors import FormatError
from ckptavg.formats.hdf5.keras3 import WeightsH5Reader, WeightsH5Writer
from ckptavg.formats.hdf5.walk import Place
from ckptavg.formats.model_config import CONFIG, METADATA
from ckptavg.formats.reader import Part
from ckptavg.formats.zip_archive import Member, ZipArchive
from ckptavg.storage.files import partial
from ckptavg.storage.open_file import OpenFile

_WEIGHTS = "model.weights.h5"
_WEIGHTS_NPZ = "model.weights.npz"
_HDF5 = b"\x89HDF\r\n\x1a\n"


class KerasArchiveReader(WeightsH5Reader):
    """Reads the weights inside a `.keras` file.

    Before the format existed, Keras 2 wrote HDF5 to files of this name: these are read as such.
    """

    @cached_property
    def _archive(self) -> ZipArchive | None:
        opened = self._opened[0]
        return None if opened.read(0, len(_HDF5)) == _HDF5 else ZipArchive(opened)

    @property
    def remark(self) -> str:
        return "" if self._archive is not None else "HDF5, as Keras 2 wrote to files of this name"

    @property
    def members(self) -> Mapping[str, Member]:
        return {} if self._archive is None else self._archive.members

    def parts(self) -> Iterator[Part]:
        if self._archive is None:
            yield from super().parts()
            return
        yield from _parts(self._archive)

    def check_members(self) -> None:
        if self._archive is not None:
            for name in self._archive.members:
                for _ in self._archive.pieces(name):
                    pass

    @cached_property
    def _weights(self) -> Place:
        archive = self._archive
        if archive is None:
            return super()._weights
        if _WEIGHTS not in archive.members:
            if _WEIGHTS_NPZ in archive.members:
                raise FormatError(
                    f"cannot read {self.path}: its weights are in {_WEIGHTS_NPZ}, not in "
                    f"{_WEIGHTS}. Load it with Keras, and save the model again"
                )
            raise FormatError(f"{self.path} is not an intact .keras file: it lacks {_WEIGHTS}")
        extent = archive.extent(_WEIGHTS)
        if extent is None:
            raise FormatError(f"refusing {self.path}: its {_WEIGHTS} is compressed or encrypted")
        return Place(0, *extent)


class KerasArchiveWriter(WeightsH5Writer):
    """Writes a `.keras` file: first the weights, then the archive around them."""

    needs_model_config = True

    def _check(self) -> None:
        super()._check()
        assert self._model_config is not None, "the plan finds the configuration"
        self._config = self._model_config
        if self._config.has_assets and self._config.archive is None:
            raise FormatError(
                f"cannot write {self.path}: the model has assets (such as a vocabulary), which are "
                "not part of its configuration. Pass --model file.py:name, or a .keras file"
            )

    def finish(self) -> int:
        # The bytes are written twice: see
        # docs/decisions/0015-keras-archives-are-written-without-keras.md.
        weights = self._partial[0]
        self._whole = partial(weights)
        self._moves = [(self._whole, self.path)]
        with zipfile.ZipFile(self._whole, "w", zipfile.ZIP_STORED) as archive:
            # ZipInfo's fixed date keeps the bytes of equal models equal.
            archive.writestr(zipfile.ZipInfo(METADATA), self._config.metadata)
            archive.writestr(zipfile.ZipInfo(CONFIG), self._config.config)
            member = zipfile.ZipInfo(_WEIGHTS)
            member.file_size = weights.stat().st_size
            with weights.open("rb") as source, archive.open(member, "w") as stored:
                shutil.copyfileobj(source, stored, 1024 * 1024)
            self._copy_assets(archive)
        return self._whole.stat().st_size

    def parts(self) -> Iterator[Part]:
        with closing(OpenFile(self._whole)) as file:
            yield from _parts(ZipArchive(file))

    def _copy_assets(self, archive: zipfile.ZipFile) -> None:
        if self._config.archive is None:
            return
        with closing(OpenFile(self._config.archive)) as file:
            source = ZipArchive(file)
            for name, size in self._config.assets.items():
                member = zipfile.ZipInfo(name)
                member.file_size = size
                with archive.open(member, "w") as stored:
                    for piece in source.pieces(name):
                        stored.write(piece)


def _parts(archive: ZipArchive) -> Iterator[Part]:
    """What an archive holds beside the weights, which are proven tensor by tensor."""
    for name in archive.members:
        if name != _WEIGHTS:
            yield Part(name, archive.pieces(name))
