"""CheckpointSaver on each of Keras' backends."""

import keras
import ml_dtypes
import numpy as np
import pytest

from ckptavg import CheckpointSaver, merge, open_run, resume
from ckptavg.formats import open_reader
from ckptavg.recipes.power_profiles import gamma_of
from ckptavg.saving.host_copy import HostCopy
from ckptavg.saving.keras3 import Keras3
from ckptavg.saving.schedule import Schedule
from tests.helpers.files import leftovers, read_tensors
from tests.helpers.models import tiny_data, tiny_model
from tests.helpers.posthoc_ema import decay_at


def small_model(**policy):
    """Weights that are trained, BatchNorm statistics, the state of a random generator."""
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(4, **policy),
            keras.layers.BatchNormalization(**policy),
            keras.layers.Dropout(0.2, **policy),
            keras.layers.Dense(3, **policy),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    return model


def settle(model):
    """On JAX the variables lag behind within an epoch."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


def values(model):
    """Copies of all weights; Keras does not save the state of random generators."""
    settle(model)
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.weights]


class Keep(keras.callbacks.Callback):
    """Keeps copies of all values, by epochs and by steps."""

    def __init__(self, steps=False):
        super().__init__()
        self.epochs, self.steps = {}, []
        if steps:
            self.on_train_batch_end = lambda *_, **__: self.steps.append(values(self.model))

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        self.epochs[epoch + 1] = values(self.model)


def mean_output(_, outputs):
    return keras.ops.mean(outputs)


def fit(model, saver, *callbacks, epochs=4):
    x, y = tiny_data()
    history = model.fit(
        x, y, batch_size=16, epochs=epochs, verbose=0, callbacks=[saver, *callbacks]
    )
    return history.history


def assert_holds(path, expected):
    """Keras loads exactly these values from a file."""
    model = small_model()
    model.load_weights(path, objects_to_skip=[model.optimizer])
    for one, two in zip(values(model), expected, strict=True):
        assert one.tobytes() == two.tobytes()


def test_epochs(tmp_path):
    keep, model = Keep(), small_model()
    arguments = {"start_epoch": 2, "swa_freq": 2, "lr_schedule": "constant", "swa_lr": 0.001}
    history = fit(model, CheckpointSaver(tmp_path / "run", **arguments), keep)
    run = open_run(tmp_path / "run")
    assert [(record.epoch, record.step) for record in run.records] == [(2, 12), (4, 24)]
    for checkpoint in run.checkpoints:
        assert_holds(checkpoint.path, keep.epochs[checkpoint.record.epoch])
    assert history["learning_rate"] == pytest.approx([0.01] + 3 * [0.001])
    assert run.records[0].versions[keras.backend.backend()]
    assert not leftovers(tmp_path / "run")
    report = merge(run, tmp_path / "swa.weights.h5")
    assert report.record.batch_norm.layers == 1
    model.load_weights(tmp_path / "swa.weights.h5", objects_to_skip=[model.optimizer])
    mean = (keep.epochs[2][0].astype("f8") + keep.epochs[4][0]) / 2
    assert values(model)[0].tobytes() == mean.astype("f4").tobytes()


def test_steps_in_the_middle_of_epochs(tmp_path):
    keep = Keep(steps=True)
    fit(small_model(), CheckpointSaver(tmp_path / "run", save_freq=4), keep, epochs=2)
    run = open_run(tmp_path / "run")
    assert [record.step for record in run.records] == [4, 8, 12]
    for checkpoint in run.checkpoints:
        assert_holds(checkpoint.path, keep.steps[checkpoint.record.step - 1])


def test_cyclic_rates_are_those_that_the_optimizer_takes(tmp_path):
    # The output is the one weight, and so is the loss: each step takes the rate from it.
    initializer = keras.initializers.Zeros()
    layers = [
        keras.Input((1,)),
        keras.layers.Dense(1, use_bias=False, kernel_initializer=initializer),
    ]
    model = keras.Sequential([*layers])
    model.compile(keras.optimizers.SGD(0.01), mean_output)
    keep = Keep(steps=True)
    saver = CheckpointSaver(
        tmp_path / "run",
        start_epoch=3,
        swa_freq=2,
        lr_schedule="cyclic",
        swa_lr=0.001,
        swa_lr2=0.003,
    )
    ones = np.ones((10, 1), "float32")
    model.fit(ones, ones, batch_size=2, epochs=6, verbose=0, callbacks=[saver, keep])
    scheduled = Schedule("cyclic", 3, 2, 0.001, 0.003).rates(0.01)
    expected = [scheduled.of_epoch(epoch) for epoch in range(2) for _ in range(5)]
    expected += [scheduled.of_batch(e, b, 5) for e in range(2, 6) for b in range(5)]
    taken = -np.diff([0.0, *(kernel.item() for kernel, *_ in keep.steps)])
    np.testing.assert_allclose(taken, expected, rtol=1e-4)
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [4, 6]
    assert open_run(tmp_path / "run").records[0].learning_rate == pytest.approx(0.001)


def test_a_host_copy_stays_when_training_goes_on():
    model, (x, y) = small_model(), tiny_data(16)
    model.train_on_batch(x, y)
    placement = Keras3().place(model, include_optimizer=True)
    copy = HostCopy()
    for _ in range(2):  # the second one uses the memory of the first
        copy.take(Keras3().host_view, placement.variables)
        before = {name: value.tobytes() for name, value in copy.values.items()}
        model.train_on_batch(x, y)
        assert {name: value.tobytes() for name, value in copy.values.items()} == before
        now = {
            name: keras.ops.convert_to_numpy(variable.value).tobytes()
            for name, variable in placement.variables.items()
        }
        changed = {name for name in now if now[name] != before[name]}
        assert len(changed) >= 3 * 6 + 2 + 1  # weights, two moments of each, statistics, iterations


@pytest.mark.parametrize("scaled", [False, True])
def test_variables_go_where_keras_puts_them(tmp_path, scaled):
    model = tiny_model()
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    fit(model, CheckpointSaver(tmp_path / "run", start_epoch=1), epochs=1)
    placement = Keras3().place(model, include_optimizer=True)
    assert placement is not None
    model.save_weights(tmp_path / "keras.weights.h5")  # values, not marks, afterwards too
    for name, value in read_tensors(tmp_path / "keras.weights.h5").items():
        held = keras.ops.convert_to_numpy(placement.variables[name].value)
        assert held.tobytes() == value.tobytes()
    with open_reader(tmp_path / "keras.weights.h5") as reader:
        found, expected = placement.structure, reader.structure
        assert {n: (t.shape, t.dtype) for n, t in found.tensors.items()} == {
            n: (t.shape, t.dtype) for n, t in expected.tensors.items()
        }
        assert found.groups.keys() == expected.groups.keys()
        for folder, texts in expected.groups.items():
            assert texts in (found.groups[folder], {})  # old versions write fewer names
        assert found.optimizer == expected.optimizer


def test_optimizer_state_brings_training_back(tmp_path):
    model, (x, y) = tiny_model(), tiny_data()
    fit(model, CheckpointSaver(tmp_path / "run", start_epoch=2, include_optimizer=True), epochs=2)
    other = tiny_model()
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "run" / "checkpoints" / "epoch-0002.weights.h5")
    assert int(other.optimizer.iterations) == 12
    for one in (model, other):
        one.train_on_batch(x, y)
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        assert one.tobytes() == two.tobytes()


def test_resume_continues_as_if_nothing_had_happened(tmp_path):
    model, (x, y) = tiny_model(), tiny_data()
    saver = CheckpointSaver(tmp_path / "run", start_epoch=1, include_optimizer=True)
    fit(model, saver, epochs=2)
    resumed = tiny_model()
    assert resume(tmp_path / "run", resumed) == 2
    assert int(resumed.optimizer.iterations) == 12
    for one in (model, resumed):
        one.fit(x, y, batch_size=16, epochs=1, shuffle=False, verbose=0)
    for one, two in zip(model.get_weights(), resumed.get_weights(), strict=True):
        assert one.tobytes() == two.tobytes()


def test_tracked_averages_are_those_of_every_step(tmp_path):
    """On JAX the values of an epoch are beside the variables, and on torch nothing is compiled."""
    keep, model = Keep(steps=True), small_model()
    sigmas = (0.05, 0.10)
    options = {"start_epoch": 2, "tracked_sigmas": sigmas, "track_freq": 4}
    fit(model, CheckpointSaver(tmp_path / "run", **options), keep, epochs=2)
    averages = open_run(tmp_path / "run").averages
    assert [note.record.ema.step for note in averages] == [4, 4, 8, 8, 12, 12]
    other = small_model()
    for note in averages:
        ema, expected = note.record.ema, [0.0] * len(model.weights)
        for step, weights in enumerate(keep.steps[: ema.step], 1):
            decay = decay_at(step, gamma_of(ema.sigma_rel))
            expected = [
                decay * e + (1 - decay) * w.astype("f8")
                for e, w in zip(expected, weights, strict=True)
            ]
        other.load_weights(note.path, objects_to_skip=[other.optimizer])
        for one, two in zip(values(other), expected, strict=True):
            assert np.abs(one - two).max() <= 2e-6 * np.abs(two).max()
    assert_holds(open_run(tmp_path / "run").checkpoints[-1].path, keep.epochs[2])
    merge(tmp_path / "run", tmp_path / "ema.weights.h5", recipe="posthoc-ema:0.1")


def test_tracking_goes_on_where_it_was(tmp_path):
    """To the bit: what is read back is what was on the device."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
            self.model.stop_training = epoch == 1

    def state(model):
        return [*model.weights, *model.optimizer.variables]

    def train(directory, model, first=0, stop=None, **options):
        x, y = tiny_data()
        saver = CheckpointSaver(
            directory, start_epoch=1, tracked_sigmas=(0.05, 0.10), track_freq=3, **options
        )
        model.fit(
            x,
            y,
            batch_size=16,
            initial_epoch=first,
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=[saver] if stop is None else [saver, stop],
        )
        return [(a.record.ema, a.record.read_tensors()) for a in open_run(directory).averages]

    layers = [keras.Input((6,)), keras.layers.Dense(4), keras.layers.BatchNormalization()]
    model = keras.Sequential([*layers, keras.layers.Dense(3)])
    model.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.optimizer.build(model.trainable_variables)
    start = [np.array(keras.ops.convert_to_numpy(v)) for v in state(model)]
    whole = train(tmp_path / "whole", model)
    for variable, value in zip(state(model), start, strict=True):
        variable.assign(value)
    train(tmp_path / "run", model, stop=Stop())
    assert train(tmp_path / "run", model, first=2, existing="resume") == whole


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_rounded_to_half_their_size(tmp_path, dtype):
    model = small_model()
    fit(model, CheckpointSaver(tmp_path / "run", start_epoch=1, save_dtype=dtype), epochs=1)
    path = tmp_path / "run" / "checkpoints" / "epoch-0001.weights.h5"
    target = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    expected = [value.astype(target) if value.dtype == "f4" else value for value in values(model)]
    found = read_tensors(path)
    assert sorted(value.tobytes() for value in found.values()) == sorted(
        value.tobytes() for value in expected
    )
    widened = [value.astype("f4") if value.dtype == target else value for value in expected]
    assert_holds(path, widened)


def test_a_model_of_bfloat16(tmp_path):
    model = small_model(dtype="bfloat16")
    fit(model, CheckpointSaver(tmp_path / "run", start_epoch=1), epochs=1)
    path = tmp_path / "run" / "checkpoints" / "epoch-0001.weights.h5"
    model.save_weights(tmp_path / "keras.weights.h5")
    expected = read_tensors(tmp_path / "keras.weights.h5")
    for name, value in read_tensors(path).items():
        assert (value.dtype, value.tobytes()) == (expected[name].dtype, expected[name].tobytes())
    assert read_tensors(path)["layers/dense/vars/0"].dtype == ml_dtypes.bfloat16
