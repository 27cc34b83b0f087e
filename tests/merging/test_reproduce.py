"""The commands in a report make the same average again, to the bit."""

import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import ckptavg
from ckptavg.merging.reproduce import averaging, refreshing, reproduction
from ckptavg.recipes import Recipe
from ckptavg.runs.checkpoint import Checkpoint
from tests.helpers.command_line import main


def again(output: str) -> tuple[str, ...]:
    """Runs the commands for an average, which is moved away; gives the commands."""
    commands = reproduction(Checkpoint.open(output))
    before = Path(output).read_bytes()
    for name in (output, f"{output}.json"):
        os.rename(name, f"former-{name}")  # noqa: PTH104
    for command in commands:
        status, _, err = main(*shlex.split(command)[1:])
        assert status == 0, err
    assert Path(output).read_bytes() == before
    return commands


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ((), "merge run"),
        (("--epochs", "3,5-6"), "merge run --epochs 3,5-6"),
        (("--last", 2), "merge run --epochs 5-6"),
        (("--recipe", "ema", "--decay", 0.7), "merge run --recipe ema --decay 0.7"),
        (("--recipe", "sqrt-decay", "--last", 3), "merge run --epochs 4-6 --recipe sqrt-decay"),
        (("--recipe", "power-ema", "--sigma-rel", 0.2), "merge run --recipe power-ema --sigma-rel"),
        (
            ("--recipe", "ema", "--decay", 0.1234567891),
            "merge run --recipe ema --decay 0.1234567891",
        ),
        (("--coefficients", "0.1,0.2,0.3,0.4"), "merge run/checkpoints/epoch-0003.weights"),
        (("--coefficients", "1,1,1,1", "--no-normalize"), "merge run/checkpoints/epoch-0003"),
    ],
)
def test_merges(folder, options, command):
    assert main("merge", "run", "-o", "o.weights.h5", *options)[0] == 0
    first, last = again("o.weights.h5")
    assert first.startswith(f"ckptavg {command}")
    assert last == "ckptavg verify o.weights.h5"


def test_checkpoints_of_nan_are_left_out_by_the_merge_again(folder):
    path = folder / "run" / "checkpoints" / "epoch-0004.json"
    text = path.read_text()
    path.write_text(text.replace('"non_finite": []', '"non_finite": ["layers/dense/vars/0"]'))
    assert path.read_text() != text
    assert main("merge", "run", "-o", "o.weights.h5")[0] == 0
    assert again("o.weights.h5")[0] == "ckptavg merge run -o o.weights.h5"


def test_statistics_of_a_pass_come_with_its_data(folder):
    options = ("--model", "train.py:build_model", "--data", "train.py:bn_data")
    assert main("merge", "run", "-o", "o.weights.h5")[0] == 0
    assert main("update-bn", "o.weights.h5", "-o", "o.keras", *options)[0] == 0
    assert refreshing(Checkpoint.open("o.weights.h5")) == (
        "ckptavg update-bn o.weights.h5 -o o-bn.weights.h5 --data SPEC"
    )
    commands = reproduction(Checkpoint.open("o.keras"))
    assert commands[0] == "ckptavg merge run -o o.keras --data train.py:bn_data"
    shutil.move("o.keras", "former.keras")
    assert main(*shlex.split(commands[0])[1:])[0] == 0
    (folder / "run" / "model.json").unlink()
    commands = reproduction(Checkpoint.open("o.keras"))
    assert commands[0] == "ckptavg merge run -o o.keras --model SPEC --data train.py:bn_data"


def test_a_copy_comes_after_what_it_is_a_copy_of(folder):
    pytest.importorskip("safetensors")
    assert main("merge", "run", "-o", "o.weights.h5", "--last", 2)[0] == 0
    assert main("convert", "o.weights.h5", "o.safetensors")[0] == 0
    assert reproduction(Checkpoint.open("o.safetensors")) == (
        "ckptavg merge run --epochs 5-6 -o o.weights.h5",
        "ckptavg convert o.weights.h5 o.safetensors",
        "ckptavg verify o.safetensors",
    )


def test_tracked_averages_are_combined_again(tracked_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe("posthoc-ema", sigma_rel=0.1, at_step=2048)
    ckptavg.merge("run", "o.weights.h5", recipe=recipe)
    words = "merge run --recipe posthoc-ema --sigma-rel 0.1 --at-step 2048"
    assert again("o.weights.h5")[0] == f"ckptavg {words} -o o.weights.h5"


def test_names_are_quoted_and_what_is_no_average_has_no_commands(folder):
    name = "it's $HOME; rm.weights.h5"
    run = Path(shutil.move("run", "a run"))
    assert main("merge", run, "-o", name)[0] == 0
    assert again(name)[0] == f"ckptavg merge 'a run' -o {shlex.quote(name)}"
    assert reproduction(ckptavg.open_run(run).checkpoints[0]) == ()
    assert averaging(ckptavg.open_run(run)) == (
        "ckptavg doctor 'a run'",
        "ckptavg merge 'a run' -o swa.weights.h5 --data SPEC",
    )


def test_a_run_that_has_gone_on_is_not_named_whole(folder):
    assert main("merge", "run", "-o", "o.weights.h5")[0] == 0
    source = folder / "run" / "checkpoints" / "epoch-0006"
    for suffix in (".weights.h5", ".json"):
        content = source.with_suffix(suffix).read_bytes().replace(b"epoch-0006", b"epoch-0007")
        if suffix == ".json":
            content = content.replace(b'"epoch": 6', b'"epoch": 7')
        source.with_name("epoch-0007").with_suffix(suffix).write_bytes(content)
    assert len(ckptavg.open_run("run").checkpoints) == 5
    assert again("o.weights.h5")[0] == "ckptavg merge run --epochs 3-6 -o o.weights.h5"


def test_recipes_read_what_they_write():
    for recipe in (
        Recipe("posthoc-ema", sigma_rel=0.1, at_step=2048),
        Recipe("posthoc-ema", sigma_rel=0.05),
        Recipe("uniform"),
    ):
        assert Recipe.parse(str(recipe)) == recipe
    with pytest.raises(ckptavg.CkptavgError):
        Recipe.parse("posthoc-ema:0.1 at step soon")
    assert np.isclose(Recipe.parse("ema:0.5").decay, 0.5)


def test_the_record_notes_what_was_asked_for(folder):
    for options, noted in (
        ((), {}),
        (("--epochs", "3,5-6"), {"epochs": "3,5-6"}),
        (("--best", 2, "--monitor", "loss"), {"best": 2, "monitor": "loss", "mode": "auto"}),
        (
            ("--last", 3, "--recipe", "ema", "--decay", 0.123456789),
            {"last": 3, "recipe": "ema", "decay": 0.123456789},
        ),
    ):
        assert main("merge", "run", "-o", "o.weights.h5", "--overwrite", *options)[0] == 0
        record = Checkpoint.open("o.weights.h5").record
        assert record.choice == noted
        assert ("choice" in Path("o.weights.h5.json").read_text()) == bool(noted)
    assert again("o.weights.h5")[0] == (
        "ckptavg merge run --epochs 4-6 --recipe ema --decay 0.123456789 -o o.weights.h5"
    )


def test_a_damaged_choice_is_told(folder):
    assert main("merge", "run", "-o", "o.weights.h5", "--last", 2)[0] == 0
    path = Path("o.weights.h5.json")
    path.write_text(path.read_text().replace('"last": 2', '"last": [2]'))
    with pytest.raises(ckptavg.errors.RecordError, match="is damaged"):
        Checkpoint.open("o.weights.h5")
