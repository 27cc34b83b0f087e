"""The BatchNormalization layers of Keras 2 (tf_keras) models."""

from typing import Any

import tf_keras

_BATCH_NORM = (
    tf_keras.layers.BatchNormalization,
    tf_keras.layers.experimental.SyncBatchNormalization,
)


def batch_norm_layers(model: Any) -> list[Any]:
    """The BatchNormalization layers of a model, nested ones included."""
    # Private as in Keras 3, and the only method that goes deeper than the first level.
    layers = model._flatten_layers(include_self=False, recursive=True)
    return [layer for layer in layers if isinstance(layer, _BATCH_NORM)]
