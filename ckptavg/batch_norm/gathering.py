"""Batches through a step into a pool, with errors that name the batch."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from ckptavg.batch_norm.statistics import INPUTS, Merge, Pool, Statistics, averaged, pooled
from ckptavg.batch_norm.step import HiddenCallError, Step
from ckptavg.errors import (
    CkptavgError,
    DataError,
    ModelError,
    NonFiniteError,
    ResourceError,
    summary,
)
from ckptavg.models.batches import Progress

UNCHANGED = "no statistics were changed"


class MeasuredLayer(NamedTuple):
    """What there is to know of a layer that a step measures: its path and number of channels."""

    path: str
    channels: int


class Gathering:
    """The statistics of some layers, gathered batch by batch.

    The measurements of a batch are read from the device when the next batch is on its way there,
    so that the device does not wait.

    Attributes:
        batches: batches seen.
        samples: samples seen.
    """

    def __init__(self, step: Step, layers: Sequence[MeasuredLayer], merge: Merge = pooled) -> None:
        self.batches = self.samples = 0
        self._step = step
        self._layers = layers
        self._merge = merge
        self._pool = Pool(merge)
        self._unread: list[Any] = []

    def add(self, inputs: Any) -> Any:
        """Runs the model on the inputs of a batch.

        Returns:
            The outputs of the model, on the device.
        """
        self._check_real(inputs)
        try:
            outputs, columns = self._step(inputs)
            samples = self._step.count(inputs)
        except HiddenCallError as error:
            raise self._hidden(error.number) from error
        except Exception as error:  # backends and layers raise errors of any kind
            raise self._explained(error, self.batches) from error
        self._read()
        self._unread = columns
        self.batches += 1
        self.samples += samples
        return outputs

    def add_all(self, batches: Iterable[Any], progress: Progress | None) -> None:
        """Runs the model on batches of inputs, and reports each."""
        for inputs in batches:
            before = self.samples
            self.add(inputs)
            if progress is not None:
                progress(1, self.samples - before)

    def statistics(self) -> dict[int, Statistics]:
        """The statistics of every layer that was called, by its number, in order of first calls.

        Raises:
            DataError: all values that reached a layer are masked, or what the last batch brought
                cannot be used.
        """
        self._read()
        found = dict(self._pool.by_layer([layer.channels for layer in self._layers]))
        for number, statistics in found.items():
            if not statistics.count.all():
                raise DataError(
                    f"all positions that reach the layer '{self._layers[number].path}' are masked"
                )
        return found

    def _check_real(self, inputs: Any) -> None:
        """Refuses complex numbers for a model of real ones, whose imaginary part Keras drops."""
        if not self._step.takes or any(map(_is_complex, self._step.takes)):
            return
        found = next(filter(_is_complex, keras.tree.flatten(inputs)), None)
        if found is not None:
            raise DataError(
                f"batch {self.batches} of the data is {found.dtype}, but the model takes real "
                f"numbers, so that the imaginary part would be dropped: {UNCHANGED}"
            )

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        for tensor in unread:
            try:
                columns = keras.ops.convert_to_numpy(tensor)
            except Exception as error:  # devices compute ahead, and report their errors only here
                raise self._explained(error, self.batches - 1) from error
            of_inputs = columns[0] == INPUTS
            # See docs/decisions/0051-inputs-must-be-finite.md.
            if not np.isfinite(columns[:, of_inputs]).all():
                raise DataError(
                    f"batch {self.batches - 1} of the data holds NaN or infinity: {UNCHANGED}. "
                    "Correct the data or the code that prepares them"
                )
            self._check(columns[:, ~of_inputs])
            self._pool.add(columns[:, ~of_inputs])

    def _check(self, columns: np.ndarray) -> None:
        numbers, count = columns[0], columns[1]
        index = self.batches - 1
        broken = ~np.isfinite(columns).all(axis=0)
        if broken.any():
            path = self._layers[int(numbers[broken][0])].path
            raise NonFiniteError(
                f"batch {index} of the data brought NaN or infinity to the layer '{path}': "
                f"{UNCHANGED}"
            )
        if self._merge is averaged and (count < 2).any():
            path = self._layers[int(numbers[count < 2][0])].path
            raise DataError(
                f"batch {index} of the data has fewer than two values of each channel for the "
                f"layer '{path}': the unbiased variance of bn_mode='cumulative' needs more"
            )

    def _hidden(self, number: int | None) -> ModelError:
        what = "a BatchNormalization layer"
        if number is not None:
            what = f"the layer '{self._layers[number].path}'"
        return ModelError(
            f"{what} is called inside a loop or a function of its own (a tf.function, an RNN "
            "cell), where its statistics cannot be measured"
        )

    def _explained(self, error: Exception, index: int) -> CkptavgError:
        if self._step.is_exhausted(error):
            return ResourceError(
                f"memory ran out in batch {index} of the data: use smaller batches"
            )
        return DataError(f"the model rejects batch {index} of the data: {summary(error)}")


def _is_complex(tensor: Any) -> bool:
    return "complex" in str(getattr(tensor, "dtype", ""))
