"""An epoch of `fit` whose batches go through a forward pass instead of training steps."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class EpochPass(ABC):
    """The pass, from before the weights are exchanged until its statistics are set.

    Keras looks its step up for every batch. It finds another one only from the beginning of a batch
    until that step itself is called, so that an exception elsewhere leaves nothing behind. After an
    exception in the pass itself the model has the weights that it had before.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._former: list[np.ndarray] = model.get_weights()
        self._finished = False

    @abstractmethod
    def _run(self, *arguments: Any) -> Any:
        """Does what `model.train_function` is called for, but for the training."""

    @abstractmethod
    def _set_statistics(self) -> None:
        """Sets the statistics of all batches."""

    @contextmanager
    def undone_by_errors(self) -> Iterator[None]:
        """Gives the model its former weights after an error."""
        try:
            yield
        except BaseException as error:
            if not _is_end_of_data(error):
                self._model.set_weights(self._former)
            raise

    def take_batch(self) -> None:
        """Lets the next training step be a forward pass."""
        own = self._model.train_function

        def step(*arguments: Any) -> Any:
            self._model.train_function = own
            with self.undone_by_errors():
                return self._run(*arguments)

        self._model.train_function = step

    def finish(self) -> None:
        """Sets the statistics, once."""
        if not self._finished:
            self._finished = True
            with self.undone_by_errors():
                self._set_statistics()


def _is_end_of_data(error: BaseException) -> bool:
    """Whether an iterator says that it has no more batches."""
    return isinstance(error, StopIteration) or type(error).__name__ == "OutOfRangeError"
