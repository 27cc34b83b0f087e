"""A user's file is imported for a model or data: it must not train, and nothing may be lost."""

import sys

import keras
import pytest

from ckptavg.errors import SpecError
from ckptavg.models.batches import count_batches
from ckptavg.models.specs import as_data, as_inputs, load_model
from tests.helpers.command_line import TRAIN, main
from tests.helpers.models import compiled_model, tiny_data

_FIT = """
import ckptavg
saver = ckptavg.CheckpointSaver("run", start_epoch=1, existing="overwrite")
train_ds = keras.utils.PyDataset()
"""
_REFUSED = r"train\.py trains when it is imported \(train\.py, line \d+\): put fit, .* under `if __"


@pytest.fixture
def at_module_level(folder, monkeypatch):
    """Writes a train.py that trains when it is imported."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "train", raising=False)  # of another test

    def write(statement: str) -> None:
        (folder / "train.py").write_text(TRAIN + _FIT + statement + "\n")

    return write


def content(run):
    return {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "statement",
    [
        "build_model().fit(x, y, epochs=2, callbacks=[saver])",
        "build_model().fit(x, y, epochs=2)",
        # a custom training loop
        "saver.set_model(build_model()); saver.on_train_begin(); saver.on_epoch_begin(0)",
        "swa = ckptavg.SWA(2, directory='run', existing='overwrite')\n"
        "swa.set_model(build_model()); swa.on_train_begin(); swa.on_epoch_begin(0)",
        "try:\n    build_model().fit(x, y, callbacks=[saver])\nexcept Exception: pass",
        "try:\n    build_model().fit(x, y, callbacks=[saver])\nfinally: raise OSError('later')",
        "class Own(keras.Model):\n"
        "    def fit(self, *args, **kwargs): return super().fit(*args, **kwargs)\n"
        "Own().fit(x, y, callbacks=[saver])",
    ],
)
def test_a_training_at_module_level_is_refused_and_the_run_untouched(
    folder, at_module_level, statement
):
    at_module_level(statement)
    before = content(folder / "run")
    arguments = ("run", "-o", "d.keras", "--model", "train.py:build_model")
    status, _, err = main("merge", *arguments, "--data", "train.py:bn_data")
    assert status == 1
    assert "error: train.py trains when it is imported (train.py, line " in err
    assert content(folder / "run") == before
    assert not (folder / "d.keras").exists()
    # It was not imported whole: it is refused again.
    with pytest.raises(SpecError, match=_REFUSED):
        as_data("train.py:bn_data")
    with pytest.raises(SpecError, match=r"train trains when it is imported \(train\.py, line"):
        as_data("train:bn_data")


def test_a_file_that_the_named_one_imports_may_not_train_either(folder):
    (folder / "steps.py").write_text(TRAIN + "build_model().fit(x, y)\n")
    (folder / "train.py").write_text("from steps import build_model\n")
    with pytest.raises(SpecError, match=r"train\.py trains when .* \(steps\.py, line"):
        load_model("train.py:build_model")


def test_a_misspelled_name_imports_nothing(folder, at_module_level):
    at_module_level("open('was-run', 'w')")
    arguments = ("run", "-o", "d.keras", "--model", "train.py:build_model")
    status, _, err = main("merge", *arguments, "--data", "train.py:train_data")
    assert (status, "there is no 'train_data' in the file, it has: TRAIN" in err) == (1, False)
    assert "there is no 'train_data' in the file, it has: bn_data, build_model" in err
    assert not (folder / "was-run").exists()


def test_a_function_may_fit_but_not_into_a_run(folder, at_module_level):
    at_module_level(
        "def fitted():\n    model = build_model()\n    model.fit(x, y, verbose=0)\n"
        "    return model\n"
        "def saved():\n    build_model().fit(x, y, verbose=0, callbacks=[saver])"
    )
    before = content(folder / "run")
    assert load_model("train.py:fitted").built
    with pytest.raises(SpecError, match=r"train\.py:saved trains when it is called"):
        load_model("train.py:saved")
    assert content(folder / "run") == before


def test_fit_is_as_before_afterwards(folder, at_module_level):
    at_module_level("")
    before = keras.Model.fit
    load_model("train.py:build_model")
    assert keras.Model.fit is before
    assert "fit" not in vars(keras.Model)
    # A library that is imported for the first time may wrap `fit` for good.
    (folder / "wraps.py").write_text(
        "import keras\ninner = keras.Model.fit\n"
        "def fit(self, *args, **kwargs): return inner(self, *args, **kwargs)\n"
        "keras.Model.fit = fit\ndef data(): return [1]\n"
    )
    try:
        as_data("wraps.py:data")
        assert keras.Model.fit is not before
        x, y = tiny_data()
        compiled_model().fit(x, y, verbose=0)
    finally:
        del keras.Model.fit
    assert keras.Model.fit is before


def test_a_run_that_is_read_is_not_overwritten(folder, at_module_level):
    """Whatever the code does meanwhile, here in a thread that knows of no SPEC."""
    at_module_level(
        "import threading\nproblems = []\n"
        "def train():\n"
        "    try: build_model().fit(x, y, epochs=2, verbose=0, callbacks=[saver])\n"
        "    except Exception as error: problems.append(str(error))\n"
        "def data():\n"
        "    thread = threading.Thread(target=train)\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "    open('problems', 'w').write('\\n'.join(problems))\n"
        "    return x"
    )
    before = {path: held for path, held in content(folder / "run").items() if path.name != ".lock"}
    arguments = ("--model", "train.py:build_model", "--data", "train.py:data")
    status, _, err = main("merge", "run", "-o", "d.keras", *arguments)
    assert status == 0, err
    assert (
        "cannot replace the checkpoints of run, because a merge"
        in (folder / "problems").read_text()
    )
    after = content(folder / "run")
    assert {path: after[path] for path in before} == before
    load_model("train.py:build_model")


_ARGUMENTS = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
{more}
options = parser.parse_args()
def data(): return [options.epochs]
"""


def test_a_file_that_parses_arguments_gets_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ckptavg", "merge", "run", "--data", "train.py:data"])
    (tmp_path / "own.py").write_text(_ARGUMENTS.format(more=""))
    assert as_data("own.py:data") == [3]
    needs = _ARGUMENTS.format(more="parser.add_argument('--run', required=True)")
    (tmp_path / "needs.py").write_text(needs)
    with pytest.raises(
        SpecError,
        match=r"needs\.py ends the program when it is imported: System.*"
        r"2 \(needs\.py, line 6\)\. Put what reads the command line.* under `if __",
    ):
        as_data("needs.py:data")  # fmt: skip
    assert "usage: needs.py" in capsys.readouterr().err
    assert sys.argv[0] == "ckptavg"


_OBJECTS = """
import keras
import numpy as np
import tensorflow as tf
x, y = np.ones((4, 6)), np.arange(4)
arrays = x, y
named = {"x": x, "y": y}
dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(2)
model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
class Batches(keras.utils.PyDataset):
    def __len__(self): return 2
    def __getitem__(self, index): return x[:2], y[:2]
batches = Batches()
named_batches = tf.data.Dataset.from_tensor_slices(named).batch(2)
computed = int("5")
"""


def test_models_and_data_at_module_level(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "objects.py").write_text(_OBJECTS)
    model = load_model("objects.py:model")
    assert load_model("objects.py:model") is model
    assert as_data("objects.py:x").shape == (4, 6)
    for name in ("arrays", "named"):
        assert [part.shape for part in as_data(f"objects.py:{name}")] == [(4, 6), (4,)]
    for name in ("dataset", "batches", "Batches"):
        assert count_batches(as_data(f"objects.py:{name}"), None) == 2
    assert len(next(iter(as_data("objects.py:named_batches")))) == 2
    with pytest.raises(SpecError, match="'computed' is 5, but must be the model or data"):
        as_data("objects.py:computed")
    with pytest.raises(SpecError, match=r"objects\.py:dataset gave a _BatchDataset, but must give"):
        load_model("objects.py:dataset")
    with pytest.raises(SpecError, match=r"the preprocess SPEC 'objects\.py:x' is a ndarray, but m"):
        as_inputs([1], preprocess="objects.py:x")
