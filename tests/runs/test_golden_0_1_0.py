"""What ckptavg 0.1.0 wrote is read, proven and averaged again as 0.1.0 did."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import keras
import pytest

import ckptavg
from ckptavg import sweep
from ckptavg.merging.verify import INTACT, REPRODUCED
from ckptavg.runs.record import Record
from ckptavg.runs.record_files import record_path
from tests.helpers.command_line import main

GOLDEN = Path(__file__).parent.parent / "data" / "run-0.1.0"
COMMANDS = json.loads((GOLDEN / "commands.json").read_text())
AVERAGES = {
    "swa.weights.h5": "merge run",
    "ema.weights.h5": "merge run --last 3 --recipe ema --decay 0.7",
    "posthoc.weights.h5": "merge run --recipe posthoc-ema --sigma-rel 0.08",
}

pytestmark = pytest.mark.filterwarnings("ignore::ckptavg.errors.CkptavgWarning")  # few averages

MEASURED = {"seconds", "jobs", "memory", "peak"}
"""Keys of values that depend on the machine."""
DOCTOR = {"norm", "cosine", "worst_layer", "worst_cosine", "to_mean", "step", "warnings"}
"""Keys of what the doctor measures: since then of weights alone, as `measure_geometry` does; and
its warnings, of which there are more."""
WORDS = {"reason", "reasons", "command"}
"""Keys of sentences and commands, which later versions may put in other words."""
RECORD_KEYS_ADDED_SINCE: set[str] = set()
ADDED_SINCE = {"unproven", "window"}
"""Keys of what commands print that 0.1.0 did not know."""


@pytest.fixture
def golden(tmp_path, monkeypatch) -> Path:
    """A copy of the files, as the working folder."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "golden"))
    monkeypatch.chdir(folder)
    return folder


def comparable(content: Any, only_types: set[str]) -> Any:
    """JSON with the types alone of some values; floats to nine digits."""
    if isinstance(content, dict):
        return {
            key: type(value).__name__ if key in only_types else comparable(value, only_types)
            for key, value in content.items()
            if key not in ADDED_SINCE
        }
    if isinstance(content, list):
        return [comparable(value, only_types) for value in content]
    return pytest.approx(content, rel=1e-9, abs=1e-9) if isinstance(content, float) else content


def test_the_run_is_read(golden):
    run = ckptavg.open_run("run")
    assert [checkpoint.epoch for checkpoint in run.checkpoints] == [2, 3, 4, 5]
    assert [record.step for record in run.records] == [6, 9, 12, 15]
    assert all(record.versions["ckptavg"] == "0.1.0" for record in run.records)
    assert run.records[0].initial_learning_rate == pytest.approx(0.01)
    assert set(run.records[0].metrics) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert [(a.record.ema.sigma_rel, a.record.ema.step) for a in run.averages] == [
        (sigma_rel, step) for step in (5, 10, 15) for sigma_rel in (0.05, 0.1)
    ]
    assert run.model_file == Path("run/model.json")
    assert run.uncommitted == ()
    assert [log.epoch for log in run.history] == [1, 2, 3, 4, 5]
    assert run.history[3].metrics == run.records[2].metrics
    assert run.history[3].step == 12


def test_every_byte_is_proven_and_every_average_recomputed(golden):
    found = ckptavg.verify(["run", *AVERAGES, "fresh.keras"])
    assert {verification.proof for verification in found} == {INTACT}
    averages = [verification for verification in found if verification.average is not None]
    assert [average.path.name for average in averages] == [*AVERAGES, "fresh.keras"]
    assert {average.average for average in averages} == {REPRODUCED}
    # Records of 0.1.0 prove tensors only.
    assert {v.unproven for v in found[:-1]} == {("model.json",)}
    assert found[-1].unproven == ("metadata.json", "config.json", "model.json")


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_come_out_the_same(golden, name):
    (golden / "again").mkdir()
    status, _, err = main(*AVERAGES[name].split(), "-o", f"again/{name}")
    assert status == 0, err
    before, now = (Record.read(record_path(golden / part / name)) for part in ("", "again"))
    assert [source.coefficient for source in now.sources] == pytest.approx(
        [source.coefficient for source in before.sources], rel=1e-9, abs=1e-12
    )
    if "posthoc" not in name:  # its coefficients are those of a least-squares solver
        assert (golden / "again" / name).read_bytes() == (golden / name).read_bytes()
        assert now.read_tensors() == before.read_tensors()


def test_records_have_the_same_keys(golden):
    assert main("merge", "run", "-o", "again.weights.h5")[0] == 0
    before, now = (
        json.loads(Path(f"{name}.weights.h5.json").read_text()) for name in ("swa", "again")
    )
    assert [key for key in now if key not in RECORD_KEYS_ADDED_SINCE] == list(before)
    assert (now["format"], now["version"]) == (before["format"], before["version"])
    assert now["tensors"] == before["tensors"]
    assert now["sources"] == before["sources"]
    assert now["batch_norm"] == before["batch_norm"]


def test_the_saver_goes_on_with_the_run(golden):
    train = runpy.run_path("train.py")
    model = train["build_model"]()
    model.load_weights("run/checkpoints/epoch-0005.weights.h5")
    saver = ckptavg.CheckpointSaver(
        "run", start_epoch=2, lr_schedule="constant", swa_lr=0.005, existing="resume"
    )
    model.fit(train["x"], train["y"], initial_epoch=5, epochs=6, callbacks=[saver], verbose=0)
    run = ckptavg.open_run("run")
    assert [checkpoint.epoch for checkpoint in run.checkpoints] == [2, 3, 4, 5, 6]
    # read from saver.json: the learning rate that the training began with, not that of now
    assert run.records[-1].initial_learning_rate == run.records[0].initial_learning_rate


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_print_the_same_json(golden, name):
    expected = (golden / "json" / f"{name}.json").read_text()
    status, out, err = main(*COMMANDS[name].split())
    assert status == 0, err
    only_types = MEASURED | WORDS | (DOCTOR if name == "doctor" else set())
    found, before = (comparable(json.loads(text), only_types) for text in (out, expected))
    assert found == before


def test_scores_of_a_sweep_are_known(golden):
    train = runpy.run_path("train.py")
    keras.utils.set_random_seed(1)
    x, y = train["x"], train["y"]
    report = sweep(
        ckptavg.open_run("run"),
        model=train["build_model"](),
        data=x,
        eval_data=(x[:48], y[:48]),
        recipes=["uniform", "ema:0.9"],
        monitor="val_loss",
    )
    assert report.known == report.tried > 0
