"""Post-hoc EMA: against the true averages of trajectories, and from runs that tracked two."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ckptavg
from ckptavg.errors import CkptavgWarning, RecipeError, RunError
from ckptavg.recipes.posthoc_ema import TrackedAverage, reconstruct
from ckptavg.runs.record import Record
from tests.helpers.command_line import main
from tests.helpers.files import read_tensors
from tests.helpers.models import randomize, tiny_model
from tests.helpers.posthoc_ema import EVERY, STEPS, TRACKED, track


def relative_error(found, true):
    return np.linalg.norm(found - true) / np.linalg.norm(true)


@pytest.mark.parametrize(("at_step", "longest"), [(STEPS, 0.20), (3008, 0.17)])
def test_any_length_is_reconstructed(trajectory, at_step, longest):
    tracked = {sigma: track(trajectory, sigma) for sigma in TRACKED}
    snapshots = [TrackedAverage(s, t) for t in range(EVERY, STEPS + 1, EVERY) for s in TRACKED]
    values = np.array([tracked[s.sigma_rel][s.step - 1] for s in snapshots])
    for sigma_rel in (s for s in (0.07, 0.08, 0.11, 0.13, 0.15, 0.17, 0.20) if s <= longest):
        found = reconstruct(snapshots, TrackedAverage(sigma_rel, at_step))
        assert sum(found.coefficients) == pytest.approx(1.0, abs=1e-12)
        assert all(
            c == 0.0 for c, s in zip(found.coefficients, snapshots, strict=True) if s.step > at_step
        )
        true = track(trajectory[:at_step], sigma_rel)[-1]
        assert relative_error(np.array(found.coefficients) @ values, true) < 1e-4, sigma_rel
        assert found.error < 0.01


def test_the_unit_of_time_does_not_matter():
    for scale in (1, 1000, 10**7):
        snapshots = [TrackedAverage(s, t * scale) for t in range(1, 33) for s in TRACKED]
        found = reconstruct(snapshots, TrackedAverage(0.13, 32 * scale)).coefficients
        if scale == 1:
            first = found
        assert found == pytest.approx(first, abs=1e-9)


def test_a_tracked_average_is_itself():
    snapshots = [TrackedAverage(s, t) for t in range(64, 1025, 64) for s in TRACKED]
    for number, snapshot in enumerate(snapshots):
        found = reconstruct(snapshots, snapshot)
        assert found.coefficients == tuple(float(n == number) for n in range(len(snapshots)))
        assert found.error == 0.0
    # and what is nearly a tracked one is nearly that snapshot
    near = reconstruct(snapshots, TrackedAverage(0.10 + 1e-7, 1024)).coefficients
    assert near[-1] == pytest.approx(1.0, abs=1e-4)


def test_the_error_tells_what_cannot_be_represented():
    snapshots = [TrackedAverage(s, t) for t in range(64, 4097, 64) for s in TRACKED]
    errors = [reconstruct(snapshots, TrackedAverage(s, 4096)).error for s in (0.1, 0.2, 0.25, 0.28)]
    assert errors == sorted(errors)
    assert errors[1] < 0.01 < errors[2]
    assert reconstruct(snapshots, TrackedAverage(0.02, 4096)).error > 0.01
    # between two snapshots the profile ends where none of them does
    assert reconstruct(snapshots, TrackedAverage(0.1, 4090)).error > 0.01


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.289, 0.5, float("nan"), None])
def test_lengths_that_no_profile_has(sigma_rel):
    with pytest.raises(RecipeError, match="sigma_rel is"):
        reconstruct([TrackedAverage(0.05, 10)], TrackedAverage(sigma_rel, 10))


def test_a_step_before_all_snapshots():
    with pytest.raises(RecipeError, match="ask for step 64 or a later one"):
        reconstruct([TrackedAverage(0.05, 128), TrackedAverage(0.05, 64)], TrackedAverage(0.1, 63))


def test_an_average_of_any_length_from_a_run(trajectory, tracked_run, tmp_path):
    out = tmp_path / "o.weights.h5"
    options = ("--recipe", "posthoc-ema", "--sigma-rel", 0.13)
    status, text, err = main("merge", tracked_run, "-o", out, *options)
    assert (status, err) == (0, "")
    assert "posthoc-ema:0.13" in text
    values = read_tensors(out)["layers/dense/vars/0"]
    assert relative_error(values, track(trajectory, 0.13)[-1]) < 1e-4
    record = Record.read(Path(f"{out}.json"))
    assert all(source.verified for source in record.sources)
    assert ckptavg.verify(out)[0].average == "reproduced"
    out2 = tmp_path / "p.weights.h5"
    status, _, err = main("merge", tracked_run, "-o", out2, *options, "--at-step", 3008)
    assert (status, err) == (0, "")
    values = read_tensors(out2)["layers/dense/vars/0"]
    assert relative_error(values, track(trajectory[:3008], 0.13)[-1]) < 1e-4
    assert Record.read(Path(f"{out2}.json")).recipe == "posthoc-ema:0.13 at step 3008"


def test_a_tracked_length_gives_the_tracked_file(tracked_run, tmp_path):
    from ckptavg.recipes import Recipe

    out = tmp_path / "o.weights.h5"
    recipe = Recipe("posthoc-ema", sigma_rel=0.10, at_step=2048)
    report = ckptavg.merge(tracked_run, out, recipe=recipe)
    assert len(report.record.sources) == 1
    tracked = tracked_run / "checkpoints" / "ema-0.100-step-00002048.weights.h5"
    assert read_tensors(out)["layers/dense/vars/0"].tobytes() == (
        read_tensors(tracked)["layers/dense/vars/0"].tobytes()
    )


def test_plain_merges_leave_tracked_averages_out(tracked_run, tmp_path):
    run = ckptavg.open_run(tracked_run)
    assert (len(run.checkpoints), len(run.averages), run.uncommitted) == (2, 128, ())
    for source in (tracked_run, tracked_run / "checkpoints"):
        report = ckptavg.merge(source, tmp_path / "o.weights.h5", overwrite=True)
        assert [Path(s.path).name for s in report.record.sources] == [
            "epoch-0001.weights.h5",
            "epoch-0002.weights.h5",
        ]
    with pytest.raises(RunError, match="which is an average, besides checkpoints"):
        ckptavg.merge(tracked_run / "checkpoints" / "*.weights.h5", tmp_path / "p.weights.h5")
    text = main("inspect", tracked_run)[1]
    assert "averages of sigma_rel 0.05, 0.1 at 64 steps" in text


def test_what_cannot_be_represented_is_warned_of(tracked_run, tmp_path):
    with pytest.warns(CkptavgWarning, match=r"cannot represent sigma_rel 0.28 at step 4096"):
        ckptavg.merge(tracked_run, tmp_path / "o.weights.h5", recipe="posthoc-ema:0.28")
    options = ("--recipe", "posthoc-ema", "--sigma-rel", 0.1, "--at-step", 4000)
    command = [sys.executable, "-m", "ckptavg", "merge", tracked_run, *map(str, options)]
    result = subprocess.run(
        [*command, "-o", tmp_path / "p.weights.h5"], capture_output=True, text=True, check=True
    )
    told = "warning: the tracked averages (sigma_rel 0.05, 0.1, 128 files) cannot represent"
    assert result.stderr.startswith(told)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sigma-rel", 0.3), "sigma_rel is 0.3, but must lie between 0 and 0.289"),
        ((), "posthoc-ema needs --sigma-rel"),
        (
            ("--sigma-rel", 0.1, "--at-step", 9999),
            "but the one at step 9999 is wanted",
        ),
        (("--sigma-rel", 0.1, "--at-step", 9), "ask for step 64 or a later one"),
        (("--sigma-rel", 0.1, "--last", 3), "takes all averages that a run has tracked"),
    ],
)
def test_what_is_refused(tracked_run, tmp_path, options, message):
    out = tmp_path / "o.weights.h5"
    status, _, err = main("merge", tracked_run, "-o", out, "--recipe", "posthoc-ema", *options)
    assert (status, message in err) == (1, True), err
    assert not out.exists()


def test_runs_that_tracked_nothing(trained_run, tmp_path):
    randomize(tiny_model(), 1).save_weights(tmp_path / "a.weights.h5")
    for source in (trained_run, tmp_path / "a.weights.h5"):
        with pytest.raises(RunError, match="tracked_sigmas"):
            ckptavg.merge(source, tmp_path / "o.weights.h5", recipe="posthoc-ema:0.1")


def test_averages_of_several_trainings_do_not_combine(tracked_run, tmp_path):
    runs = [tracked_run, shutil.copytree(tracked_run, tmp_path / "other")]
    with pytest.raises(RunError, match="name one run"):
        ckptavg.merge(runs, tmp_path / "o.weights.h5", recipe="posthoc-ema:0.1")
    files = sorted((tracked_run / "checkpoints").glob("ema-*.h5"))
    report = ckptavg.merge(files, tmp_path / "o.weights.h5", recipe="posthoc-ema:0.1")
    assert report.record.recipe == "posthoc-ema:0.1"


def test_a_record_that_does_not_say_which_average(tracked_run):
    folder = tracked_run / "checkpoints"
    record = folder / "ema-0.050-step-00000064.json"
    record.write_text(record.read_text().replace('"sigma_rel"', '"sigma"'))
    with pytest.raises(ckptavg.CkptavgError, match="is damaged"):
        ckptavg.open_run(tracked_run)
