"""The demo: what it writes, and what averaging does over five seeds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ckptavg import demo
from ckptavg.errors import OutputError

LAST, BEST, WITHOUT, WITH = (
    "last epoch",
    "best single checkpoint",
    "average without BatchNorm pass",
    "average with BatchNorm pass",
)


def test_over_five_seeds_averaging_helps_and_the_batch_norm_pass_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PLANE_POINTS", 3)
    reports = [
        demo.run_demo(tmp_path / str(seed), seed=seed, pictures=seed == 0) for seed in range(5)
    ]
    loss = {
        name: np.mean([report.scores[name]["loss"] for report in reports])
        for name in (LAST, BEST, WITHOUT, WITH)
    }
    assert loss[WITH] <= loss[LAST]
    assert loss[WITHOUT] >= 1.1 * loss[WITH]
    assert all(path.exists() for path in reports[0].files.values())
    pictures = {path.name for path in reports[0].files.values() if path.suffix == ".png"}
    assert pictures == {"curves.png", "trajectory.png", "loss_plane.png"}
    assert all((tmp_path / "0" / n).read_bytes().startswith(b"\x89PNG") for n in pictures)
    assert not [*(tmp_path / "1").glob("*.png")]


def test_the_printed_commands_do_the_same(tmp_path):
    command = [str(Path(sys.executable).with_name("ckptavg"))]
    first = subprocess.run(
        [*command, "demo", "-d", "d", "--no-pictures"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    commands = first.partition("the same by hand")[2].partition("\n")[2]
    assert commands.count("ckptavg ") == 3
    before = (tmp_path / "d" / "swa.weights.h5").read_bytes()
    script = "set -e\n" + commands.replace("  ckptavg ", f"  {command[0]} ")
    again = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "d" / "swa.weights.h5").read_bytes() == before
    row = next(line for line in first.splitlines() if line.startswith(WITH))
    printed = {line.split()[0]: line.split()[1] for line in again.stdout.splitlines()[-2:]}
    # The random shifts of the images differ from pass to pass, so statistics do a little.
    assert float(printed["loss"]) == pytest.approx(float(row.split()[-2]), abs=0.02)


def test_a_second_demo_replaces_the_first_but_nothing_else(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work").write_text("precious")
    with pytest.raises(OutputError, match="is not of a demo"):
        demo.run_demo(tmp_path / "mine")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "demo.json").write_text(json.dumps({"seed": 1}))
    (tmp_path / "d" / "old").write_text("")
    demo._prepare(tmp_path / "d", 2)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["demo.json"]
    assert (tmp_path / "mine" / "work").read_text() == "precious"
