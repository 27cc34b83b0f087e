"""One checkpoint of a run on disk: written with its record, and removed."""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ckptavg.errors import CkptavgError
from ckptavg.formats import Structure, open_reader, open_writer
from ckptavg.formats.tensors import Extent, TensorInfo, all_finite, blocks
from ckptavg.merging.exact_mean import round_once
from ckptavg.runs.checkpoint import RecordedCheckpoint, TrackedCheckpoint
from ckptavg.runs.digest import digest
from ckptavg.runs.proof import part_digests
from ckptavg.runs.record import Record, TensorRecord
from ckptavg.runs.record_files import commit_with_record
from ckptavg.storage.files import commit, temporary_sibling

SavedCheckpoint = RecordedCheckpoint | TrackedCheckpoint


def stored_as(structure: Structure, dtype: str | None, max_shard_size: int | None) -> Structure:
    """The structure of checkpoints whose weights are of another dtype, or split among shards.

    Args:
        structure: structure of the model's own checkpoints.
        dtype: dtype of floating-point weights; None leaves them alone. Optimizer state stays as it
            is.
        max_shard_size: bytes of tensors in a shard; None for a single file.
    """
    tensors, shard, filled = {}, 0, 0
    for name, tensor in structure.tensors.items():
        if dtype is not None and tensor.is_float and name not in structure.optimizer:
            tensor = replace(tensor, dtype=dtype)
        if max_shard_size is not None and filled and filled + tensor.nbytes > max_shard_size:
            shard, filled = shard + 1, 0
        filled += tensor.nbytes
        tensors[name] = replace(tensor, extent=Extent(0, tensor.nbytes, shard))
    return replace(structure, tensors=tensors)


def write_checkpoint(
    path: Path, place: Path, structure: Structure, values: Mapping[str, np.ndarray], record: Record
) -> Record:
    """Writes a checkpoint and then its record; both are durable when this returns, or neither is.

    An earlier checkpoint of the same name is replaced, its record first.

    Args:
        path: the checkpoint, of any format that can be written.
        place: where its record goes.
        structure: structure of the checkpoint.
        values: values of each tensor; those of another dtype are rounded to nearest, once.
        record: the record; size and NaN are found out here.

    Returns:
        The record as it was written.
    """
    with open_writer(path, structure) as writer:

        def written(tensor: TensorInfo) -> Iterator[np.ndarray]:
            dtype = tensor.numpy_dtype
            flat = np.ascontiguousarray(values[tensor.name]).reshape(-1)
            for block in blocks(tensor.nbytes):
                first = block.start // dtype.itemsize
                part = flat[first : first + block.nbytes // dtype.itemsize]
                if part.dtype != dtype:
                    with np.errstate(
                        all="ignore"
                    ):  # what overflows becomes infinite, and is marked
                        part = round_once(part.astype(np.float64), dtype)
                writer.write(tensor.name, block.start, part.view(np.uint8).data)
                yield part

        # Digests of the values in memory also detect damage on the way to the disk, which those of
        # a file read back from the page cache would not.
        # See docs/decisions/0032-the-saver-copies-another-thread-writes.md.
        tensors, non_finite = _examined(structure.tensors, structure.optimizer, written)
        size = writer.finish()
        record = replace(
            record, size=size, non_finite=non_finite, parts=part_digests(writer.parts())
        )
        return commit_with_record(writer.commit, record, tensors, place)


def save_beside(path: Path, save: Callable[[Path], None]) -> Path:
    """Has a file written under a temporary name, which is returned; a failure leaves nothing.

    Args:
        path: the name that the file will get.
        save: writes the file to the path that it is given.
    """
    temporary = temporary_sibling(path)
    try:
        save(temporary)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return temporary


def adopt_checkpoint(temporary: Path, path: Path, place: Path, record: Record) -> Record:
    """Names a file that is written already, and writes its record, as `write_checkpoint` does."""
    with open_reader(temporary) as reader:

        def read(tensor: TensorInfo) -> Iterator[np.ndarray]:
            for block in blocks(tensor.nbytes):
                buffer = bytearray(block.nbytes)
                reader.read_into(tensor, block.start, memoryview(buffer))
                yield np.frombuffer(buffer, tensor.numpy_dtype)

        tensors, non_finite = _examined(reader.structure.model_tensors, (), read)
        parts = part_digests(reader.parts())
    size = temporary.stat().st_size
    record = replace(record, size=size, non_finite=non_finite, parts=parts)
    return commit_with_record(lambda: commit(temporary, path), record, tensors, place)


def remove_checkpoint(checkpoint: SavedCheckpoint) -> None:
    """Removes a checkpoint of a run: its record first, then its index, then its tensors."""
    record = checkpoint.record.path
    assert record is not None, "the record of a saved checkpoint lies beside it"
    # A crash on the way leaves files without a record, which count as not saved.
    files: tuple[Path, ...] = (checkpoint.path,)
    with suppress(CkptavgError), open_reader(checkpoint.path) as reader:
        files = (checkpoint.path, *reader.files)
    for file in (record, *files):
        file.unlink(missing_ok=True)


def _examined(
    tensors: Mapping[str, TensorInfo],
    optimizer: Container[str],
    parts: Callable[[TensorInfo], Iterator[np.ndarray]],
) -> tuple[dict[str, TensorRecord], tuple[str, ...]]:
    """Goes through the blocks of all tensors once.

    Args:
        tensors: the tensors by stored name.
        optimizer: names of those that are optimizer state, which records do not prove.
        parts: returns the values of each block of a tensor, in order.

    Returns:
        What a record holds of each tensor, and the names of those with NaN or infinity.
    """
    records, non_finite = {}, []
    for name, tensor in tensors.items():
        digests, finite = [], True
        for part in parts(tensor):
            if name not in optimizer:
                digests.append(digest(part.view(np.uint8).data).hex())
                finite = finite and (not tensor.is_float or all_finite(part))
        if name not in optimizer:
            records[name] = TensorRecord(tensor.shape, tensor.dtype, tuple(digests))
        if not finite:
            non_finite.append(name)
    return records, tuple(non_finite)
