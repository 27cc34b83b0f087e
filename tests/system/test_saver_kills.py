"""CheckpointSaver killed at random moments of its writes: what has a record is whole."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import ckptavg
from ckptavg import open_run
from ckptavg.runs.proof import tensor_records
from ckptavg.runs.run import record_files
from tests.helpers.files import leftovers, read_tensors
from tests.helpers.processes import is_running, kill

# All weights have the number of the epoch for their value when it is saved.
_TRAINING = """
import json, os, sys
import keras, numpy as np
import ckptavg

directory, initial_epoch, options = sys.argv[1:]
print(os.getpid(), flush=True)
layers = [keras.layers.Dense(512) for _ in range(6)]
model = keras.Sequential([keras.Input((512,)), *layers])
model.compile(keras.optimizers.SGD(momentum=0.9), "mse")
number = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: [
    variable.assign(np.full(variable.shape, epoch + 1)) for variable in model.variables])
options = json.loads(options)
saver = ckptavg.CheckpointSaver(directory, start_epoch=1, existing="resume", **options)
model.fit(np.zeros((2, 512)), np.zeros((2, 512)), initial_epoch=int(initial_epoch),
          epochs=10**6, callbacks=[number, saver], verbose=0)
"""

_OPTIONS = (
    {"max_to_keep": 3},
    {"max_to_keep": 4, "max_shard_size": 0.0035},
    {"max_to_keep": 2, "keep_best": ["loss", 2]},
    {"max_to_keep": 3, "in_flight": 2, "save_dtype": "float16"},
    {"max_to_keep": 2, "tracked_sigmas": [0.05, 0.1], "track_freq": 5},
    {"max_to_keep": 2, "tracked_sigmas": [0.05], "track_freq": 3, "include_optimizer": True},
)


@dataclass
class Kills:
    """What the kills met.

    Attributes:
        amid: those that left a temporary file: they came amid a write.
        orphans: those that left weights without a record, between the two renames or in pruning.
    """

    amid: int = 0
    orphans: int = 0


@pytest.fixture
def start(warm, tmp_path) -> Iterator[Callable[[Path, int, dict], int]]:
    """Starts a training in a directory from an epoch on, and gives its process."""
    with ExitStack() as stack:
        errors = stack.enter_context((tmp_path / "errors").open("w"))

        def start(directory: Path, initial_epoch: int, options: dict) -> int:
            arguments = [str(directory), str(initial_epoch), json.dumps(options)]
            process = stack.enter_context(
                subprocess.Popen(
                    [*warm, "-c", _TRAINING, *arguments],
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return int(process.stdout.readline())

        yield start


def stop_amid_a_write(directory: Path, pid: int, rng: np.random.Generator) -> None:
    """Stops a training at random moments, until there is a temporary file at one of them."""
    deadline = time.monotonic() + 120
    os.kill(pid, signal.SIGSTOP)
    while not leftovers(directory):
        assert time.monotonic() < deadline
        os.kill(pid, signal.SIGCONT)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(pid, signal.SIGSTOP)


def wait_for_record(directory: Path, pid: int, former: set) -> None:
    """Waits until a record was written that was not there as it is now."""
    deadline = time.monotonic() + 120
    while not stamps(directory) - former:
        assert is_running(pid), "training ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def stamps(directory: Path) -> set:
    folder = directory / "checkpoints"
    found = set()
    for path in record_files(folder) if folder.is_dir() else ():
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:  # pruned meanwhile
            continue
    return found


def temporaries(directory: Path) -> set:
    """Temporary files as they are; a later one may have the name of a former."""
    found = set()
    for path in directory.rglob(".tmp-*"):
        try:
            found.add((path.name, path.stat().st_ctime_ns))
        except FileNotFoundError:  # renamed meanwhile
            continue
    return found


def check_whole(directory: Path, *, has_optimizer: bool) -> None:
    for average in open_run(directory).averages:
        assert tensor_records(average.path) == average.record.read_tensors()
    for checkpoint in open_run(directory).checkpoints:
        record = checkpoint.record
        assert tensor_records(checkpoint.path) == record.read_tensors()
        of_optimizer = 0
        for name, values in read_tensors(checkpoint.path).items():
            if name.startswith("optimizer/"):  # its digests are those of the record
                of_optimizer += values.nbytes
            else:
                assert (values == record.epoch).all()
        assert (of_optimizer > 512 * 512) == has_optimizer
    epochs = [log.epoch for log in open_run(directory).history]
    assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_moment_leaves_only_whole_checkpoints(tmp_path, start, kills):
    rng = np.random.default_rng(kills)
    met = Kills()
    for number in range(kills):
        options = _OPTIONS[number % len(_OPTIONS)]
        directory = tmp_path / f"run-{number % len(_OPTIONS)}"
        former = stamps(directory)
        left = temporaries(directory)
        last = open_run(directory).records[-1].epoch if former else 0
        if number % 3 == 2:  # from an earlier epoch: checkpoints are replaced
            last = max(1, last - 2) if former else 0
        pid = start(directory, last, options)
        wait_for_record(directory, pid, former)
        assert not left & temporaries(directory)
        time.sleep(rng.uniform(0, 0.3))
        if number % 2:
            stop_amid_a_write(directory, pid, rng)
        kill(pid)
        met.amid += bool(leftovers(directory))
        met.orphans += bool(open_run(directory).uncommitted)
        check_whole(directory, has_optimizer=options.get("include_optimizer", False))
    for number, options in enumerate(_OPTIONS):
        directory = tmp_path / f"run-{number}"
        former = stamps(directory)
        pid = start(directory, open_run(directory).records[-1].epoch, options)
        wait_for_record(directory, pid, former)
        os.kill(pid, signal.SIGSTOP)
        assert len(leftovers(directory)) <= 3  # those of the write that stands still
        kill(pid)
        report = ckptavg.merge(directory, tmp_path / f"{number}.weights.h5")
        epochs = [source.epoch for source in report.record.sources]
        for values in read_tensors(tmp_path / f"{number}.weights.h5").values():
            assert np.allclose(values, np.mean(epochs), rtol=1e-6)
    counts = f"{kills} kills: {met.amid} amid a write, {met.orphans} left weights without a record"
    print(counts)  # noqa: T201
    assert met.amid >= kills // 2
