"""Checkpoint files of tests: written, read, damaged; disks that are filled."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from ckptavg.formats import open_reader
from ckptavg.formats.hdf5.preallocate import lay_out
from ckptavg.formats.tensors import Extent, TensorInfo, is_opaque


def write_h5(path: Path, values: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[name] = value
            if is_opaque(np.asarray(value).dtype.name):
                file[name].attrs["dtype"] = value.dtype.name  # as Keras does
    return path


MiB = 1024**2


def sparse_checkpoints(folder: Path, count: int, nbytes: int, dtype: str = "float32") -> list[Path]:
    """Checkpoints of one large tensor and some small ones, of zeros that take no disk."""
    shapes = {"layers/big/vars/0": (nbytes // np.dtype(dtype).itemsize,)} | {
        f"layers/d{n}/vars/0": (9,) for n in range(99)
    }
    tensors = {n: TensorInfo(n, shape, dtype, Extent(0, 0)) for n, shape in shapes.items()}
    folder.mkdir()
    paths = [folder / f"{number}.weights.h5" for number in range(count)]
    for path in paths:
        lay_out(path, tensors.values(), {})
    return paths


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint file by stored name."""
    found = {}
    with open_reader(path) as reader:
        for name, tensor in reader.structure.tensors.items():
            buffer = bytearray(tensor.nbytes)
            reader.read_into(tensor, 0, memoryview(buffer))
            found[name] = np.frombuffer(buffer, tensor.numpy_dtype).reshape(tensor.shape)
    return found


def arrays(path: Path) -> dict:
    """What h5py finds in a `.weights.h5` file, without optimizer state."""
    found = {}

    def visit(name, entry):
        if isinstance(entry, h5py.Dataset) and not name.startswith("optimizer"):
            found[name] = entry[()]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


@contextlib.contextmanager
def open_extent(path: Path) -> Iterator[int]:
    """The offset in a checkpoint file at which the bytes of its first tensor begin."""
    with open_reader(path) as reader:
        first = next(iter(reader.structure.tensors.values())).extent.offset
    yield first


def flip_bit(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def leftovers(folder: Path) -> list[str]:
    """Temporary files that should not be there."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(".tmp-")]


def free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def fill(folder: Path, leave: int = 0) -> Path:
    """Takes all of the disk but some pages."""
    ballast = folder.parent / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free(folder) - leave))
    return ballast


def rewrite_zip(
    path: Path, to: Path, members: dict[str, bytes], *, without: str = "", deflate: bool = False
) -> Path:
    """Writes an archive again, with correct checksums, but with other members."""
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(path) as source:
        contents = {name: source.read(name) for name in source.namelist()} | members
    contents.pop(without, None)
    with zipfile.ZipFile(to, "w") as target:
        for name, content in contents.items():
            target.writestr(name, content, method if name in members else zipfile.ZIP_STORED)
    return to
