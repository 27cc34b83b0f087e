"""Soups: never worse than their best ingredient, what they hold, their memory."""

import csv
import gc
import json
import tracemalloc
from pathlib import Path

import keras
import numpy as np
import pytest

import ckptavg
from ckptavg import soup
from ckptavg.commands.update_bn import refresh_batch_norm
from ckptavg.errors import DataError, RecipeError
from ckptavg.merging.plan import plan_mean
from ckptavg.models.evaluation import evaluate
from ckptavg.runs.record import Record
from ckptavg.runs.record_files import record_path
from ckptavg.runs.sources import resolve
from ckptavg.search.weight_rows import WeightRows, weighted_mean
from tests.helpers.choosing import CHOOSE, REPORT, SPECS, SPLIT
from tests.helpers.command_line import main
from tests.helpers.files import leftovers, read_tensors
from tests.helpers.models import evaluator, randomize, tiny_data

X, Y = tiny_data()


def make(sources, output, **options):
    given = {"model": evaluator(), "data": X, "eval_data": CHOOSE, "monitor": "val_loss"}
    return soup(sources, output, **{**given, **options})


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
def test_a_greedy_soup_is_never_worse_than_its_best_ingredient(
    trained_run, checkpoints, tmp_path, monitor
):
    run = ckptavg.open_run(trained_run)
    sources = [*checkpoints, *(checkpoint.path for checkpoint in run.checkpoints)]
    out = tmp_path / "soup.weights.h5"
    report = make(sources, out, monitor=monitor)
    name, sign = monitor.removeprefix("val_"), 1 if monitor == "val_loss" else -1
    alone = [sign * evaluate(path, model=evaluator(), data=CHOOSE)[name] for path in sources]
    found = evaluate(out, model=evaluator(), data=CHOOSE)
    assert sign * found[name] <= min(alone) + 1e-7
    assert found == pytest.approx(report.metrics, rel=1e-6)
    assert report.tried == 2 * len(sources) - 1
    # random weights do not belong to what a training has found
    kept = [i.checkpoint.path for i in report.ingredients if i.kept]
    assert kept
    assert len(kept) < len(sources)
    record = Record.read(record_path(out))
    assert len(record.sources) == len(kept)


def test_the_algorithm_by_hand(trained_run, tmp_path):
    """Sorted by the metric; kept when not worse; each soup through a BatchNorm pass."""
    paths = [c.path for c in ckptavg.open_run(trained_run).checkpoints]
    alone = {p: evaluate(p, model=evaluator(), data=CHOOSE)["loss"] for p in paths}
    first, *others = sorted(paths, key=alone.get)
    kept, best = [first], alone[first]
    for path in others:
        mean, passed = tmp_path / "m.weights.h5", tmp_path / "p.weights.h5"
        ckptavg.merge([*kept, path], mean, overwrite=True)
        refresh_batch_norm(mean, passed, model=evaluator(), data=X, overwrite=True)
        loss = evaluate(passed, model=evaluator(), data=CHOOSE)["loss"]
        if loss <= best:
            kept, best = [*kept, path], loss
    report = make(paths, tmp_path / "soup.keras")
    assert [i.checkpoint.path for i in report.ingredients if i.kept] == kept
    assert report.metrics["loss"] == pytest.approx(best, rel=1e-6)
    lines = repr(report).splitlines()
    assert lines[0] == f"SoupReport: {len(kept)} of 4 checkpoints in {tmp_path / 'soup.keras'}"
    assert lines[2].startswith(f"  + {first.name}, {report.monitor} {alone[first]:.6g} alone")
    assert sum(line.startswith("  + ") for line in lines) == len(kept)


def test_a_soup_of_the_best_alone_is_that_checkpoint(checkpoints, trained_run, tmp_path):
    best = ckptavg.open_run(trained_run).checkpoints[-1].path
    out = tmp_path / "soup.weights.h5"
    report = make([checkpoints[0], best], out)
    if sum(i.kept for i in report.ingredients) == 1:
        found, expected = read_tensors(out), read_tensors(report.ingredients[0].checkpoint.path)
        for name, values in found.items():
            assert values.tobytes() == expected[name].tobytes()
    assert evaluate(out, model=evaluator(), data=CHOOSE) == pytest.approx(report.metrics)
    single = make([best], tmp_path / "one.weights.h5")
    assert (single.tried, single.ingredients[0].with_soup) == (1, None)
    assert Record.read(record_path(tmp_path / "one.weights.h5")).batch_norm.statistics == "running"


def test_a_uniform_soup_is_the_mean_after_a_pass(checkpoints, tmp_path):
    report = make(checkpoints, tmp_path / "soup.weights.h5", method="uniform", test_data=REPORT)
    ckptavg.merge(checkpoints, tmp_path / "mean.weights.h5")
    mean = tmp_path / "bn.weights.h5"
    refresh_batch_norm(tmp_path / "mean.weights.h5", mean, model=evaluator(), data=X)
    assert report.metrics == pytest.approx(evaluate(mean, model=evaluator(), data=CHOOSE))
    assert report.test_metrics == pytest.approx(evaluate(mean, model=evaluator(), data=REPORT))
    assert report.tried == 1


def test_memory_does_not_grow_with_the_ingredients(tmp_path):
    """At most two models' worth: the live one, and less than another beside it."""
    layers = [keras.Input((6,)), keras.layers.Dense(300), keras.layers.Dense(4000)]
    model = keras.Sequential([*layers, keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"], run_eagerly=True)  # graphs take memory, too
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.weights.h5")
        keras.saving.save_weights(
            randomize(model, number), paths[-1], objects_to_skip=[model.optimizer]
        )
    size = paths[0].stat().st_size
    peaks = []
    for count in (2, 6):
        gc.collect()
        tracemalloc.start()
        make(paths[:count], tmp_path / f"soup{count}.weights.h5", model=model, data=None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    workers = 40 * 2**20  # of the merge, whatever the size of the model
    assert max(peaks) < size + workers
    assert peaks[1] < peaks[0] + size  # of 4 more


def test_what_a_soup_refuses(checkpoints, tmp_path):
    out = tmp_path / "soup.weights.h5"
    with pytest.raises(RecipeError, match="must be 'greedy' or 'uniform'"):
        make(checkpoints, out, method="best")
    with pytest.raises(DataError, match="are among those used for selection"):
        make(checkpoints, out, test_data=CHOOSE)
    assert not out.exists()
    assert not leftovers(tmp_path)


def test_the_soup_command(folder):
    with Path("train.py").open("a") as file:
        file.write(SPLIT)
    paths = sorted(Path("run/checkpoints").glob("*.weights.h5"))
    options = (*SPECS, "--eval-data", "train.py:choose", "-o", "soup.keras")
    status, out, err = main("soup", *paths, *options, "--test-data", "train.py:report")
    assert status == 0, err
    assert "tried 7 candidates" in out
    assert "the soup on train.py:report: " in out
    with Path("soup.keras.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["kept"] == "yes"
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses)
    again = ("--overwrite", "--method", "uniform", "--json")
    content = json.loads(main("soup", "run", *options, *again)[1])
    assert (content["tried"], len(content["ingredients"])) == (1, 4)
    assert np.isfinite(content["metrics"]["loss"])
    Path("y.keras.csv").write_text("precious")
    status, _, err = main("soup", "run", *options[:-1], "y.keras")
    assert (status, "y.keras.csv exists already" in err) == (1, True)
    status, _, err = main("soup", "run", *SPECS, "-o", "x.keras")
    assert (status, "Missing option '--eval-data'" in err) == (2, True)


def test_sums_of_files_that_are_laid_out_differently(trained_run, checkpoints, tmp_path):
    """Those that Keras wrote hold the optimizer, too, and their tensors at other places."""
    saved = [c.path for c in ckptavg.open_run(trained_run).checkpoints]
    paths = [checkpoints[0], saved[0], checkpoints[1], saved[1]]
    sums = WeightRows(plan_mean(resolve(paths)), 1, folder=tmp_path, max_memory=0)
    for number, path in enumerate(paths):
        sums.add({number: 1.0}, into=0)
        expected = read_tensors(path)
        for name, values in sums.combine({0: 1.0}):
            assert values.tobytes() == expected[name].tobytes(), (path, name)
    half = dict(weighted_mean(sums.plan, [0.5, 0.5, 0.0, 0.0]))
    ckptavg.merge(paths[:2], tmp_path / "half.weights.h5")
    for name, values in read_tensors(tmp_path / "half.weights.h5").items():
        assert half[name].tobytes() == values.tobytes()
    sums.close()
