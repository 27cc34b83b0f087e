"""An epoch of `fit` whose batches go through a forward pass instead of training steps."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np


class EpochPass(ABC):
    """The pass, from before the weights are exchanged until its statistics are set.

    After an exception in the pass, the model has the weights that it had before.

    Attributes:
        batch_norm_pass: the class of passes that the framework has.
    """

    batch_norm_pass: ClassVar[type[Any]]

    def __init__(self, model: Any) -> None:
        self._model = model
        self._pass = self.batch_norm_pass(model)
        self._former: list[np.ndarray] = model.get_weights()
        self._finished = False

    @abstractmethod
    def _run(self, *arguments: Any) -> Any:
        """Does what `model.train_function` does for a batch, except training."""

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
        """Makes the next training step a forward pass."""
        # Keras looks up model.train_function for every batch. Ours puts Keras' own back before it
        # does anything, so that an exception between batches leaves a model that trains.
        # See docs/decisions/0035-swa-borrows-one-step-of-fit-at-a-time.md.
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
                self._pass.finish()


def _is_end_of_data(error: BaseException) -> bool:
    """Whether an iterator says that it has no more batches, as Python or as TensorFlow does."""
    return isinstance(error, StopIteration) or type(error).__name__ == "OutOfRangeError"
