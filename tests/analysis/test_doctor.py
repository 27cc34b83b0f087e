"""The doctor: what it measures against plain numpy, and what it finds wrong."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import ckptavg
from ckptavg import doctor
from ckptavg.analysis.doctor import KEEP, LEAVE_OUT, outliers
from ckptavg.analysis.geometry import measure
from ckptavg.errors import RunError, SpecError
from tests.helpers.command_line import main
from tests.helpers.files import flip_bit, open_extent, read_tensors, write_h5
from tests.helpers.models import tiny_data, tiny_model
from tests.helpers.processes import run_blocked

NAME = "layers/dense/vars/0"
MODEL_WEIGHTS = {
    f"layers/{layer}batch_normalization/vars/{n}"
    for layer in ("", "sequential/layers/")
    for n in (0, 1)
}
"""Scales and offsets of the tiny model's BatchNorm layers; its other weights are Dense layers'."""


def write(path, values, **further):
    tensors = {NAME: values, "layers/other/vars/0": np.ones(3), **further}
    return write_h5(path, {n: np.asarray(v, "float32") for n, v in tensors.items()})


@pytest.fixture
def walk(tmp_path) -> list[Path]:
    """Eight checkpoints that walk about a point, as those of one training do."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=500)
    return [
        write(tmp_path / f"epoch-{n}.weights.h5", centre + 0.1 * rng.normal(size=500))
        for n in range(8)
    ]


@pytest.mark.parametrize("fewest", [7, 10**6])
def test_the_measures_are_those_of_numpy(checkpoints, monkeypatch, fewest):
    monkeypatch.setattr(measure, "_PIECES", 0)
    monkeypatch.setattr(measure, "_FEWEST", fewest)
    found = doctor(checkpoints).diagnoses
    tensors = [
        {n: v for n, v in read_tensors(p).items() if n in MODEL_WEIGHTS or "dense" in n}
        for p in checkpoints
    ]
    assert all(len(each) == 10 for each in tensors)
    flat = np.array([np.concatenate([v.ravel() for v in t.values()]) for t in tensors], "f8")
    mean = flat.mean(axis=0)
    for name, expected in (
        ("norm", np.linalg.norm(flat, axis=1)),
        ("to_mean", np.linalg.norm(flat - mean, axis=1)),
        ("step", [np.nan, *np.linalg.norm(np.diff(flat, axis=0), axis=1)]),
        ("cosine", flat @ mean / np.linalg.norm(flat, axis=1) / np.linalg.norm(mean)),
    ):
        values = [np.nan if d is None else d for d in (getattr(d, name) for d in found)]
        np.testing.assert_allclose(values, expected)
    layers = {name.rpartition("/vars/")[0] for name in tensors[0]}
    cosines = {}
    for layer in layers:
        part = np.array(
            [
                np.concatenate([v.ravel() for n, v in t.items() if n.startswith(f"{layer}/vars")])
                for t in tensors
            ],
            "f8",
        )
        centre = part.mean(axis=0)
        norms = np.linalg.norm(part, axis=1) * np.linalg.norm(centre)
        cosines[layer] = part @ centre / norms
    for number, diagnosis in enumerate(found):
        worst = min(layers, key=lambda layer: cosines[layer][number])
        assert diagnosis.worst_layer == worst
        assert diagnosis.worst_cosine == pytest.approx(cosines[worst][number])


def test_others_are_held_against_the_mean_of_those_that_are_sound(walk):
    sound = np.array([read_tensors(path)[NAME] for path in walk[1:]], "f8")
    write(walk[0], np.full(500, np.inf))
    found = doctor(walk).diagnoses[1:]
    distances = np.linalg.norm(sound - sound.mean(axis=0), axis=1)
    np.testing.assert_allclose([d.to_mean for d in found], distances)


def test_statistics_are_no_weights_but_may_be_broken(checkpoints):
    with h5py.File(checkpoints[1], "r+") as file:
        file["layers/batch_normalization/vars/3"][0] = np.nan
    found = doctor(checkpoints).diagnoses
    assert [bool(d.reasons) for d in found] == [False, True, False, False, False]
    assert "NaN or infinity in 'layers/batch_normalization/vars/3'" in found[1].reasons[0]


def test_numbers_whose_squares_are_infinite_break_one_checkpoint(tmp_path):
    paths = [
        write_h5(tmp_path / f"{n}.weights.h5", {NAME: np.array([1.0, value])})
        for n, value in enumerate((2.0, 1e200, 3.0))
    ]
    found = doctor(paths).diagnoses
    assert [bool(d.reasons) for d in found] == [False, True, False]
    assert found[2].norm == pytest.approx(np.sqrt(10))


def test_healthy_checkpoints_are_kept(walk, trained_run):
    for sources in (walk, trained_run):
        report = doctor(sources)
        assert [d.verdict for d in report.diagnoses] == [KEEP] * len(report.diagnoses)
    assert doctor(walk).warnings == ()


def drifting(tmp_path, *, straight: int, about: int, grows: float = 0.0) -> list[Path]:
    """Checkpoints that go straight on, then about one place; their norm may grow."""
    rng = np.random.default_rng(1)
    place, step = rng.normal(size=500), 0.05 * rng.normal(size=500)
    paths = []
    for n in range(straight + about):
        if n < straight:
            place = place + step
        noise = 0.02 * rng.normal(size=500)
        values = (place + noise) * (1 + grows * n)
        paths.append(write(tmp_path / f"epoch-{10 * n}.weights.h5", values))
    return paths


def test_a_path_that_leads_on_is_told_with_the_window_that_does_not(tmp_path):
    paths = drifting(tmp_path, straight=12, about=6)
    report = doctor(paths)
    assert [d.verdict for d in report.diagnoses] == [KEEP] * 18
    (warning,) = report.warnings
    assert "still on its way: 70% of the path through the checkpoints is displacement" in warning
    window = [checkpoint.path for checkpoint in report.window]
    assert window == paths[-len(window) :]
    assert 6 <= len(window) <= 8
    assert f"average the last {len(window)}, which stay about one place" in warning
    status, out, _ = main("doctor", *paths)
    assert status == 0
    assert f"keep 18 of 18 checkpoints, and average the last {len(window)}" in out
    assert f"merge {' '.join(map(str, window))} -o" in out
    assert json.loads(main("doctor", *paths, "--json")[1])["window"] == [*map(str, window)]
    # without an order there is no path
    assert doctor([*paths[9:], *paths[:9]]).warnings == ()


def test_norms_that_grow_are_told(tmp_path):
    report = doctor(drifting(tmp_path, straight=0, about=12, grows=0.1))
    first, last = (report.diagnoses[n].norm for n in (0, -1))
    assert last > 2 * first
    expected = f"the norm of the weights goes from {first:.4g} to {last:.4g}"
    assert expected in report.warnings[0]
    report = doctor(drifting(tmp_path, straight=9, about=0))
    assert report.window == ()
    assert "no 4 checkpoints at the end stay about one place: train longer" in report.warnings[0]


def sick(diagnoses):
    return {d.checkpoint.path.name: " ".join(d.reasons) for d in diagnoses if d.reasons}


def test_what_does_not_belong_is_named_with_its_reason(walk, tmp_path):
    values = read_tensors(walk[0])[NAME]
    write(walk[1], np.where(np.arange(500) == 3, np.nan, values))
    write(walk[3], 5 * values)
    write(walk[5], np.random.default_rng(9).permutation(values))
    shutil.copy(walk[0], tmp_path / "epoch-8.weights.h5")
    write(tmp_path / "epoch-9.weights.h5", values[:400])
    (tmp_path / "epoch-10.weights.h5").write_bytes(walk[0].read_bytes()[:3000])
    sources = [*walk, *(tmp_path / f"epoch-{n}.weights.h5" for n in (8, 9, 10))]
    report = doctor(sources)
    found = sick(report.diagnoses)
    assert set(found) == {f"epoch-{n}.weights.h5" for n in (1, 3, 5, 8, 9, 10)}
    for number, reason in (
        (1, f"holds NaN or infinity in '{NAME}'"),
        (3, "is much larger than the others'"),
        (5, "times as far from the mean as the others"),
        (8, f"is a duplicate of {walk[0]}"),
        (9, f"'{NAME}' has shape (500,) in"),
        (10, "not an intact"),
    ):
        assert reason in found[f"epoch-{number}.weights.h5"]
    assert [c.path for c in report.keep] == [walk[n] for n in (0, 2, 4, 6, 7)]
    shown = repr(report).splitlines()
    assert shown[0] == "DoctorReport: keep 5 of 11 checkpoints"
    assert shown[1].startswith("  leave out epoch-1.weights.h5: holds NaN or infinity")
    assert report.diagnoses[5].worst_layer == "layers/dense"
    ckptavg.merge(report.keep, tmp_path / "swa.weights.h5")


def test_damage_and_links(trained_run, tmp_path):
    run = ckptavg.open_run(trained_run)
    victim = run.checkpoints[1].path
    with open_extent(victim) as offset:
        flip_bit(victim, offset)
    report = doctor(trained_run)
    assert list(sick(report.diagnoses)) == ["epoch-0004.weights.h5"]
    assert "is damaged: 'layers/" in report.diagnoses[1].reasons[0]
    (tmp_path / "link.weights.h5").symlink_to(run.checkpoints[0].path)
    report = doctor([run.checkpoints[0].path, tmp_path / "link.weights.h5"])
    assert "is the same file as" in report.diagnoses[1].reasons[0]


def test_a_first_checkpoint_of_another_model_is_the_odd_one(walk, tmp_path):
    other = write(tmp_path / "a.weights.h5", np.zeros(3))
    report = doctor([other, *walk])
    assert list(sick(report.diagnoses)) == ["a.weights.h5"]


def test_outliers():
    assert np.all(outliers([1.0, 2.0, 100.0], 0.05) == 0)  # too few to tell
    assert np.all(outliers([2.0] * 6, 0.05) == 0)
    assert outliers([1.0, 1.1, 0.9, 1.0, 3.0], 0.05)[-1] > 6
    values = [1.0, 1.001, 0.999, 1.0, 1.2]
    assert outliers(values, 0.001)[-1] > 6
    assert outliers(values, 0.05)[-1] == pytest.approx(4.0)


def test_checkpoints_that_have_nothing_in_common_are_warned_of(checkpoints):
    report = doctor(checkpoints)
    assert "have little in common" in report.warnings[0]


def test_a_barrier_tells_basins_apart(tmp_path):
    """Two solutions that differ by a permutation of hidden units: equal, but not in the middle."""
    model = tiny_model(batch_norm=False, width=16)
    x, y = tiny_data()
    model.fit(x, y, epochs=60, verbose=0)
    weights = [v.numpy() for v in model.weights]
    rng = np.random.default_rng(0)
    paths = []
    for number in range(5):
        moved = [w + 0.001 * rng.normal(size=w.shape).astype("float32") for w in weights]
        if number < 2:  # the stem's five units, in another order
            order = np.array([2, 3, 4, 0, 1])
            moved[0], moved[1], moved[2] = moved[0][:, order], moved[1][order], moved[2][order]
        model.set_weights(moved)
        paths.append(tmp_path / f"epoch-{number}.weights.h5")
        model.save_weights(paths[-1])
    assert not sick(doctor(paths[2:]).diagnoses)
    report = doctor(paths, model=model, eval_data=(x, y))
    assert [d.verdict for d in report.diagnoses] == [LEAVE_OUT] * 2 + [KEEP] * 3
    assert "another basin" in report.diagnoses[0].reasons[-1]
    barriers = [d.barrier for d in report.diagnoses]
    assert barriers[-1] is None
    assert np.argmax(barriers[:-1]) == 1
    with pytest.raises(SpecError, match="are for midpoints: pass --eval-data"):
        doctor(paths, model=model)


def test_nothing_to_examine(tmp_path):
    (tmp_path / "a.weights.h5").write_bytes(b"no checkpoint")
    with pytest.raises(RunError, match="no checkpoint can be read"):
        doctor(tmp_path / "a.weights.h5")


def test_the_doctor_command(folder):
    status, out, err = main("doctor", "run")
    assert status == 0, err
    assert "keep 4 of 4 checkpoints" in out
    assert "ckptavg merge run -o swa.weights.h5" in out
    told = " ".join(out.split())
    for column in ("norm", "cosine", "worst layer", "to mean", "step"):
        assert column in out.splitlines()[0]
        assert f"{column}: " in told, column
    victim = Path("run/checkpoints/epoch-0005.weights.h5")
    with open_extent(victim) as offset:
        flip_bit(victim, offset)
    status, out, err = main("doctor", "run")
    assert status == 0, err
    assert "leave out epoch-0005.weights.h5: is damaged" in out
    assert "ckptavg merge run --epochs 3-4,6 -o swa.weights.h5" in out
    content = json.loads(main("doctor", "run", "--json")[1])
    assert content["command"] == "ckptavg merge run --epochs 3-4,6 -o swa.weights.h5"
    assert [c["verdict"] for c in content["checkpoints"]] == [KEEP, KEEP, LEAVE_OUT, KEEP]
    assert main(*content["command"].split()[1:])[0] == 0
    options = ("--model", "train.py:build_model", "--data", "train.py:bn_data")
    status, out, err = main("doctor", "run", *options, "--eval-data", "train.py:test_data")
    assert status == 0, err
    assert "barrier" in out
    # the run holds the configuration of the model
    assert main("doctor", "run", *options[2:], "--eval-data", "train.py:test_data")[1] == out
    for some in (options, options[:2], options[2:]):
        status, _, err = main("doctor", "run", *some)
        assert (status, "pass --eval-data SPEC" in err) == (1, True)


def test_the_doctor_needs_no_tensorflow(trained_run):
    code = "import ckptavg.cli; ckptavg.cli.main()"
    assert run_blocked(code, "doctor", str(trained_run)).returncode == 0
