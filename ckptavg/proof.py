"""The digests that prove a checkpoint file intact, computed from the file itself."""

from pathlib import Path

from ckptavg.formats import open_reader
from ckptavg.record import TensorRecord, digest
from ckptavg.tensors import BLOCK_SIZE, regions


def tensor_records(path: Path) -> dict[str, TensorRecord]:
    """Shape, dtype and digests of every tensor in a checkpoint file.

    Raises:
        FormatError: the file is not a checkpoint, or is damaged.
    """
    buffer = memoryview(bytearray(BLOCK_SIZE))
    records = {}
    with open_reader(path) as reader:
        for name, tensor in reader.structure.tensors.items():
            digests = []
            for region in regions(tensor.nbytes):
                part = buffer[: region.nbytes]
                reader.read_into(tensor, region.start, part)
                digests.append(digest(part))
            records[name] = TensorRecord(tensor.shape, tensor.dtype, tuple(digests))
    return records
