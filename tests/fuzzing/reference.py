"""What other libraries read in a file, asked in a process of its own: they may crash or hang."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import h5py
import numpy as np
import safetensors
import tensorflow as tf
import xxhash

Values = dict[str, str | None]
"""By the names of tensors: shape, size of an element and a digest of the bytes; None for one that
the library cannot read."""

_SECONDS = 10
_TYPES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1}
_TYPES |= {"I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4}
_TYPES |= {"I64": 8, "U64": 8, "F64": 8}


class Reference:
    """A process that reads with other libraries, started anew when it has died."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._process = 0

    def read(self, kind: str, path: Path, shapes: dict[str, tuple[int, ...]]) -> Values | None:
        """What the library of a format reads.

        Args:
            kind: a key of `READERS`.
            path: the checkpoint.
            shapes: of the tensors that it is to read; others are named without being read.

        Returns:
            None if it reads nothing, dies or hangs.
        """
        if self._connection is None:
            self._start()
        try:
            self._connection.send((kind, path, shapes))
            if self._connection.poll(_SECONDS):
                return self._connection.recv()
        except (EOFError, OSError):
            pass
        os.kill(self._process, 9)
        os.waitpid(self._process, 0)
        self._connection.close()
        self._connection = None
        return None

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        self._process = os.fork()
        if self._process:
            theirs.close()
            return
        self._connection.close()
        while True:
            try:
                kind, path, shapes = theirs.recv()
            except (EOFError, OSError):
                os._exit(0)
            try:
                found = READERS[kind](path, shapes)
            except BaseException:  # a panic of Rust is no Exception
                found = None
            theirs.send(found)


def described(shape: tuple[int, ...], itemsize: int, content: bytes | memoryview) -> str:
    """A value as it is compared."""
    return f"{tuple(shape)} x {itemsize}: {xxhash.xxh3_128_hexdigest(content)}"


def _of_array(values: np.ndarray) -> str:
    native = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))
    return described(values.shape, values.dtype.itemsize, native.tobytes())


def _hdf5(path: Path | io.BytesIO, shapes: dict[str, tuple[int, ...]]) -> Values:
    found: Values = {}
    with h5py.File(path, "r", **({} if isinstance(path, io.BytesIO) else {"locking": False})) as f:

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = None

        try:
            f.visititems(visit)
        except Exception:  # some name, which may be none of ours
            found.clear()
        for name, shape in shapes.items():
            found[name] = None
            try:
                dataset = f[name]
                # The type of a file may be a string of no end, an enumeration or a float of 80 bit.
                if dataset.shape == shape and dataset.dtype.itemsize <= 64 * 1024:
                    found[name] = _of_array(np.asarray(dataset[()], dataset.dtype))
            except Exception:
                continue
    return found


def _sharded_hdf5(path: Path, shapes: dict[str, tuple[int, ...]]) -> Values:
    index = json.loads(path.read_bytes())["weight_map"].values()
    shards = {s for found in index for s in ([found] if isinstance(found, str) else found)}
    parts = [_hdf5(path.parent / shard, {}) for shard in sorted(shards)]
    found: Values = {}
    for shard, part in zip(sorted(shards), parts, strict=True):
        here = {name: shape for name, shape in shapes.items() if name in part}
        found |= _hdf5(path.parent / shard, here)
    return found


def _archive(path: Path, shapes: dict[str, tuple[int, ...]]) -> Values:
    with zipfile.ZipFile(path) as archive:
        return _hdf5(io.BytesIO(archive.read("model.weights.h5")), shapes)


def _safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> Values:
    return {
        name: described(t["shape"], _TYPES[t["dtype"]], t["data"])
        for name, t in safetensors.deserialize(path.read_bytes())
    }


def _sharded_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> Values:
    places = json.loads(path.read_bytes())["weight_map"]
    found: Values = {}
    for shard in sorted(set(places.values())):
        held = _safetensors(path.parent / shard, shapes)
        found |= {name: value for name, value in held.items() if places.get(name) == shard}
    return found


def _tensorflow(path: Path, shapes: dict[str, tuple[int, ...]]) -> Values:
    reader = tf.train.load_checkpoint(str(path).removesuffix(".index"))
    known = reader.get_variable_to_shape_map()
    found: Values = {}
    for name in known:
        found[name] = None
        if tuple(known[name]) == shapes.get(name):
            try:
                value = np.asarray(reader.get_tensor(name))
            except Exception:  # its checksum is wrong, as a rule
                continue
            if value.dtype != object:
                found[name] = _of_array(value)
    return found


READERS: dict[str, Callable[[Path, dict[str, tuple[int, ...]]], Values]] = {
    "hdf5": _hdf5,
    "sharded hdf5": _sharded_hdf5,
    "archive": _archive,
    "safetensors": _safetensors,
    "sharded safetensors": _sharded_safetensors,
    "tensorflow": _tensorflow,
}
