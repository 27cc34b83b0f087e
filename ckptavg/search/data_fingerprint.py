"""Fingerprints of data, sample by sample: are data the same as before, do they share samples?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import xxhash

from ckptavg.errors import DataError
from ckptavg.models.batches import read_batches
from ckptavg.runs.digest import digest


@dataclass(frozen=True, slots=True)
class DataFingerprint:
    """Digests by which data are recognized.

    Attributes:
        digest: of all samples with their targets, in any order and any batches.
        inputs: a digest of each sample's inputs, sorted.
    """

    digest: str
    inputs: np.ndarray

    def count_shared(self, other: "DataFingerprint") -> int:
        """How many of these samples are among the other data, whatever their targets."""
        return int(np.isin(self.inputs, other.inputs).sum())


def fingerprint_data(data: Any, *, steps: int | None = None) -> DataFingerprint:
    """Reads data once and fingerprints every sample.

    Randomly augmented data have another fingerprint each time.

    Args:
        data: as in `evaluate` and `update_batch_norm`.
        steps: number of batches to read; all by default.

    Raises:
        DataError: the data can be read only once, have no end, or a part cannot be read.
    """
    if isinstance(data, Iterator):
        raise DataError(
            "the data can be read only once, but are needed for every candidate: pass a "
            "tf.data.Dataset, a PyDataset, arrays or a list of batches"
        )
    samples, inputs = [], []
    for parts in read_batches(data, steps=steps):
        x, *rest = ([np.asarray(leaf) for leaf in keras.tree.flatten(p)] for p in parts)
        for index in range(len(x[0])):
            hasher = xxhash.xxh3_64()
            for leaf in x:
                hasher.update(_bytes(leaf[index]))
            inputs.append(hasher.intdigest())
            # Sample weights may be one number for the whole batch.
            for leaf in (leaf for part in rest for leaf in part if leaf.ndim):
                hasher.update(_bytes(leaf[index]))
            samples.append(hasher.intdigest())
    # Sorted, because neither shuffling nor another batch size makes other data.
    whole = np.sort(np.array(samples, np.uint64)).tobytes()
    return DataFingerprint(digest(whole).hex(), np.sort(np.array(inputs, np.uint64)))


def _bytes(values: Any) -> bytes:
    values = np.asarray(values)
    # Objects, such as texts, are pointers: their bytes differ from process to process.
    return repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
