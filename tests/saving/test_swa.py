"""SWA in real trainings: the mean of what was saved, and statistics of the last epoch's batches."""

import contextlib
import io
import os
import subprocess
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest

import ckptavg
from ckptavg import SWA, open_run
from ckptavg.errors import CkptavgWarning, DataError, SaverError
from tests.helpers.saving import assert_trainables_are_means, blobs, network

LAYERS = keras.layers


def train(swa, model, optimizer="sgd", epochs=6, callbacks=(), compiling=None, **fitting):
    model.compile(optimizer, "sparse_categorical_crossentropy", **(compiling or {}))
    x, y = blobs()
    fitting = {"shuffle": False, "batch_size": 32, "verbose": 0} | fitting
    return model.fit(x, y, epochs=epochs, callbacks=[swa, *callbacks], **fitting).history


def assert_statistics_are_those_of(model, x):
    """Of the BatchNorm layer of `network`, in float64."""
    hidden = model.layers[0]
    kernel, bias = (np.asarray(w, np.float64) for w in hidden.get_weights())
    values = np.maximum(x @ kernel + bias, 0)
    (norm,) = model.layers[1].layers
    scale = values.std(0).max()
    assert np.abs(norm.moving_mean - values.mean(0)).max() / scale < 1e-5
    assert np.abs(norm.moving_variance - values.var(0)).max() / scale**2 < 1e-5


CASES = {
    "plain": {},
    "use_ema": {"optimizer": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)},
    "weight decay": {"optimizer": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1)},
    "ftrl": {"optimizer": lambda: keras.optimizers.Ftrl(0.1)},
    "constraint": {"constraint": keras.constraints.MaxNorm(0.5)},
    "accumulation": {"optimizer": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)},
    "schedule of the optimizer": {
        "optimizer": lambda: keras.optimizers.SGD(
            keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.9)
        ),
        "lr_schedule": "manual",
    },
    "steps per execution": {"compiling": {"steps_per_execution": 2}},
    "eager": {"compiling": {"run_eagerly": True}},
    "cyclic": {"lr_schedule": "cyclic", "swa_freq": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_the_model_holds_the_mean_and_the_statistics_of_the_last_epoch(tmp_path, case):
    options = {"lr_schedule": "constant", "optimizer": lambda: keras.optimizers.SGD(0.1)}
    options |= CASES[case]
    model = network(constraint=options.pop("constraint", None))
    optimizer = options.pop("optimizer")()
    compiling = options.pop("compiling", None)
    swa = SWA(3, directory=tmp_path / "run", **options)
    history = train(swa, model, optimizer, compiling=compiling, validation_split=0.25)
    epochs = [4] if case == "cyclic" else [3, 4, 5]
    assert [record.epoch for record in open_run(tmp_path / "run").records] == epochs
    assert_trainables_are_means(model, tmp_path / "run")
    assert_statistics_are_those_of(model, blobs()[0][:72])  # without the validation split
    assert history["learning_rate"][-1] == 0
    assert all(len(values) == 6 for values in history.values())
    x, y = blobs()
    assert history["val_loss"][-1] == pytest.approx(model.evaluate(x[72:], y[72:], verbose=0))


def test_mixed_precision(tmp_path):
    model = network(policy=keras.DTypePolicy("mixed_bfloat16"))
    train(SWA(2, directory=tmp_path / "run"), model)
    assert_trainables_are_means(model, tmp_path / "run")
    x, _ = blobs()
    report = ckptavg.update_batch_norm(model, x)  # the reference, over the same batches
    assert report.samples == len(x)
    assert max(shift.mean for shift in report.shifts) < 1e-5


def test_without_batch_norm_all_epochs_train_and_the_last_is_averaged(tmp_path):
    model = network(norm=False)
    train(SWA(3, directory=tmp_path / "run"), model)
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [3, 4, 5, 6]
    assert_trainables_are_means(model, tmp_path / "run")


def test_frozen_batch_norm_takes_no_epoch(tmp_path):
    model = network()
    model.layers[1].trainable = False
    history = train(SWA(3, directory=tmp_path / "run"), model)
    assert history["lr"] == history["learning_rate"]  # as keras-swa calls it
    assert "lr" not in open_run(tmp_path / "run").records[0].metrics
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [3, 4, 5, 6]


def test_bn_data_take_the_place_of_the_last_epoch(tmp_path):
    model, (x, _) = network(), blobs(40)
    train(SWA(3, directory=tmp_path / "run", bn_data=x), model)
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [3, 4, 5, 6]
    assert_trainables_are_means(model, tmp_path / "run")
    assert_statistics_are_those_of(model, x)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", {"swa_lr": 0.01}),
        ("cyclic", {"swa_lr": 0.001, "swa_lr2": 0.003, "swa_freq": 3}),
    ],
)
def test_the_examples_of_keras_swa(schedule, rates, monkeypatch, tmp_path):
    # Its README: make_blobs(1000, 3 centers, 2 features, std 2), Dense 50 relu, Dense 3 softmax,
    # SGD 0.1, 100 epochs, averaging from epoch 75; only the import is another.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    x, y = blobs(1000)
    model = keras.Sequential()
    model.add(LAYERS.Dense(50, input_shape=(2,), activation="relu"))
    model.add(LAYERS.Dense(3, activation="softmax"))
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=0.1),
        loss="categorical_crossentropy",
    )
    swa = SWA(start_epoch=75, lr_schedule=schedule, **rates, verbose=1)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        history = model.fit(
            x, keras.utils.to_categorical(y), epochs=100, batch_size=250, verbose=0, callbacks=[swa]
        )
    assert "Epoch 00075: starting stochastic weight averaging" in out.getvalue()
    assert "Epoch 00100: final model weights set to stochastic weight average" in out.getvalue()
    assert "batch normalization" not in out.getvalue()
    last = 0.01 if schedule == "constant" else 0.003 - 2 / 3 * 0.002  # second of a cycle's three
    assert history.history["learning_rate"][-1] == pytest.approx(last)
    assert history.history["loss"][-1] < 0.5
    assert not list(tmp_path.iterdir())


def test_messages_of_keras_swa_with_batch_norm(capsys):
    train(SWA(3, verbose=1), network())
    said = [line for line in capsys.readouterr().out.splitlines() if line]
    assert said == [
        "Epoch 00003: starting stochastic weight averaging",
        "Epoch 00006: final model weights set to stochastic weight average",
        "Epoch 00006: reinitializing batch normalization layers",
        "Epoch 00006: running forward pass to adjust batch normalization",
    ]


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        if epoch + 1 == self.epoch:
            self.model.stop_training = True


@pytest.mark.parametrize("norm", [True, False])
def test_early_stopping_leaves_the_mean_of_what_was_saved(tmp_path, norm):
    model = network(norm=norm)
    warned = (
        pytest.warns(CkptavgWarning, match="Pass bn_data") if norm else contextlib.nullcontext()
    )
    with warned:
        train(SWA(2, directory=tmp_path / "run"), model, callbacks=[StopAfter(4)])
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [2, 3, 4]
    assert_trainables_are_means(model, tmp_path / "run")


def test_early_stopping_with_bn_data(tmp_path):
    model, (x, _) = network(), blobs()
    train(SWA(2, directory=tmp_path / "run", bn_data=x), model, callbacks=[StopAfter(4)])
    assert_trainables_are_means(model, tmp_path / "run")
    assert_statistics_are_those_of(model, x)


def test_early_stopping_before_anything_was_saved(tmp_path):
    model = network()
    kept = {}
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: kept.update(weights=model.get_weights())
    )
    with pytest.warns(CkptavgWarning, match="the model keeps its weights"):
        train(SWA(4, directory=tmp_path / "run"), model, callbacks=[keep, StopAfter(2)])
    for one, two in zip(model.get_weights(), kept["weights"], strict=True):
        assert np.array_equal(one, two)


class Failing(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        if epoch == 3:
            self.weights = self.model.get_weights()
            raise RuntimeError("power cut")


def test_an_exception_leaves_the_model_and_the_checkpoints(tmp_path):
    model, failing = network(), Failing()
    with pytest.raises(RuntimeError, match="power cut"):
        train(SWA(2, directory=tmp_path / "run"), model, callbacks=[failing])
    for one, two in zip(model.get_weights(), failing.weights, strict=True):
        assert np.array_equal(one, two)
    train(SWA(2, directory=tmp_path / "run", existing="resume"), model, initial_epoch=4)
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [2, 3, 4, 5]


class LastEpoch(keras.callbacks.Callback):
    """Breaks the second batch of the fourth epoch: its data, or the callbacks before it."""

    def __init__(self, *, raises):
        super().__init__()
        self.raises = raises
        self.breaks = False

    def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
        self.breaks = epoch == 3

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        self.weights = self.model.get_weights()

    def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002
        if self.breaks and self.raises and batch == 1:
            raise RuntimeError("between batches")


def batches(breaking):
    """Three batches that nothing fetches before they are needed."""
    import tensorflow as tf

    def generate():
        for index in range(3):
            x, y = (values[32 * index : 32 * index + 32] for values in blobs())
            broken = breaking.breaks and not breaking.raises and index == 1
            yield (np.full_like(x, np.inf) if broken else x), y

    specs = (tf.TensorSpec((32, 2), tf.float32), tf.TensorSpec((32,), tf.int64))
    return tf.data.Dataset.from_generator(generate, output_signature=specs)


@pytest.mark.parametrize("raises", [True, False])
def test_an_exception_in_the_last_epoch_leaves_a_model_that_trains(tmp_path, raises):
    model, breaking = network(), LastEpoch(raises=raises)
    model.compile("sgd", "sparse_categorical_crossentropy")
    callbacks = [SWA(2, directory=tmp_path / "run"), breaking]
    with pytest.raises(RuntimeError if raises else DataError):
        model.fit(batches(breaking), epochs=4, verbose=0, callbacks=callbacks)
    if not raises:
        for one, two in zip(model.get_weights(), breaking.weights, strict=True):
            assert np.array_equal(one, two)
    before = [np.array(v) for v in model.trainable_variables]
    train(SWA(2), model, epochs=3)  # in training steps of its own again
    for one, two in zip(before, model.trainable_variables, strict=True):
        assert not np.array_equal(one, two)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start_epoch": 1}, "start_epoch is 1"),
        ({"start_epoch": 6}, "averaging must begin before the last one"),
        ({"start_epoch": 3, "swa_freq": 0}, "swa_freq is 0"),
        ({"start_epoch": 3, "lr_schedule": "linear"}, "lr_schedule is 'linear'"),
        ({"start_epoch": 3, "lr_schedule": "cyclic"}, "a cycle needs 2 epochs"),
        (
            {"start_epoch": 5, "lr_schedule": "cyclic", "swa_freq": 2},
            "the forward pass for BatchNorm: train longer",
        ),
        ({"start_epoch": 3, "lr_schedule": "constant", "swa_lr": 5.0}, "must not be above"),
        ({"start_epoch": 3, "swa_lr2": 0.1}, "swa_lr is 'auto'"),
        (
            {"start_epoch": 3, "lr_schedule": "cyclic", "swa_freq": 2, "swa_lr2": 0.1},
            "swa_lr is 'auto'",
        ),
    ],
)
def test_what_keras_swa_refuses_is_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SaverError, match=message):
        train(SWA(**arguments), network())
    assert not list(tmp_path.iterdir())


_MIRRORED = """
import sys
import numpy as np
import tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from ckptavg import SWA
from tests.helpers.saving import assert_trainables_are_means, blobs, network
from tests.saving.test_swa import assert_statistics_are_those_of
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
with strategy.scope():
    model = network()
    model.compile("sgd", "sparse_categorical_crossentropy")
x, y = blobs(100)
model.fit(x, y, epochs=4, batch_size=24, verbose=0, callbacks=[SWA(2, directory=sys.argv[1])])
assert_trainables_are_means(model, sys.argv[1])
assert_statistics_are_those_of(model, x)
"""


def test_mirrored_over_two_devices(warm, tmp_path):
    result = subprocess.run(
        [*warm, "-c", _MIRRORED, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
