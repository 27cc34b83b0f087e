"""The command line, in a folder with a train.py as a user has it."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from ckptavg.formats import open_reader
from ckptavg.models.model import model_config
from ckptavg.runs.record import Record
from ckptavg.runs.record_files import record_path
from tests.helpers.command_line import DATA, MODEL, main
from tests.helpers.files import flip_bit, leftovers, read_tensors
from tests.helpers.models import tiny_data, tiny_model


def test_the_quick_start_in_processes_of_its_own(folder, warm_ckptavg):
    """One command that needs TensorFlow starts it; two find it started."""
    script = f"""
        set -e
        ckptavg merge run -o swa.weights.h5
        {warm_ckptavg} merge run -o swa.keras \
            --model train.py:build_model --data train.py:bn_data
        {warm_ckptavg} update-bn swa.weights.h5 -o swa-bn.weights.h5 \
            --model train.py:build_model --data train.py:bn_data
        ckptavg evaluate swa-bn.weights.h5 --model train.py:build_model --data train.py:test_data
        ckptavg inspect run
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # That level, which many set, does not quiet all.
    environment = {**os.environ, "PATH": path, "COLUMNS": "80", "TF_CPP_MIN_LOG_LEVEL": "2"}
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no terminal: no progress bars; and TensorFlow is kept quiet
    assert "statistics are stale" in result.stdout
    assert "2 layers re-estimated from 96 samples" in result.stdout
    assert re.search(r"accuracy +0\.\d+", result.stdout)
    assert max(len(line) for line in result.stdout.splitlines()) <= 100
    mean, refreshed = (read_tensors(folder / n) for n in ("swa.weights.h5", "swa-bn.weights.h5"))
    changed = {name for name in mean if mean[name].tobytes() != refreshed[name].tobytes()}
    assert changed == {
        f"layers/{place}batch_normalization/vars/{n}"
        for place in ("", "sequential/layers/")
        for n in (2, 3)
    }
    in_archive = read_tensors(folder / "swa.keras")
    assert {n: t.tobytes() for n, t in in_archive.items()} == {
        n: t.tobytes() for n, t in refreshed.items()
    }
    assert not leftovers(folder)


def test_statistics_of_the_commands_are_those_of_the_data(folder):
    main("merge", "run", "-o", "swa.keras", *MODEL, *DATA)
    model = keras.saving.load_model("swa.keras")
    inputs = tiny_data()[0].astype("float64")
    stem = model.get_layer("stem")
    outputs = inputs @ stem.kernel.numpy().astype("float64") + stem.bias.numpy()
    norm = model.get_layer("stem_bn")
    np.testing.assert_allclose(norm.moving_mean, outputs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, outputs.var(0), rtol=1e-5)
    record = Record.read(record_path(Path("swa.keras")))
    assert record.batch_norm.statistics == "fresh"
    assert (record.batch_norm.samples, record.batch_norm.data) == (96, "train.py:bn_data")
    assert [source.epoch for source in record.sources] == [3, 4, 5, 6]


def test_the_model_may_be_left_out(folder):
    assert main("merge", "run", "-o", "a.keras", *DATA)[0] == 0
    assert main("merge", "run", "-o", "b.weights.h5")[0] == 0
    Path("deep").mkdir()
    assert main("update-bn", "b.weights.h5", "-o", "deep/c.weights.h5", *DATA)[0] == 0
    for path in ("a.keras", "b.weights.h5", "deep/c.weights.h5", "run"):
        status, out, err = main("evaluate", path, "--data", "train.py:test_data", "--json")
        assert status == 0, err
        assert set(json.loads(out)["metrics"]) == {"loss", "accuracy"}
    assert Record.read(Path("deep/c.weights.h5.json")).sources[0].path.startswith("../run/")


def test_a_model_file_must_fit_and_hold_all_that_the_model_keeps(folder):
    other = keras.Sequential([keras.Input((6,)), keras.layers.Dense(9)])
    other.save("other.keras")
    status, _, err = main("merge", "run", "-o", "o.keras", "--model", "other.keras")
    assert (status, "must come from the same model" in err) == (1, True)
    words = keras.layers.TextVectorization(output_sequence_length=4)
    words.adapt(["a b c"])
    embedding = keras.layers.Embedding(9, 2)
    inputs = keras.Input((1,), dtype="string")
    model = keras.Model(inputs, embedding(words(inputs)))
    model.save("words.keras")
    model.save_weights("words.weights.h5")
    Path("words.json").write_text(model_config(model).to_json())  # without the vocabulary
    status, _, err = main("merge", "words.weights.h5", "-o", "o.keras", "--model", "words.json")
    assert (status, "Pass --model file.py:name" in err) == (1, True)
    assert not Path("o.keras").exists()
    (folder / "words.py").write_text(
        "import keras\ndef build(): return keras.saving.load_model('words.keras')\n"
    )
    text = keras.ops.convert_to_tensor([["b c"]])
    for number, spec in enumerate(("words.keras", "words.py:build")):
        out = f"o{number}.keras"
        status, _, err = main("merge", "words.weights.h5", "-o", out, "--model", spec)
        assert status == 0, err
        assert np.array_equal(keras.saving.load_model(out)(text), model(text))


def test_json_reports(folder):
    status, out, _ = main("merge", "run", "-o", "a.weights.h5", "--last", 2, "--json")
    report = json.loads(out)
    assert status == 0
    assert [s["epoch"] for s in report["sources"]] == [5, 6]
    assert report["batch_norm"]["statistics"] == "stale"
    assert report["tensors"] == {"average": 14}
    status, out, _ = main("update-bn", "a.weights.h5", "-o", "b.weights.h5", *DATA, "--json")
    assert json.loads(out)["samples"] == 96
    content = json.loads(main("inspect", "run", "--json")[1])
    assert [c["epoch"] for c in content["checkpoints"]] == [3, 4, 5, 6]
    content = json.loads(main("inspect", "b.weights.h5", "--json")[1])
    assert content["record"]["batch_norm"]["statistics"] == "fresh"
    assert len(content["tensors"]) == 14


def test_selections(folder):
    for arguments, expected in (
        (("--epochs", "3,5-6"), [3, 5, 6]),
        (("--epochs", "4-6", "--last", 1), [6]),
        (("--epochs", "1-4,6-110"), [3, 4, 6]),
        (("--coefficients", "0.1,0.2,0.3,0.4"), [3, 4, 5, 6]),
    ):
        status, out, err = main(
            "merge", "run", "-o", "a.weights.h5", "--overwrite", "--json", *arguments
        )
        assert status == 0, err
        assert [s["epoch"] for s in json.loads(out)["sources"]] == expected
    assert [s["coefficient"] for s in json.loads(out)["sources"]] == [0.1, 0.2, 0.3, 0.4]
    paired = ("--epochs", "6,3,5", "--coefficients", "0.7,0.2,0.1")
    status, out, err = main("merge", "run", "-o", "c.weights.h5", *paired)
    assert status == 0, err
    assert "recipe      coefficients: 0.2 of epoch 3, 0.1 of epoch 5, 0.7 of epoch 6" in out
    best = main("merge", "run", "-o", "b.weights.h5", "--best", 1, "--json")[1]
    losses = {
        r["epoch"]: r["metrics"]["val_loss"]
        for r in json.loads(main("inspect", "run", "--json")[1])["checkpoints"]
    }
    assert json.loads(best)["sources"][0]["epoch"] == min(losses, key=losses.get)


def test_inspect_lists_what_model_checkpoint_wrote(folder):
    (folder / "ckpt").mkdir()
    for epoch in (9, 10):
        tiny_model().save_weights(f"ckpt/model-{epoch:02d}-0.5.weights.h5")
    for source in ("ckpt", "ckpt/*.weights.h5"):
        status, out, err = main("inspect", source)
        assert status == 0, err
        assert f"{source}: 2 checkpoints of epochs 9-10, " in out
        assert re.search(r"model-09-0.5.weights.h5 +9 +14 +\d+\.\d kB +none\n", out)
        content = json.loads(main("inspect", source, "--json")[1])["checkpoints"]
        assert [(c["epoch"], c["record"]) for c in content] == [(9, None), (10, None)]
    Path("nothing").mkdir()
    assert "nothing holds no checkpoints: expected a run" in main("inspect", "nothing")[2]


def test_inspect_fits_a_terminal(folder):
    for path in ("run", "run/checkpoints/epoch-0003.weights.h5"):
        status, out, _ = main("inspect", path)
        assert status == 0
        assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("merge", ".", "-o", "o.weights.h5"), "not an intact HDF5 file"),
        (("merge", "gone", "-o", "o.weights.h5"), "there is no checkpoint gone"),
        (("merge", "empty", "-o", "o.weights.h5"), "holds no checkpoint yet"),
        (("merge", "text.weights.h5", "-o", "o.weights.h5"), "not an intact HDF5 file"),
        (
            ("merge", "run", "other.weights.h5", "-o", "o.weights.h5"),
            "must come from the same model",
        ),
        (("merge", "run", "-o", "there.weights.h5"), "--overwrite"),
        (("merge", "run", "-o", "o.txt"), "name an output that ends in .weights.h5, "),
        (("merge", "run", "-o", "gone/o.weights.h5"), "the folder gone does not exist"),
        (("merge", "run", "-o", "o.weights.h5", "--last", "9"), "ask for 1 to 4"),
        (("merge", "run", "-o", "o.weights.h5", "--coefficients", "1,1"), "2 coefficients for 4"),
        (("merge", "run", "-o", "o.weights.h5", "--max-memory", "1MiB"), "too low"),
        (("merge", "run", "-o", "o.weights.h5", "--jobs", "0"), "must be an integer >= 1"),
        (
            ("merge", "run", "-o", "o.weights.h5", "--steps", "2"),
            "steps has no effect without data: pass data (--data)",
        ),
        (("merge", "run", "-o", "o.keras", *MODEL, "--data", "gone.py:f"), "no file gone.py"),
        (("merge", "run", "-o", "o.keras", *MODEL, "--data", "train.py:f"), "there is no 'f'"),
        (("merge", "run", "-o", "o.keras", "--model", "train.py:f", *DATA), "there is no 'f'"),
        (
            ("merge", "run", "-o", "o.keras", "--model", "train.py:other_model", *DATA),
            "does not fit the model",
        ),
        (
            ("merge", "run", "-o", "o.keras", *MODEL, "--data", "train.py:narrow_data"),
            "the model rejects batch 0",
        ),
        (("merge", "other.weights.h5", "-o", "o.keras"), "Pass a model (--model)"),
        (("merge", "other.weights.h5", "-o", "o.keras", *DATA), "pass --model SPEC"),
        (("merge", "nan.weights.h5", "-o", "o.weights.h5"), "holds NaN"),
        (("update-bn", "gone.weights.h5", "-o", "o.weights.h5", *DATA), "there is no checkpoint"),
        (("update-bn", "other.weights.h5", "-o", "o.weights.h5", *DATA), "pass --model SPEC"),
        (("update-bn", "text.weights.h5", "-o", "o.weights.h5", *MODEL, *DATA), "not an intact"),
        (
            ("update-bn", "other.weights.h5", "-o", "o.weights.h5", *MODEL, *DATA),
            "does not fit the model",
        ),
        (
            (
                "evaluate",
                "other.weights.h5",
                "--model",
                "train.py:other_model",
                "--data",
                "train.py:test_data",
            ),
            "is not compiled",
        ),
        (
            ("evaluate", "run", "--data", "train.py:narrow_data"),
            "have no targets",
        ),
        (("inspect", "gone"), "there is no checkpoint gone: name a run, a file, a folder"),
        (("inspect", "empty"), "holds no checkpoint yet"),
    ],
)
def test_bad_input_gets_an_error_and_no_output(folder, arguments, message):
    (folder / "empty" / "checkpoints").mkdir(parents=True)
    (folder / "text.weights.h5").write_text("not a checkpoint")
    (folder / "there.weights.h5").write_text("precious")
    keras.Sequential([keras.Input((6,)), keras.layers.Dense(9)]).save_weights("other.weights.h5")
    model = tiny_model()
    model.get_layer("head").kernel.assign(np.full((4, 3), np.nan))
    model.save_weights("nan.weights.h5")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status, out, err = main(*arguments)
    assert status == 1, err
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    after = {path: data for path, data in after.items() if "__pycache__" not in path.parts}
    assert after == before


def test_a_damaged_file_is_not_loaded(folder):
    assert main("merge", "run", "-o", "a.weights.h5")[0] == 0
    with open_reader(Path("a.weights.h5")) as reader:
        flip_bit(reader.path, next(iter(reader.structure.tensors.values())).extent.offset)
    for command in (
        ("update-bn", "a.weights.h5", "-o", "o.weights.h5", *DATA),
        ("evaluate", "a.weights.h5", "--data", "train.py:test_data"),
    ):
        status, _, err = main(*command)
        assert status == 1
        assert "a.weights.h5 is damaged: block 0 of" in err
    assert not Path("o.weights.h5").exists()


def test_an_unbuilt_model_is_built_from_the_data(folder):
    (folder / "lazy.py").write_text(
        "import keras\n"
        "def build():\n"
        "    m = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])\n"
        "    m.compile('sgd', 'mse')\n"
        "    return m\n"
    )
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
    model.build((None, 6))
    model.save_weights("lazy.weights.h5")
    status, _, err = main(
        "update-bn", "lazy.weights.h5", "-o", "o.weights.h5", "--model", "lazy.py:build", *DATA
    )
    assert status == 0, err


def test_wrong_usage_is_status_2(folder):
    assert main("merge")[0] == 2
    assert main("merge", "run", "-o", "o.weights.h5", "--epochs", "x")[0] == 2
    assert main("merge", "run", "-o", "o.weights.h5", "--max-memory", "much")[0] == 2


def test_version_and_help():
    assert main("--version")[1].startswith("ckptavg ")
    for command in ((), ("demo",), ("merge",), ("update-bn",), ("evaluate",), ("inspect",)):
        status, out, _ = main(*command, "--help")
        assert status == 0
        assert "Usage: ckptavg" in out


def test_json_is_alone_on_stdout(folder):
    (folder / "talkative.py").write_text(
        "print('hello')\n"
        "import train\n"
        "def build():\n"
        "    model = train.build_model()\n"
        "    model.summary()\n"
        "    return model\n"
        "def data():\n"
        "    print('reading')\n"
        "    yield train.x\n"
    )
    status, out, err = main(
        "merge",
        "run",
        "-o",
        "o.keras",
        "--model",
        "talkative.py:build",
        "--data",
        "talkative.py:data",
        "--json",
    )
    assert status == 0, err
    assert json.loads(out)["batch_norm"]["statistics"] == "fresh"
    assert "reading" in err


def test_a_spec_that_leaves_is_an_error(folder):
    (folder / "leaving.py").write_text("import sys\ndef data(): sys.exit(3)\n")
    status, _, err = main(
        "update-bn",
        "run/checkpoints/epoch-0003.weights.h5",
        "-o",
        "o.weights.h5",
        "--data",
        "leaving.py:data",
    )
    assert status == 1
    assert "leaving.py:data was called and raised SystemExit: 3 (leaving.py, line 2)" in err


def test_data_that_can_be_read_once_are_read_whole_also_by_an_unbuilt_model(folder):
    (folder / "once.py").write_text(
        "import keras, train\n"
        "def build():\n"
        "    m = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])\n"
        "    m.compile('sgd', 'mse', metrics=[keras.metrics.F1Score()])\n"
        "    return m\n"
        "def inputs(): return (train.x[i:i + 32] for i in (0, 32, 64))\n"
        "def pairs():\n"
        "    hot = keras.utils.to_categorical(train.y, 3)\n"
        "    return ((train.x[i:i + 32], hot[i:i + 32]) for i in (0, 32, 64))\n"
        "def arrays(): return train.x, keras.utils.to_categorical(train.y, 3)\n"
    )
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
    model.build((None, 6))
    model.save_weights("once.weights.h5")
    spec = ("--model", "once.py:build")
    out = main(
        "update-bn",
        "once.weights.h5",
        "-o",
        "o.weights.h5",
        *spec,
        "--data",
        "once.py:inputs",
        "--json",
    )[1]
    assert json.loads(out)["samples"] == 96
    found = [
        json.loads(main("evaluate", "o.weights.h5", *spec, "--data", f"once.py:{d}", "--json")[1])
        for d in ("pairs", "arrays")
    ]
    assert found[0]["metrics"] == pytest.approx(found[1]["metrics"], rel=1e-5)
    assert set(found[0]["metrics"]) == {"loss", "f1_score_0", "f1_score_1", "f1_score_2"}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("42", "data are of type int, but must be"),
        ("tf.data.Dataset.from_tensors((train.x, train.y)).repeat()", "needs one that ends"),
        ("(train.x,) * 4", "must be x, (x, y) or (x, y, sample_weight), but has 4 parts"),
    ],
)
def test_data_that_cannot_be_evaluated(folder, returned, message):
    code = f"import tensorflow as tf, train\ndef data(): return {returned}\n"
    (folder / "odd.py").write_text(code)
    sys.modules.pop("train", None)
    for name in [name for name in sys.modules if name.startswith("_ckptavg_spec_")]:
        del sys.modules[name]
    status, out, err = main("evaluate", "run", "--data", "odd.py:data")
    assert (status, out) == (1, "")
    assert message in err


def test_a_layer_that_saves_a_tensor_twice_is_no_mismatch(folder):
    (folder / "spectral.py").write_text(
        "import keras\n"
        "def build():\n"
        "    dense = keras.layers.SpectralNormalization(keras.layers.Dense(4))\n"
        "    norm = keras.layers.BatchNormalization()\n"
        "    return keras.Sequential([keras.Input((6,)), dense, norm])\n"
    )
    dense = keras.layers.SpectralNormalization(keras.layers.Dense(4))
    model = keras.Sequential([keras.Input((6,)), dense, keras.layers.BatchNormalization()])
    model.save_weights("s.weights.h5")
    assert len(read_tensors(Path("s.weights.h5"))) > len(model.weights)
    status, _, err = main(
        "update-bn", "s.weights.h5", "-o", "o.weights.h5", "--model", "spectral.py:build", *DATA
    )
    assert status == 0, err


def test_progress_bars_on_a_terminal(folder, warm_ckptavg):
    command = [warm_ckptavg, "merge", "run", "-o", "o.keras"]
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*command, *MODEL, *DATA],
        stderr=follower,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
        while chunk := os.read(leader, 65536):
            shown += chunk
    os.close(leader)
    out = process.communicate()[0]
    assert process.returncode == 0
    assert b"merging" in shown
    assert b"BatchNorm pass" in shown
    assert b"Traceback" not in shown
    assert b"\x1b" not in out


def test_terminating_a_merge_leaves_nothing(folder):
    (folder / "slow.py").write_text(
        "import time\n"
        "def data():\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(60)\n"
        "    yield 1\n"
    )
    # A process of its own from the start: what is tested is how it takes a signal.
    program = str(Path(sys.executable).with_name("ckptavg"))
    command = [program, "merge", "run", "-o", "o.keras", *MODEL, "--data", "slow.py:data"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert b"waiting\n" in iter(process.stderr.readline, b"")
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert not leftovers(folder)
    assert not Path("o.keras").exists()


def test_a_dry_run_says_what_would_be_done_and_does_nothing(folder):
    before = sorted(folder.rglob("*"))
    status, out, _ = main("merge", "run", "-o", "o.weights.h5", "--dry-run")
    assert status == 0
    assert sorted(p for p in folder.rglob("*") if "__pycache__" not in p.parts) == before
    assert "would write o.weights.h5, nothing is written now" in out
    assert re.search(r"run/checkpoints/epoch-0003.weights.h5 +3 +0.25 .* record", out)
    assert re.search(r"layers/dense/vars/0 +\(6, 5\) +float32 +average +mean of 4", out)
    plan = json.loads(main("merge", "run", "-o", "o.weights.h5", "--dry-run", "--json")[1])
    report = json.loads(main("merge", "run", "-o", "o.weights.h5", "--json")[1])
    assert plan["bytes_read"] == report["bytes_read"]
    assert plan["bytes_written"] == report["bytes_written"]
    assert plan["files"] == ["o.weights.h5"]
    assert {tensor["action"] for tensor in plan["tensors"]} == {"average"}


def test_verify_and_convert(folder):
    assert main("merge", "run", "-o", "o.weights.h5")[0] == 0
    status, out, _ = main("verify", "run", "o.weights.h5")
    assert status == 0
    assert "epoch-0006.weights.h5: intact\n" in out
    assert "o.weights.h5: intact, the average of 4 checkpoints, recomputed to the bit" in out
    status, out, _ = main("convert", "o.weights.h5", "o.safetensors")
    assert status == 0
    assert "proven by its record" in out
    assert main("convert", "o.safetensors", "back.weights.h5")[0] == 0
    assert Path("back.weights.h5").read_bytes() == Path("o.weights.h5").read_bytes()
    status, out, _ = main("verify", "o.safetensors", "back.weights.h5", "--json")
    assert [c["average"] for c in json.loads(out)["checkpoints"]] == ["reproduced"] * 2
    Path("other.safetensors").write_bytes(Path("o.safetensors").read_bytes())
    out = main("verify", "other.safetensors")[1]
    assert "1 of 1 have no record and could not be verified" in out
    with open_reader(Path("o.weights.h5")) as reader:
        flip_bit(reader.path, next(iter(reader.structure.tensors.values())).extent.offset)
    status, out, err = main("verify", "o.weights.h5")
    assert (status, out) == (1, "")
    assert "o.weights.h5 is damaged: block 0 of" in err


def test_a_folder_and_a_quoted_pattern(folder):
    Path("ckpt").mkdir()
    for epoch in (9, 10, 11):
        model = tiny_model()
        model.get_layer("stem").bias.assign(np.full(5, float(epoch)))
        model.save_weights(f"ckpt/weights.{epoch}.weights.h5")
    for source in ("ckpt", "ckpt/weights.*.weights.h5"):
        arguments = ("merge", source, "-o", "o.weights.h5", "--last", 2, "--overwrite")
        status, out, err = main(*arguments)
        assert status == 0, err
        assert "the mean of 2 checkpoints (epochs 10-11)" in out
        assert "2 of 2 checkpoints unverified" in out


def test_rules_for_what_has_no_mean(folder):
    for number in (1, 2):
        with h5py.File(f"c{number}.weights.h5", "w") as file:
            file["layers/x/vars/0"] = np.float32([number])
            file["layers/x/vars/1"] = np.int64(number)
    merging = ("merge", "c1.weights.h5", "c2.weights.h5", "-o", "o.weights.h5")
    assert "--non-float last" in main(*merging)[2]
    assert main(*merging, "--non-float", "last")[0] == 0
    assert "must be 'equal' or 'last'" in main(*merging, "--overwrite", "--non-float", "mean")[2]
    coefficients = ("--coefficients", "1,1", "--non-float", "last", "--overwrite")
    assert "--no-normalize" in main(*merging, *coefficients)[2]
    assert main(*merging, *coefficients, "--no-normalize")[0] == 0
