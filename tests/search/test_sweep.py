"""Sweeps: their averages against fresh merges, their scores, their memory, their honesty."""

import csv
import json
import os
import re
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

import ckptavg
from ckptavg import sweep
from ckptavg.batch_norm.refresh import merge_into_model
from ckptavg.commands.merge import plan_merge
from ckptavg.errors import (
    DataError,
    IntegrityError,
    MismatchError,
    ModelError,
    RecipeError,
    RunError,
)
from ckptavg.merging.plan import plan_mean
from ckptavg.models.batches import PreparedInputs
from ckptavg.models.evaluation import evaluate
from ckptavg.runs.record import Record
from ckptavg.search import judge as judging
from ckptavg.search import weight_rows
from ckptavg.search.data_fingerprint import fingerprint_data
from ckptavg.search.live_weights import WeightsOfFile, live_weights
from ckptavg.search.weight_rows import WeightRows, weighted_mean
from ckptavg.search.windows import list_candidates
from tests.helpers.choosing import CHOOSE, REPORT, SPECS, SPLIT, X, Y
from tests.helpers.command_line import main
from tests.helpers.files import flip_bit, leftovers, open_extent, read_tensors, write_h5
from tests.helpers.models import evaluator, randomize, tiny_model


def tensors_of(path):
    return {n: t for n, t in read_tensors(path).items() if not n.startswith("optimizer/")}


def same(found, path) -> None:
    found, expected = dict(found), read_tensors(path)
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].tobytes() == values.tobytes(), name


def fill(sums, count) -> None:
    """Makes each row the sum of all checkpoints up to its own."""
    for number in range(count):
        sums.add({number: 1.0}, to=number - 1 if number else None, into=number)


def window(sums, start, stop):
    """The mean of the checkpoints of a window."""
    below = {start - 1: -1.0} if start else {}
    return sums.combine({stop - 1: 1.0, **below}, stop - start)


@pytest.mark.parametrize("max_memory", [0, 10**9])
def test_every_window_is_that_of_a_fresh_merge(checkpoints, tmp_path, max_memory):
    found = tuple(map(ckptavg.Checkpoint.open, checkpoints))
    sums = WeightRows(plan_mean(found), 5, folder=tmp_path, max_memory=max_memory)
    assert sums.on_disk == (max_memory == 0)
    fill(sums, 5)
    for start in range(5):
        for stop in range(start + 1, 6):
            out = tmp_path / f"{start}-{stop}.weights.h5"
            ckptavg.merge(checkpoints[start:stop], out)
            same(window(sums, start, stop), out)
    sums.close()
    assert not leftovers(tmp_path)


def test_windows_of_every_type_of_number(tmp_path):
    import ml_dtypes

    rng = np.random.default_rng(3)
    paths = []
    for number in range(7):
        values = rng.normal(size=1000) * 10.0 ** rng.integers(-3, 4, 1000)
        tensors = {"layers/a/vars/0": values, "layers/n/vars/0": np.arange(3)}
        for place, dtype in enumerate(("float32", "float16", ml_dtypes.bfloat16), 1):
            tensors[f"layers/a/vars/{place}"] = values.astype(dtype)
        tensors["layers/dropout/seed_generator/vars/0"] = np.array([number, 7], "uint32")
        paths.append(write_h5(tmp_path / f"c{number}.weights.h5", tensors))
    plan = plan_mean(tuple(map(ckptavg.Checkpoint.open, paths)))
    sums = WeightRows(plan, 7, folder=tmp_path, max_memory=10**9)
    fill(sums, 7)
    for start, stop in ((0, 7), (2, 5), (3, 4), (6, 7)):
        out = tmp_path / f"{start}-{stop}.weights.h5"
        ckptavg.merge(paths[start:stop], out)
        same(window(sums, start, stop), out)
    coefficients = (0.0, 0.3, 0.0, 0.5, 0.2, 0.0, 0.0)
    out = tmp_path / "weighted.weights.h5"
    ckptavg.merge([paths[n] for n in (1, 3, 4)], out, coefficients=[0.3, 0.5, 0.2])
    same(weighted_mean(sums.plan, coefficients), out)


def test_a_sum_reads_one_checkpoint_and_proves_it(trained_run, tmp_path, monkeypatch):
    run = ckptavg.open_run(trained_run)
    seen = []
    told = partial(weight_rows.stream, progress=seen.append)
    monkeypatch.setattr(weight_rows, "stream", told)
    sums = WeightRows(plan_mean(run.checkpoints), 4, folder=tmp_path, max_memory=10**9)
    sums.add({0: 1.0}, into=0)
    assert sum(seen) == sums.plan.bytes_read / 4
    victim = run.checkpoints[1].path
    with open_extent(victim) as offset:
        flip_bit(victim, offset)
    with pytest.raises(IntegrityError, match="was changed while it was read"):
        sums.add({1: 1.0}, to=0, into=1)
    sums = WeightRows(plan_mean(run.checkpoints), 4, folder=tmp_path, max_memory=10**9)
    with pytest.raises(IntegrityError, match=r"epoch-0004.* is damaged"):
        sums.add({1: 1.0}, into=0)


def test_weights_set_in_place_are_those_that_keras_loads(checkpoints):
    model, loaded = tiny_model(), tiny_model()
    weights = live_weights(model)
    for path in checkpoints[:2]:
        weights.assign(tensors_of(path).items())
        loaded.load_weights(path)
        for one, two in zip(model.weights, loaded.weights, strict=True):
            assert one.numpy().tobytes() == two.numpy().tobytes()


def test_weights_of_more_variables_than_one_mark_can_tell(tmp_path):
    layers = [keras.Input((2,)), *(keras.layers.Dense(2) for _ in range(60))]
    model = keras.Sequential([*layers, keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    randomize(model, 5)
    before = [v.numpy() for v in model.weights]
    model.save_weights(tmp_path / "a.weights.h5")
    randomize(model, 6)
    weights = live_weights(model)
    weights.assign(tensors_of(tmp_path / "a.weights.h5").items())
    for one, two in zip(model.weights, before, strict=True):
        assert np.array_equal(one.numpy(), two)


def test_weights_that_do_not_fit(checkpoints):
    weights = live_weights(tiny_model(width=7))
    with pytest.raises(ModelError, match="has no 'layers/"):
        weights.assign(tensors_of(checkpoints[0]).items())
    tensors = tensors_of(checkpoints[0])
    del tensors["layers/dense/vars/0"]
    with pytest.raises(ModelError, match="they hold no 'layers/dense/vars/0'"):
        live_weights(tiny_model()).assign(tensors.items())


def test_the_candidates(trained_run):
    run = ckptavg.open_run(trained_run)

    def windows(**options):
        return [(c.start, c.stop) for c in list_candidates(run, **options)]

    assert windows() == [(3, 4), (2, 4), (1, 4), (0, 4)]
    assert windows(stride=2) == [(3, 4), (1, 4), (0, 4)]
    assert len(windows(windows="all")) == 10
    assert windows(windows="all", stride=2) == [(1, 2), (0, 2), (3, 4), (1, 4), (0, 4)]
    found = windows(windows="all", budget=4)
    assert len(found) == 4
    assert found[-1] == (0, 4)
    assert windows(budget=1) == [(0, 4)]
    # of one checkpoint, and of equal distances under a falling line, all recipes are the same
    recipes = ["uniform", "ema:0.5", "linear-decay"]
    assert [str(c.recipe) for c in list_candidates(run, recipes=recipes)] == [
        "uniform",
        *["uniform", "ema:0.5"] * 3,
    ]
    for options, error in (
        ({"windows": "some"}, RunError),
        ({"stride": 0}, RunError),
        ({"budget": 0}, RunError),
        ({"recipes": ()}, RecipeError),
        ({"recipes": ("posthoc-ema:0.1",)}, RecipeError),
    ):
        with pytest.raises(error):
            list_candidates(run, **options)


def run_sweep(run, output=None, **options):
    given = {"model": evaluator(), "data": X, "eval_data": CHOOSE, "monitor": "val_loss"}
    return sweep(run, output, **{**given, **options})


def test_scores_are_those_of_merge_pass_and_evaluation(trained_run, tmp_path):
    report = run_sweep(trained_run, recipes=["uniform", "ema:0.5"])
    assert (report.tried, report.known, len(report.entries)) == (7, 0, 7)
    losses = [entry.metrics["loss"] for entry in report.entries]
    assert losses == sorted(losses)
    for entry in report.entries:
        out = tmp_path / "o.weights.h5"
        plan = plan_merge(entry.checkpoints, out, recipe=entry.recipe, overwrite=True)
        merge_into_model(plan, model=evaluator(), data=X)
        found = evaluate(out, model=evaluator(), data=CHOOSE)
        assert entry.metrics == pytest.approx(found, rel=1e-6)


def test_passes_of_other_kinds_have_scores_of_their_own(trained_run, tmp_path):
    losses = [run_sweep(trained_run, budget=1).best.metrics["loss"]]
    for options, data in (
        ({"bn_mode": "population"}, X),
        ({"bn_mode": "cumulative"}, X),
        ({"mixed_precision": True}, X),
        ({}, PreparedInputs(X, 8)),
    ):
        report = run_sweep(trained_run, budget=1, data=data, **options)
        assert report.known == 0
        out = tmp_path / "o.weights.h5"
        plan = plan_merge(report.best.checkpoints, out, overwrite=True)
        mode, mixed = options.get("bn_mode", "batch"), "mixed_precision" in options
        merge_into_model(plan, model=evaluator(), data=data, bn_mode=mode, mixed_precision=mixed)
        found = evaluate(out, model=evaluator(), data=CHOOSE)
        assert report.best.metrics == pytest.approx(found, rel=1e-6)
        losses.append(report.best.metrics["loss"])
    assert min(np.diff(sorted(losses))) > 1e-6
    assert run_sweep(trained_run, budget=1, data=PreparedInputs(X, 8)).known == 1
    assert run_sweep(trained_run, budget=1, bn_mode="cumulative").known == 1


def test_the_output_scores_what_the_leaderboard_says(trained_run, tmp_path):
    out = tmp_path / "best.keras"
    report = run_sweep(trained_run, out, recipes=["ema:0.5"], test_data=REPORT)
    found = evaluate(out, model=evaluator(), data=CHOOSE)
    assert found == pytest.approx(report.best.metrics, rel=1e-6)
    assert report.test_metrics == pytest.approx(
        evaluate(out, model=evaluator(), data=REPORT), rel=1e-6
    )
    record = Record.read(Path(f"{out}.json"))
    assert record.batch_norm.statistics == "fresh"
    assert [s.coefficient for s in record.sources] == list(report.best.coefficients)


def test_a_report_without_an_output(trained_run, tmp_path):
    first = run_sweep(trained_run, test_data=REPORT)
    # all scores are known now, but not the statistics of the best
    second = run_sweep(trained_run, test_data=REPORT)
    assert (second.known, second.test_metrics) == (4, pytest.approx(first.test_metrics, rel=1e-6))


def test_a_sweep_that_was_stopped_goes_on(trained_run, monkeypatch):
    def stop(number):
        stop.seen += number
        if stop.seen == 2:
            raise KeyboardInterrupt

    stop.seen = 0
    with pytest.raises(KeyboardInterrupt):
        run_sweep(trained_run, progress=stop)
    (cache,) = (trained_run / "search").iterdir()
    with cache.open("a") as file:
        file.write('{"key": "cut o')  # as a kill leaves it
    evaluated = []
    measure = judging.measure

    def counted(*arguments, **options):
        evaluated.append(1)
        return measure(*arguments, **options)

    monkeypatch.setattr(judging, "measure", counted)
    report = run_sweep(trained_run)
    # two that are new, and one that is known, to see whether its score still holds
    assert (report.known, len(evaluated)) == (2, 3)
    assert run_sweep(trained_run).known == 4
    # other data, another model, or other weights are not taken for the same
    assert run_sweep(trained_run, eval_data=REPORT).known == 0
    assert run_sweep(trained_run, data=X[:64]).known == 0
    other = tiny_model()
    other.compile("sgd", keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    assert run_sweep(trained_run, model=other).known == 0
    # but the same samples in another order are
    assert run_sweep(trained_run, eval_data=(CHOOSE[0][::-1], CHOOSE[1][::-1])).known == 4


@keras.saving.register_keras_serializable("sweeps")
class Scaled(keras.layers.Dense):
    """A layer whose code changes while its configuration does not."""

    factor = 1.0

    def call(self, inputs):
        return super().call(inputs) * self.factor


def scaled_model():
    layers = [keras.Input((6,)), Scaled(3, name="head")]
    model = keras.Sequential(layers, name="scaled")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_scores_of_a_model_whose_code_has_changed_are_not_used(tmp_path, monkeypatch):
    run, model = tmp_path / "run", scaled_model()
    model.fit(X, Y, epochs=3, callbacks=[ckptavg.CheckpointSaver(run, start_epoch=1)], verbose=0)

    def swept(**options):
        return run_sweep(run, model=scaled_model(), data=None, **options)

    before = swept()
    assert swept().known == 3
    monkeypatch.setattr(Scaled, "factor", 2.0)
    with pytest.warns(ckptavg.CkptavgWarning, match="loss was .* now, so the code of the model"):
        few = swept(budget=1)
    # one score is of the new code, and the others are those of the former code
    after = swept()
    assert (few.known, after.known) == (0, 1)
    for one, other in zip(after.entries, before.entries, strict=True):
        assert one.metrics != pytest.approx(other.metrics, rel=0.05)
    assert swept().known == 3
    monkeypatch.setattr(Scaled, "factor", 1.0)
    with pytest.warns(ckptavg.CkptavgWarning, match="All averages are evaluated again"):
        again = swept()
    assert [e.metrics for e in again.entries] == [e.metrics for e in before.entries]


def lora_model():
    layers = [keras.Input((6,)), keras.layers.Dense(6, name="adapted", lora_rank=2)]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("lora") / "run"
    model, saver = lora_model(), ckptavg.CheckpointSaver(run, start_epoch=1)
    model.fit(X, Y, epochs=3, callbacks=[saver], verbose=0)
    return run


def test_models_with_lora_are_swept(lora_run, tmp_path):
    model = lora_model()
    assert isinstance(live_weights(model), WeightsOfFile)
    report = run_sweep(lora_run, tmp_path / "best.weights.h5", model=model, test_data=REPORT)
    assert report.tried == 3
    for entry in report.entries:
        plan = plan_merge(entry.checkpoints, tmp_path / "o.weights.h5", overwrite=True)
        merge_into_model(plan, model=lora_model(), data=X)
        found = evaluate(plan.output, model=lora_model(), data=CHOOSE)
        assert entry.metrics == pytest.approx(found, rel=1e-5)
    found = evaluate(report.output, model=lora_model(), data=CHOOSE)
    assert found == pytest.approx(report.best.metrics, rel=1e-5)
    soup = ckptavg.soup(
        lora_run, tmp_path / "s.weights.h5", model=model, data=X, eval_data=CHOOSE, monitor="loss"
    )
    found = evaluate(soup.output, model=lora_model(), data=CHOOSE)
    assert found == pytest.approx(soup.metrics, rel=1e-5)


def test_weights_set_through_a_file_are_kept_and_checked(lora_run):
    model = lora_model()
    adapter = model.get_layer("adapted").lora_kernel_b
    adapter.assign(adapter + 1.0)
    before = [v.numpy() for v in model.variables]
    weights = live_weights(model)
    tensors = tensors_of(ckptavg.open_run(lora_run).checkpoints[0].path)
    assert {n for n in tensors if "batch_norm" in n and n[-1] in "23"} == {
        *weights.moving_statistics
    }
    with weights.kept():
        weights.assign(tensors.items())
        assert not adapter.numpy().any()
    for variable, value in zip(model.variables, before, strict=True):
        assert np.array_equal(variable.numpy(), value)
    del tensors["layers/dense/vars/0"]
    with pytest.raises(ModelError, match="they hold no 'layers/dense/vars/0'"):
        weights.assign(tensors.items())


def test_weights_set_through_a_file_are_whole_however_little_is_written_at_once(
    lora_run, monkeypatch
):
    write = os.pwrite  # the system writes at most 2 GiB at once
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: write(file, data[:8], place))
    model = lora_model()
    tensors = tensors_of(ckptavg.open_run(lora_run).checkpoints[0].path)
    live_weights(model).assign(tensors.items())
    assert np.array_equal(model.layers[-1].kernel.numpy(), tensors["layers/dense_1/vars/0"])


class Counting(keras.layers.Layer):
    """A layer with an integer of its own."""

    def build(self, _):
        self.seen = self.add_weight(shape=(), dtype="int32", trainable=False, initializer="zeros")

    def call(self, inputs):
        return inputs + 0.0 * keras.ops.cast(self.seen, "float32")


def counting_model():
    model = keras.Sequential([keras.Input((6,)), Counting(), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_integers_have_the_same_rules_everywhere(tmp_path):
    model = counting_model()
    saver = ckptavg.CheckpointSaver(tmp_path / "run", start_epoch=1)

    count = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, _: model.layers[0].seen.assign(epoch)
    )
    model.fit(X, Y, epochs=4, callbacks=[count, saver], verbose=0)
    paths = sorted((tmp_path / "run" / "checkpoints").glob("*.weights.h5"))
    given = {"model": model, "eval_data": CHOOSE, "monitor": "loss"}
    name = "layers/counting/vars/0"
    with pytest.raises(MismatchError, match=rf"'{name}' \(int32\) differs.*non_float='last'"):
        sweep(tmp_path / "run", **given)
    with pytest.raises(MismatchError, match="non_float='last'"):
        ckptavg.soup(paths, tmp_path / "s.weights.h5", **given)
    report = sweep(tmp_path / "run", tmp_path / "o.weights.h5", non_float="last", **given)
    last = report.best.checkpoints[-1].epoch
    assert read_tensors(report.output)[name] == last - 1
    soup = ckptavg.soup(paths, tmp_path / "s.weights.h5", non_float="last", **given)
    kept = [i.checkpoint.epoch for i in soup.ingredients if i.kept]
    assert read_tensors(soup.output)[name] == kept[-1] - 1
    for options, warned in (({}, True), ({"non_float": "last"}, False)):
        found = ckptavg.doctor(paths, **options)
        told = re.compile(f"'{name}' (differs|and [0-9]+ other tensors? differ) between the ")
        assert any(map(told.match, found.warnings)) == warned
        assert found.non_float == "last"
        assert len(found.keep) == 4
    assert "--non-float last -o" in main("doctor", *paths)[1]
    found = ckptavg.doctor(paths, model=model, eval_data=CHOOSE, non_float="last")
    assert found.diagnoses[0].barrier is not None
    for search in (sweep, ckptavg.soup):
        with pytest.raises(RecipeError, match="non_float is 'first', but must be"):
            search(tmp_path / "run", "x.keras", eval_data=CHOOSE, non_float="first")
    with pytest.raises(RecipeError, match="non_float is 'first', but must be"):
        ckptavg.doctor(paths, non_float="first")


class Augmented(keras.utils.PyDataset):
    """Inputs with other noise at each reading, but for the first, which fingerprints them."""

    noise = np.random.default_rng(3)

    def __init__(self):
        super().__init__()
        self.read = 0

    def __len__(self):
        return 1

    def __getitem__(self, index):
        self.read += 1
        noise = self.noise.normal(0, 2.0, X.shape) if self.read > 1 else 0.0
        return (X + noise).astype("float32"), Y


def test_scores_over_data_that_vary_are_known(trained_run):
    first = run_sweep(trained_run, data=Augmented())
    second = run_sweep(trained_run, data=Augmented(), recipes=["uniform", "ema:0.5"])
    assert (first.known, second.known) == (0, 4)


def test_plain_means_read_each_checkpoint_once(trained_run, monkeypatch):
    read = []
    add = WeightRows.add

    def counted(self, coefficients, **options):
        read.extend(coefficients)
        return add(self, coefficients, **options)

    monkeypatch.setattr(WeightRows, "add", counted)
    report = run_sweep(trained_run, windows="all", max_memory=0)
    assert (report.tried, read, report.sums_on_disk) == (10, [0, 1, 2, 3], True)


def test_data_that_choose_must_not_report(trained_run):
    for test_data in (CHOOSE, (X[40:], Y[40:]), [(X[47:50], Y[47:50])]):
        with pytest.raises(DataError, match="samples of the final report are among those"):
            run_sweep(trained_run, test_data=test_data)
    report = run_sweep(trained_run, test_data=CHOOSE, allow_same_data=True)
    assert report.test_metrics == pytest.approx(report.best.metrics, rel=1e-6)


def test_a_report_shows_its_leaderboard(trained_run, tmp_path):
    report = run_sweep(trained_run, tmp_path / "best.keras", test_data=REPORT)
    lines = repr(report).splitlines()
    assert lines[0] == f"SweepReport: 4 averages, the best by {report.monitor} first"
    score = report.best.metrics[report.monitor]
    assert lines[1].startswith(f"  1. {report.monitor} {score:.6g}, uniform of ")
    assert lines[5] == f"  the best is in {tmp_path / 'best.keras'}"
    assert lines[6].startswith("  the best on test data: ")


class EndlessBatches(keras.utils.PyDataset):
    """The first 20 samples over and over, ten at a time."""

    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        start = 10 * (index % 2)
        return X[start : start + 10], Y[start : start + 10]


def test_fingerprints_of_data():
    import tensorflow as tf

    x, y = X[:40], Y[:40]
    whole = fingerprint_data((x, y))
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    order = np.random.default_rng(0).permutation(40)
    for other in (
        dataset.batch(7),
        dataset.shuffle(40).batch(16),
        [(x[:3], y[:3]), (x[3:], y[3:])],
        (x[order], y[order]),
    ):
        assert fingerprint_data(other).digest == whole.digest
    assert fingerprint_data((x, y + 1)).digest != whole.digest
    assert fingerprint_data((x, y + 1)).count_shared(whole) == 40
    assert fingerprint_data((X[30:60], Y[30:60])).count_shared(whole) == 10
    assert fingerprint_data(dataset.batch(10), steps=2).count_shared(whole) == 20
    words = tf.data.Dataset.from_tensor_slices((["a", "b", "c"], [0, 1, 2])).batch(2)
    assert fingerprint_data(words).digest == fingerprint_data(words).digest
    with pytest.raises(DataError, match="can be read only once"):
        fingerprint_data(iter([(x, y)]))
    for endless in (dataset.batch(10).repeat(), EndlessBatches()):
        with pytest.raises(DataError, match=r"repeats without end: pass steps"):
            fingerprint_data(endless)
        assert fingerprint_data(endless, steps=2).count_shared(whole) == 20


def test_what_a_sweep_refuses(trained_run, tmp_path):
    for options, error, message in (
        ({"data": None}, ModelError, "pass training data"),
        ({"monitor": "val_f1"}, DataError, "no metric 'f1', it has: accuracy, loss"),
        ({"monitor": "speed"}, RunError, "cannot tell whether lower or higher"),
        ({"model": tiny_model(width=9)}, ModelError, "do not fit"),
    ):
        with pytest.raises(error, match=message):
            run_sweep(trained_run, **options)
    (tmp_path / "o.keras").write_text("precious")
    with pytest.raises(ckptavg.CkptavgError, match="exists already"):
        run_sweep(trained_run, tmp_path / "o.keras")


def test_a_model_without_batch_norm_needs_no_data(tmp_path):
    model = tiny_model(batch_norm=False)
    saver = ckptavg.CheckpointSaver(tmp_path / "run", start_epoch=1)
    model.fit(X, Y, epochs=3, callbacks=[saver], verbose=0)
    report = run_sweep(tmp_path / "run", tmp_path / "o.weights.h5", model=model, data=None)
    assert report.tried == 3


def test_the_sweep_command(folder):
    with Path("train.py").open("a") as file:
        file.write(SPLIT)
    options = (*SPECS, "--eval-data", "train.py:choose", "--monitor", "val_accuracy")
    status, out, err = main("sweep", "run", *options)
    assert status == 0, err
    assert "tried 4 candidates, chosen by accuracy on train.py:choose" in out
    assert "The best of many scores is optimistic; pass --test-data" in out
    assert "5-6" in out
    best = ("-o", "best.keras", "--test-data", "train.py:report", "--recipes", "uniform,ema:0.5")
    status, out, err = main("sweep", "run", *options, *best)
    assert status == 0, err
    assert "tried 7 candidates, chosen by accuracy on train.py:choose" in out
    assert "4 scores of an earlier sweep; one was evaluated again and is the same" in out
    assert "wrote best.keras and best.keras.csv" in out
    assert "the best one on train.py:report: " in out
    with Path("best.keras.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == list("1234567")
    accuracies = [float(row["accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    content = json.loads(main("sweep", "run", *options, "--json")[1])
    assert (content["tried"], content["known"], content["monitor"]) == (4, 4, "accuracy")
    assert len(content["leaderboard"][0]["files"]) == content["leaderboard"][0]["checkpoints"]
    # a search leaves no trace in what a merge sees
    assert main("merge", "run", "-o", "swa.weights.h5")[0] == 0
    assert not leftovers(folder)
    for extra, message in (
        (("--test-data", "train.py:choose"), "are among those used for selection"),
        (("--windows", "some"), "must be 'last' or 'all'"),
        (("--recipes", "ema"), "needs --decay"),
    ):
        status, _, err = main("sweep", "run", *options, *extra)
        assert (status, message in err) == (1, True), err
    status, _, err = main("sweep", "run", *SPECS)
    assert (status, "Missing option '--eval-data'" in err) == (2, True)


def test_statistics_are_given_back_with_those_of_renorm():
    models = []
    for seed in (1, 2):
        layers = [keras.Input((6,)), keras.layers.BatchNormalization(renorm=True)]
        models.append(randomize(keras.Sequential(layers), seed))
    one, two = models
    report = ckptavg.update_batch_norm(one, X)
    assert judging._restoring(one, report)(two) == report
    names = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
    for name in names:
        np.testing.assert_array_equal(getattr(one.layers[0], name), getattr(two.layers[0], name))
