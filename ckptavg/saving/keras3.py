"""Keras 3 as saving sees it: where its variables go in files, their values, its learning rate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ckptavg.errors import SaverError
from ckptavg.models.marks import place
from ckptavg.models.model import (
    batch_norm_layers,
    load_weights,
    model_config,
    save_weights,
    tracked_optimizers,
)
from ckptavg.models.placement import Placement
from ckptavg.saving.framework import DeviceAverages, Framework


class Keras3(Framework):
    """Keras 3 on any of its backends."""

    packages = ("numpy", "h5py", "keras", keras.backend.backend())
    suffix = ".weights.h5"
    model_type = keras.Model

    def place(self, model: Any, include_optimizer: bool) -> Placement | None:
        return place(model, include_optimizer=include_optimizer)

    def save(self, model: Any, path: Any, include_optimizer: bool) -> None:
        if include_optimizer:
            keras.saving.save_weights(model, path)
        else:
            save_weights(model, path)

    def load(self, model: Any, path: Path) -> None:
        load_weights(model, path)

    def device_averages(self, model: Any, variables: Sequence[Any], count: int) -> DeviceAverages:
        backend = keras.backend.backend()
        if backend == "tensorflow":
            from ckptavg.saving.averages.tensorflow import TensorFlowAverages

            return TensorFlowAverages([variable.value for variable in variables], count)
        if backend == "jax":
            from ckptavg.saving.averages.jax import JaxAverages

            return JaxAverages(model, variables, count)
        from ckptavg.saving.averages.torch import TorchAverages

        return TorchAverages(variables, count)

    def check_tracking(self, model: Any) -> None:
        backend, processes = keras.backend.backend(), 1
        if backend not in ("tensorflow", "jax", "torch"):
            raise SaverError(
                "tracked_sigmas: averages are tracked on the backends tensorflow, jax and torch, "
                f"but Keras runs on {backend}"
            )
        if backend == "jax":
            import jax

            processes = jax.process_count()
        if processes > 1:
            raise SaverError(
                f"tracked_sigmas: averages are tracked in one process, but {processes} train "
                "together: omit tracked_sigmas, and average checkpoints"
            )
        super().check_tracking(model)

    def host_view(self, variable: Any) -> np.ndarray:
        value = variable.value
        if keras.backend.backend() == "tensorflow":
            value = value.read_value()  # NumPy reads the memory of the tensor without a copy
        return np.asarray(keras.ops.convert_to_numpy(value))

    def model_json(self, model: Any) -> str:
        return model_config(model).to_json()

    def batch_norm_layers(self, model: Any) -> list[Any]:
        return batch_norm_layers(model)

    def optimizers(self, model: Any) -> list[Any]:
        # Keras' MultiOptimizer has no rate and takes no steps: those within do.
        found = (
            getattr(optimizer, "optimizers", None) or [optimizer]
            for optimizer in tracked_optimizers(model)
        )
        return [optimizer for optimizers in found for optimizer in optimizers]

    def learning_rate(self, optimizer: Any) -> float:
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))

    def set_learning_rate(self, optimizer: Any, rate: float) -> None:
        optimizer.learning_rate = rate

    def iterations(self, optimizer: Any) -> int:
        return int(keras.ops.convert_to_numpy(optimizer.iterations))

    def batches(self, optimizer: Any) -> int:
        inner = getattr(optimizer, "inner_optimizer", optimizer)  # that of a LossScaleOptimizer
        # `iterations` counts steps: of batches whose gradients are still accumulated only the
        # variable behind it knows.
        counter = next((v for v in inner.variables if v.name == "iteration"), None)
        if counter is None:
            return super().batches(optimizer)
        return int(keras.ops.convert_to_numpy(counter))

    def accumulation(self, optimizer: Any) -> int:
        return super().accumulation(getattr(optimizer, "inner_optimizer", optimizer))

    def synchronize(self, model: Any) -> None:
        # On JAX, fit keeps the values of an epoch beside the variables until the epoch ends.
        if keras.backend.backend() == "jax":
            model.jax_state_sync()

    def is_chief(self, model: Any) -> bool:
        if keras.backend.backend() == "jax":
            import jax

            return bool(jax.process_index() == 0)
        return super().is_chief(model)
