"""Fixtures that tests of several rooms share.

Keras is imported by what needs it: the process that only hands tests out to others needs it not.
"""

import gc
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # of tiny models more only take time

import numpy as np
import pytest

pytest.register_assert_rewrite("tests.helpers")

from ckptavg.recipes.posthoc_ema import TrackedAverage
from ckptavg.runs.proof import tensor_records
from ckptavg.runs.record import Record, now
from tests.helpers import cheap_keras
from tests.helpers import warm as warm_processes
from tests.helpers.command_line import TRAIN
from tests.helpers.files import write_h5
from tests.helpers.posthoc_ema import EVERY, STEPS, TRACKED, track


def _only_hands_out(config: pytest.Config) -> bool:
    """Whether other processes run the tests."""
    return bool(getattr(config.option, "numprocesses", None)) and not hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    """Makes Keras cheap: most of the time of the tests is spent on graphs that run but once."""
    if _only_hands_out(config):
        folder, server = _serve()  # for all that run tests
        os.environ["CKPTAVG_TESTS_WARM"] = str(folder)
        config.add_cleanup(partial(_end, folder, server))
        return
    with _quiet():
        import keras

    if keras.backend.backend() == "tensorflow":
        cheap_keras.install()
    gc.collect()
    gc.freeze()  # hundreds of thousands of objects of libraries, which are not garbage


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what TensorFlow logs of the machine before it can be told not to."""
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)


def _serve() -> tuple[Path, subprocess.Popen]:
    # Paths of sockets must be short; and a test runs the exit functions in a fork, which would
    # remove a TemporaryDirectory.
    folder = Path(mkdtemp())
    command = [sys.executable, "-P", warm_processes.__file__, folder / "socket"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while not (folder / "socket").exists():
        assert server.poll() is None
        time.sleep(0.01)
    return folder, server


def _end(folder: Path, server: subprocess.Popen) -> None:
    server.communicate()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def warm() -> Iterator[list[str]]:
    """What to put before `-c CODE`, in place of the interpreter: TensorFlow is imported there."""
    with ExitStack() as stack:
        if shared := os.environ.get("CKPTAVG_TESTS_WARM"):
            folder = Path(shared)
        else:
            folder, server = _serve()
            stack.callback(_end, folder, server)
        yield [sys.executable, "-IS", warm_processes.__file__, str(folder / "socket")]


def _program(path: Path, *command: str) -> Path:
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def warm_ckptavg(warm, tmp_path_factory) -> Path:
    """The command `ckptavg`, for which TensorFlow is imported already."""
    return _program(tmp_path_factory.mktemp("bin") / "ckptavg", *warm, "-m", "ckptavg")


@pytest.fixture(scope="session")
def warm_python(warm, tmp_path_factory) -> Path:
    """The interpreter, which has imported TensorFlow already."""
    return _program(tmp_path_factory.mktemp("bin") / "python", *warm)


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


@pytest.fixture(scope="session")
def _saved_once(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from tests.helpers.models import randomize, tiny_model

    folder, model = tmp_path_factory.mktemp("saved"), tiny_model()
    paths = [folder / f"ckpt-{seed}.weights.h5" for seed in range(5)]
    for seed, path in enumerate(paths):
        randomize(model, seed).save_weights(path)
    return paths


@pytest.fixture
def checkpoints(_saved_once: list[Path], tmp_path: Path) -> list[Path]:
    """Five checkpoints of one model with random weights, without records."""
    return [Path(shutil.copyfile(path, tmp_path / path.name)) for path in _saved_once]


@pytest.fixture(scope="session")
def _trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import keras

    from ckptavg import CheckpointSaver
    from tests.helpers.models import tiny_data, tiny_model

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


@pytest.fixture
def folder(trained_run, monkeypatch) -> Path:
    """A working folder with a run and the train.py that made it."""
    (trained_run.parent / "train.py").write_text(TRAIN)
    monkeypatch.chdir(trained_run.parent)
    return trained_run.parent


@pytest.fixture
def unrendered(monkeypatch) -> None:
    """Has the figures of reports drawn as ever, but not rendered, which takes longer than all else.

    For tests of what reports say beside them.
    """
    from matplotlib.figure import Figure

    from ckptavg.analysis import plots

    def figure_svg(draw: plots.figures.Draw, **_: object) -> str:
        draw(Figure().add_subplot())
        return '<svg xmlns="http://www.w3.org/2000/svg"/>'

    monkeypatch.setattr(plots, "figure_svg", figure_svg)


@pytest.fixture(scope="session")
def trajectory() -> np.ndarray:
    """Weights after each step: they fall towards a point, and walk about at random."""
    rng = np.random.default_rng(0)
    falling = 50 * np.exp(-np.arange(STEPS) / 300)[:, None] * rng.normal(size=32)
    return falling + np.cumsum(rng.normal(size=(STEPS, 32)), axis=0)


@pytest.fixture(scope="session")
def _tracked_once(trajectory, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("tracked") / "run"
    folder = run / "checkpoints"
    folder.mkdir(parents=True)

    def write(stem: str, values: np.ndarray, **facts) -> None:
        path = folder / f"{stem}.weights.h5"
        write_h5(path, {"layers/dense/vars/0": values.astype("float32")})
        record = Record(path.name, path.stat().st_size, now(), {}, **facts)
        record.write(folder / f"{stem}.json", tensor_records(path))

    for epoch in (1, 2):
        step = epoch * STEPS // 2
        write(f"epoch-{epoch:04d}", trajectory[step - 1], epoch=epoch, step=step)
    for sigma in TRACKED:
        averages = track(trajectory, sigma)
        for step in range(EVERY, STEPS + 1, EVERY):
            name = f"ema-{sigma:.3f}-step-{step:08d}"
            write(name, averages[step - 1], step=step, ema=TrackedAverage(sigma, step))
    return run


@pytest.fixture
def tracked_run(_tracked_once: Path, tmp_path: Path) -> Path:
    """A run that tracked two averages, as its saver is to write it."""
    return Path(shutil.copytree(_tracked_once, tmp_path / "run"))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the process without taking it apart, once all is reported.

    With Keras, tf_keras, TensorFlow and HDF5 in one process the interpreter has crashed in its own
    end, after all tests had passed. What ckptavg does at the end of a program is tested in
    processes of their own.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if hasattr(config, "workerinput"):  # it has told its results to the one that hands tests out
        status = 0
    elif hasattr(reporter, "_session") and not _only_hands_out(config):
        status = int(reporter._session.exitstatus)
        reporter.flush()
    else:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
