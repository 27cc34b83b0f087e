"""Averages of several trainings say so: which, and in what they differ as far as it is recorded."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import ckptavg
from ckptavg.runs.record import Record
from ckptavg.runs.record_files import record_path
from ckptavg.runs.sources import resolve
from ckptavg.runs.trainings import find_trainings
from tests.helpers.command_line import main
from tests.helpers.models import tiny_data


def another(run: Path, name: str) -> Path:
    """The same training at other rates, in mixed_float16, with another optimizer."""
    copy = Path(shutil.copytree(run, run.with_name(name)))
    for path in (copy / "checkpoints").glob("*.json"):
        record = Record.read(path)
        changed = dataclasses.replace(record, learning_rate=0.05 * record.epoch)
        changed.write(path, record.read_tensors())
    path = copy / "model.json"
    content = json.loads(path.read_text())
    content["config"]["config"]["dtype"]["config"]["name"] = "mixed_float16"
    content["config"]["compile_config"]["optimizer"]["class_name"] = "AdamW"
    path.write_text(json.dumps(content))
    return copy


def test_two_trainings_are_told_with_their_differences(folder):
    another(Path("run"), "other")
    status, text, err = main("merge", "run", "other", "-o", "a.weights.h5")
    assert status == 0, err
    told = " ".join(text.split())
    assert "wrote a.weights.h5: the mean of 8 checkpoints of 2 trainings tensors" in told
    config = json.loads(Path("run/model.json").read_text())["config"]
    optimizer = config["compile_config"]["optimizer"]["class_name"]
    differences = (
        "learning rate (0.005, 0.15 to 0.3)",
        "dtype policy (float32, mixed_float16)",
        f"optimizer ({optimizer}, AdamW)",
    )
    assert f"2 trainings: run, other. They differ in {', '.join(differences)}." in told
    assert any(line.endswith("  ckptavg doctor run other") for line in text.splitlines())
    assert main("doctor", "run", "other")[0] == 0
    assert Record.read(record_path(Path("a.weights.h5"))).differences == differences
    options = ("merge", "run", "other", "-o", "b.weights.h5")
    planned = json.loads(main(*options, "--dry-run", "--json")[1])
    assert planned["trainings"] == {"runs": ["run", "other"], "differences": [*differences]}
    assert json.loads(main(*options, "--json")[1])["trainings"] == planned["trainings"]
    # a pass keeps what the record says, and a report tells it
    spec, inputs = "train.py:build_model", tiny_data()[0]
    refreshed = ckptavg.update_bn("a.weights.h5", "bn.weights.h5", model=spec, data=inputs)
    assert refreshed.record.differences == differences
    assert repr(ckptavg.plan_merge(["run", "other"], "c.weights.h5")).endswith(differences[-1])


@pytest.mark.parametrize(
    "config", ["class_name", ["class_name"], {"class_name": "Functional", "compile_config": [1]}]
)
def test_a_configuration_of_another_form_is_damage(folder, config):
    path = another(Path("run"), "other") / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))
    with pytest.raises(ckptavg.CkptavgError, match=r"other/model\.json is damaged"):
        ckptavg.plan_merge(["run", "other"], "a.weights.h5")


def test_one_training_is_not_several(folder):
    Path("link").symlink_to("run")
    for sources in ("run", ["run/checkpoints/epoch-0003.weights.h5", "link"], ["run"]):
        assert find_trainings(resolve(sources)) is None
    plan = ckptavg.plan_merge("run", "a.weights.h5")
    assert plan.trainings is None
    ckptavg.run_plan(plan)
    # records of one training are as they were
    assert "differences" not in json.loads(Path("a.weights.h5.json").read_text())
    shutil.copy("run/checkpoints/epoch-0003.weights.h5", "elsewhere.weights.h5")
    assert find_trainings(resolve(["run", "elsewhere.weights.h5"])) is None


def test_trainings_that_differ_in_nothing_that_is_recorded(folder):
    shutil.copytree("run", "again")
    found = find_trainings(resolve(["run", "again"]))
    assert (found.runs, found.differences) == ((Path("run"), Path("again")), ())
    assert found.summary.endswith("Their records show no difference")
    # what is missing or damaged is no difference
    Path("again/model.json").write_text("{")
    assert find_trainings(resolve(["run", "again"])) == found
    Path("again/model.json").unlink()
    assert find_trainings(resolve(["run", "again"])) == found
