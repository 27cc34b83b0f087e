"""The command line, run in this process, on a user's train.py."""

import contextlib
import io
import sys

import typer

from ckptavg import cli

TRAIN = """
import h5py
import keras
import numpy as np

rng = np.random.default_rng(7)
x = rng.normal(1.5, 2.0, (96, 6)).astype("float32")
y = rng.integers(0, 3, 96)

def build_model():
    layers = [
        keras.Input((6,)), keras.layers.Dense(5, name="stem"),
        keras.layers.BatchNormalization(name="stem_bn"),
        keras.Sequential(
            [keras.layers.Dense(4, activation="relu"), keras.layers.BatchNormalization()],
            name="block",
        ),
        keras.layers.Dense(3, name="head"),
    ]
    model = keras.Sequential(layers, name="tiny")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, loss, metrics=["accuracy"], run_eagerly=True)  # each runs but once
    return model

def other_model():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(9)])

def bn_data(): return x
def test_data(): return x, y
def narrow_data(): return x[:, :4]
"""


MODEL = ("--model", "train.py:build_model")


DATA = ("--data", "train.py:bn_data")


def known_commands() -> dict[str, typer.core.TyperCommand]:
    """Every command by its name."""
    group = typer.main.get_command(cli.app)
    context = typer.Context(group)
    return {name: group.get_command(context, name) for name in group.list_commands(context)}


def main(*arguments: object) -> tuple[int, str, str]:
    """Runs the command line in this process: exit status, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    argv, sys.argv = sys.argv, ["ckptavg", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        status = stop.code or 0
    finally:
        sys.argv = argv
    return status, out.getvalue(), err.getvalue()
