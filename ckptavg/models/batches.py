"""Batches of inputs from whatever a Keras user calls data."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ckptavg.errors import DataError

BATCH_SIZE = 32

_EXPECTED = (
    "but must be a tf.data.Dataset, a PyDataset, arrays x or (x, y), or an iterable of batches"
)
_ENDLESS = "repeats without end: say how many batches to take with steps (--steps)"

Progress = Callable[[int, int], None]
"""Is told how many more batches, and samples in them, were seen."""


def input_batches(data: Any, *, steps: int | None = None) -> Iterator[Any]:
    """The inputs of each batch of `data`, in order; targets and sample weights are left out.

    Args:
        data: a `tf.data.Dataset` or other iterable of batches (each `x`, `(x, y)` or
            `(x, y, sample_weight)`), a `keras.utils.PyDataset`, an array or a dictionary of arrays
            `x`, or a tuple of arrays `(x, y)`. Arrays are cut into batches of 32. A
            `tf.data.Dataset` reads ahead while batches are used.
        steps: number of batches to stop at; data without an end need it.

    Raises:
        DataError: `data` is none of these, has no end, or a part of it cannot be read.
    """
    for index, batch in enumerate(_limited(_batches(data, steps), steps)):
        inputs = _unpack(batch, f"batch {index} of the data")[0]
        if any(len(np.shape(part)) == 0 for part in keras.tree.flatten(inputs)):
            raise DataError(
                f"batch {index} of the data holds a single value where a batch of samples was "
                "expected: the data must yield x, (x, y) or (x, y, sample_weight)"
            )
        yield inputs


@dataclass(frozen=True, slots=True)
class PreparedInputs:
    """Data as batches of inputs, made to measure; as often as the data can be read.

    Attributes:
        data: as in `input_batches`.
        batch_size: samples in a batch of arrays, or of a `tf.data.Dataset`; None for as they are.
        preprocess: makes of the inputs of a batch what the model takes; None for nothing.
    """

    data: Any
    batch_size: int | None = None
    preprocess: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        size = self.batch_size
        if size is None:
            return
        if size < 1:
            raise DataError(f"the batch size is {size}, but must be at least 1")
        if not (_is_arrays(self.data) or hasattr(self.data, "rebatch")):
            raise DataError(
                f"a batch size is for arrays and for a tf.data.Dataset: a "
                f"{type(self.data).__name__} comes in batches of its own"
            )

    def __iter__(self) -> Iterator[Any]:
        data = self.data
        if _is_arrays(data):
            data = _slices(data, self.batch_size or BATCH_SIZE)
        elif self.batch_size:
            data = data.rebatch(self.batch_size)
        for index, batch in enumerate(_read_ahead(data)):
            inputs = _unpack(batch, f"batch {index} of the data")[0]
            # Several inputs in a tuple are not to be taken for inputs and targets.
            yield (inputs if self.preprocess is None else self.preprocess(inputs),)

    def __len__(self) -> int:
        """Number of batches; a TypeError where it is not known, as `list` and `len` expect it."""
        if self.batch_size is None:
            known = count_batches(self.data, None)
        elif _is_arrays(self.data):
            known = -(-_length(self.data) // self.batch_size)
        else:
            known = None
        if known is None:
            raise TypeError("the number of batches is not known")
        return known

    def cardinality(self) -> int:
        """That of the data, if they have one; -2, as tf.data says it, for an unknown one."""
        return int(self.data.cardinality()) if hasattr(self.data, "cardinality") else -2


def fit_arguments(data: Any) -> dict[str, Any]:
    """`data` as keyword arguments of `model.evaluate`."""
    if _is_arrays(data):
        x, y, sample_weight = _unpack(data, "the data")
        if y is None:
            raise DataError("the data have no targets: evaluation needs (x, y)")
        return {"x": x, "y": y, "sample_weight": sample_weight, "batch_size": BATCH_SIZE}
    if not isinstance(data, Iterable | keras.utils.PyDataset) or isinstance(data, str | bytes):
        raise DataError(f"data are of type {type(data).__name__}, {_EXPECTED}")
    if _has_no_end(data):
        raise DataError("the data set repeats without end, but evaluation needs one that ends")
    if isinstance(data, keras.utils.PyDataset) or hasattr(data, "element_spec"):
        return {"x": data}
    return {"x": (batch for batch in data)}  # of iterables Keras takes generators only


def count_samples(inputs: Any) -> int:
    """Number of samples in a batch of inputs."""
    return int(np.shape(keras.tree.flatten(inputs)[0])[0])


def count_batches(data: Any, steps: int | None) -> int | None:
    """How many batches `input_batches` will give, if the data say so."""
    if _is_arrays(data):
        known = -(-_length(data) // BATCH_SIZE)
    elif isinstance(data, keras.utils.PyDataset):
        known = data.num_batches
    else:
        try:
            known = len(data)
        except (TypeError, NotImplementedError):
            return steps
    return known if steps is None or known is None else min(steps, known)


def peek(data: Any) -> tuple[Any, Any]:
    """The inputs of the first batch, and the data as they were before."""
    if not isinstance(data, Iterator):
        return next(_first(data)), data
    batch = next(_first(data, whole=True))
    return _unpack(batch, "batch 0 of the data")[0], itertools.chain([batch], data)


def _first(data: Any, *, whole: bool = False) -> Iterator[Any]:
    batches = iter(_limited(data, 1)) if whole else input_batches(data, steps=1)
    yield from batches
    raise DataError("the data are empty")


def _unpack(batch: Any, what: str) -> tuple[Any, Any, Any]:
    try:
        return keras.utils.unpack_x_y_sample_weight(batch)
    except ValueError as error:
        raise DataError(
            f"{what} must be x, (x, y) or (x, y, sample_weight), but has {len(batch)} parts"
        ) from error


def _batches(data: Any, steps: int | None) -> Iterable[Any]:
    if _is_arrays(data):
        return _slices(data)
    if isinstance(data, keras.utils.PyDataset):
        if data.num_batches is None and steps is None:
            raise DataError(f"the PyDataset {_ENDLESS}")
        return (data[index] for index in range(data.num_batches or steps))
    if _has_no_end(data) and steps is None:
        raise DataError(f"the data set {_ENDLESS}")
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return _read_ahead(data)
    raise DataError(f"data are of type {type(data).__name__}, {_EXPECTED}")


def _read_ahead(data: Any) -> Any:
    """The data; a `tf.data.Dataset` loads the next batches while one is used."""
    return data.prefetch(2) if hasattr(data, "prefetch") else data


def _slices(data: Any, size: int = BATCH_SIZE) -> Iterator[Any]:
    length = _length(data)
    for start in range(0, length, size):
        yield keras.tree.map_structure(
            lambda part, start=start: None if part is None else part[start : start + size], data
        )


def _length(data: Any) -> int:
    lengths = {np.shape(part)[0] for part in keras.tree.flatten(data) if part is not None}
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
    cardinality = getattr(data, "cardinality", None)
    return cardinality is not None and int(cardinality()) == -1  # tf.data.INFINITE_CARDINALITY


def _limited(batches: Iterable[Any], steps: int | None) -> Iterator[Any]:
    """At most `steps` batches, and not one more is asked for."""
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise DataError(f"steps is {steps!r}, but must be a whole number, at least 1")
    iterator = iter(batches)
    index = 0
    while steps is None or index < steps:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(
                f"batch {index} of the data cannot be read: {type(error).__name__}: {error}"
            ) from error
        yield batch
        index += 1
