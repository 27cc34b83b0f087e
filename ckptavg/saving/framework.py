"""What saving asks of Keras 3 and of tf_keras, and what either says of a training."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ckptavg.errors import SaverError
from ckptavg.models.model import layer_path, tracked_optimizers
from ckptavg.models.placement import Placement
from ckptavg.saving.options import Options


class DeviceAverages(ABC):
    """Moving averages of variables, in float32, on the device that holds these."""

    @abstractmethod
    def update(self, rates: Sequence[float]) -> None:
        """Moves each average by its own share of the way to the present values."""

    @abstractmethod
    def host_view(self, number: int, place: int) -> np.ndarray:
        """The values of one variable in one average, without a copy where possible.

        Args:
            number: index of the average.
            place: index of the variable, in the order in which they were given.
        """

    @abstractmethod
    def set(self, number: int, values: Sequence[np.ndarray]) -> None:
        """Sets an average, variable by variable."""


class Framework(ABC):
    """One kind of Keras, as far as saving depends on it: see `keras3.Keras3` and `keras2.Keras2`.

    Attributes:
        packages: packages whose versions a record names.
        suffix: suffix of the checkpoint files that it loads.
        model_type: the class of its models.
    """

    packages: ClassVar[tuple[str, ...]]
    suffix: ClassVar[str]
    model_type: ClassVar[type[Any]]

    def check(self, options: Options) -> None:  # noqa: B027 (most can do all)
        """Makes sure that files of this framework can hold what the options ask for.

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

    def is_built(self, model: Any, include_optimizer: bool) -> bool:
        """Whether all variables that are to be saved exist."""
        optimizers = tracked_optimizers(model) if include_optimizer else []
        return bool(model.built) and all(optimizer.built for optimizer in optimizers)

    def why_unbuilt(self, model: Any) -> str:
        """Why a model that is not built after its first batch cannot be saved, and what to do."""
        layers = model._flatten_layers(include_self=False, recursive=True)
        unbuilt = next((layer for layer in layers if not layer.built), None)
        so_far = f"the model '{model.name}' is not built after its first batch"
        if unbuilt is not None:
            return (
                f"{so_far}: the layer '{layer_path(model, unbuilt)}' has no weights yet, and Keras "
                "saves no such model. Call the model on a batch before fit"
            )
        return (
            f"{so_far}, because nothing calls it as a whole, and Keras neither saves nor loads "
            "such a model: give it a call(), or set model.built = True before fit, once all of its "
            "layers are built"
        )

    def variables(self, model: Any, include_optimizer: bool) -> list[Any]:
        """The variables that files hold, in a fixed order; others need another placement."""
        optimizers = tracked_optimizers(model) if include_optimizer else []
        return [*model.variables, *(v for o in optimizers for v in o.variables)]

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
        # Of several replicas, only those of one process have variables that can be read between
        # steps.
        spread = strategy is not None and strategy.num_replicas_in_sync > 1
        if spread and kind != "MirroredStrategy":
            raise SaverError(
                f"tracked_sigmas: averages are tracked on one device or under MirroredStrategy, "
                f"but the model trains under {kind}: omit tracked_sigmas, and average checkpoints"
            )

    @abstractmethod
    def host_view(self, variable: Any) -> np.ndarray:
        """A variable's values on the host, without a copy where possible."""

    @abstractmethod
    def model_json(self, model: Any) -> str | None:
        """The model's configuration for the run; None if merges could not use it.

        Raises:
            ModelError: the model cannot be serialized.
        """

    @abstractmethod
    def batch_norm_layers(self, model: Any) -> list[Any]:
        """The BatchNormalization layers, those in nested models too."""

    @abstractmethod
    def optimizers(self, model: Any) -> list[Any]:
        """The optimizers of a model that take steps, each once, wherever they hang."""

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
        """Number of batches that one call of the hooks for batches covers."""
        return int(model.steps_per_execution)

    def accumulation(self, optimizer: Any) -> int:
        """Number of batches whose gradients make one step."""
        return getattr(optimizer, "gradient_accumulation_steps", None) or 1

    def synchronize(self, model: Any) -> None:  # noqa: B027 (most need nothing)
        """Makes the variables hold their present values, in the middle of an epoch too."""

    def is_chief(self, model: Any) -> bool:
        """Whether this process is the one that writes files, of several that train together."""
        # See docs/decisions/0047-only-the-chief-writes.md.
        strategy = getattr(model, "distribute_strategy", None)
        return strategy is None or bool(strategy.extended.should_checkpoint)


@dataclass(frozen=True, slots=True)
class Training:
    """One call of `fit`, as Keras describes it to callbacks.

    Attributes:
        framework: the kind of Keras that trains.
        model: the model that is trained.
        epochs: number of the last epoch, 1-based; None where it is unknown.
        batches: number of batches in an epoch; None where the data do not say.
    """

    framework: Framework
    model: Any
    epochs: int | None
    batches: int | None

    @classmethod
    def of(cls, framework: Framework, model: Any, params: Mapping[str, Any] | None) -> "Training":
        """Reads what Keras hands to callbacks; a custom training loop may hand over nothing."""
        known = params or {}
        return cls(framework, model, known.get("epochs"), known.get("steps"))

    @property
    def optimizer(self) -> Any:
        """The optimizer that the model was compiled with; None if it has none."""
        return getattr(self.model, "optimizer", None)

    @property
    def optimizers(self) -> list[Any]:
        """The optimizers of the model that take steps: several in a GAN, for example."""
        return self.framework.optimizers(self.model)
