"""The model and the data of the run in this folder."""

import keras
import numpy as np

_rng = np.random.default_rng(7)
x = _rng.normal(1.5, 2.0, (96, 6)).astype("float32")
y = _rng.integers(0, 3, 96)


def build_model():
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(5, name="stem"),
        keras.layers.BatchNormalization(name="stem_bn"),
        keras.layers.Dense(3, name="head"),
    ]
    model = keras.Sequential(layers, name="tiny")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


def bn_data():
    return x


def test_data():
    return x, y
