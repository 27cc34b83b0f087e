"""Trainings that save, and what their averages must be."""

import math

import h5py
import keras
import numpy as np
from keras import layers

from ckptavg import CheckpointSaver, open_run
from tests.helpers.models import tiny_data


def fit(model, directory, epochs=6, callbacks=(), initial_epoch=0, **arguments):
    x, y = tiny_data()
    saver = CheckpointSaver(directory, **arguments)
    history = model.fit(
        x,
        y,
        epochs=epochs,
        initial_epoch=initial_epoch,
        batch_size=16,
        verbose=0,
        callbacks=[saver, *callbacks],
    )
    return history.history


def blobs(samples=96, features=2, classes=3):
    """Data like those of scikit-learn's make_blobs, which keras-swa's examples use."""
    rng = np.random.default_rng(2)
    centers = rng.uniform(-10, 10, (classes, features))
    labels = rng.integers(classes, size=samples)
    return (centers[labels] + rng.normal(size=(samples, features)) * 2).astype("float32"), labels


def network(*, norm=True, constraint=None, policy=None):
    return keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(8, activation="relu", kernel_constraint=constraint, dtype=policy),
            *([keras.Sequential([layers.BatchNormalization(dtype=policy)])] if norm else []),
            layers.Dense(3, activation="softmax", dtype="float32"),
        ]
    )


def exact_means(run):
    """The mean of each stored tensor, by exact sums, rounded once."""
    found = {}
    for checkpoint in open_run(run).checkpoints:
        with h5py.File(checkpoint.path) as file:
            file.visititems(
                lambda name, item: (
                    found.setdefault(name, []).append(item[()]) if hasattr(item, "dtype") else None
                )
            )
    return {
        name: np.reshape(
            [
                math.fsum(map(float, v)) / len(values)
                for v in zip(*map(np.ravel, values), strict=True)
            ],
            values[0].shape,
        ).astype(values[0].dtype)
        for name, values in found.items()
    }


def assert_trainables_are_means(model, run):
    means = exact_means(run)
    stored = sorted(means)
    expected = sorted(means[name].tobytes() for name in stored)
    for variable in model.trainable_variables:
        assert keras.ops.convert_to_numpy(variable).tobytes() in expected, variable.path


class Late(keras.Model):
    """Builds its layers when it is called, one of them only in the second epoch."""

    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3)
        self.late = layers.Dense(3, kernel_initializer="zeros")
        self.extended = False

    def call(self, inputs):
        outputs = self.head(inputs)
        return outputs + self.late(inputs) if self.extended else outputs


def late():
    model = Late()
    model.compile(
        keras.optimizers.SGD(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model
