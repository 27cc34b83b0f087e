"""The digests that prove a checkpoint file intact, computed and held against its record."""

from pathlib import Path

from ckptavg.errors import IntegrityError
from ckptavg.formats import CheckpointReader, is_optimizer, open_reader
from ckptavg.record import Record, TensorRecord, digest, find_record
from ckptavg.tensors import Region, TensorInfo, regions


def tensor_records(path: Path) -> dict[str, TensorRecord]:
    """Shape, dtype and digests of every tensor in a checkpoint file but optimizer state.

    Raises:
        FormatError: the file is not a checkpoint, or is damaged.
    """
    with open_reader(path) as reader:
        return {
            name: TensorRecord(
                tensor.shape,
                tensor.dtype,
                tuple(region_digest(reader, tensor, region) for region in regions(tensor.nbytes)),
            )
            for name, tensor in reader.structure.tensors.items()
            if not is_optimizer(name)
        }


def region_digest(reader: CheckpointReader, tensor: TensorInfo, region: Region) -> str:
    """The digest of a region's bytes, read afresh."""
    buffer = bytearray(region.nbytes)
    reader.read_into(tensor, region.start, memoryview(buffer))
    return digest(buffer)


def check_intact(path: Path) -> bool:
    """Holds a checkpoint file against its record, byte for byte.

    Returns:
        Whether it has a record; without one nothing is proven.

    Raises:
        FormatError: the file is not a checkpoint, or is damaged.
        IntegrityError: it differs from its record.
    """
    record = find_record(path)
    if record is None:
        return False
    with open_reader(path) as reader:
        check_tensors(record, reader)
        for name in record.tensors:
            tensor = reader.structure.tensors[name]
            for region in regions(tensor.nbytes):
                found = region_digest(reader, tensor, region)
                check_digest(path, record, tensor, region, found)
    return True


def check_tensors(record: Record, reader: CheckpointReader) -> None:
    """Makes sure that a file has the size and the tensors that its record says.

    Raises:
        IntegrityError: it has not.
    """
    if record.size != reader.size:
        raise IntegrityError(
            f"{reader.path} has {reader.size:,} bytes but its record says {record.size:,}: "
            "it was changed or truncated after it was saved"
        )
    stored = {
        name: (tensor.shape, tensor.dtype)
        for name, tensor in reader.structure.tensors.items()
        if not is_optimizer(name)
    }
    recorded = {name: (tensor.shape, tensor.dtype) for name, tensor in record.tensors.items()}
    if stored != recorded:
        raise IntegrityError(
            f"{reader.path} holds other tensors than its record says: "
            "it was changed after it was saved"
        )


def check_digest(
    path: Path, record: Record, tensor: TensorInfo, region: Region, found: str
) -> None:
    """Makes sure that a region of a tensor has the digest that the record says.

    Raises:
        IntegrityError: it has another; the message names file, tensor and block.
    """
    digests = record.tensors[tensor.name].digests
    if region.block >= len(digests) or digests[region.block] != found:
        raise IntegrityError(
            f"{path} is damaged: block {region.block} of '{tensor.name}' (its bytes from "
            f"{region.start:,} on) is not what was saved, by the digest in its record"
        )
