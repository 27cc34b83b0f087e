"""The BatchNormalization layers of Keras 2 (tf_keras) models."""

from typing import Any

import tf_keras

_BATCH_NORM = (
    tf_keras.layers.BatchNormalization,
    tf_keras.layers.experimental.SyncBatchNormalization,
)


def batch_norm_layers(model: Any) -> list[Any]:
    """The BatchNorm layers of a model, those in nested models too."""
    layers = model._flatten_layers(include_self=False, recursive=True)  # as Keras 3 has it
    return [layer for layer in layers if isinstance(layer, _BATCH_NORM)]
