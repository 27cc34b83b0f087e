"""An average beside the last and the best checkpoint: is it better, like with like, and why not."""

import json
import math
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

import ckptavg
from ckptavg.analysis.comparison.results import AVERAGED, PASS, SAVED, Comparison, Scores, Walk
from ckptavg.errors import DataError, RunError, SpecError
from tests.helpers.command_line import main
from tests.helpers.models import Reusable, tiny_model

_RNG = np.random.default_rng(3)
_X = _RNG.normal(size=(448, 6)).astype("float32")
_Y = np.argmax(_X @ _RNG.normal(size=(6, 3)) + _RNG.normal(size=(448, 3)), axis=1)
X, Y = _X[:192], _Y[:192]
HELD_OUT = _X[192:], _Y[192:]

PACE = {"moves": (0.3, 6, 13), "drifts": (0.001, 1, 8)}
"""Learning rate, first epoch saved and last epoch: one walks about a good region, one is slow."""


@pytest.fixture(scope="session")
def _raced_once(tmp_path_factory) -> tuple[Path, keras.Model]:
    keras.utils.set_random_seed(0)
    folder, model = tmp_path_factory.mktemp("raced"), tiny_model(width=8)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), model.loss, metrics=["accuracy"])
    reusable = Reusable(model)
    for name, (rate, start, epochs) in PACE.items():
        keras.utils.set_random_seed(1)
        saver = ckptavg.CheckpointSaver(
            folder / name, start_epoch=start, lr_schedule=lambda _, __, rate=rate: rate
        )
        fitting = {"batch_size": 16, "epochs": epochs, "validation_data": HELD_OUT, "verbose": 0}
        reusable.as_new().fit(X, Y, callbacks=[saver], **fitting)
    return folder, model


@pytest.fixture
def model(_raced_once, tmp_path, monkeypatch) -> keras.Model:
    """The model of two trainings, which stand in the working folder."""
    folder, model = _raced_once
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return model


def titled(found: Comparison) -> dict[str, Scores]:
    return {row.title: row for row in found.rows}


def test_an_average_that_is_better_and_one_that_is_worse(model):
    averaging = {"model": model, "data": X, "eval_data": HELD_OUT}
    better = ckptavg.merge("moves", "better.keras", **averaging)
    worse = ckptavg.merge("drifts", "worse.keras", **averaging)
    for result in (better, worse):
        assert [row.batch_norm for row in result.comparison.rows if row.role != "best"] == [
            SAVED, PASS, AVERAGED, PASS,
        ]  # fmt: skip
        assert result.metrics == result.comparison.rows[-1].metrics
    found = better.comparison
    assert (found.worse, found.best.title) == (False, "average, with a pass")
    assert not found.walk.on_its_way
    assert found.verdict[0].startswith("The average is better than the last checkpoint (epoch 13):")
    assert "both with a BatchNorm pass" in found.verdict[0]
    assert "the weights move about" in found.verdict[-1]
    found = worse.comparison
    assert (found.worse, found.walk.on_its_way) == (True, True)
    assert found.walk.straightness > 0.9
    assert found.verdict[0].startswith("The average is worse than the last and best checkpoint")
    assert "% of the path through the 8 checkpoints is one line" in found.verdict[-1]
    assert "Start averaging later, or lower the learning rate." in found.verdict[-1]
    assert repr(worse).endswith(f"\n  {found.verdict[-1]}")
    # the model was evaluated with other weights meanwhile, and has those of the output
    kept = [np.array(variable) for variable in model.weights]
    model.load_weights("worse.keras")
    assert all(map(np.array_equal, kept, map(np.array, model.weights)))


def test_every_score_is_that_of_a_file(model):
    rows = titled(
        ckptavg.merge("moves", "a.keras", model=model, data=X, eval_data=HELD_OUT).comparison
    )
    run = ckptavg.open_run("moves")
    last, (best,) = run.checkpoints[-1], run.select(best=1)
    ckptavg.merge("moves", "stale.weights.h5")
    ckptavg.update_bn(last.path, "passed.weights.h5", model=model, data=X)
    expected = {
        "last checkpoint (epoch 13)": last.path,
        "last checkpoint (epoch 13), with a pass": "passed.weights.h5",
        f"best checkpoint by val_loss (epoch {best.epoch})": best.path,
        "average, without a pass": "stale.weights.h5",
        "average, with a pass": "a.keras",
    }
    assert list(rows) == list(expected)
    for title, path in expected.items():
        metrics = ckptavg.evaluate(path, model=model, data=HELD_OUT)
        assert rows[title].metrics == pytest.approx(metrics, rel=1e-5), title


def test_files_are_compared_by_name(model):
    ckptavg.merge("drifts", "swa.keras")
    np.savez("held-out.npz", x=HELD_OUT[0], y=HELD_OUT[1])
    np.savez("train.npz", x=X)
    status, text, err = main(
        "evaluate", "drifts", "swa.keras", "--data", "held-out.npz", "--bn-data", "train.npz"
    )
    assert status == 0, err
    lines = text.splitlines()
    assert lines[0].split()[-2:] == ["accuracy", "loss"]
    told = " ".join(text.split())
    assert "swa.keras is worse than drifts/checkpoints/epoch-0008.weights.h5: loss" in told
    assert "both with a BatchNorm pass" in told
    assert "is one line" in told
    arguments = ("evaluate", "drifts", "swa.keras", "--data", "held-out.npz", "--json")
    content = json.loads(main(*arguments)[1])
    assert [row["batch_norm"] for row in content["rows"]] == ["saved", "averaged"]
    assert content["worse"] is True
    assert any("pass training data to re-estimate" in line for line in content["verdict"])
    found = ckptavg.evaluate(["drifts", "swa.keras"], data=HELD_OUT)
    assert json.loads(json.dumps(found.to_dict()))["rows"] == content["rows"]
    frame = found.to_frame()
    assert frame["role"].tolist() == ["last", "average"]
    assert repr(found).startswith("Comparison of 2 scores by loss\n")
    # a single checkpoint has scores of its own
    single = ckptavg.evaluate("drifts", model=model, data=HELD_OUT)
    assert single == pytest.approx(found.rows[0].metrics)


def test_a_model_without_batch_norm_has_no_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model(batch_norm=False)
    for epoch in (1, 2):
        model.save_weights(f"epoch-{epoch}.weights.h5")
    names = [f"epoch-{epoch}.weights.h5" for epoch in (1, 2)]
    result = ckptavg.merge(names, "a.weights.h5", model=model, data=X, eval_data=HELD_OUT)
    assert list(titled(result.comparison)) == ["last checkpoint (epoch 2)", "average"]
    assert result.comparison.verdict[0].startswith("The average is about as good as the last")
    assert result.comparison.walk is None  # two checkpoints are always on a line


def test_several_trainings_have_rows_of_their_own(model):
    averaging = {"model": model, "eval_data": HELD_OUT}
    found = ckptavg.merge(["moves", "drifts"], "a.weights.h5", **averaging).comparison
    roles = [(row.role, row.name) for row in found.rows]
    assert roles[0] == ("last", "last checkpoint of moves (epoch 13)")
    assert roles[2] == ("last", "last and best checkpoint of drifts (epoch 8)")
    assert roles[3] == ("average", "average")
    assert sum(line.startswith("The average is ") for line in found.verdict) == 2
    assert found.walk is None


def test_what_cannot_be_compared_is_said(model):
    averaging = {"model": model, "eval_data": HELD_OUT}
    once = iter([HELD_OUT])
    found = ckptavg.merge("moves", "a.weights.h5", model=model, eval_data=once).comparison
    assert list(titled(found)) == ["average, without a pass"]
    assert found.worse is None
    assert "The data can be read only once" in found.verdict[-2] + found.verdict[-1]
    found = ckptavg.merge("moves", "b.keras", data=iter([X]), **averaging).comparison
    assert "part of the difference may be the pass" in found.verdict[0]
    for path in Path("moves/checkpoints").glob("*.weights.h5"):
        ckptavg.convert(path, path.name.replace(".weights.h5", ".safetensors"))
    found = ckptavg.merge("epoch-*.safetensors", "c.weights.h5", **averaging).comparison
    assert [row.role for row in found.rows] == ["average"]
    assert "checkpoint (epoch 13) was not compared" in " ".join(found.verdict)
    shutil.rmtree("moves")
    found = ckptavg.evaluate(["b.keras"], data=HELD_OUT)
    assert [row.batch_norm for row in found.rows] == [PASS]
    assert "its sources are gone" in " ".join(found.verdict)


def test_comparisons_that_are_refused(model):
    paths = ["moves", "drifts"]
    for data in ({"data": iter([HELD_OUT])}, {"data": HELD_OUT, "bn_data": iter([X])}):
        with pytest.raises(DataError, match="can be read only once"):
            ckptavg.evaluate(paths, **data)
    with pytest.raises(RunError, match="name one or more"):
        ckptavg.evaluate([], data=HELD_OUT)
    with pytest.raises(SpecError, match="for a comparison"):
        ckptavg.evaluate("moves", data=HELD_OUT, bn_data=X)
    with pytest.raises(SpecError, match=r"without bn_data: pass bn_data \(--bn-data\)"):
        ckptavg.evaluate(paths, data=HELD_OUT, steps=2)


@pytest.mark.usefixtures("unrendered")
def test_the_report_has_the_scores_the_line_and_the_shift(model):
    run = Path(shutil.copytree("drifts", "run"))
    ckptavg.merge(run, "swa.keras", model=model, data=X)
    np.savez("held-out.npz", x=HELD_OUT[0], y=HELD_OUT[1])
    np.savez("train.npz", x=X)
    options = ("--merged", "swa.keras", "--eval-data", "held-out.npz", "--data", "train.npz")
    before = sorted(run.rglob("*"))
    status, text, err = main("report", "run", *options)
    assert status == 0, err
    assert "The average is worse than the last and best checkpoint (epoch 8): loss" in text
    assert sorted(run.rglob("*")) == before
    page = Path("report.html").read_text(encoding="utf-8")
    for told in (
        "Did averaging help?",
        "is one line: the training is still on its way",
        "last and best checkpoint (epoch 8), the best",
        "the thick line is the average&#x27;s score",
        "on the straight line from the last checkpoint (0) to the average (1)",
        "How far the BatchNorm pass moved the statistics",
    ):
        assert told in page, told
    done = ckptavg.report("run", "b.html", merged="swa.keras", eval_data=HELD_OUT)
    # without training data there is neither a pass of the last checkpoint nor a line
    assert [row.batch_norm for row in done.comparison.rows] == [SAVED, AVERAGED, PASS]
    assert "on the straight line from" not in Path("b.html").read_text(encoding="utf-8")
    done = ckptavg.report("run", "c.html", eval_data="held-out.npz")
    assert [row.role for row in done.comparison.rows] == ["last"]
    assert done.comparison.worse is None
    with pytest.raises(SpecError, match="are for scores: pass --eval-data"):
        ckptavg.report("run", "d.html", data=X)
    assert ckptavg.report("run", "e.html").comparison is None


def scores(role: str, value: float, batch_norm: str | None = None) -> Scores:
    return Scores(role, role, Path(f"{role}.keras"), batch_norm, {"accuracy": value})


@pytest.mark.parametrize(
    ("sign", "last", "average", "expected"),
    [
        (1, 1.0, 1.02, "worse than"),
        (1, 1.0, 0.98, "better than"),
        (1, 1.0, 1.009, "about as good as"),
        (1, 0.0, 0.0, "about as good as"),
        (1, 0.0, 1e-9, "worse than"),
        (1, math.nan, 5.0, "better than"),
        (1, 5.0, math.nan, "worse than"),
        (1, math.nan, math.nan, "about as good as"),
        (-1, 0.5, 0.6, "better than"),
        (-1, 0.6, 0.5, "worse than"),
        (-1, -0.5, -0.6, "worse than"),
    ],
)
def test_words_go_by_the_metric(sign, last, average, expected):
    found = Comparison((scores("last", last), scores("average", average)), "accuracy", sign)
    assert found.verdict[0].startswith(f"The average is {expected} the last: accuracy ")
    assert found.worse == (expected == "worse than")


def test_a_file_that_a_user_named_has_no_article():
    files = [
        Scores(f"{role}.keras", role, Path(f"{role}.keras"), None, {"loss": 0.5})
        for role in ("last", "average")
    ]
    found = Comparison(tuple(files), "loss")
    assert found.verdict[0].startswith("average.keras is about as good as last.keras: loss 0.5")


def test_the_path_alone_does_not_decide():
    rows = scores("last", 1.0, PASS), scores("average", 0.5, PASS)
    straight = Walk(8, 0.9, True)
    better = Comparison(rows, "accuracy", walk=straight).verdict
    assert better[-1].endswith("not worse for it here; one that starts later may be better.")
    about = Comparison(rows[::-1], "accuracy", -1, walk=Walk(8, 0.3, False)).verdict
    assert "ckptavg doctor" in about[-1]
    assert "evaluate both" in straight.meaning()
    best = Scores("best checkpoint", "best", Path("b"), PASS, {"accuracy": 0.1})
    assert "The best of all is the best checkpoint" in " ".join(
        Comparison((*rows, best), "accuracy").verdict
    )
