"""The options of a BatchNorm pass on the command line."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from ckptavg import doctor
from ckptavg.runs.record import Record
from ckptavg.runs.record_files import record_path
from tests.helpers.command_line import DATA, MODEL, main
from tests.helpers.files import read_tensors
from tests.helpers.models import evaluator, tiny_data


def statistics(path: str) -> dict[str, np.ndarray]:
    return {n: t for n, t in read_tensors(Path(path)).items() if n.endswith(("vars/2", "vars/3"))}


@pytest.fixture
def mean(folder) -> str:
    assert main("merge", "run", "-o", "mean.weights.h5")[0] == 0
    (folder / "pre.py").write_text("def scale(x): return x * 4\n")
    return "mean.weights.h5"


def test_how_a_pass_runs(mean):
    status, out, _ = main("update-bn", mean, "-o", "a.weights.h5", *MODEL, *DATA)
    assert status == 0
    assert "2 layers re-estimated from 96 samples in 3 batches" in out
    assert "moved       by up to " in out
    assert "doubtful    96 samples are few for the 5 channels" in out
    plain = statistics("a.weights.h5")
    options = {
        ("--bn-mode", "population"): 1e-2,
        ("--bn-mode", "cumulative"): 1e-3,
        ("--batch-size", "10"): 1e-4,
        ("--preprocess", "pre.py:scale"): 1.0,
        ("--mixed-precision",): 1e-6,
        ("--device", "cpu"): 0.0,
        ("--distribute", "mirrored"): 0.0,
    }
    for n, (option, least) in enumerate(options.items()):
        status, out, err = main(
            "update-bn", mean, "-o", f"{n}.weights.h5", *MODEL, *DATA, *option, "--json"
        )
        assert status == 0, err
        assert json.loads(out)["samples"] == 96
        found = statistics(f"{n}.weights.h5")
        moved = max(float(np.abs(found[name] - plain[name]).max()) for name in plain)
        assert moved >= least, option
        assert least or moved < 1e-5, option


def test_merge_takes_the_same_options(mean):
    same = ("--batch-size", 7, "--bn-mode", "cumulative", "--preprocess", "pre.py:scale")
    assert main("merge", "run", "-o", "o.weights.h5", *MODEL, *DATA, *same)[0] == 0
    assert main("update-bn", mean, "-o", "p.weights.h5", *MODEL, *DATA, *same)[0] == 0
    one, two = statistics("o.weights.h5"), statistics("p.weights.h5")
    assert all(np.array_equal(one[name], two[name]) for name in one)
    record = Record.read(record_path(Path("o.weights.h5"))).batch_norm
    assert (record.statistics, record.mode) == ("fresh", "cumulative")
    assert (record.samples, record.batches, record.data) == (96, 14, "train.py:bn_data")


def test_a_folder_of_images(folder):
    pictures = np.random.default_rng(0).integers(0, 255, (5, 4, 4, 3))
    for n, picture in enumerate(pictures):
        place = folder / "images" / "ab"[n % 2]
        place.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(place / f"{n}.png", picture, scale=False)
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.BatchNormalization()])
    model.save("m.keras")
    status, out, err = main("update-bn", "m.keras", "-o", "o.keras", "--data", "images", "--json")
    assert status == 0, err
    assert json.loads(out)["samples"] == 5
    found = keras.saving.load_model("o.keras").layers[0].moving_mean
    np.testing.assert_allclose(found, pictures.mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-size", "0"), "batch_size is 0, but must be an integer >= 1"),
        (("--bn-mode", "exact"), "bn_mode is 'exact', but must be"),
        (("--device", "gpu:77"), "finds"),
        (("--distribute", "tpu"), "must be 'mirrored'"),
        (("--preprocess", "pre.py:gone"), "there is no 'gone' in the file, it has: scale"),
    ],
)
def test_what_cannot_be_is_refused(mean, arguments, message):
    status, _, err = main("update-bn", mean, "-o", "a.weights.h5", *MODEL, *DATA, *arguments)
    assert status == 1
    assert err.startswith("error: ")
    assert message in err
    assert not Path("a.weights.h5").exists()


CHOOSING = ("--eval-data", "train.py:test_data")
SEARCHES = (
    ("sweep", "run", *CHOOSING),
    ("soup", "run", "-o", "o.weights.h5", *CHOOSING),
    ("doctor", "run", *CHOOSING),
)


def test_options_of_data_need_data(folder):
    for option in (("--batch-size", "3"), ("--preprocess", "a.py:b"), ("--steps", "2")):
        for command in (("merge", "run", "-o", "o.weights.h5"), *SEARCHES):
            status, _, err = main(*command, *option)
            assert status == 1
            assert f"(--data), or omit {option[0][2:].replace('-', '_')} ({option[0]})" in err


def test_searches_take_the_same_options(mean):
    same = ("--batch-size", 7, "--bn-mode", "cumulative", "--preprocess", "pre.py:scale")
    same = (*MODEL, *DATA, *same, "--steps", 3, "--mixed-precision", "--device", "cpu")
    assert main("update-bn", mean, "-o", "u.weights.h5", *same)[0] == 0
    expected = statistics("u.weights.h5")
    for command in (
        (*SEARCHES[0], "--budget", 1, "-o", "s.weights.h5"),
        ("soup", "run", "-o", "s.weights.h5", "--overwrite", *CHOOSING, "--method", "uniform"),
    ):
        status, _, err = main(*command, *same, "--distribute", "mirrored")
        assert status == 0, err
        found = statistics("s.weights.h5")
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-3)
        record = Record.read(record_path(Path("s.weights.h5"))).batch_norm
        assert (record.mode, record.samples, record.batches) == ("cumulative", 21, 3)


def test_the_doctor_takes_the_same_options(mean):
    pattern = "run/checkpoints/epoch-000[56].weights.h5"

    def losses(*options):
        status, out, err = main("doctor", pattern, *CHOOSING, *MODEL, *DATA, "--json", *options)
        assert status == 0, err
        return [checkpoint["loss"] for checkpoint in json.loads(out)["checkpoints"]]

    scaled = losses("--preprocess", "pre.py:scale", "--batch-size", 7, "--bn-mode", "population")
    x, y = tiny_data()
    report = doctor(pattern, model=evaluator(), data=4 * x, eval_data=(x, y), bn_mode="population")
    assert scaled == pytest.approx([d.loss for d in report.diagnoses], rel=1e-4)
    assert losses() != pytest.approx(scaled, rel=1e-2)
