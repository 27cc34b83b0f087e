"""`ckptavg.merge` as the command has it: choosing, live models, SPECs, evaluation."""

import json
import logging
import shutil
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

import ckptavg
from ckptavg.errors import CkptavgWarning, RecipeError, ResourceError, RunError, SpecError
from ckptavg.recipes.swad import Swad
from ckptavg.runs.record import Record
from ckptavg.runs.record_files import record_path
from tests.helpers.command_line import DATA, MODEL, main
from tests.helpers.files import read_tensors
from tests.helpers.models import evaluator, tiny_data, tiny_model

X, Y = tiny_data()


def same(one: str, two: str) -> bool:
    first, second = read_tensors(Path(one)), read_tensors(Path(two))
    return all(np.array_equal(first[name], second[name]) for name in first | second)


def test_choices_are_those_of_the_run(folder):
    run = ckptavg.open_run("run")
    chosen = {
        "last": {"last": 2},
        "epochs": {"epochs": [3, 5]},
        "best": {"best": 2, "monitor": "val_accuracy"},
        "both": {"epochs": range(3, 6), "best": 1},
        "mode": {"best": 1, "monitor": "accuracy", "mode": "min"},
    }
    for name, options in chosen.items():
        report = ckptavg.merge("run", f"{name}.weights.h5", **options)
        expected = [checkpoint.epoch for checkpoint in run.select(**options)]
        assert [source.epoch for source in report.plan.sources] == expected
        plan = ckptavg.plan_merge("run", f"{name}.plan.weights.h5", **options)
        assert plan.coefficients == report.plan.coefficients


def test_coefficients_are_paired_with_epochs_as_listed(folder):
    def pairs(epochs, coefficients, sources="run", **options):
        plan = ckptavg.plan_merge(
            sources, "a.weights.h5", epochs=epochs, coefficients=coefficients, **options
        )
        return {source.epoch: source.coefficient for source in plan.sources}

    assert pairs([6, 3, 5], [0.7, 0.2, 0.1]) == {3: 0.2, 5: 0.1, 6: 0.7}
    assert pairs([6, range(3, 6)], [0.4, 0.1, 0.2, 0.3]) == {3: 0.1, 4: 0.2, 5: 0.3, 6: 0.4}
    assert pairs(iter([6, 3]), [0.7, 0.3]) == {3: 0.3, 6: 0.7}
    assert pairs([6, 3, 5], [0.9, 0.1], last=2) == {5: 0.1, 6: 0.9}
    with pytest.raises(RecipeError, match="2 coefficients for 3 checkpoints"):
        pairs([6, 3, 5], [0.5, 0.5])
    with pytest.raises(RecipeError, match="a set of epochs has no order"):
        pairs({6, 3}, [0.5, 0.5])
    shutil.copytree("run", "run2")
    with pytest.raises(RecipeError, match="where an epoch has several checkpoints"):
        pairs([6, 3], [0.4, 0.3, 0.2, 0.1], ["run", "run2"])
    assert pairs([3, 6], [0.1, 0.2, 0.3, 0.4], ["run", "run2"]) == {3: 0.3, 6: 0.4}


def test_windows_of_swad(folder):
    window = {"n_converge": 1, "n_tolerance": 1, "tolerance_ratio": 0.1}
    one = ckptavg.merge("run", "a.weights.h5", window="swad", **window)
    two = ckptavg.merge("run", "b.weights.h5", window=Swad(**window))
    assert one.plan.sources == two.plan.sources
    with pytest.raises(RecipeError, match="window is 'swap', but must be 'swad'"):
        ckptavg.merge("run", "c.weights.h5", window="swap")


def test_the_record_notes_what_was_asked_for(folder):
    options = {"epochs": [3, 4, 6], "last": 2, "best": 1, "recipe": "ema", "decay": 0.1 + 0.2}
    record = ckptavg.merge("run", "a.weights.h5", **options).record
    asked = {"monitor": "val_loss", "mode": "auto", **options, "epochs": "3-4,6"}
    assert record.choice == Record.read(record_path(Path("a.weights.h5"))).choice == asked
    window = {"window": "swad", "n_converge": 1, "n_tolerance": 2, "tolerance_ratio": 0.5}
    record = ckptavg.merge("run", "b.weights.h5", **window, monitor="loss").record
    assert record.choice == {**window, "monitor": "loss", "mode": "auto"}
    assert ckptavg.merge("run", "c.weights.h5").record.choice == {}


def test_a_batch_norm_pass_keeps_what_was_asked_for(folder):
    options = {"last": 3, "recipe": "ema", "decay": 0.123456789}
    record = ckptavg.merge("run", "a.weights.h5", model=evaluator(), data=X, **options).record
    assert record.choice == Record.read(record_path(Path("a.weights.h5"))).choice == options
    assert ckptavg.update_bn("a.weights.h5", "b.weights.h5", data=X).record.choice == options


def test_parameters_of_recipes_are_keywords(folder):
    one = ckptavg.merge("run", "a.weights.h5", recipe="ema", decay=0.6)
    two = ckptavg.merge("run", "b.weights.h5", recipe="ema:0.6")
    assert one.plan.coefficients == two.plan.coefficients
    assert one.plan.recipe == "ema:0.6"
    with pytest.raises(RecipeError, match=r"has its parameters already: omit --decay"):
        ckptavg.merge("run", "c.weights.h5", recipe="ema:0.6", decay=0.7)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lsat'"):
        ckptavg.merge("run", "c.weights.h5", lsat=3)
    with pytest.raises(RecipeError, match="omit --epochs, --last, --best and --window"):
        ckptavg.merge("run", "c.weights.h5", recipe="posthoc-ema:0.1", last=2)
    with pytest.raises(RunError, match="epoch 9"):
        ckptavg.merge("run", "c.weights.h5", epochs=[9])


def test_live_objects_and_specs_come_to_the_same(folder):
    model = tiny_model()
    live = ckptavg.merge("run", "a.weights.h5", model=model, data=X, data_name="train.py:bn_data")
    named = ckptavg.merge(
        "run", "b.weights.h5", model="train.py:build_model", data="train.py:bn_data"
    )
    assert main("merge", "run", "-o", "c.weights.h5", *MODEL, *DATA)[0] == 0
    assert same("a.weights.h5", "b.weights.h5")
    assert same("a.weights.h5", "c.weights.h5")
    assert live.batch_norm is not None
    assert live.batch_norm.samples == named.batch_norm.samples == len(X)
    assert live.record.batch_norm == named.record.batch_norm
    assert live.record.batch_norm.statistics == "fresh"
    assert live.plan.output == live.output == Path("a.weights.h5")
    assert Record.read(record_path(live.output)).sources == live.record.sources
    weights = {v.path: np.array(v) for v in model.weights}
    model.load_weights("a.weights.h5")
    assert all(np.array_equal(weights[v.path], v) for v in model.weights)


def test_a_live_model_without_data_keeps_the_mean(folder):
    model = tiny_model()
    report = ckptavg.merge("run", "a.weights.h5", model=model)
    assert report.batch_norm is None
    ckptavg.merge("run", "b.weights.h5")
    assert same("a.weights.h5", "b.weights.h5")
    kernel = np.array(model.get_layer("stem").kernel)
    assert any(np.array_equal(kernel, t) for t in read_tensors(Path("b.weights.h5")).values())


@pytest.mark.parametrize("data", [None, "train.py:bn_data"])
def test_the_result_is_evaluated(folder, data):
    model = tiny_model()
    report = ckptavg.merge("run", "a.weights.h5", model=model, data=data, eval_data=(X, Y))
    expected = ckptavg.evaluate("a.weights.h5", model=evaluator(), data=(X, Y))
    assert report.metrics == pytest.approx(expected, rel=1e-5)
    assert set(report.metrics) == {"loss", "accuracy"}
    assert (report.batch_norm is None) == (data is None)
    arguments = ("--data", data) if data else ()
    evaluating = ("merge", "run", "-o", "b.keras", *arguments, "--eval-data", "train.py:test_data")
    status, out, err = main(*evaluating)
    assert status == 0, err
    assert f"  accuracy  {expected['accuracy']:.6g}" in out
    status, out, err = main(*evaluating, "--overwrite", "--json")
    assert status == 0, err
    assert json.loads(out)["metrics"] == pytest.approx(expected, rel=1e-5)
    assert "metrics" not in json.loads(main("merge", "run", "-o", "c.keras", "--json")[1])


def test_data_that_lead_nowhere_are_found_before_anything_is_written(folder):
    for options in ({"eval_data": "train.py:gone"}, {"data": "train.py:gone"}):
        with pytest.raises(SpecError, match="there is no 'gone'"):
            ckptavg.merge("run", "o.keras", **options)
    for output in ("o.safetensors", "o"):
        with pytest.raises(ckptavg.CkptavgError):
            ckptavg.merge("run", output, eval_data=(X, Y))
    with pytest.raises(ResourceError, match="without --data and --eval-data"):
        ckptavg.merge("run", "o.keras", eval_data=(X, Y), max_memory=2**30)
    with pytest.raises(SpecError, match=r"steps has no effect without data"):
        ckptavg.merge("run", "o.weights.h5", steps=3)
    assert not [*folder.glob("o*")]


def test_update_bn_and_evaluate_find_the_model(folder):
    ckptavg.merge("run", "swa.weights.h5")
    report = ckptavg.update_bn("swa.weights.h5", "bn.weights.h5", data=X)
    ckptavg.refresh_batch_norm("swa.weights.h5", "rf.weights.h5", model=evaluator(), data=X)
    assert same("bn.weights.h5", "rf.weights.h5")
    assert report.record.batch_norm.statistics == "fresh"
    assert report.record.batch_norm.data is None
    named = ckptavg.update_bn("swa.weights.h5", "n.weights.h5", data="train.py:bn_data", steps=2)
    assert named.record.batch_norm.data == "train.py:bn_data"
    assert named.batch_norm.batches == 2
    found = ckptavg.evaluate("run", data=(X, Y))
    path = ckptavg.open_run("run").checkpoints[-1].path
    assert found == pytest.approx(ckptavg.evaluate(path, model=evaluator(), data=(X, Y)))
    tiny_model().save_weights("bare.weights.h5")
    with pytest.raises(SpecError, match="pass --model SPEC"):
        ckptavg.evaluate("bare.weights.h5", data=(X, Y))


def test_searches_take_specs(folder):
    names = {"data": "train.py:bn_data", "eval_data": "train.py:test_data"}
    live = {"data": X, "eval_data": (X, Y)}
    one = ckptavg.sweep("run", "a.keras", model=evaluator(), **live)
    two = ckptavg.sweep("run", "b.keras", model="train.py:build_model", **names)
    assert two.known == 0 or two.known == two.tried
    assert one.best.metrics == pytest.approx(two.best.metrics, rel=1e-4)
    assert Record.read(record_path(Path("b.keras"))).batch_norm.data == "train.py:bn_data"
    soup = ckptavg.soup("run", "c.keras", **names)
    assert soup.metrics["loss"] <= one.entries[-1].metrics["loss"]
    with pytest.raises(SpecError, match="pass --eval-data SPEC, too"):
        ckptavg.doctor("run", data=X)
    found = ckptavg.doctor("run", **names, steps=1)
    assert all(diagnosis.loss is not None for diagnosis in found.diagnoses)


def test_warnings_of_libraries_are_logged_not_shown(folder, caplog, monkeypatch):
    Path("noisy.py").write_text(
        "import warnings\n"
        "from ckptavg.errors import CkptavgWarning\n"
        "from train import *\n"
        "def data():\n"
        "    warnings.warn('from a library')\n"
        "    warnings.warn('from ckptavg', CkptavgWarning)\n"
        "    return x\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "train", raising=False)  # that of another test
    with caplog.at_level(logging.INFO, logger="ckptavg"), warnings.catch_warnings():
        warnings.simplefilter("always")
        status, _, err = main("merge", "run", "-o", "o.keras", "--data", "noisy.py:data")
    assert status == 0, err
    assert "warning: from ckptavg" in err
    assert "from a library" not in err
    assert "UserWarning: from a library" in caplog.text
    assert issubclass(CkptavgWarning, UserWarning)


def test_a_keras_model_for_an_archive_needs_no_data(folder):
    ckptavg.merge("run", "a.keras", model=evaluator())
    assert isinstance(keras.saving.load_model("a.keras"), keras.Model)
