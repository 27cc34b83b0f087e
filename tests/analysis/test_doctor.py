"""The doctor: what it measures against plain numpy, and what it finds wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import ckptavg
from ckptavg.analysis.doctor import examination
from ckptavg.analysis.doctor.doctor import KEEP, LEAVE_OUT, doctor, outliers
from ckptavg.analysis.doctor.examination import examine
from ckptavg.errors import RunError, SpecError
from tests.helpers.command_line import main
from tests.helpers.files import flip_bit, open_extent, read_tensors, write_h5
from tests.helpers.models import tiny_data, tiny_model
from tests.helpers.processes import run_blocked

NAME = "layers/dense/vars/0"


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


@pytest.mark.parametrize("piece", [7, 10**6])
def test_the_measures_are_those_of_numpy(checkpoints, monkeypatch, piece):
    monkeypatch.setattr(examination, "PIECE", piece)
    found = examine([ckptavg.Checkpoint.open(p) for p in checkpoints])
    tensors = [
        {n: v for n, v in read_tensors(p).items() if not n.startswith("optimizer")}
        for p in checkpoints
    ]
    flat = np.array([np.concatenate([v.ravel() for v in t.values()]) for t in tensors], "f8")
    mean = flat.mean(axis=0)
    np.testing.assert_allclose(found.norms, np.linalg.norm(flat, axis=1))
    np.testing.assert_allclose(np.sqrt(found.to_mean), np.linalg.norm(flat - mean, axis=1))
    steps = np.linalg.norm(np.diff(flat, axis=0), axis=1)
    np.testing.assert_allclose(np.sqrt(found.steps), [0.0, *steps])
    cosines = flat @ mean / np.linalg.norm(flat, axis=1) / np.linalg.norm(mean)
    np.testing.assert_allclose(found.cosines, cosines)
    layer = found.layers.index("layers/dense")
    part = np.array(
        [np.concatenate([t[f"layers/dense/vars/{k}"].ravel() for k in (0, 1)]) for t in tensors],
        "f8",
    )
    centre = part.mean(axis=0)
    cosines = part @ centre / np.linalg.norm(part, axis=1) / np.linalg.norm(centre)
    np.testing.assert_allclose(found.layer_cosines[layer], cosines)


def test_healthy_checkpoints_are_kept(walk, trained_run):
    for sources in (walk, trained_run):
        report = doctor(sources)
        assert [d.verdict for d in report.diagnoses] == [KEEP] * len(report.diagnoses)
        assert report.warnings == ()


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
    with pytest.raises(SpecError, match="need both a model"):
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
