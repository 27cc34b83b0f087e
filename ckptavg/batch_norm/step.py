"""The forward pass of one batch: what the backends share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from ckptavg.batch_norm.observer import Observer, as_columns
from ckptavg.models.batches import count_samples

_SEED_NAME = "seed_generator_state"
"""The name that Keras gives the variable of every random generator."""

Given = Sequence[tuple[Any, Any]]
"""Variables with the values that replace their own in a forward pass."""


class Step(ABC):
    """A forward pass of one batch that measures what its BatchNorm layers meet.

    Attributes:
        takes: the inputs that the model declares; empty if it declares none.
    """

    takes: Sequence[Any] = ()

    @abstractmethod
    def __call__(self, inputs: Any) -> tuple[Any, list[Any]]:
        """Returns the outputs of the model, and columns for `Gathering` from every replica.

        Raises:
            HiddenCallError: a layer is called where it cannot be measured.
        """

    def count(self, inputs: Any) -> int:
        """Number of samples in a batch."""
        return count_samples(inputs)

    @abstractmethod
    def is_exhausted(self, error: Exception) -> bool:
        """Whether the error says that memory ran out."""


class HiddenCallError(Exception):
    """A layer is called inside a loop or a function of its own, out of which no tensor leads.

    Attributes:
        number: that of the layer; None if it is not known.
    """

    def __init__(self, number: int | None = None) -> None:
        super().__init__(number)
        self.number = number


class StatelessStep(Step):
    """A `Step` that changes no variable of the model.

    See docs/decisions/0010-the-batch-norm-pass-runs-in-a-stateless-scope.md.

    Attributes:
        given: variables with values that replace their own; read at each call. The values may
            change from call to call, the variables may not, because a step is compiled once.
    """

    def __init__(self, model: keras.Model, observer: Observer, training: bool) -> None:
        """Prepares a step.

        Args:
            model: the model to run forward.
            observer: entered while the step is called.
            training: whether the model runs in training mode; see `make_step`.
        """
        self.given: Given = ()
        self._model, self._observer, self._training = model, observer, training
        self.takes = keras.tree.flatten(getattr(model, "inputs", None) or [])
        self._seeds = [v for v in model.non_trainable_variables if v.name == _SEED_NAME]
        self._states: list[Any] = []
        self.restart()

    def restart(self) -> None:
        """Lets random generators start from the seeds of the model, as for a first batch."""
        self._states = [seed.value for seed in self._seeds]

    def _forward(self, inputs: Any, given: Given) -> tuple[Any, Any, list[Any]]:
        """Runs the model on tensors in a scope in which no variable can be written.

        Returns:
            Outputs of the model; columns for `Gathering`; the new states of random generators.
        """
        scope = keras.StatelessScope(given)
        with self._observer.watching(scope, self._training) as notes:
            outputs = self._model(inputs, training=self._training)
        for number, moments in notes:
            self._check_visible(number, moments.mean)
        # Handed on outside the model: a scope that forgot them would let every batch draw the same
        # dropout mask.
        states = [scope.get_current_value(seed) for seed in self._seeds]
        return outputs, as_columns(notes, self._tensors(inputs)), states

    def _tensors(self, inputs: Any) -> Iterable[Any]:
        """All tensors of the inputs, including those that sparse and ragged ones are made of."""
        tensors: list[Any] = keras.tree.flatten(inputs)
        return tensors

    def _check_visible(self, number: int, mean: Any) -> None:
        """Raises `HiddenCallError` if what was measured for a layer cannot leave its call."""
