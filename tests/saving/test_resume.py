"""Trainings that break off and go on: their records equal those of one that never did."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptavg
from ckptavg import CheckpointSaver, open_run
from ckptavg.errors import CkptavgWarning, ModelError, RunError, SaverError
from ckptavg.runs.checkpoint import RecordedCheckpoint
from ckptavg.runs.record import Record
from ckptavg.saving.options import KeepBest, Options
from ckptavg.saving.run_lock import RunLock
from ckptavg.saving.run_writer import RunWriter, read_rates
from tests.helpers.files import leftovers
from tests.helpers.models import Reusable, compiled_model
from tests.helpers.saving import fit as fit_tiny

EPOCHS, BATCHES = 6, 5
X, Y = np.random.default_rng(3).normal(size=(2, 10, 4)).astype("float32")


@cache
def built(**compiled):
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model.compile(keras.optimizers.Adam(0.01, **compiled), "mse")
    return Reusable(model)


def build(**compiled):
    """A model before its training; for the same arguments it is the same one."""
    return built(**compiled).as_new()


def fit(model, directory, *, first=0, epochs=EPOCHS, callbacks=(), **arguments):
    saver = CheckpointSaver(directory, **arguments)
    model.fit(
        X,
        Y,
        initial_epoch=first,
        epochs=epochs,
        batch_size=2,
        shuffle=False,
        verbose=0,
        callbacks=[saver, *callbacks],
    )


def facts(directory):
    """What the records of a run tell, but for times, and all digests."""
    return [
        (r.file, r.epoch, r.step, r.learning_rate, r.metrics, r.read_tensors())
        for r in open_run(directory).records
    ]


class BrokenOffError(Exception):
    """What a crash is here."""


def crash_after(epoch):
    def act(ended, _):
        if ended + 1 == epoch:
            raise BrokenOffError

    return keras.callbacks.LambdaCallback(on_epoch_end=act)


def variables(model):
    return [*model.variables, *model.optimizer.variables]


SCHEDULES = {
    "manual": {"start_epoch": 3},
    "constant": {"start_epoch": 4, "lr_schedule": "constant", "swa_lr": 0.002},
    "cyclic": {"start_epoch": 3, "swa_freq": 2, "lr_schedule": "cyclic", "swa_lr": 0.001},
    "function": {"start_epoch": 2, "lr_schedule": lambda epoch, initial: initial / (epoch + 1)},
    "steps": {"save_freq": 3, "start_step": 4},
}


_QUICK = {("cyclic", None), ("function", None), ("steps", 2)}


@pytest.mark.parametrize(
    ("name", "accumulated"),
    [
        pytest.param(name, steps, marks=() if (name, steps) in _QUICK else pytest.mark.slow)
        for name in SCHEDULES
        for steps in (None, 2)
    ],
)
def test_a_crash_after_any_epoch_changes_no_record(tmp_path, name, accumulated):
    arguments = SCHEDULES[name] | {"existing": "resume"}
    model = build(gradient_accumulation_steps=accumulated)
    states = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: states.append([v.numpy().copy() for v in variables(model)])
    )
    start = [v.numpy().copy() for v in variables(model)]
    fit(model, tmp_path / "whole", callbacks=[keep], **arguments)
    whole = facts(tmp_path / "whole")
    assert whole
    for crash in range(1, EPOCHS):
        directory = tmp_path / str(crash)
        restore(model, start)
        with pytest.raises(BrokenOffError):
            fit(model, directory, callbacks=[crash_after(crash)], **arguments)
        restore(model, states[crash - 1])
        fit(model, directory, first=crash, **arguments)
        assert facts(directory) == whole, crash
        assert not leftovers(directory)


@pytest.mark.parametrize("accumulated", [None, 2])
def test_steps_go_on_without_the_state_of_the_optimizer(tmp_path, accumulated):
    arguments = {"start_epoch": 2, "existing": "resume"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(build(gradient_accumulation_steps=accumulated), whole, epochs=4, **arguments)
    for first, epochs in ((0, 2), (2, 4)):
        model = build(gradient_accumulation_steps=accumulated)
        fit(model, parts, first=first, epochs=epochs, **arguments)
    assert [r.step for r in open_run(parts).records] == [r.step for r in open_run(whole).records]
    assert [x.step for x in open_run(parts).history] == [x.step for x in open_run(whole).history]


def restore(model, values):
    for variable, value in zip(variables(model), values, strict=True):
        variable.assign(value)


def test_an_earlier_epoch_replaces_checkpoints_one_by_one(tmp_path):
    model = build()
    states = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: states.append([v.numpy().copy() for v in variables(model)])
    )
    fit(model, tmp_path / "run", start_epoch=2, callbacks=[keep])
    before = facts(tmp_path / "run")
    restore(model, [value + 1 if value.dtype.kind == "f" else value for value in states[2]])
    with pytest.raises(BrokenOffError):
        fit(
            model,
            tmp_path / "run",
            first=3,
            start_epoch=2,
            existing="resume",
            callbacks=[crash_after(4)],
        )
    model.fit(X, Y, verbose=0, callbacks=[keras.callbacks.Callback()])
    _let_finish(tmp_path / "run")
    after = facts(tmp_path / "run")
    changed = [old[1] for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [4]
    restore(model, states[2])
    fit(model, tmp_path / "run", first=3, start_epoch=2, existing="resume")
    assert facts(tmp_path / "run") == before


def _let_finish(directory):
    """A training that is refused ends the one before it."""
    with pytest.raises(SaverError, match="already"):
        fit(build(), directory, start_epoch=1)


def test_what_to_do_with_what_exists(tmp_path):
    model = build()
    fit(model, tmp_path / "run", start_epoch=3, epochs=4)
    one = facts(tmp_path / "run")
    with pytest.raises(SaverError, match=r"existing='resume'.*existing='overwrite'"):
        fit(model, tmp_path / "run", start_epoch=1)
    with pytest.raises(SaverError, match="this training starts over: pass initial_epoch=4"):
        fit(build(), tmp_path / "run", start_epoch=1, existing="resume")
    assert facts(tmp_path / "run") == one
    fit(model, tmp_path / "run", start_epoch=1, epochs=2, existing="overwrite")
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [1, 2]
    fit(build(), tmp_path / "new", start_epoch=1, epochs=2, existing="resume")  # nothing there yet
    assert [record.epoch for record in open_run(tmp_path / "new").records] == [1, 2]


@pytest.mark.parametrize("existing", ["error", "resume"])
def test_a_fresh_start_takes_its_own_rate(tmp_path, existing):
    """Not the one that a training noted which was killed before its first checkpoint."""
    arguments = {"start_epoch": 4, "lr_schedule": "constant", "existing": existing}
    with pytest.raises(BrokenOffError):
        fit(build(), tmp_path / "run", callbacks=[crash_after(1)], **arguments)
    model = build()
    model.optimizer.learning_rate = 0.5
    fit(model, tmp_path / "run", **arguments)
    records = open_run(tmp_path / "run").records
    assert {record.initial_learning_rate for record in records} == {0.5}
    assert records[-1].learning_rate == pytest.approx(0.05)


@pytest.mark.parametrize("order", ["saver first", "backup first"])
def test_with_backup_and_restore(tmp_path, order):
    arguments = {"start_epoch": 4, "lr_schedule": "constant", "existing": "resume"}
    fit(build(), tmp_path / "whole", **arguments)

    def train(callbacks):
        saver = CheckpointSaver(tmp_path / "run", **arguments)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        pair = [saver, backup] if order == "saver first" else [backup, saver]
        build().fit(
            X,
            Y,
            epochs=EPOCHS,
            batch_size=2,
            shuffle=False,
            verbose=0,
            callbacks=[*pair, *callbacks],
        )

    for crash in (2, 5):
        with pytest.raises(BrokenOffError):
            train([crash_after(crash)])
    train([])
    assert facts(tmp_path / "run") == facts(tmp_path / "whole")


_HOLDING = """
import sys, os, time
from pathlib import Path
from ckptavg.saving.run_lock import RunLock
Path(sys.argv[1]).mkdir()
lock = RunLock(Path(sys.argv[1]), lambda: None)
child = os.fork()
if child == 0:
    time.sleep(120)
    os._exit(0)
print(child, flush=True)
time.sleep(120)
"""


def test_another_process_is_refused_until_it_is_gone(tmp_path):
    """Also where a child lives on that it had forked."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDING, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    try:
        with pytest.raises(SaverError, match=f"another training .process {process.pid} on"):
            fit(build(), tmp_path / "run", start_epoch=1, epochs=1)
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        fit(build(), tmp_path / "run", start_epoch=1, epochs=1)
    finally:
        os.kill(child, 9)
        process.kill()
        process.communicate()
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [1]


METRICS = st.one_of(st.none(), st.floats(0, 1), st.just(float("nan")))


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(METRICS, max_size=12),
    newest=st.one_of(st.none(), st.integers(1, 5)),
    best=st.one_of(st.none(), st.integers(1, 5)),
    mode=st.sampled_from(["min", "max"]),
)
def test_what_is_kept_is_what_a_naive_model_keeps(tmp_path_factory, values, newest, best, mode):
    """After each checkpoint: the newest, and the best of all that there were.

    NaN is worse than any number; without a metric a checkpoint is none of the best, and before
    one has it, only `newest` counts.
    """
    keep_best = None if best is None else KeepBest.of(("score", best, mode))
    options = Options(max_to_keep=newest, keep_best=keep_best)
    directory = tmp_path_factory.mktemp("run")
    (directory / "checkpoints").mkdir()
    writer = RunWriter(directory, options, lambda: None)
    scores = {}
    for epoch, value in enumerate(values, 1):
        metrics = {} if value is None else {"score": value}
        record = Record(f"{epoch}.weights.h5", 0, "", {}, epoch=epoch, metrics=metrics)
        path = directory / "checkpoints" / record.file
        path.write_bytes(b"")
        record = record.write(path.with_name(f"epoch-{epoch:04d}.json"), {})
        writer._add(RecordedCheckpoint(path, record))
        scores[epoch] = value
        scores = naively_kept(scores, newest, best, mode)
        assert [c.record.epoch for c in writer.checkpoints] == list(scores)
        assert {p.name for p in path.parent.glob("*.h5")} == {f"{e}.weights.h5" for e in scores}
        assert {int(p.stem[-4:]) for p in path.parent.glob("*.json")} == set(scores)
    writer.lock.release()


def naively_kept(scores, newest, best, mode):
    if newest is None and best is None:
        return scores
    measured = [epoch for epoch in scores if scores[epoch] is not None]
    if newest is None and not measured:
        return scores
    kept = set(list(scores)[-(newest or 1) :])
    if best is not None:
        numbers = [epoch for epoch in measured if scores[epoch] == scores[epoch]]
        numbers.sort(key=lambda epoch: scores[epoch] if mode == "min" else -scores[epoch])
        kept |= set([*numbers, *(epoch for epoch in measured if epoch not in numbers)][:best])
    return {epoch: score for epoch, score in scores.items() if epoch in kept}


def test_a_record_without_weights_is_no_obstacle(tmp_path):
    model = build()
    fit(model, tmp_path / "run", start_epoch=1, epochs=3)
    one = open_run(tmp_path / "run").checkpoints[0]
    one.path.unlink()
    fit(model, tmp_path / "run", first=3, start_epoch=1, existing="resume", max_to_keep=2)
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [5, 6]


def test_a_run_of_0_1_0_is_resumed(tmp_path):
    """Its rates, steps, history and tracked averages go on; what it wrote stays as it is."""
    golden = Path(__file__).parents[1] / "data" / "run-0.1.0"
    directory = Path(shutil.copytree(golden / "run", tmp_path / "run"))
    before = {p: p.read_bytes() for p in directory.glob("checkpoints/*")}
    trained = runpy.run_path(str(golden / "train.py"))
    model = trained["build_model"]()
    last = open_run(directory).checkpoints[-1]
    keras.saving.load_weights(model, last.path, objects_to_skip=[model.optimizer])
    model.optimizer.learning_rate = 0.3  # not the rate that the run started from
    saver = CheckpointSaver(
        directory,
        start_epoch=2,
        lr_schedule="constant",
        swa_lr=0.005,
        tracked_sigmas=(0.05, 0.1),
        track_freq=5,
        existing="resume",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", CkptavgWarning)  # averages resume from their very step
        warnings.filterwarnings("ignore", "training resumes after epoch 5 .* begins anew")
        model.fit(
            trained["x"],
            trained["y"],
            initial_epoch=5,
            epochs=7,
            validation_split=0.25,
            callbacks=[saver],
            verbose=0,
        )
    run = open_run(directory)
    assert {p: p.read_bytes() for p in before} == before
    assert [(r.epoch, r.step) for r in run.records] == [(n, 3 * n) for n in range(2, 8)]
    assert len({r.initial_learning_rate for r in run.records}) == 1
    assert {r.learning_rate for r in run.records} == {run.records[0].learning_rate}
    assert [x.step for x in run.history] == [3, 6, 9, 12, 15, 18, 21]
    assert [a.record.ema.step for a in run.averages] == [5, 5, 10, 10, 15, 15, 20, 20, 21, 21]
    assert {found.proof for found in ckptavg.verify(directory)} == {"intact"}
    ckptavg.merge(run, tmp_path / "o.weights.h5", recipe="posthoc-ema:0.1")


def trained(run, epochs, **arguments):
    """A model after some epochs, whose run holds everything to resume from."""
    model = build()
    fit(model, run, epochs=epochs, start_epoch=2, include_optimizer=True, **arguments)
    return model


def fresh(**layers):
    """A model as a new process has it: its optimizer is not built."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, **layers)])
    model.compile(keras.optimizers.Adam(0.5), "mse", run_eagerly=True)
    return model


def test_resume_brings_back_everything(tmp_path):
    whole = [weight.copy() for weight in trained(tmp_path / "whole", 5).get_weights()]
    model, options = fresh(), {"start_epoch": 2, "include_optimizer": True, "existing": "resume"}
    weights = model.get_weights()
    assert ckptavg.resume(tmp_path / "run", model) == 0  # nothing there yet
    assert all(map(np.array_equal, weights, model.get_weights()))
    trained(tmp_path / "run", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CkptavgWarning)
        assert ckptavg.resume(tmp_path / "run", model) == 3
        assert int(model.optimizer.iterations) == 3 * BATCHES
        fit(model, tmp_path / "run", first=3, epochs=5, **options)
    assert [(r.epoch, r.step) for r in open_run(tmp_path / "run").records] == [
        (epoch, epoch * BATCHES) for epoch in range(2, 6)
    ]
    for one, two in zip(model.get_weights(), whole, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_resume_in_the_middle_of_an_epoch_begins_it_again(tmp_path):
    options = {"include_optimizer": True, "max_to_keep": 1}
    fit(build(), tmp_path / "run", epochs=2, save_freq=4, **options)
    model = fresh()
    assert ckptavg.resume(tmp_path / "run", model) == 1  # saved at step 8 of 10
    assert int(model.optimizer.iterations) == 8
    fit(build(), tmp_path / "other", epochs=2, save_freq=5, **options)
    assert ckptavg.resume(tmp_path / "other", model) == 2


def test_resume_takes_the_last_finite_checkpoint(tmp_path):
    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
            if epoch == 2:
                self.model.layers[0].bias.assign([np.nan] * 4)

    options = {"start_epoch": 2, "include_optimizer": True}
    with pytest.warns(CkptavgWarning, match="holds NaN or infinity"):
        fit(build(), tmp_path / "run", epochs=3, callbacks=[Break()], **options)
    with pytest.warns(CkptavgWarning, match=r"of epochs 3 hold NaN .* resumes from epoch 2"):
        assert ckptavg.resume(tmp_path / "run", fresh()) == 2


def test_what_resume_refuses(tmp_path):
    trained(tmp_path / "run", 2)
    other = fresh()
    other.compile("sgd", "mse")
    message = r"holds 6 variables of the optimizer 'model.optimizer', which has 2"
    other.optimizer.build([])
    with pytest.raises(ModelError, match=message):
        ckptavg.resume(tmp_path / "run", other)
    with pytest.raises(ModelError, match="has no weights yet"):
        ckptavg.resume(tmp_path / "run", keras.Sequential([keras.layers.Dense(4)]))
    with pytest.raises(ModelError, match="does not fit"):
        ckptavg.resume(tmp_path / "run", fresh(use_bias=False))
    with pytest.raises(ModelError, match=r"must be a keras.Model of Keras 3 or of tf_keras"):
        ckptavg.resume(tmp_path / "run", object())
    with pytest.raises(RunError, match=r"cannot read .*: File name too long"):
        ckptavg.resume(tmp_path / ("x" * 300), fresh())


def test_a_training_that_does_not_continue_the_run_is_told(tmp_path):
    options = {"start_epoch": 2, "existing": "resume", "include_optimizer": True}
    trained(tmp_path / "run", 3)
    with pytest.warns(CkptavgWarning, match="begins anew, where the run has 15"):
        fit(fresh(), tmp_path / "run", first=3, epochs=4, **options)
    model = fresh()
    assert ckptavg.resume(tmp_path / "run", model) == 4
    with pytest.warns(CkptavgWarning, match="has taken 5 steps, where the run has 20"):
        fit(model, tmp_path / "run", first=4, epochs=5, **options)
    # As BackupAndRestore does after a kill, whose own file was written before that of the run.
    for path in (tmp_path / "run" / "checkpoints").glob("epoch-0005*"):
        path.unlink()
    with pytest.warns(CkptavgWarning, match=r"lacks epoch 5, .*Resume from epoch 4"):
        fit(model, tmp_path / "run", first=5, epochs=6, **options)


def test_a_lock_that_another_training_took_over_is_not_taken_back(tmp_path):
    ended = []
    one = RunLock(tmp_path, lambda: ended.append(True))
    one.renew()
    two = RunLock(tmp_path, lambda: None)
    assert ended == [True]
    with pytest.raises(SaverError, match="another training or saver of this process writes"):
        one.renew()
    one.release()
    two.renew()
    two.release()


def test_the_configuration_of_each_training_is_kept(tmp_path):
    run, model = tmp_path / "run", compiled_model()
    fit_tiny(model, run, epochs=2, start_epoch=1)
    model.optimizer.learning_rate = 0.002
    fit_tiny(model, run, epochs=3, initial_epoch=2, start_epoch=1, existing="resume")
    former, _, now = open_run(run).checkpoints
    assert now.model_file.resolve() == run / "model.json"
    assert former.model_file.resolve() == run / f"model-{former.record.model_digest[:8]}.json"
    assert {found.proof for found in ckptavg.verify(run)} == {"intact"}
    plan = ckptavg.plan_merge(run, tmp_path / "swa.keras")
    assert "'learning_rate' (0.01 and 0.002)" in plan.model_note
    assert plan.model_file == run / "model.json"
    fit_tiny(model, run, epochs=1, start_epoch=1, existing="overwrite")
    assert sorted(path.name for path in run.glob("model*")) == ["model.json"]


@pytest.mark.parametrize("rate", ["NaN", "-inf", -0.1, None, [], {}, "x"])
def test_a_damaged_initial_rate_is_never_trained_with(tmp_path, rate):
    content = {"format": "ckptavg-saver", "version": 1, "initial_learning_rate": rate}
    (tmp_path / "saver.json").write_text(json.dumps(content))
    with pytest.raises(SaverError, match="to start from the optimizer's rate"):
        read_rates(tmp_path, 1)
