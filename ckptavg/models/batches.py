"""Batches of inputs from whatever a Keras user calls data."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ckptavg.errors import DataError, check_count

BATCH_SIZE = 32
"""Samples per batch of arrays and images, as in Keras."""

Progress = Callable[[int, int], None]
"""Called after each batch with the number of new batches (1) and of new samples."""

_EXPECTED = (
    "but must be a tf.data.Dataset, a PyDataset, arrays x or (x, y), or an iterable of batches"
)


def input_batches(data: Any, *, steps: int | None = None) -> Iterator[Any]:
    """Yields the inputs of each batch of `data`, in order, without targets and sample weights.

    Args:
        data: a `tf.data.Dataset` or other iterable of batches (each `x`, `(x, y)` or
            `(x, y, sample_weight)`), a `keras.utils.PyDataset`, an array or a dictionary of arrays
            `x`, or a tuple of arrays `(x, y)`. Arrays are cut into batches of 32. A
            `tf.data.Dataset` reads ahead while batches are used.
        steps: number of batches to stop at; required for data without an end.

    Raises:
        DataError: `data` is none of these, has no end, or a part of it cannot be read.
    """
    for index, (inputs, _, _) in enumerate(read_batches(data, steps=steps)):
        if any(len(np.shape(part)) == 0 for part in keras.tree.flatten(inputs)):
            raise DataError(
                f"batch {index} of the data holds a single value where a batch of samples was "
                "expected: the data must yield x, (x, y) or (x, y, sample_weight)"
            )
        yield inputs


def read_batches(data: Any, *, steps: int | None = None) -> Iterator[tuple[Any, Any, Any]]:
    """Yields inputs, targets and sample weights of each batch, None where there are none.

    Arguments and errors are those of `input_batches`.
    """
    for index, batch in enumerate(_limited(data, steps)):
        yield _unpack(batch, f"batch {index} of the data")


@dataclass(frozen=True, slots=True)
class PreparedInputs:
    """Batches of inputs of a chosen size, preprocessed; may be read as often as the data.

    Attributes:
        data: as in `input_batches`.
        batch_size: samples per batch of arrays or of a `tf.data.Dataset`; None keeps its batches.
        preprocess: function applied to the inputs of each batch; None for none.
    """

    data: Any
    batch_size: int | None = None
    preprocess: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size, DataError)
        rebatches = _is_arrays(self.data) or hasattr(self.data, "rebatch")
        if self.batch_size is not None and not rebatches:
            raise DataError(
                f"batch_size is for arrays, images and a tf.data.Dataset: a "
                f"{type(self.data).__name__} comes in batches of its own"
            )

    def __iter__(self) -> Iterator[Any]:
        data, size = self.data, self.batch_size
        if size is not None and not _is_arrays(data):
            data = data.rebatch(size)
        for index, batch in enumerate(_batches(data, size or BATCH_SIZE)):
            inputs = _unpack(batch, f"batch {index} of the data")[0]
            # As a tuple of one, because several inputs in a tuple look like inputs and targets.
            yield (inputs if self.preprocess is None else self.preprocess(inputs),)

    def __len__(self) -> int:
        """Number of batches; raises TypeError where it is not known, as `list` and `len` expect."""
        if _is_arrays(self.data):
            return math.ceil(_length(self.data) / (self.batch_size or BATCH_SIZE))
        known = count_batches(self.data, None) if self.batch_size is None else None
        if known is None:
            raise TypeError("the number of batches is not known")
        return known

    def cardinality(self) -> int:
        """As in `tf.data`: -1 if the data have no end, -2 if their number of batches is unknown."""
        return -1 if _has_no_end(self.data) else -2


def fit_arguments(data: Any) -> dict[str, Any]:
    """Returns `data` as keyword arguments of `model.evaluate`."""
    if _is_arrays(data):
        x, y, sample_weight = _unpack(data, "the data")
        if y is None:
            raise DataError("the data have no targets: evaluation needs (x, y)")
        return {"x": x, "y": y, "sample_weight": sample_weight, "batch_size": BATCH_SIZE}
    _check_iterable(data)
    if _has_no_end(data):
        raise DataError("the data set repeats without end, but evaluation needs one that ends")
    if isinstance(data, keras.utils.PyDataset) or hasattr(data, "element_spec"):
        return {"x": data}
    return {"x": (batch for batch in data)}  # Keras takes generators, but no other iterables


def can_be_read_again(data: Any) -> bool:
    """Whether data can be read more than once, as an iterator cannot be."""
    return not isinstance(data.data if isinstance(data, PreparedInputs) else data, Iterator)


def count_samples(inputs: Any) -> int:
    """Number of samples in a batch of inputs."""
    return int(np.shape(keras.tree.flatten(inputs)[0])[0])


def count_batches(data: Any, steps: int | None) -> int | None:
    """Number of batches that `input_batches` will yield; None if the data do not tell."""
    known: int | None
    if _is_arrays(data):
        known = math.ceil(_length(data) / BATCH_SIZE)
    elif isinstance(data, keras.utils.PyDataset):
        known = data.num_batches
    else:
        try:
            known = len(data)
        except (TypeError, NotImplementedError):
            return steps
    return known if steps is None or known is None else min(steps, known)


def peek(data: Any) -> tuple[Any, Any]:
    """Returns the inputs of the first batch, and data that still begin with that batch."""
    first = data
    if isinstance(data, Iterator):  # gives its first batch only once
        first = list(_limited(data, 1))
        data = itertools.chain(first, data)
    for inputs in input_batches(first, steps=1):
        return inputs, data
    raise DataError("the data are empty")


def _unpack(batch: Any, what: str) -> tuple[Any, Any, Any]:
    try:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    except ValueError as error:
        raise DataError(
            f"{what} must be x, (x, y) or (x, y, sample_weight), but has {len(batch)} parts"
        ) from error
    return x, y, sample_weight


def _batches(data: Any, size: int = BATCH_SIZE) -> Iterator[Any]:
    """The batches of data, of which arrays are cut into batches of `size` samples."""
    if _is_arrays(data):
        for start in range(0, _length(data), size):
            cut = slice(start, start + size)
            yield keras.tree.map_structure(
                lambda part, cut=cut: None if part is None else part[cut], data
            )
    elif isinstance(data, keras.utils.PyDataset):
        # Iterating over a PyDataset itself never ended in former versions of Keras.
        known = data.num_batches
        yield from (data[index] for index in (itertools.count() if known is None else range(known)))
    else:
        _check_iterable(data)
        # A tf.data.Dataset loads the next batches while one is used.
        # Not `yield from`: whoever takes the first batch alone would close a generator with it.
        for batch in data.prefetch(2) if hasattr(data, "prefetch") else data:  # noqa: UP028
            yield batch


def _check_iterable(data: Any) -> None:
    # A PyDataset has items, but is not an iterable of the kind that abc knows.
    iterable = isinstance(data, Iterable | keras.utils.PyDataset)
    if not iterable or isinstance(data, str | bytes):
        raise DataError(f"data are of type {type(data).__name__}, {_EXPECTED}")


def _length(data: Any) -> int:
    lengths = {len(part) for part in keras.tree.flatten(data) if part is not None}
    if len(lengths) != 1:
        raise DataError(f"arrays of the data differ in length: {sorted(lengths)}")
    return lengths.pop()


def _is_arrays(data: Any) -> bool:
    """Whether data are arrays to be cut into batches: x, {name: x}, (x, y) or (x, y, weight)."""
    if not isinstance(data, tuple | dict) and not _is_array(data):
        return False
    parts = [part for part in keras.tree.flatten(data) if part is not None]
    return bool(parts) and all(_is_array(part) for part in parts)


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and len(getattr(value, "shape", ())) > 0


def _has_no_end(data: Any) -> bool:
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches is None
    cardinality = getattr(data, "cardinality", None)
    return cardinality is not None and int(cardinality()) == -1  # tf.data.INFINITE_CARDINALITY


def _limited(data: Any, steps: int | None) -> Iterator[Any]:
    """The batches of data as they are, at most `steps` of them."""
    check_count("steps", steps, DataError)
    if steps is None and _has_no_end(data):
        raise DataError(
            "the data set repeats without end: pass steps (--steps), the number of batches to use"
        )
    batches = _batches(data)
    # Not one batch more than `steps` is asked for: reading it may be expensive.
    for index in itertools.count() if steps is None else range(steps):
        try:
            batch = next(batches)
        except StopIteration:
            return
        except DataError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise DataError(
                f"batch {index} of the data cannot be read: {type(error).__name__}: {error}"
            ) from error
        yield batch
