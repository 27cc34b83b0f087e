"""The proof that a checkpoint file is intact: its digests, compared with those in its record."""

import os
import threading
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from ckptavg.errors import IntegrityError
from ckptavg.formats import CheckpointReader, open_reader
from ckptavg.formats.crc32c import crc32c, crc32c_combine
from ckptavg.formats.reader import Part
from ckptavg.formats.tensors import Block, TensorInfo, blocks, count_blocks
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.digest import DIGEST_SIZE, digest
from ckptavg.runs.record import Record, TensorRecord, TensorRecords
from ckptavg.runs.record_files import find_record
from ckptavg.storage.open_file import read_small_file


def tensor_records(path: Path) -> dict[str, TensorRecord]:
    """Shape, dtype and digests of every tensor in a checkpoint file, without optimizer state.

    Raises:
        FormatError: the file is not a checkpoint, or is damaged.
    """
    with open_reader(path) as reader:
        return {
            name: TensorRecord(
                tensor.shape,
                tensor.dtype,
                tuple(digest(read_block(reader, tensor, b)).hex() for b in blocks(tensor.nbytes)),
            )
            for name, tensor in reader.structure.model_tensors.items()
        }


def read_block(reader: CheckpointReader, tensor: TensorInfo, block: Block) -> bytearray:
    """The bytes of a block, read afresh."""
    buffer = bytearray(block.nbytes)
    reader.read_into(tensor, block.start, memoryview(buffer))
    return buffer


def part_digests(parts: Iterable[Part]) -> dict[str, str]:
    """The digests of what a checkpoint holds beside tensors, by name."""
    found = {}
    for name, pieces in parts:
        hasher = xxhash.xxh3_128()
        for piece in pieces:
            hasher.update(piece)
        found[name] = hasher.hexdigest()
    return found


def check_intact(path: Path) -> tuple[str, ...] | None:
    """Checks every byte of a checkpoint against its record and the checksums of its format.

    Returns:
        What is not proven beside the tensors, because its record is one of 0.1.0; None if it has
        neither a record nor checksums, so that nothing is proven.

    Raises:
        FormatError: the file is not a checkpoint, or is damaged.
        IntegrityError: it differs from its record, or fails a checksum.
    """
    record = find_record(path)
    with open_reader(path) as reader:
        reader.check_members()
        if record is None:
            if reader.members:
                return ()
            if not reader.checksums:
                return None
            names = reader.structure.model_tensors
            Checksums(reader, {name: n for n, name in enumerate(names)}).finish(names)
            return ()
        proof = Proof.of(record, reader)
        for tensor in reader.structure.model_tensors.values():
            for block in blocks(tensor.nbytes):
                proof.check(path, tensor, block, digest(read_block(reader, tensor, block)))
        return () if record.parts else tuple(part.name for part in reader.parts())


def check_model_file(checkpoint: Checkpoint) -> Path | None:
    """The configuration of the model that a checkpoint's record names, as it was then.

    Returns:
        Its file; None if there is none.

    Raises:
        IntegrityError: the file was changed since the checkpoint was saved.
    """
    path, record = checkpoint.model_file, checkpoint.record
    if path is None or record is None or record.model_digest is None:
        return path
    shown = os.path.normpath(path)  # run/model.json, not run/checkpoints/../model.json
    try:
        found = digest(read_small_file(path)).hex()
    except OSError as error:
        raise IntegrityError(f"cannot read {shown}: {error.strerror}") from error
    if found != record.model_digest:
        raise IntegrityError(
            f"{shown} is not the model configuration that {checkpoint.path} was saved with: it was "
            "changed since. Restore it, or name a model (--model, in Python model=)"
        )
    return path


def read_proven(path: Path, record: Record) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by stored name, without optimizer state, each proven.

    Raises:
        FormatError: the file is not a checkpoint, or is damaged.
        IntegrityError: it differs from its record.
    """
    found = {}
    with open_reader(path) as reader:
        proof = Proof.of(record, reader)
        for name, tensor in reader.structure.model_tensors.items():
            buffer = bytearray(tensor.nbytes)
            reader.read_into(tensor, 0, memoryview(buffer))
            for block in blocks(tensor.nbytes):
                part = memoryview(buffer)[block.start : block.start + block.nbytes]
                proof.check(path, tensor, block, digest(part))
            found[name] = np.frombuffer(buffer, tensor.numpy_dtype).reshape(tensor.shape)
    return found


class Checksums:
    """Compares the checksums that a format itself stores with what is read, in any order.

    They are CRC-32C of whole tensors, whereas tensors are read block by block in several threads.
    """

    def __init__(self, reader: CheckpointReader, numbers: Mapping[str, int]) -> None:
        """Reads the checksums of a checkpoint.

        Args:
            reader: of the checkpoint.
            numbers: of its tensors by stored name, counted from 0.
        """
        self._reader = reader
        self._numbers = numbers
        expected = reader.checksums
        # Names are shared by all checkpoints, of which there may be many; numbers are packed.
        self._expected = array("q", (expected.get(name, -1) for name in numbers))
        self._checked = bytearray(len(numbers))
        self._parts: dict[str, dict[int, int]] = {}
        self._lock = threading.Lock()

    def add(self, tensor: TensorInfo, block: Block, crc: int) -> None:
        """Takes in the CRC-32C of the bytes of a block.

        Raises:
            IntegrityError: it was the last one, and the tensor is not what was saved.
        """
        # Blocks of one tensor come from several threads.
        with self._lock:
            parts = self._parts.setdefault(tensor.name, {})
            parts[block.index] = crc
            if len(parts) < count_blocks(tensor.nbytes):
                return
            del self._parts[tensor.name]
            number = self._numbers[tensor.name]
            self._checked[number] = 1
        found = 0
        for part in blocks(tensor.nbytes):
            found = crc32c_combine(found, parts[part.index], part.nbytes)
        if self._expected[number] not in (-1, found):
            raise IntegrityError(
                f"{self._reader.path} is damaged: '{tensor.name}' is not what was saved, by the "
                "checksum in its index"
            )

    def finish(self, names: Iterable[str]) -> None:
        """Reads the blocks of these tensors that were not added: an earlier merge did them.

        Raises:
            IntegrityError: one is not what was saved.
        """
        for name in names:
            if not self._checked[self._numbers[name]]:
                tensor, done = self._reader.structure.tensors[name], self._parts.get(name, {})
                for block in [block for block in blocks(tensor.nbytes) if block.index not in done]:
                    self.add(tensor, block, crc32c(read_block(self._reader, tensor, block)))


@dataclass(frozen=True, slots=True)
class Proof:
    """The digests of a checkpoint's record, packed: 16 bytes for each block of each tensor.

    Attributes:
        digests: in the order of the structure's tensors and of their blocks.
        first: number of the first block of each tensor; shared by files of equal structure.
    """

    digests: bytes
    first: Mapping[str, int] = field(repr=False)

    @classmethod
    def of(
        cls, record: Record, reader: CheckpointReader, first: Mapping[str, int] | None = None
    ) -> "Proof":
        """The proof in a record, once it is known to be of a file of this size and structure.

        Args:
            record: of the file.
            reader: the open file.
            first: that of another proof of the same structure, to be shared.

        Raises:
            RecordError: the record's file is gone or damaged.
            IntegrityError: the file has not the size or the tensors that the record says, or holds
                another configuration.
        """
        if record.size != reader.size:
            raise IntegrityError(
                f"{reader.path} has {reader.size:,} bytes but its record says {record.size:,}: "
                "it was changed or truncated after it was saved"
            )
        _check_parts(record, reader)
        stored = reader.structure.model_tensors
        # Records of 0.1.0 also list the state of optimizers other than the compiled one.
        dropped = reader.structure.optimizer - stored.keys()
        recorded = {n: t for n, t in record.read_tensors().items() if n not in dropped}
        # Sizes may agree by chance; names, shapes and dtypes of another model do not.
        if _facts(recorded) != _facts(stored):
            raise IntegrityError(
                f"{reader.path} holds other tensors than its record says: "
                "it was changed after it was saved"
            )
        parts: list[str] = []
        numbers: dict[str, int] = {}
        for name, tensor in stored.items():
            digests = recorded[name].digests
            # Too few digests would leave bytes unproven.
            if len(digests) != count_blocks(tensor.nbytes):
                raise IntegrityError(
                    f"the record of {reader.path} holds {len(digests)} digests of '{name}', which "
                    f"has {tensor.nbytes:,} bytes: it is of another file"
                )
            numbers[name] = len(parts)
            parts += digests
        return cls(bytes.fromhex("".join(parts)), numbers if first is None else first)

    def holds(self, name: str, block: Block, found: bytes) -> bool:
        """Whether a block of a tensor has the digest that was recorded."""
        start = (self.first[name] + block.index) * DIGEST_SIZE
        return self.digests[start : start + DIGEST_SIZE] == found

    def check(self, path: Path, tensor: TensorInfo, block: Block, found: bytes) -> None:
        """Makes sure that a block of a tensor has the digest that was recorded.

        Raises:
            IntegrityError: it has another; the message names file, tensor and block.
        """
        if not self.holds(tensor.name, block, found):
            raise IntegrityError(
                f"{path} is damaged: block {block.index} of '{tensor.name}' (its bytes from "
                f"{block.start:,} on) is not what was saved, by the digest in its record"
            )


def _check_parts(record: Record, reader: CheckpointReader) -> None:
    if not record.parts:  # one of 0.1.0, or of a file that holds nothing but tensors
        return
    found = part_digests(reader.parts())
    for name in sorted(record.parts.keys() | found.keys()):
        if record.parts.get(name) != found.get(name):
            raise IntegrityError(
                f"{reader.path} is damaged: its '{name}' is not what was saved, by the digest in "
                "its record"
            )


def _facts(tensors: Mapping[str, TensorInfo] | TensorRecords) -> dict[str, tuple[object, ...]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
