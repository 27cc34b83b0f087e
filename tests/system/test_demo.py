"""The demo: what it writes, and what averaging does over some seeds."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ckptavg import demo
from ckptavg.errors import OutputError

LAST, BEST, WITHOUT, WITH = ROWS = (
    "last epoch",
    "best single checkpoint",
    "average without BatchNorm pass",
    "average with BatchNorm pass",
)


@pytest.fixture(scope="module")
def printed(warm_ckptavg, tmp_path_factory) -> tuple[Path, str]:
    """The working folder of `ckptavg demo -d d --no-pictures`, seed 0, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    command = [warm_ckptavg, "demo", "-d", "d", "--no-pictures"]
    out = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return folder, out


def losses_in(out: str) -> dict[str, float]:
    """The losses of the table that the demo prints."""
    rows = {name: line for line in out.splitlines() for name in ROWS if line.startswith(name)}
    return {name: float(line.split()[-2]) for name, line in rows.items()}


@pytest.mark.parametrize("seeds", [(2,), pytest.param((1, 2, 3, 4), marks=pytest.mark.slow)])
def test_over_seeds_averaging_helps_and_the_batch_norm_pass_is_needed(
    printed, tmp_path, monkeypatch, seeds
):
    monkeypatch.setattr(demo, "PLANE_POINTS", 3)
    reports = [
        demo.run_demo(tmp_path / str(seed), seed=seed, pictures=seed == seeds[0]) for seed in seeds
    ]
    first = losses_in(printed[1])  # of seed 0
    loss = {
        name: np.mean([first[name], *(report.scores[name]["loss"] for report in reports)])
        for name in ROWS
    }
    assert loss[WITH] <= loss[LAST]
    assert loss[WITHOUT] >= 1.1 * loss[WITH]
    assert all(path.exists() for path in reports[0].files.values())
    pictures = {path.name for path in reports[0].files.values() if path.suffix == ".png"}
    assert pictures == {"curves.png", "trajectory.png", "loss_plane.png"}
    assert all((tmp_path / str(seeds[0]) / n).read_bytes().startswith(b"\x89PNG") for n in pictures)
    without = [printed[0] / "d", *(tmp_path / str(seed) for seed in seeds[1:])]
    assert not [path for folder in without for path in folder.glob("*.png")]


def test_the_printed_commands_do_the_same(printed, warm_ckptavg):
    folder, first = printed
    commands = first.partition("the same by hand")[2].partition("\n")[2]
    assert commands.count("ckptavg ") == 3
    before = (folder / "d" / "swa.weights.h5").read_bytes()
    script = "set -e\n" + commands.replace("  ckptavg ", f"  {warm_ckptavg} ")
    again = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert (folder / "d" / "swa.weights.h5").read_bytes() == before
    found = {line.split()[0]: line.split()[1] for line in again.stdout.splitlines()[-2:]}
    # The random shifts of the images differ from pass to pass, so statistics do a little.
    assert float(found["loss"]) == pytest.approx(losses_in(first)[WITH], abs=0.02)


def test_a_second_demo_replaces_the_first_but_nothing_else(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work").write_text("precious")
    with pytest.raises(OutputError, match="no demo made it"):
        demo.run_demo(tmp_path / "mine")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "demo.json").write_text(json.dumps({"seed": 1}))
    (tmp_path / "d" / "old").write_text("")
    demo._prepare(tmp_path / "d", 2)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["demo.json"]
    assert (tmp_path / "mine" / "work").read_text() == "precious"
