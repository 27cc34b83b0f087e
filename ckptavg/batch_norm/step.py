"""The forward pass of one batch: what the steps of all backends share."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import keras

from ckptavg.batch_norm.observer import Observer, as_columns

_SEED_NAME = "seed_generator_state"
"""The name that Keras gives the variable of every random generator."""

Given = Sequence[tuple[Any, Any]]
"""Variables, and the values that they have in a forward pass in the place of their own."""


class Step(Protocol):
    """A forward pass that gives the statistics of a batch, and changes no variable.

    The states of random generators are handed from batch to batch beside the model, so that each
    batch draws anew and the model keeps its own.

    Attributes:
        given: read at each call; always the same variables.
    """

    given: Given

    def __call__(self, inputs: Any) -> tuple[Any, list[Any]]:
        """Outputs of the model, and columns for `Gathering` of every replica, on the device.

        Raises:
            HiddenCallError: as it says.
        """
        ...

    def count(self, inputs: Any) -> int:
        """Number of samples in a batch."""
        ...

    def restart(self) -> None:
        """Lets random generators begin where those of the model stand, as for a first batch."""
        ...

    def is_exhausted(self, error: Exception) -> bool:
        """Whether the error says that memory does not suffice."""
        ...


class HiddenCallError(Exception):
    """A layer is called inside a loop or a function of its own, out of which nothing comes.

    Attributes:
        number: of the layer; None if it is not known.
    """

    def __init__(self, number: int | None = None) -> None:
        super().__init__(number)
        self.number = number


def seed_states(model: keras.Model) -> list[Any]:
    """The variables that hold the states of random generators."""
    return [v for v in model.non_trainable_variables if v.name == _SEED_NAME]


def forward(
    model: keras.Model,
    observer: Observer,
    training: bool,
    inputs: Any,
    given: Given,
    check: Callable[[int, Any], None] = lambda *_: None,
    tensors: Callable[[Any], Iterable[Any]] = keras.tree.flatten,
) -> tuple[Any, Any, list[Any]]:
    """Runs the model on a batch in a scope in which no variable can be written.

    Args:
        model: runs forward.
        observer: attached to its layers.
        training: see `make_step`.
        inputs: of one batch, tensors.
        given: variables and their values; others have their own.
        check: called with number of the layer and mean of every call that was measured.
        tensors: gives all tensors of the inputs; those that sparse and ragged ones are made of.

    Returns:
        Outputs of the model; columns for `Gathering`; the states of random generators afterwards.
    """
    scope = keras.StatelessScope(given)
    with observer.watching(scope, training) as notes:
        outputs = model(inputs, training=training)
    for number, moments in notes:
        check(number, moments.mean)
    states = [scope.get_current_value(seed) for seed in seed_states(model)]
    return outputs, as_columns(notes, tensors(inputs)), states
