"""Tiny models, their data and weights."""

import functools

import keras
import numpy as np


def tiny_model(*, batch_norm: bool = True, width: int = 4) -> keras.Model:
    """Two nested blocks and a head over 6 numbers, compiled with Adam."""
    block = [keras.layers.Dense(width, activation="relu")]
    if batch_norm:
        block.append(keras.layers.BatchNormalization())
    layers = [keras.Input((6,)), keras.layers.Dense(5, name="stem")]
    if batch_norm:
        layers.append(keras.layers.BatchNormalization(name="stem_bn"))
    layers += [keras.Sequential(block, name="block"), keras.layers.Dense(3, name="head")]
    model = keras.Sequential(layers, name="tiny")
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


@functools.cache
def _compiled_once() -> tuple[keras.Model, list[np.ndarray]]:
    model = tiny_model()
    model.optimizer.build(model.trainable_variables)
    return model, [np.array(variable) for variable in _variables(model)]


def _variables(model: keras.Model) -> list[keras.Variable]:
    return [*model.variables, *model.optimizer.variables]


def compiled_model() -> keras.Model:
    """The tiny model before its training, whose training step Keras has compiled before.

    Compiling takes longer than everything else in a test that trains. There is but one such model:
    a test that needs two at once, other optimizers, or variables yet to be built takes
    `tiny_model`.
    """
    model, initial = _compiled_once()
    for variable, value in zip(_variables(model), initial, strict=True):
        variable.assign(value)
    model._initial_epoch = 0  # which BackupAndRestore sets for good
    return model


@functools.cache
def evaluator() -> keras.Model:
    """A tiny model to evaluate checkpoints in, one after the other, which Keras compiles once."""
    return tiny_model()


def tiny_data(samples: int = 96) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    x = rng.normal(1.5, 2.0, (samples, 6)).astype("float32")
    return x, rng.integers(0, 3, samples)


def randomize(model: keras.Model, seed: int) -> keras.Model:
    """Random weights in a model; variances stay positive."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.normal(0, 1, variable.shape)
        variable.assign(np.abs(values) if "variance" in variable.path else values)
    return model
