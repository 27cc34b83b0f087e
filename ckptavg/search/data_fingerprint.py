"""Fingerprints of data, by sample: whether data are the same as before, or share samples."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import xxhash

from ckptavg.errors import DataError
from ckptavg.runs.record import digest


@dataclass(frozen=True, slots=True)
class DataPrint:
    """What is remembered of data.

    Attributes:
        digest: of all samples with their targets, in whatever order and batches.
        inputs: a digest of each sample's inputs, sorted.
    """

    digest: str
    inputs: np.ndarray

    def shared(self, other: "DataPrint") -> int:
        """How many of the samples here are among the other's, targets aside."""
        return int(np.isin(self.inputs, other.inputs).sum())


def data_print(data: Any, *, steps: int | None = None) -> DataPrint:
    """Reads data once and fingerprints every sample.

    Data that are augmented at random have another fingerprint each time.

    Args:
        data: as in `evaluate` and `update_batch_norm`.
        steps: number of batches to read; all by default.

    Raises:
        DataError: the data can be read only once.
    """
    if isinstance(data, Iterator):
        raise DataError(
            "the data can be read only once, but are needed for every candidate: pass a "
            "tf.data.Dataset, a PyDataset, arrays or a list of batches"
        )
    samples, inputs = [], []
    for number, batch in enumerate(_batches(data, steps)):
        if steps is not None and number == steps:
            break
        parts = keras.utils.unpack_x_y_sample_weight(batch)
        x, *rest = ([np.asarray(leaf) for leaf in keras.tree.flatten(p)] for p in parts)
        for index in range(len(x[0])):
            hasher = xxhash.xxh3_64()
            for leaf in x:
                hasher.update(_bytes(leaf[index]))
            inputs.append(hasher.intdigest())
            for leaf in (leaf for part in rest for leaf in part if leaf.ndim):
                hasher.update(_bytes(leaf[index]))
            samples.append(hasher.intdigest())
    whole = np.sort(np.array(samples, np.uint64)).tobytes()
    return DataPrint(digest(whole).hex(), np.sort(np.array(inputs, np.uint64)))


def _batches(data: Any, steps: int | None) -> Iterable[Any]:
    if isinstance(data, keras.utils.PyDataset):
        return (data[index] for index in range(data.num_batches or steps or 0))
    if isinstance(data, tuple | dict) or hasattr(data, "__array__"):
        return (data,)  # arrays: one batch of all samples
    return data


def _bytes(values: Any) -> bytes:
    values = np.asarray(values)
    return repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
