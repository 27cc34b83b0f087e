"""Fixtures that the tests share: tiny checkpoints, written by real Keras."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

from ckptavg.formats import open_reader


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


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint file by stored name."""
    found = {}
    with open_reader(path) as reader:
        for name, tensor in reader.structure.tensors.items():
            buffer = bytearray(tensor.nbytes)
            reader.read_into(tensor, 0, memoryview(buffer))
            found[name] = np.frombuffer(buffer, tensor.numpy_dtype).reshape(tensor.shape)
    return found


def flip_bit(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def leftovers(folder: Path) -> list[str]:
    """Temporary files that should not be there."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(".tmp-")]


_HOLD = """
mount -t tmpfs -o size=4m none "$1" && mkdir "$1/rw" "$1/ro" \
&& mount -t tmpfs -o ro none "$1/ro" && echo ready && exec cat > /dev/null
"""


@pytest.fixture(scope="session")
def disks(tmp_path_factory) -> Iterator[Path]:
    """A file system of 4 MiB, with the folder `rw`, and in `ro` one that is read-only.

    They are mounted in a namespace of a process of their own, which ends with the tests, because
    its input does, and reached through it.
    """
    place = tmp_path_factory.mktemp("disks")
    if not shutil.which("unshare"):
        pytest.skip("there is no program 'unshare' to mount a small disk with")
    process = subprocess.Popen(
        ["unshare", "-Urm", "sh", "-c", _HOLD, "sh", place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        inside = Path(f"/proc/{process.pid}/root{place}")
        if process.stdout.readline() != "ready\n" or not (inside / "rw").is_dir():
            pytest.skip("this system does not let its users mount a small disk")
        yield inside
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def small_disk(disks) -> Iterator[Path]:
    folder = disks / "rw"
    folder.mkdir(exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    (disks / "ballast").unlink(missing_ok=True)


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    """Five checkpoints of one model with random weights, without records."""
    model = tiny_model()
    paths = []
    for seed in range(5):
        path = tmp_path / f"ckpt-{seed}.weights.h5"
        randomize(model, seed).save_weights(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def _trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ckptavg import CheckpointSaver

    directory = tmp_path_factory.mktemp("trained") / "run"
    keras.utils.set_random_seed(1)
    x, y = tiny_data()
    saver = CheckpointSaver(directory, start_epoch=3, lr_schedule="constant", swa_lr=0.005)
    tiny_model().fit(x, y, epochs=6, validation_split=0.25, callbacks=[saver], verbose=0)
    return directory


@pytest.fixture
def trained_run(_trained_once: Path, tmp_path: Path) -> Path:
    """A run of 6 epochs with checkpoints of epochs 3 to 6."""
    return Path(shutil.copytree(_trained_once, tmp_path / "run"))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the process without taking it apart, once all is reported.

    With Keras, tf_keras, TensorFlow and HDF5 in one process the interpreter has crashed in its own
    end, after all tests had passed. What ckptavg does at the end of a program is tested in
    processes of their own.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not hasattr(reporter, "_session"):
        return
    status = int(reporter._session.exitstatus)
    reporter.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
