"""The savers under `tf.distribute`, in processes of their own: two devices, and two workers."""

import json
import os
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from ckptavg import open_run
from ckptavg.recipes.power_profiles import gamma_of
from tests.helpers.files import leftovers, read_tensors
from tests.helpers.posthoc_ema import decay_at

SLOW = pytest.mark.slow

_TRAINING = """
import sys
import numpy as np
import tensorflow as tf

kind, directory, values = sys.argv[1:]
if kind == "workers":  # before anything else is asked of TensorFlow
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
else:
    [cpu] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
if kind == "keras":
    import keras
    from ckptavg import CheckpointSaver
else:
    import tf_keras as keras
    from ckptavg.tf_keras import CheckpointSaver

with strategy.scope():
    model = keras.Sequential([
        keras.Input((6,)),
        keras.layers.Dense(4, name="stem"),
        keras.layers.BatchNormalization(name="bn"),
        keras.layers.Dense(3, name="head"),
    ])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)

steps = []

class Keep(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.on_train_batch_end = lambda *_, **__: steps.append(model.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        weights = dict(zip(
            ("kernel", "bias", "gamma", "beta", "mean", "variance", "kernel2", "bias2"),
            model.get_weights(), strict=True,
        ))
        np.savez(f"{values}-{epoch + 1}.npz", rate=logs["learning_rate"], **weights)

rng = np.random.default_rng(0)
x = rng.normal(1, 2, (96, 6)).astype("float32")
x = x[np.argsort(x[:, 0])]  # replicas and workers see different things
data = tf.data.Dataset.from_tensor_slices((x, rng.integers(0, 3, 96))).batch(16).repeat()
tracked = {"tracked_sigmas": (0.05, 0.10), "track_freq": 6}
if kind == "workers":
    from ckptavg.errors import SaverError
    try:
        saver = CheckpointSaver(directory, start_epoch=1, **tracked)
        model.fit(data, steps_per_epoch=1, verbose=0, callbacks=[saver])
    except SaverError as error:
        assert "averages are tracked on one device" in str(error)
        tracked = {}
    assert not tracked, "it was not refused"
saver = CheckpointSaver(
    directory, start_epoch=2, swa_freq=2, lr_schedule="cyclic", swa_lr=0.001, **tracked
)
model.fit(data, steps_per_epoch=6, epochs=5, verbose=0, callbacks=[saver, Keep()])
assert model.get_weights()[4].any()
np.savez(f"{values}-steps.npz", **{
    name: np.array([weights[place] for weights in steps])
    for place, name in enumerate(
        ("kernel", "bias", "gamma", "beta", "mean", "variance", "kernel2", "bias2")
    )
})
"""

_NAMES = {
    "keras": {
        "layers/dense/vars/0": "kernel",
        "layers/dense/vars/1": "bias",
        "layers/batch_normalization/vars/0": "gamma",
        "layers/batch_normalization/vars/1": "beta",
        "layers/batch_normalization/vars/2": "mean",
        "layers/batch_normalization/vars/3": "variance",
        "layers/dense_1/vars/0": "kernel2",
        "layers/dense_1/vars/1": "bias2",
    },
    "tf_keras": {
        "stem/stem/kernel:0": "kernel",
        "stem/stem/bias:0": "bias",
        "bn/bn/gamma:0": "gamma",
        "bn/bn/beta:0": "beta",
        "bn/bn/moving_mean:0": "mean",
        "bn/bn/moving_variance:0": "variance",
        "head/head/kernel:0": "kernel2",
        "head/head/bias:0": "bias2",
    },
}


def start(warm, kind, directory, values, **environment):
    return subprocess.Popen(
        [*warm, "-c", _TRAINING, kind, str(directory), str(values)],
        cwd=Path(__file__).parents[2],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes):
    """Waits for processes; whatever happens, none outlives this."""
    try:
        outputs = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]


def check(directory, values, names):
    """Makes sure that checkpoints hold what the strategy's model held at the end of the epoch."""
    run = open_run(directory)
    assert [(record.epoch, record.step) for record in run.records] == [(3, 18), (5, 30)]
    assert not leftovers(directory)
    for checkpoint in run.checkpoints:
        kept = np.load(f"{values}-{checkpoint.record.epoch}.npz")
        tensors = read_tensors(checkpoint.path)
        assert {name: tensors[name].tobytes() for name in names} == {
            name: kept[key].tobytes() for name, key in names.items()
        }
        assert checkpoint.record.learning_rate == kept["rate"] == np.float32(0.001)


@pytest.mark.parametrize("kind", ["keras", "tf_keras"])
def test_replicas_of_one_process(warm, tmp_path, kind):
    finish([start(warm, kind, tmp_path / "run", tmp_path / "values")])
    check(tmp_path / "run", tmp_path / "values", _NAMES[kind])
    trajectory = np.load(tmp_path / "values-steps.npz")
    averages = open_run(tmp_path / "run").averages
    assert [note.record.ema.step for note in averages] == [6, 6, 12, 12, 18, 18, 24, 24, 30, 30]
    for note in averages[-2:]:
        found = read_tensors(note.path)
        for name, key in _NAMES[kind].items():
            true = average(trajectory[key].astype("float64"), note.record.ema.sigma_rel)
            assert np.abs(found[name] - true).max() <= 1e-6 * np.abs(true).max(), name


def average(trajectory, sigma_rel):
    """The online average of the values of each step."""
    gamma, found = gamma_of(sigma_rel), 0.0
    for step, values in enumerate(trajectory, 1):
        decay = decay_at(step, gamma)
        found = decay * found + (1 - decay) * values
    return found


@pytest.mark.parametrize(
    "shared",
    [pytest.param(True, id="one disk"), pytest.param(False, id="a disk each", marks=SLOW)],
)
def test_of_several_workers_the_chief_alone_writes(warm, tmp_path, shared):
    """With tf_keras: `fit` of Keras 3.15 fails under this strategy before callbacks are called."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    directories = [tmp_path / ("run" if shared else f"run{index}") for index in range(2)]
    finish(
        [
            start(
                warm,
                "workers",
                directory,
                tmp_path / f"values{index}",
                TF_CONFIG=json.dumps(
                    {
                        "cluster": {"worker": workers},
                        "task": {"type": "worker", "index": index},
                    }
                ),
            )
            for index, directory in enumerate(directories)
        ]
    )
    check(directories[0], tmp_path / "values0", _NAMES["tf_keras"])
    check(directories[0], tmp_path / "values1", _NAMES["tf_keras"])  # workers agree
    assert shared or not directories[1].exists()
