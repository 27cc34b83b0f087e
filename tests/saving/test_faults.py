"""CheckpointSaver where writing fails: full, read-only and vanished disks, and slow ones."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from concurrent import futures
from pathlib import Path

import keras
import numpy as np
import pytest

import ckptavg
from ckptavg import CheckpointSaver, open_run
from ckptavg.errors import CkptavgWarning, RunError, SaverError
from ckptavg.runs.proof import tensor_records
from tests.helpers.files import fill, leftovers, read_tensors

savers = []
"""The saver of the present training."""


@pytest.fixture(scope="module")
def model():
    """A model of 526 kB whose weights do not move; tests set them."""
    model = keras.Sequential(
        [keras.Input((256,)), keras.layers.Dense(512, kernel_initializer="zeros", name="large")]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def fit(model, directory, epochs=5, *, callbacks=(), initial_epoch=0, **arguments):
    """Trains; at the end of each epoch, all weights have its number."""
    number = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, _: [
            variable.assign(np.full(variable.shape, epoch + 1)) for variable in model.variables
        ]
    )
    saver = CheckpointSaver(directory, **{"start_epoch": 1} | arguments)
    savers[:] = [saver]
    x = np.zeros((2, 256), "float32")
    model.fit(
        x,
        np.zeros((2, 512), "float32"),
        epochs=epochs,
        initial_epoch=initial_epoch,
        verbose=0,
        callbacks=[number, saver, *callbacks],
    )
    return saver


def at_begin(epoch, act):
    """Acts when a 1-based epoch begins, when what was begun before is written."""

    def begin(begun, _):
        if begun + 1 == epoch:
            wait_until_idle()
            act()

    return keras.callbacks.LambdaCallback(on_epoch_begin=begin)


def at_end(epoch, act):
    """Acts when a 1-based epoch has ended and its checkpoint is on its way."""
    return keras.callbacks.LambdaCallback(
        on_epoch_end=lambda ended, _: act() if ended + 1 == epoch else None
    )


def wait_until_idle():
    """Until everything that the present saver has begun is done, with success or not."""
    futures_of_work = [future for lot in savers[-1]._prepared.queue._waiting for future in lot]
    futures.wait(futures_of_work, timeout=60)
    assert all(future.done() for future in futures_of_work)


def is_locked(directory):
    """Whether another process finds a run locked."""
    attempt = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'r+b')\n"
        "try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept OSError: sys.exit(3)"
    )
    code = subprocess.run([sys.executable, "-S", "-c", attempt, directory / ".lock"]).returncode
    assert code in (0, 3)
    return code == 3


def epochs_of(directory):
    """The epochs of a run, each of whose checkpoints is proven; nothing else is there."""
    run = open_run(directory)
    for checkpoint in run.checkpoints:
        assert tensor_records(checkpoint.path) == checkpoint.record.read_tensors()
        for values in read_tensors(checkpoint.path).values():
            assert (values == checkpoint.record.epoch).all()
    assert not run.uncommitted
    assert not leftovers(directory)
    return [record.epoch for record in run.records]


def test_a_full_disk_stops_training(model, small_disk):
    directory = small_disk / "run"
    with pytest.raises(SaverError, match=r"epoch-0003.*No space left.*intact"):
        fit(model, directory, callbacks=[at_begin(3, lambda: fill(small_disk, 200_000))])
    assert epochs_of(directory) == [1, 2]
    assert not is_locked(directory)
    (small_disk.parent / "ballast").unlink()
    fit(model, directory, initial_epoch=2, existing="resume")
    assert epochs_of(directory) == [1, 2, 3, 4, 5]


def test_a_full_disk_is_warned_of_and_saved_to_again(model, small_disk):
    directory = small_disk / "run"
    ballast = small_disk.parent / "ballast"
    steps = [at_begin(2, lambda: fill(small_disk)), at_begin(4, ballast.unlink)]
    with pytest.warns(CkptavgWarning, match="cannot save the checkpoint epoch-000") as told:
        fit(model, directory, callbacks=steps, on_error="warn")
    assert sum("cannot save" in str(one.message) for one in told) == 2
    assert epochs_of(directory) == [1, 4, 5]


def test_the_configuration_is_written_once_there_is_room(model, small_disk):
    directory = small_disk / "run"
    ballast = small_disk.parent / "ballast"
    steps = [at_begin(1, lambda: fill(small_disk)), at_begin(2, ballast.unlink)]
    with pytest.warns(CkptavgWarning, match="cannot save the checkpoint epoch-0001"):
        fit(model, directory, 3, callbacks=steps, on_error="warn")
    assert epochs_of(directory) == [2, 3]
    assert open_run(directory).model_file
    assert {record.model for record in open_run(directory).records} == {"../model.json"}


@pytest.mark.parametrize("room", [0, 520_000, 530_000, 540_000])
def test_wherever_the_disk_fills_nothing_is_half_written(model, small_disk, room):
    directory = small_disk / "run"
    steps = [at_begin(2, lambda: fill(small_disk, room))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(model, directory, 3, callbacks=steps, on_error="warn")
    assert epochs_of(directory)[0] == 1


def test_a_full_disk_in_pruning_and_overwriting(model, small_disk):
    directory = small_disk / "run"
    fit(model, directory, 4)
    steps = [at_begin(3, lambda: fill(small_disk))]
    with pytest.raises(SaverError, match="epoch-0003"):
        fit(
            model,
            directory,
            callbacks=steps,
            initial_epoch=2,
            existing="resume",
            max_to_keep=3,
        )
    assert epochs_of(directory) == [1, 2, 3, 4]  # the former ones, whole


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of h5py
def test_the_disk_of_kerass_own_files_fills(small_disk):
    layer = Computing()
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(100_000)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = np.zeros((1, 4), "float32"), np.zeros((1, 100_000), "float32")
    for on_error in ("raise", "warn"):
        saver = CheckpointSaver(small_disk / on_error, start_epoch=1, on_error=on_error)
        fill(small_disk, 900_000)
        if on_error == "raise":
            with pytest.raises(SaverError, match="could not be saved"):
                model.fit(x, y, epochs=2, verbose=0, callbacks=[saver])
        else:
            with pytest.warns(CkptavgWarning, match="could not be saved"):
                model.fit(x, y, epochs=2, verbose=0, callbacks=[saver])
        assert not leftovers(small_disk)
        assert not is_locked(small_disk / on_error)
        (small_disk.parent / "ballast").unlink()


class Computing(keras.layers.Layer):
    """A layer that saves the square of its variable."""

    def build(self, _):
        self.scale = self.add_weight(shape=(1,), initializer="ones")

    def call(self, inputs):
        return inputs * self.scale

    def save_own_variables(self, store):
        store["0"] = np.asarray(self.scale) ** 2


def test_a_directory_that_is_read_only(model, disks):
    with pytest.raises(SaverError, match="Read-only file system"):
        fit(model, disks / "ro" / "run")


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_disk_that_becomes_read_only(model, small_disk, on_error):
    if not shutil.which("nsenter"):
        pytest.skip("there is no program 'nsenter' to mount anew with")
    directory = small_disk / "run"
    process, place = small_disk.parts[2], Path("/", *small_disk.parts[4:], "run", "checkpoints")

    def run(*command):
        enter = ["nsenter", "-t", process, "-U", "-m", "--preserve-credentials"]
        subprocess.run([*enter, *map(str, command)], check=True)

    def protect():
        run("mount", "--bind", place, place)
        run("mount", "-o", "remount,bind,ro", place)

    steps = [at_begin(3, protect), at_begin(5, lambda: run("umount", place))]
    if on_error == "warn":
        with pytest.warns(CkptavgWarning, match="Read-only file system"):
            fit(model, directory, callbacks=steps, on_error="warn")
        assert epochs_of(directory) == [1, 2, 5]
        return
    with pytest.raises(SaverError, match="Read-only file system"):
        fit(model, directory, callbacks=steps)
    assert not is_locked(directory)
    assert epochs_of(directory) == [1, 2]
    run("umount", place)


def test_a_directory_that_vanishes(model, tmp_path):
    directory = tmp_path / "run"
    away = at_begin(3, lambda: directory.rename(tmp_path / "away"))
    with pytest.raises(SaverError, match="No such file or directory"):
        fit(model, directory, callbacks=[away])
    assert epochs_of(tmp_path / "away") == [1, 2]
    (tmp_path / "away").rename(directory)
    assert not is_locked(directory)
    back = at_begin(5, lambda: (tmp_path / "away").rename(directory))
    with pytest.warns(CkptavgWarning, match="No such file or directory"):
        fit(
            model,
            directory,
            callbacks=[away, back],
            initial_epoch=2,
            existing="resume",
            on_error="warn",
        )
    assert epochs_of(directory) == [1, 2, 5]


@pytest.mark.parametrize("name", ["epoch-0002.weights.h5", "epoch-0002.json"])
def test_a_folder_in_the_way(model, tmp_path, name):
    directory = tmp_path / "run"
    block = directory / "checkpoints" / name
    block.mkdir(parents=True)
    (block / "file").write_text("somebody's")
    match = "cannot read the record" if name.endswith(".json") else "is in the way"
    if name.endswith(".json"):  # known before training begins
        with pytest.raises(ckptavg.CkptavgError, match=match):
            fit(model, directory, 3)
    else:
        with pytest.raises(SaverError, match=match):
            fit(model, directory, 3)
        assert [record.epoch for record in open_run(directory).records] == [1]
    assert (block / "file").read_text() == "somebody's"
    assert not leftovers(directory)
    assert not is_locked(directory)


def test_a_folder_that_comes_in_the_way_of_a_record(model, tmp_path):
    directory = tmp_path / "run"
    block = directory / "checkpoints" / "epoch-0002.json"
    with pytest.raises(SaverError, match=r"was written meanwhile|is in the way"):
        fit(model, directory, 3, callbacks=[at_begin(2, block.mkdir)])
    block.rmdir()
    assert epochs_of(directory) == [1]


@pytest.mark.parametrize("last", [True, False])
def test_an_error_in_writing_is_never_swallowed(model, tmp_path, last):
    """It is raised when the next epoch begins or ends; after the last write, as training ends."""
    directory = tmp_path / "run"
    began = []
    watch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: began.append(epoch))
    block = (
        directory / "checkpoints" / ("epoch-0005.weights.h5" if last else "epoch-0002.weights.h5")
    )
    with pytest.raises(SaverError, match="is in the way"):
        fit(model, directory, callbacks=[watch, at_begin(1, block.mkdir)])
    assert began == ([0, 1, 2, 3, 4] if last else began[: len(began)])
    assert len(began) <= (5 if last else 3)
    assert [record.epoch for record in open_run(directory).records] == (
        [1, 2, 3, 4] if last else [1]
    )


def test_an_error_in_writing_is_told_after_an_exception_too(model, tmp_path):
    """What was begun when an exception ended training is finished, and its error is told."""
    directory = tmp_path / "run"

    def fail():
        raise ZeroDivisionError

    block = directory / "checkpoints" / "epoch-0002.weights.h5"
    with pytest.raises(ZeroDivisionError):
        fit(model, directory, callbacks=[at_begin(2, block.mkdir), at_end(2, fail)])
    with pytest.warns(CkptavgWarning, match=r"interrupted: .*is in the way"):
        fit(model, directory, 3, initial_epoch=2, existing="resume")
    block.rmdir()
    assert epochs_of(directory) == [1, 3]


_DYING = """
import sys
import keras, numpy as np
import ckptavg

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
model.compile("sgd", "mse")

def train(directory, blocked):
    def fail(epoch, logs):
        if epoch == 1:
            raise ZeroDivisionError

    saver = ckptavg.CheckpointSaver(directory, start_epoch=1)
    block = saver.directory / "checkpoints" / "epoch-0002.weights.h5"
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, _: block.mkdir() if blocked and epoch else None,
        on_epoch_end=fail)
    model.fit(np.zeros((2, 4)), np.zeros((2, 4)), epochs=5, verbose=0, callbacks=[saver, watch])

try:
    train(sys.argv[1], blocked=False)
except ZeroDivisionError:
    train(sys.argv[2], blocked=True)
"""


def test_a_program_that_ends_with_an_exception_finishes_what_it_began(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", _DYING, tmp_path / "free", tmp_path / "blocked"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr
    assert [record.epoch for record in open_run(tmp_path / "free").records] == [1, 2]
    assert [record.epoch for record in open_run(tmp_path / "blocked").records] == [1]
    assert "after training was interrupted" in ended.stderr
    assert f"{tmp_path}/blocked/checkpoints/epoch-0002.weights.h5 is in the way" in ended.stderr
    assert not leftovers(tmp_path)


def test_another_training_after_an_exception(model, tmp_path):
    """As in a notebook: the lock of the broken one is in no one's way."""

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(model, tmp_path / "run", callbacks=[at_end(3, fail)])
    assert is_locked(tmp_path / "run")
    with pytest.raises(SaverError, match="3 checkpoints of epochs 1-3 already"):
        fit(model, tmp_path / "run")
    assert not is_locked(tmp_path / "run")
    fit(model, tmp_path / "run", initial_epoch=3, existing="resume")
    assert epochs_of(tmp_path / "run") == [1, 2, 3, 4, 5]


def test_an_error_of_the_arguments_releases_the_lock(tmp_path):
    model = keras.Sequential([keras.Input((256,)), Computing(), keras.layers.Dense(512)])
    model.compile("sgd", "mse")
    with pytest.raises(SaverError, match="only be written as Keras does"):
        fit(model, tmp_path / "run", save_dtype="float16")
    assert not is_locked(tmp_path / "run")


@pytest.mark.parametrize("in_flight", [1, 2])
def test_training_and_writing_share_no_memory(model, tmp_path, monkeypatch, in_flight):
    """Weights that change right after a save, while it is written slowly, are not in its file."""
    slow_down(monkeypatch, 0.02)
    spoil = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: [v.assign(np.full(v.shape, -1)) for v in model.variables]
    )
    fit(model, tmp_path / "run", 6, callbacks=[spoil], in_flight=in_flight)
    assert epochs_of(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_a_save_that_fails_before_it_is_written_takes_no_others_memory(
    model, tmp_path, monkeypatch
):
    slow_down(monkeypatch, 0.2)

    class Odd:
        def __float__(self):
            raise RuntimeError("no number today")

    class Sometimes(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = float(epoch) if epoch % 2 == 0 else Odd()

    saver = CheckpointSaver(tmp_path / "run", start_epoch=1, in_flight=2, on_error="warn")
    number = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, _: [v.assign(np.full(v.shape, epoch + 1)) for v in model.weights]
    )
    with pytest.warns(CkptavgWarning, match="could not be saved: .*no number today"):
        model.fit(
            np.zeros((2, 256)),
            np.zeros((2, 512)),
            epochs=7,
            verbose=0,
            callbacks=[Sometimes(), number, saver],
        )
    assert epochs_of(tmp_path / "run") == [1, 3, 5, 7]


def slow_down(monkeypatch, seconds):
    """Makes every write to a file take its time, in the thread that writes."""
    write = os.pwrite

    def slow(*arguments):
        if threading.current_thread().name.startswith("ckptavg-saver"):
            time.sleep(seconds)
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", slow)


def interrupt():
    raise KeyboardInterrupt


_READERS = {
    "run": lambda run: [c.epoch for c in open_run(run).checkpoints],
    "merge": lambda run: [s.epoch for s in merged(run, run).sources],
    "pattern": lambda run: [
        s.epoch for s in merged(run, f"{run}/checkpoints/*.weights.h5").sources
    ],
    "folder": lambda run: [c.epoch for c in ckptavg.inspect(run / "checkpoints").checkpoints],
    "file": lambda run: [
        ckptavg.inspect(run / f"checkpoints/epoch-000{n}.weights.h5").checkpoints[0].epoch
        for n in (1, 2, 3)
    ],
    "verify": lambda run: [int(v.path.name[6:10]) for v in ckptavg.verify(run)],
}


def merged(run, sources):
    return ckptavg.merge(sources, run.with_name("o.weights.h5")).record


@pytest.mark.parametrize("reader", _READERS)
def test_whoever_reads_waits_for_what_an_interrupted_training_still_writes(
    model, tmp_path, monkeypatch, reader
):
    slow_down(monkeypatch, 0.1)
    with pytest.raises(KeyboardInterrupt):
        fit(model, tmp_path / "run", in_flight=2, callbacks=[at_end(3, interrupt)])
    assert not (tmp_path / "run/checkpoints/epoch-0003.json").exists()
    assert _READERS[reader](tmp_path / "run") == [1, 2, 3]


def test_a_fork_does_not_wait_for_what_its_parent_writes(model, tmp_path, monkeypatch):
    slow_down(monkeypatch, 0.5)
    found = []

    def fork():
        pid = os.fork()
        if pid == 0:
            os._exit(len(open_run(tmp_path / "run").checkpoints))
        started = time.perf_counter()
        found.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert time.perf_counter() - started < 60

    fit(
        model,
        tmp_path / "run",
        2,
        in_flight=2,
        callbacks=[at_begin(2, wait_until_idle), at_end(2, fork)],
    )
    assert found == [1]


def test_a_run_is_opened_while_a_training_removes_from_it(model, tmp_path):
    """A checkpoint that is removed between the listing of a folder and the reading is gone."""
    opened = []

    def reader():
        while len(opened) < 10_000:
            with contextlib.suppress(RunError):  # no checkpoint yet
                opened.append([c.epoch for c in open_run(tmp_path / "run").checkpoints])
            if not training.is_alive():
                return

    arguments = (model, tmp_path / "run", 40)
    training = threading.Thread(
        target=fit, args=arguments, kwargs={"max_to_keep": 1, "in_flight": 4}
    )
    training.start()
    reader()
    training.join()
    assert opened[-1] == [40]


def test_training_waits_for_one_write_and_not_for_two(model, tmp_path, monkeypatch):
    slow_down(monkeypatch, 0.8)  # two tensors: 1.6 s a checkpoint
    with pytest.warns(CkptavgWarning, match=r"training waited 1\.\d s for the previous checkpoint"):
        one = fit(model, tmp_path / "one", 2)
    assert one.blocked[0] < 0.8 < one.blocked[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        two = fit(model, tmp_path / "two", 2, in_flight=2)
    assert max(two.blocked) < 0.8
    assert epochs_of(tmp_path / "one") == epochs_of(tmp_path / "two") == [1, 2]


def test_never_is_there_less_than_is_to_be_kept(model, tmp_path):
    """A thread looks at the run all the time while checkpoints come and go."""
    directory = tmp_path / "run"
    least, going = [], threading.Event()

    def watch():
        while not going.is_set():
            try:
                records = sorted(directory.glob("checkpoints/epoch-*.json"))
            except FileNotFoundError:
                continue
            weights = {p.name[:10] for p in directory.glob("checkpoints/epoch-*.weights.h5")}
            # Records first: weights may only have gone with records that went before.
            gone = [r for r in records if r.stem not in weights and r.exists()]
            time.sleep(0.001)
            least.append((int(records[-1].stem[-4:]) if records else 0, len(records), gone))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        fit(model, directory, 12, max_to_keep=2)
    finally:
        going.set()
        watcher.join()
    assert len(least) > 12
    assert all(count >= min(2, newest) for newest, count, _ in least)
    assert not any(gone for *_, gone in least)


@pytest.mark.parametrize(("dtype", "value"), [(None, np.nan), (None, np.inf), ("float16", 70_000)])
def test_what_is_not_finite_is_marked_and_told(model, tmp_path, dtype, value):
    def breaks(epoch, _):
        if epoch == 1:
            model.variables[-1].assign(np.full(512, value))

    saver = CheckpointSaver(tmp_path / "run", start_epoch=1, save_dtype=dtype)
    broken = keras.callbacks.LambdaCallback(on_epoch_end=breaks)
    model.set_weights([np.zeros(v.shape) for v in model.variables])
    with pytest.warns(
        CkptavgWarning, match=r"epoch 2: 'layers/dense/vars/1' holds NaN or infinity"
    ):
        model.fit(
            np.zeros((2, 256)), np.zeros((2, 512)), epochs=2, verbose=0, callbacks=[broken, saver]
        )
    one, two = open_run(tmp_path / "run").records
    assert one.non_finite == ()
    assert two.non_finite == ("layers/dense/vars/1",)


def test_a_fork_that_lives_on_holds_no_lock_and_ends(model, tmp_path):
    """As workers that load data do; one that leaves through the exit must not wait either."""
    pids = []

    def fork():
        pid = os.fork()
        if pid == 0:
            from atexit import _run_exitfuncs

            _run_exitfuncs()  # as an interpreter does that ends
            time.sleep(60)
            os._exit(0)
        pids.append(pid)

    try:
        fit(model, tmp_path / "run", 3, callbacks=[at_end(2, fork)])
        assert not is_locked(tmp_path / "run")
        assert epochs_of(tmp_path / "run") == [1, 2, 3]
    finally:
        for pid in pids:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def test_a_lock_that_went_is_taken_again(model, tmp_path):
    """Whatever part of the process closes the lock's file, as a copy of the run does, drops it."""
    directory = tmp_path / "run"
    seen = []

    def drop():
        shutil.copytree(directory, tmp_path / "copy")
        seen.append(is_locked(directory))

    steps = [at_begin(2, drop), at_end(3, lambda: seen.append(is_locked(directory)))]
    fit(model, directory, callbacks=steps)
    assert seen == [False, True]
    assert Path(directory / ".lock").is_file()
