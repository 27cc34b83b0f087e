"""The weights of a live model by their stored names, set in place."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import keras
import numpy as np

from ckptavg.errors import ModelError
from ckptavg.models.marks import place
from ckptavg.models.model import batch_norm_layers
from ckptavg.models.placement import moving_statistics
from ckptavg.search.weight_rows import Tensor


class LiveWeights:
    """Sets the weights of a built model without a file.

    Attributes:
        moving_statistics: stored names of what BatchNorm layers keep of the data.
    """

    moving_statistics: tuple[str, ...]

    def __init__(self, model: keras.Model) -> None:
        """Finds out which variable is stored under which name.

        Raises:
            ModelError: a layer saves something else than its variables, as quantized ones do.
        """
        placement = place(model)
        if placement is None:
            raise ModelError(
                f"a layer of the model '{model.name}' saves something else than its variables: its "
                "weights cannot be set in place"
            )
        self._model = model
        self._variables = placement.variables
        self.moving_statistics = moving_statistics(batch_norm_layers(model), placement)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Gives all variables the values back, at the exit, that they have now."""
        former = [
            (name, np.array(keras.ops.convert_to_numpy(variable.value)))
            for name, variable in self._variables.items()
        ]
        try:
            yield
        finally:
            self.assign(former)

    def assign(self, tensors: Iterable[Tensor]) -> None:
        """Gives the variables the values of the tensors that are stored under their names.

        Raises:
            ModelError: the model has no tensor of a name, has one of another shape, or more.
        """
        missing = set(self._variables)
        for name, values in tensors:
            variable = self._variables.get(name)
            if variable is None or tuple(variable.shape) != values.shape:
                raise ModelError(
                    f"the checkpoints do not fit the model '{self._model.name}': the model has no "
                    f"'{name}' of shape {values.shape}"
                )
            variable.assign(values)
            missing.discard(name)
        if missing:
            raise ModelError(
                f"the checkpoints do not fit the model '{self._model.name}': they hold no "
                f"'{min(missing)}'"
            )
