"""Data frames of runs and of what searches found: what the objects hold, in rows."""

from pathlib import Path

import numpy as np
import pytest

import ckptavg
from ckptavg.analysis import doctor_frame, run_frame, soup_frame, sweep_frame
from ckptavg.errors import SpecError
from tests.helpers.models import evaluator, tiny_data


def test_a_run_has_a_row_for_each_record(trained_run):
    table = run_frame(trained_run)
    run = ckptavg.open_run(trained_run)
    assert list(table.index) == [checkpoint.path.name for checkpoint in run.checkpoints]
    assert list(table["epoch"]) == [3, 4, 5, 6]
    assert list(table["size"]) == [checkpoint.path.stat().st_size for checkpoint in run.checkpoints]
    for row, record in zip(table.itertuples(), run.records, strict=True):
        assert (row.step, row.learning_rate) == (record.step, record.learning_rate)
        assert row.val_loss == record.metrics["val_loss"]
    assert table.equals(run_frame(run))
    assert table.attrs["units"] == {"size": "bytes"}


def test_a_metric_that_some_records_lack_is_nan_there(trained_run):
    run = ckptavg.open_run(trained_run)
    run.records[1].metrics.pop("val_loss")
    assert list(run_frame(run)["val_loss"].isna()) == [False, True, False, False]


def test_a_sweep_has_its_leaderboard(trained_run):
    x, y = tiny_data()
    report = ckptavg.sweep(
        trained_run,
        model=evaluator(),
        data=x,
        eval_data=(x, y),
        monitor="loss",
        recipes=("uniform", "ema:0.5"),
    )
    table = sweep_frame(report)
    assert list(table.index) == list(range(1, report.tried + 1))
    assert table["loss"].is_monotonic_increasing
    assert table["loss"].iloc[0] == report.best.metrics["loss"]
    whole = table[(table["checkpoints"] == 4) & (table["recipe"] == "uniform")].iloc[0]
    assert (whole["epochs"], whole["effective"]) == ("3-6", pytest.approx(4.0))


@pytest.mark.parametrize("method", ["greedy", "uniform"])
def test_a_soup_has_its_ingredients(trained_run, tmp_path, method):
    x, y = tiny_data()
    report = ckptavg.soup(
        trained_run,
        tmp_path / "soup.weights.h5",
        method=method,
        model=evaluator(),
        data=x,
        eval_data=(x, y),
        monitor="loss",
    )
    table = soup_frame(report)
    assert list(table["kept"]) == [ingredient.kept for ingredient in report.ingredients]
    assert {Path(path).parent.parent for path in table["checkpoint"]} == {trained_run}
    if method == "greedy":
        assert np.isnan(table["soup loss"].iloc[0])
        assert table["loss"].is_monotonic_increasing
        kept = table[table["kept"]]
        best = kept["soup loss"].iloc[-1] if len(kept) > 1 else kept["loss"].iloc[0]
        assert best == report.metrics["loss"]
    else:
        assert table["kept"].all()


def test_the_doctor_has_a_row_for_each_checkpoint(trained_run):
    report = ckptavg.doctor(trained_run)
    table = doctor_frame(report)
    assert list(table["verdict"]) == ["keep"] * 4
    assert list(table["cosine"]) == [diagnosis.cosine for diagnosis in report.diagnoses]
    assert np.isnan(table["step"].iloc[0])
    assert "barrier" not in table
    x, y = tiny_data()
    evaluated = doctor_frame(
        ckptavg.doctor(trained_run, model=evaluator(), data=x, eval_data=(x, y))
    )
    assert list(evaluated["barrier"].isna()) == [False, False, False, True]


def test_the_model_of_a_run_is_loaded_and_a_missing_one_explained(trained_run):
    model = ckptavg.load_model(ckptavg.open_run(trained_run).model_file)
    x, y = tiny_data()
    path = ckptavg.open_run(trained_run).checkpoints[-1].path
    expected = ckptavg.evaluate(path, model=evaluator(), data=(x, y))
    assert ckptavg.evaluate(path, model=model, data=(x, y)) == pytest.approx(expected)
    with pytest.raises(SpecError, match=r"has no configuration of its own \(model\.json\)"):
        ckptavg.load_model(None)
