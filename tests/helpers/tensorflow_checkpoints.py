"""Checkpoints as TensorFlow writes them."""

from functools import cache
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tests.helpers.models import tiny_model

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@cache
def keras_3_model() -> keras.Model:
    model = tiny_model()
    model.optimizer.build(model.trainable_variables)
    return model


def fill(model, seed: int):
    """Random weights in a model of either Keras, and ones in its optimizer."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.normal(0, 1, weight.shape))
    variables = model.optimizer.variables
    for variable in variables() if callable(variables) else variables:
        variable.assign(tf.ones(variable.shape, variable.dtype))
    return model


def save(prefix: Path, tensors: dict[str, tf.Tensor]) -> Path:
    names = list(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=list(tensors.values()),
    )
    return prefix
