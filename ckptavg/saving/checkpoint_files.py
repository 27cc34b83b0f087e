"""One checkpoint of a run on disk: written with its record, and removed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ckptavg.errors import CkptavgError
from ckptavg.formats import Structure, open_reader, open_writer
from ckptavg.formats.tensors import Extent, TensorInfo, all_finite, blocks
from ckptavg.merging.exact_mean import round_once
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.digest import digest
from ckptavg.runs.proof import tensor_records
from ckptavg.runs.record import Record, TensorRecord
from ckptavg.runs.record_files import commit_with_record
from ckptavg.storage.files import commit, temporary_sibling


def stored_as(structure: Structure, dtype: str | None, max_shard_size: int | None) -> Structure:
    """The structure of checkpoints whose weights are of another dtype, or split among shards.

    Args:
        structure: as the model has it.
        dtype: of floating weights; None leaves them alone. Optimizer state stays as it is.
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
    path: Path,
    place: Path,
    structure: Structure,
    values: Mapping[str, np.ndarray],
    record: Record,
) -> Record:
    """Writes a checkpoint and then its record; both stand durably when this returns, or neither.

    The digests in the record are of the values in memory, so that they tell of what goes wrong on
    the way to the disk, too. A former checkpoint of the same name is replaced, its record first.

    Args:
        path: the checkpoint, of any format that can be written.
        place: where its record goes.
        structure: of the checkpoint.
        values: of each tensor; those of another dtype are rounded to nearest, once.
        record: without size, and without what the values tell.

    Returns:
        The record as it was written.
    """
    tensors: dict[str, TensorRecord] = {}
    non_finite: list[str] = []
    with open_writer(path, structure) as writer:
        for name, tensor in structure.tensors.items():
            digests, finite = [], True
            for start, part in _parts(values[name], tensor):
                data = part.view(np.uint8).data
                writer.write(name, start, data)
                if name not in structure.optimizer:
                    digests.append(digest(data).hex())
                    finite = finite and (not tensor.is_float or all_finite(part))
            if name not in structure.optimizer:
                tensors[name] = TensorRecord(tensor.shape, tensor.dtype, tuple(digests))
            if not finite:
                non_finite.append(name)
        record = replace(record, size=writer.finish(), non_finite=tuple(non_finite))
        return commit_with_record(writer.commit, record, tensors, place)


def save_beside(path: Path, save: Callable[[Path], None]) -> Path:
    """Lets a file be written under a temporary name, which is returned; nothing stays of a failure.

    Args:
        path: what the file is to become.
        save: writes it where it is told.
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
    """Gives a file that is written already its name, and then its record, as `write_checkpoint`."""
    tensors = tensor_records(temporary)
    non_finite = []
    with open_reader(temporary) as reader:
        for name, tensor in reader.structure.model_tensors.items():
            for block in blocks(tensor.nbytes if tensor.is_float else 0):
                buffer = bytearray(block.nbytes)
                reader.read_into(tensor, block.start, memoryview(buffer))
                if not all_finite(np.frombuffer(buffer, tensor.numpy_dtype)):
                    non_finite.append(name)
                    break
    size = temporary.stat().st_size
    record = replace(record, size=size, non_finite=tuple(non_finite))
    return commit_with_record(lambda: commit(temporary, path), record, tensors, place)


def remove_checkpoint(checkpoint: Checkpoint) -> None:
    """Removes a checkpoint of a run: its record first, then its index, then its tensors."""
    files: tuple[Path, ...] = (checkpoint.path,)
    with suppress(CkptavgError), open_reader(checkpoint.path) as reader:
        files = (checkpoint.path, *reader.files)
    for file in (checkpoint.record.path, *files):
        file.unlink(missing_ok=True)


def _parts(values: np.ndarray, tensor: TensorInfo) -> Iterator[tuple[int, np.ndarray]]:
    """Each block of a tensor: its first byte, and its values in the tensor's dtype."""
    dtype = tensor.numpy_dtype
    flat = np.ascontiguousarray(values).reshape(-1)
    for block in blocks(tensor.nbytes):
        first = block.start // dtype.itemsize
        part = flat[first : first + block.nbytes // dtype.itemsize]
        if part.dtype != dtype:
            with np.errstate(all="ignore"):  # what overflows is found to be infinite
                part = round_once(part.astype(np.float64), dtype)
        yield block.start, part
