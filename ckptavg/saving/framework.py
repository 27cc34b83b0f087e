"""What saving asks of a framework: Keras 3 and tf_keras answer, each in a module of its own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ckptavg.errors import SaverError
from ckptavg.models.placement import Placement
from ckptavg.saving.options import Options

_STRATEGIES = ("MirroredStrategy",)
"""Of several replicas: those in one process, whose variables can be read outside of a step."""


class DeviceAverages(ABC):
    """Moving averages of variables, in float32, on the device that holds these."""

    @abstractmethod
    def update(self, rates: Sequence[float]) -> None:
        """Moves each average by its own share of the way to the present values."""

    @abstractmethod
    def host_view(self, number: int, place: int) -> np.ndarray:
        """What an average holds of the variable at a place, without a copy where that can be had.

        Args:
            number: of the average.
            place: of the variable in the order in which they were given.
        """

    @abstractmethod
    def set(self, number: int, values: Sequence[np.ndarray]) -> None:
        """Sets an average, variable by variable."""


class Framework(ABC):
    """One kind of Keras, as far as saving depends on it.

    Attributes:
        packages: those whose versions a record names.
        suffix: of the checkpoint files that it loads.
        sharded_suffix: of those that are split among files; None if it loads no such.
    """

    packages: ClassVar[tuple[str, ...]]
    suffix: ClassVar[str]
    sharded_suffix: ClassVar[str | None] = None

    def check(self, options: Options) -> None:  # noqa: B027 (most can do all)
        """Makes sure that files of this framework can be what the options ask for.

        Raises:
            SaverError: they cannot.
        """

    @abstractmethod
    def place(self, model: Any, include_optimizer: bool) -> Placement | None:
        """Where variables go; None if the framework alone can write files of this model."""

    @abstractmethod
    def save(self, model: Any, path: Any, include_optimizer: bool) -> None:
        """Writes a checkpoint by the framework's own means, in place."""

    @abstractmethod
    def load(self, model: Any, path: Path) -> None:
        """Loads the weights of a checkpoint into a model that is built.

        Raises:
            FormatError: the file is not a checkpoint, or is damaged.
            IntegrityError: the file differs from its record, if it has one.
            ModelError: the checkpoint does not fit the model.
        """

    @abstractmethod
    def is_built(self, model: Any, include_optimizer: bool) -> bool:
        """Whether all variables that are to be saved exist."""

    def variables(self, model: Any, include_optimizer: bool) -> list[Any]:
        """The variables that make a placement, in a fixed order; others ask for another one."""
        optimizer = getattr(model, "optimizer", None) if include_optimizer else None
        return [*model.variables, *(() if optimizer is None else optimizer.variables)]

    @abstractmethod
    def device_averages(self, model: Any, variables: Sequence[Any], count: int) -> DeviceAverages:
        """Makes `count` moving averages of a model's variables, all zero."""

    def check_tracking(self, model: Any) -> None:
        """Makes sure that averages of this model can be tracked.

        Raises:
            SaverError: they cannot.
        """
        strategy = getattr(model, "distribute_strategy", None)
        kind = type(strategy).__name__
        if strategy is not None and strategy.num_replicas_in_sync > 1 and kind not in _STRATEGIES:
            raise SaverError(
                f"tracked_sigmas: averages are tracked on one device or under "
                f"{' or '.join(_STRATEGIES)}, but the model trains under {kind}: leave "
                "tracked_sigmas away, and average checkpoints"
            )

    @abstractmethod
    def host_view(self, variable: Any) -> np.ndarray:
        """A variable's values on the host, without a copy where that can be had."""

    @abstractmethod
    def model_json(self, model: Any) -> str | None:
        """The model's configuration for the run; None if this framework has none to keep.

        Raises:
            ModelError: the model cannot be serialized.
        """

    @abstractmethod
    def batch_norm_layers(self, model: Any) -> list[Any]:
        """The BatchNormalization layers, those in nested models too."""

    @abstractmethod
    def learning_rate(self, optimizer: Any) -> float:
        """The present learning rate."""

    @abstractmethod
    def set_learning_rate(self, optimizer: Any, rate: float) -> None:
        """Sets the learning rate.

        Raises:
            TypeError: the optimizer has a schedule of its own.
        """

    @abstractmethod
    def iterations(self, optimizer: Any) -> int:
        """Optimizer steps taken."""

    def batches(self, optimizer: Any) -> int:
        """Batches that an optimizer has seen."""
        return self.iterations(optimizer) * self.accumulation(optimizer)

    def steps_per_execution(self, model: Any) -> int:
        """Batches that one call of a batch's hooks stands for."""
        return model.steps_per_execution

    def accumulation(self, optimizer: Any) -> int:
        """Batches whose gradients make one step."""
        return getattr(optimizer, "gradient_accumulation_steps", None) or 1

    def synchronize(self, model: Any) -> None:  # noqa: B027 (most need nothing)
        """Makes the variables hold their present values, in the middle of an epoch too."""

    def is_chief(self, model: Any) -> bool:
        """Whether this process is the one that writes files, of several that train together."""
        strategy = getattr(model, "distribute_strategy", None)
        return strategy is None or bool(strategy.extended.should_checkpoint)
