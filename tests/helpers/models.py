"""Tiny models, their data and weights."""

import functools

import keras
import numpy as np


def tiny_model(*, batch_norm: bool = True, width: int = 4) -> keras.Model:
    """Two nested blocks and a head over 6 numbers, compiled with SGD with momentum."""
    block = [keras.layers.Dense(width, activation="relu")]
    if batch_norm:
        block.append(keras.layers.BatchNormalization())
    layers = [keras.Input((6,)), keras.layers.Dense(5, name="stem")]
    if batch_norm:
        layers.append(keras.layers.BatchNormalization(name="stem_bn"))
    layers += [keras.Sequential(block, name="block"), keras.layers.Dense(3, name="head")]
    model = keras.Sequential(layers, name="tiny")
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


class Reusable:
    """A model that can train from the beginning again, without being compiled again.

    Compiling takes longer than all else in a test that trains a tiny model.
    """

    def __init__(self, model: keras.Model) -> None:
        model.optimizer.build(model.trainable_variables)
        self._model = model
        self._variables = [*model.variables, *model.optimizer.variables]
        self._initial = [np.array(variable) for variable in self._variables]

    def as_new(self) -> keras.Model:
        """The model with the weights and the optimizer that it had at first."""
        for variable, value in zip(self._variables, self._initial, strict=True):
            variable.assign(value)
        self._model._initial_epoch = None  # which BackupAndRestore sets for good
        return self._model


@functools.cache
def _compiled_once() -> Reusable:
    return Reusable(tiny_model())


def compiled_model() -> keras.Model:
    """The tiny model before its training, whose training step Keras has compiled before.

    There is but one such model: a test that needs two at once, another optimizer, or variables yet
    to be built takes `tiny_model`.
    """
    return _compiled_once().as_new()


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
