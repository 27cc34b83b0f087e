"""CheckpointSaver with tracked averages: against the weights of every step, and gone on with."""

import math
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptavg
from ckptavg import CheckpointSaver, open_run
from ckptavg.errors import CkptavgWarning, IntegrityError, SaverError
from ckptavg.formats import open_reader
from ckptavg.recipes import Recipe
from ckptavg.recipes.power_profiles import decay_over, gamma_of
from ckptavg.saving.tracking import LEAST_SAVES, TrackingSchedule
from tests.helpers.files import fill, flip_bit, leftovers, read_tensors
from tests.helpers.models import compiled_model, evaluator, tiny_model
from tests.helpers.posthoc_ema import decay_at
from tests.helpers.saving import late

SIGMAS = (0.05, 0.10)
EPOCHS, STEPS = 8, 64
STATISTICS = "layers/batch_normalization/vars/2"


def data(steps=STEPS, batch=8):
    rng = np.random.default_rng(11)
    x = rng.normal(1.5, 2.0, (steps * batch, 6)).astype("float32")
    return x, rng.integers(0, 3, steps * batch)


class Keep(keras.callbacks.Callback):
    """Keeps all weights after each step, as a file would hold them, in float64."""

    def __init__(self):
        super().__init__()
        self.steps = []
        self.on_train_batch_end = lambda *_, **__: self.steps.append(
            [np.array(v, "float64") for v in self.model.get_weights()]
        )


def fresh():
    """A model that always begins with the same weights."""
    keras.utils.set_random_seed(3)
    return compiled_model()


def fit(directory, epochs=EPOCHS, *, model=None, callbacks=(), first=0, steps=STEPS, **arguments):
    """Trains; always the same, from the same weights, unless a model is given."""
    model = fresh() if model is None else model
    if model.built:
        model.optimizer.build(model.trainable_variables)  # so that its state can be restored
    x, y = data(steps)
    given = {"start_epoch": epochs, "tracked_sigmas": SIGMAS} | arguments
    saver = CheckpointSaver(directory, **given)
    try:
        model.fit(
            x,
            y,
            initial_epoch=first,
            epochs=epochs,
            batch_size=8,
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, saver],
        )
    finally:
        saver._prepared.queue.drain()  # what an exception has outrun
    return model


def true_average(trajectory, sigma_rel, steps=None):
    """The online average of the weights of each step, in float64.

    Args:
        trajectory: weights after each step.
        sigma_rel: of the average.
        steps: the steps that the weights stand for the end of; by default every one.
    """
    gamma, former, average = gamma_of(sigma_rel), 0, [0.0] * len(trajectory[0])
    for step, weights in zip(steps or range(1, len(trajectory) + 1), trajectory, strict=True):
        decay = math.prod(decay_at(n, gamma) for n in range(former + 1, step + 1))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
        former = step
    return average


def held(path, model=None):
    """The weights of a file as its model orders them."""
    model = evaluator() if model is None else model
    model.load_weights(path, objects_to_skip=[model.optimizer])
    return model.get_weights()


def relative_error(found, true):
    difference = sum(float(((f - t) ** 2).sum()) for f, t in zip(found, true, strict=True))
    return math.sqrt(difference / sum(float((t**2).sum()) for t in true))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run that tracked, and its weights at each step."""
    keep = Keep()
    directory = tmp_path_factory.mktemp("tracked") / "run"
    fit(directory, callbacks=[keep])
    return SimpleNamespace(run=directory, trajectory=keep.steps)


def test_notes_are_the_averages_of_the_weights_of_every_step(tracked):
    run = open_run(tracked.run)
    assert len(tracked.trajectory) == EPOCHS * STEPS
    noted = [(note.record.ema.step, note.record.ema.sigma_rel) for note in run.averages]
    every = EPOCHS * STEPS // LEAST_SAVES
    assert noted == [(t, s) for t in range(every, EPOCHS * STEPS + 1, every) for s in SIGMAS]
    for note in run.averages[:6] + run.averages[-6:]:
        ema, record = note.record.ema, note.record
        assert note.path.name == f"ema-{ema.sigma_rel:.3f}-step-{ema.step:08d}.weights.h5"
        assert record.path.name == f"ema-{ema.sigma_rel:.3f}-step-{ema.step:08d}.json"
        assert (record.step, record.epoch) == (ema.step, None)
        assert (record.batch_norm.statistics, STATISTICS in record.batch_norm.moving) == (
            "running",
            True,
        )
        true = true_average(tracked.trajectory[: ema.step], ema.sigma_rel)
        for one, two in zip(held(note.path), true, strict=True):
            assert np.abs(one - two).max() <= 1e-6 * np.abs(two).max()
    assert [record.epoch for record in run.records] == [EPOCHS]
    assert not run.uncommitted
    assert not leftovers(tracked.run)


@pytest.mark.parametrize("sigma_rel", [0.07, 0.13, 0.20])
def test_an_average_that_was_not_tracked_is_that_of_the_weights(tracked, tmp_path, sigma_rel):
    out = tmp_path / "o.weights.h5"
    for recipe, end in (
        (Recipe("posthoc-ema", sigma_rel=sigma_rel), EPOCHS * STEPS),
        (Recipe("posthoc-ema", sigma_rel=sigma_rel, at_step=400), 400),
    ):
        ckptavg.merge(tracked.run, out, recipe=recipe, overwrite=True)
        error = relative_error(held(out), true_average(tracked.trajectory[:end], sigma_rel))
        print(f"sigma_rel {sigma_rel} at step {end}: relative error {error:.1e}")  # noqa: T201
        assert error < 1e-4
        assert ckptavg.verify(out)[0].average == "reproduced"


def test_a_tracked_length_is_the_tracked_file(tracked, tmp_path):
    out = tmp_path / "o.weights.h5"
    ckptavg.merge(tracked.run, out, recipe="posthoc-ema:0.1")
    note = open_run(tracked.run).averages[-1]
    assert note.record.ema.sigma_rel == 0.10
    one, two = read_tensors(out), read_tensors(note.path)
    assert {n: v.tobytes() for n, v in one.items()} == {n: v.tobytes() for n, v in two.items()}


def test_verify_proves_notes_and_what_is_made_of_them(tracked, tmp_path):
    directory = Path(shutil.copytree(tracked.run, tmp_path / "run"))
    out = tmp_path / "o.weights.h5"
    ckptavg.merge(directory, out, recipe="posthoc-ema:0.13")
    proven = ckptavg.verify(directory)
    assert [found.proof for found in proven] == ["intact"] * (1 + 2 * LEAST_SAVES)
    victim = open_run(directory).averages[-3].path
    damage(victim)
    with pytest.raises(IntegrityError, match=rf"{victim.name} is damaged: block 0 of"):
        ckptavg.verify(directory)
    with pytest.raises(IntegrityError, match=rf"{victim.name} is damaged: block 0 of"):
        ckptavg.verify(out)


def damage(path):
    with open_reader(path) as reader:
        flip_bit(path, reader.structure.tensors["layers/dense/vars/0"].extent.offset)


class BrokenOffError(Exception):
    """What a crash is here."""


def crash_at(step):
    """A callback that raises after a step of the whole training, before the saver hears of it."""
    seen = []

    def act(*_, **__):
        seen.append(None)
        if len(seen) == step:
            raise BrokenOffError

    callback = keras.callbacks.Callback()
    callback.on_train_batch_end = act
    return callback


def notes(directory):
    """The notes of a run, and all digests."""
    averages = open_run(directory).averages
    return [(a.record.ema, a.record.step, a.record.read_tensors()) for a in averages]


@pytest.mark.parametrize("epochs", [4, pytest.param(70, marks=pytest.mark.slow)])
def test_a_training_that_goes_on_has_the_averages_of_one_that_never_stopped(tmp_path, epochs):
    """Killed in an epoch that it does again; with notes in the middle of epochs, and at ends."""
    arguments = {"epochs": epochs, "steps": 6, "start_epoch": 3, "existing": "resume"}
    fit(tmp_path / "whole", **arguments)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(BrokenOffError):
        fit(tmp_path / "run", callbacks=[crash_at(15), backup], **arguments)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    fit(tmp_path / "run", callbacks=[backup], **arguments)
    assert notes(tmp_path / "run") == notes(tmp_path / "whole")
    assert not leftovers(tmp_path / "run")


def test_a_saved_epoch_is_one_to_go_on_from_until_the_next_note(tmp_path):
    """With notes every 10 steps, epochs of 6: that of an epoch's end passes."""
    arguments = {"steps": 6, "start_epoch": 2, "track_freq": 10}
    with pytest.raises(BrokenOffError):
        fit(tmp_path / "run", 5, callbacks=[crash_at(20)], **arguments)
    assert [ema.step for ema, *_ in notes(tmp_path / "run")] == [10, 10, 18, 18]
    model = fresh()
    fit(tmp_path / "whole", 5, callbacks=[put_back_after(3, model)], model=model, **arguments)
    fit(tmp_path / "run", 5, model=model, first=3, **arguments | {"existing": "resume"})
    whole, found = notes(tmp_path / "whole"), notes(tmp_path / "run")
    assert [ema.step for ema, *_ in whole] == [10, 10, 20, 20, 30, 30]
    assert [note for note in found if note[0].step != 18] == whole


def put_back_after(epoch, model):
    """A callback that ends a training with the model as it was after an epoch."""
    states = []

    def keep(ended, _):
        if ended + 1 == epoch:
            states.append([v.numpy().copy() for v in variables(model)])

    def put_back(_):
        for variable, value in zip(variables(model), states[0], strict=True):
            variable.assign(value)

    return keras.callbacks.LambdaCallback(on_epoch_end=keep, on_train_end=put_back)


def variables(model):
    return [*model.variables, *model.optimizer.variables]


def test_steps_between_notes_and_a_later_start_count_with_the_weights_that_follow(tmp_path):
    keep, model = Keep(), tiny_model()
    fit(tmp_path / "run", 3, model=model, steps=6, track_freq=8, start_epoch=3, callbacks=[keep])
    last = open_run(tmp_path / "run").averages[-2:]
    assert [note.record.ema.step for note in last] == [18, 18]
    last[0].path.unlink()
    more = Keep()
    with pytest.warns(CkptavgWarning, match="resume from step 16, training from step 18"):
        fit(
            tmp_path / "run",
            4,
            model=model,
            first=3,
            steps=6,
            track_freq=8,
            existing="resume",
            callbacks=[more],
        )
    seen = [*keep.steps[:16], *more.steps]
    steps = [*range(1, 17), *range(19, 25)]
    for note, sigma in zip(open_run(tmp_path / "run").averages[-2:], SIGMAS, strict=True):
        assert note.record.ema == ckptavg.recipes.posthoc_ema.TrackedAverage(sigma, 24)
        assert relative_error(held(note.path), true_average(seen, sigma, steps)) < 1e-6


def test_an_earlier_start_gives_up_the_averages_of_later_steps(tmp_path):
    arguments = {"steps": 6, "start_epoch": 1, "track_freq": 6}
    model = tiny_model()
    fit(tmp_path / "run", 5, model=model, callbacks=[put_back_after(2, model)], **arguments)
    before = notes(tmp_path / "run")
    with pytest.raises(BrokenOffError):
        fit(
            tmp_path / "run",
            5,
            model=model,
            first=2,
            callbacks=[crash_at(9)],
            **arguments | {"existing": "resume"},
        )
    assert notes(tmp_path / "run") == before[:6]  # of steps 6, 12 and 18


def test_a_run_goes_on_with_its_own_lengths_alone(tmp_path):
    model = fit(tmp_path / "run", 2, steps=6)
    again = {"model": model, "first": 2, "steps": 6, "existing": "resume"}
    with pytest.raises(
        SaverError, match=r"tracks averages of sigma_rel 0.05, 0.1, but tracked_sig"
    ):
        fit(tmp_path / "run", 3, tracked_sigmas=(0.05, 0.2), **again)
    victim = open_run(tmp_path / "run").averages[-1].path
    damage(victim)
    with pytest.raises(IntegrityError, match=rf"{victim.name} is damaged"):
        fit(tmp_path / "run", 3, **again)
    fit(tmp_path / "run", 2, steps=6, existing="overwrite", tracked_sigmas=None, start_epoch=1)
    assert open_run(tmp_path / "run").averages == ()


def test_what_is_kept_of_checkpoints_is_no_matter_of_notes(tmp_path):
    fit(tmp_path / "run", 4, steps=6, start_epoch=1, max_to_keep=1, track_freq=4)
    run = open_run(tmp_path / "run")
    assert [record.epoch for record in run.records] == [4]
    assert [a.record.ema.step for a in run.averages[::2]] == [4, 8, 12, 16, 20, 24]


@pytest.mark.parametrize(
    ("compiled", "expected"),
    [({"steps_per_execution": 4}, [4, 6, 10, 12]), ({"accumulation": 2}, [1, 2, 3, 4, 5, 6])],
)
def test_steps_are_those_of_the_optimizer(tmp_path, compiled, expected):
    """Executions of several batches, of which callbacks see the last, and gradients of two."""
    model, keep = tiny_model(), Keep()
    accumulation = compiled.pop("accumulation", None)
    optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=accumulation)
    model.compile(optimizer, "sparse_categorical_crossentropy", **compiled)
    fit(tmp_path / "run", 2, model=model, steps=6, track_freq=1, callbacks=[keep])
    averages = open_run(tmp_path / "run").averages[::2]
    assert [a.record.ema.step for a in averages] == expected
    assert [a.record.step for a in averages] == expected
    seen = keep.steps if accumulation is None else keep.steps[1::2]
    for place, note in enumerate(averages, 1):
        true = true_average(seen[:place], SIGMAS[0], expected[:place])
        assert relative_error(held(note.path), true) < 1e-6


def test_half_precision_is_averaged_in_float32(tmp_path):
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(4, dtype="bfloat16"),
        keras.layers.Dense(3, dtype="mixed_float16"),
    ]
    keep, model = Keep(), keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x = data(6)[0]
    arguments = {"start_epoch": 1, "tracked_sigmas": SIGMAS, "save_dtype": "float16"}
    saver = CheckpointSaver(tmp_path / "run", max_shard_size=1e-9, **arguments)
    model.fit(x, x[:, :3], batch_size=8, epochs=2, verbose=0, callbacks=[keep, saver])
    note = open_run(tmp_path / "run").averages[-1]
    assert note.path.name == "ema-0.100-step-00000012.weights.json"
    found = read_tensors(note.path)
    assert {value.dtype for value in found.values()} == {np.dtype("float32")}
    assert relative_error([*found.values()], true_average(keep.steps, 0.10)) < 1e-6
    ckptavg.merge(tmp_path / "run", tmp_path / "o.weights.h5", recipe="posthoc-ema:0.08")


def test_weights_that_become_nan_are_marked(tmp_path):
    model = tiny_model()

    def spoil(epoch, _):
        if epoch == 1:
            model.layers[0].kernel.assign(np.full((6, 5), np.nan))

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=spoil)
    with pytest.warns(CkptavgWarning, match="tracked averages at step 12.* holds NaN or infinity"):
        fit(tmp_path / "run", 2, model=model, steps=6, track_freq=6, callbacks=[callback])
    marked = [bool(a.record.non_finite) for a in open_run(tmp_path / "run").averages]
    assert marked == [False, False, True, True]
    report = ckptavg.merge(tmp_path / "run", tmp_path / "o.weights.h5", recipe="posthoc-ema:0.1")
    assert [source.coefficient for source in report.record.sources] == [1.0]


def test_a_full_disk_costs_notes_and_not_the_training(small_disk):
    directory = small_disk / "run"

    def fill_up(epoch, _):
        if epoch == 1:
            deadline = time.monotonic() + 60
            while len([*directory.glob("checkpoints/e*.json")]) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            fill(small_disk)

    arguments = {"steps": 6, "track_freq": 6, "start_epoch": 1, "on_error": "warn"}
    callback = keras.callbacks.LambdaCallback(on_epoch_begin=fill_up)
    with pytest.warns(CkptavgWarning, match="cannot save the averages at step 12 of") as told:
        model = fit(directory, 3, callbacks=[callback], **arguments)
    assert any("cannot save the checkpoint epoch-0003" in str(one.message) for one in told)
    assert [found.proof for found in ckptavg.verify(directory)] == ["intact"] * 3
    assert not leftovers(directory)
    (small_disk.parent / "ballast").unlink()
    with pytest.warns(CkptavgWarning, match="resume from step 6, training from step 18"):
        fit(directory, 4, model=model, first=3, existing="resume", **arguments)
    assert [ema.step for ema, *_ in notes(directory)] == [6, 6, 24, 24]


class Computing(keras.layers.Layer):
    """A layer that saves the square of its variable."""

    def build(self, _):
        self.scale = self.add_weight(shape=(1,), initializer="ones")

    def call(self, inputs):
        return inputs * self.scale

    def save_own_variables(self, store):
        store["0"] = np.asarray(self.scale) ** 2


def test_what_cannot_be_tracked(tmp_path):
    for arguments, message in (
        ({"tracked_sigmas": 0.05}, "must be widths of averages as fractions"),
        ({"tracked_sigmas": (0.05, 0.3)}, "sigma_rel is 0.3, but must lie between"),
        ({"tracked_sigmas": (0.05, 0.0502)}, "have the same first 3 decimals"),
        ({"tracked_sigmas": SIGMAS, "track_freq": 0}, "track_freq is 0"),
        ({"track_freq": 10}, "how often the averages of tracked_sigmas are saved"),
    ):
        with pytest.raises(SaverError, match=message):
            CheckpointSaver(tmp_path / "run", start_epoch=1, **arguments)
    model = keras.Sequential([keras.Input((6,)), Computing(), keras.layers.Dense(3)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(SaverError, match="saves more than its variables"):
        fit(tmp_path / "run", 1, model=model, steps=2)


def test_a_layer_that_is_built_on_the_way_is_told(tmp_path):
    model = late()

    def extend(epoch, _):
        if epoch == 1:
            model.extended = True
            model.late.build((None, 6))

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=extend)
    with pytest.raises(SaverError, match="layers were built while averages were tracked"):
        fit(tmp_path / "run", 3, model=model, steps=2, track_freq=3, callbacks=[callback])


@given(epochs=st.integers(1, 300), steps=st.integers(1, 40), stride=st.sampled_from([1, 3, 8]))
def test_there_are_enough_notes_and_not_many_more(epochs, steps, stride):
    """Whatever the training, as long as it has so many executions."""
    schedule = TrackingSchedule(None, epochs)
    notes = 0
    for epoch in range(epochs):
        seen = 0
        while seen < steps:
            former, seen = seen, min(steps, seen + stride)
            at = epoch * steps
            due = schedule.within((at + former, at + seen), (former, seen), steps)
            notes += due or (seen == steps and schedule.at_end(epoch))
    executions = epochs * -(-steps // stride)
    assert min(LEAST_SAVES, executions) <= notes < 2 * LEAST_SAVES


def test_decays_of_several_steps_are_those_of_each():
    for gamma in (0.5, 6.94, 16.97):
        for former, step in ((0, 1), (0, 5), (3, 4), (7, 30)):
            product = math.prod(decay_at(n, gamma) for n in range(former + 1, step + 1))
            assert decay_over(former, step, gamma) == pytest.approx(product, rel=1e-12, abs=0)
