"""SPECs: what they lead to, and which part failed when they do not."""

import zipfile

import keras
import numpy as np
import pytest

from ckptavg import evaluate, refresh_batch_norm, update_batch_norm, update_bn
from ckptavg.errors import ModelError, SpecError
from ckptavg.models.specs import as_data, as_model, load_model
from tests.helpers.models import randomize, tiny_data, tiny_model

_TRAIN = """
import keras
import helper  # a neighbour of this file

def build_model():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])

def data():
    return helper.numbers(), None

def nothing():
    return None

def wrong():
    return {"not": "a model"}

def broken():
    return 1 / 0

def needs(argument):
    return argument

class Leaving:
    def __call__(self):
        raise SystemExit(3)

constant = 5

def named():
    return {"x": helper.numbers(), "y": helper.numbers()[:, 0]}
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("import numpy\ndef numbers(): return numpy.ones((4, 6))\n")
    (tmp_path / "train.py").write_text(_TRAIN)
    (tmp_path / "bad_syntax.py").write_text("def f(:\n")
    (tmp_path / "bad_import.py").write_text("import no_such_thing\ndef f(): ...\n")
    (tmp_path / "bad_exit.py").write_text("raise SystemExit('bye')\ndef f(): ...\n")
    (tmp_path / "bad_file.py").write_text("open('gone.txt')\ndef f(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "train", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "spec", ["train.py:build_model", "./train.py:build_model", "train:build_model"]
)
def test_models(train, spec):
    assert load_model(spec).output_shape == (None, 3)
    assert as_data(spec.replace("build_model", "data"))[0].shape == (4, 6)


def test_a_file_is_imported_once(train):
    (train / "counted.py").write_text(
        "import pathlib\n"
        "with pathlib.Path('count').open('a') as f: f.write('x')\n"
        "def data(): return [1]\n"
    )
    as_data("counted.py:data")
    as_data("./counted.py:data")
    assert (train / "count").read_text() == "x"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("train.py", r"the model SPEC 'train.py' must have the form file.py:name or"),
        (":build_model", "must have the form"),
        ("train.py:", "must have the form"),
        ("gone.py:build_model", "there is no file gone.py"),
        ("gone.module:build_model", "there is no module gone"),
        ("train.py:build", "there is no 'build' in the file, it has: .*broken, build_model"),
        ("train.py:constant", "'constant' is 5, but must be the model or data"),
        ("train.py:wrong", "gave a dict, but must give a keras.Model"),
        ("train.py:nothing", "gave a NoneType"),
        ("train.py:broken", r"raised ZeroDivisionError: division by zero \(train.py, line 18\)"),
        ("train.py:needs", "raised TypeError: .*missing 1 required"),
        ("bad_syntax.py:f", "bad_syntax.py cannot be imported: SyntaxError"),
        ("bad_import.py:f", r"cannot be imported: ModuleNotFoundError: .*no_such_thing.* line 1\)"),
        ("bad_exit.py:f", "bad_exit.py ends the program when it is imported: SystemExit: bye"),
        ("bad_file.py:f", "cannot be imported: FileNotFoundError: .*gone.txt"),
        ("gone.keras", "there is no model file gone.keras"),
    ],
)
def test_the_part_that_failed_is_named(train, spec, message):
    with pytest.raises(SpecError, match=message):
        load_model(spec)


def test_keras_files_and_configurations(trained_run, tmp_path):
    model = tiny_model()
    model.save(tmp_path / "m.keras")
    assert load_model(tmp_path / "m.keras").compiled
    assert load_model(trained_run / "model.json").compiled
    (tmp_path / "text.keras").write_text("no archive")
    with pytest.raises(SpecError, match="Keras cannot load"):
        load_model(tmp_path / "text.keras")


def test_an_unknown_class_in_a_configuration_asks_for_a_callable(trained_run):
    path = trained_run / "model.json"
    path.write_text(path.read_text().replace('"class_name": "Dense"', '"class_name": "Denser"'))
    with pytest.raises(ModelError, match=r"pass --model file\.py:name"):
        load_model(path)


def test_arrays_in_a_file(tmp_path):
    x, y = np.ones((4, 6)), np.arange(4)
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    np.savez(tmp_path / "x.npz", x=x)
    np.savez(tmp_path / "other.npz", images=x)
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("no arrays")
    with zipfile.ZipFile(tmp_path / "bytes.npz", "w") as archive:
        archive.writestr("x.npy", "no array")
    assert [part.shape for part in as_data(tmp_path / "xy.npz")] == [(4, 6), (4,)]
    assert as_data(tmp_path / "x.npz").shape == (4, 6)
    for name, message in (
        ("other.npz", "must hold an array 'x', but holds images"),
        ("pickled.npz", "cannot read"),
        ("text.npz", "cannot read"),
        ("bytes.npz", "something else than arrays"),
        ("gone.npz", "there is no data file"),
    ):
        with pytest.raises(SpecError, match=message):
            as_data(tmp_path / name)


def test_data_that_is_nothing(train):
    with pytest.raises(SpecError, match="gave None, but must give data"):
        as_data("train.py:nothing")


def test_a_model_of_keras_only(train):
    assert isinstance(load_model("train.py:build_model"), keras.Model)


def test_live_objects_and_specs_are_taken_alike(train):
    x, y = np.ones((4, 6)), np.arange(4)
    model = load_model("train.py:build_model")
    assert as_model(model) is model
    assert as_model("train.py:build_model").output_shape == model.output_shape
    model.save(train / "m.keras")
    assert as_model(train / "m.keras").built
    assert as_data(x) is x
    assert as_data(None) is None
    for named in ({"x": x, "y": y}, "train.py:named"):
        assert [part.shape for part in as_data(named)] == [(4, 6), (4,)]
    assert len(as_data({"x": x, "y": y, "sample_weight": y})) == 3
    with pytest.raises(ModelError, match=r"the model is a builtins\.dict, but must be a keras\.M"):
        as_model({})


def test_inputs_named_x_and_y_are_inputs():
    inputs = {name: keras.Input((3,), name=name) for name in ("x", "y")}
    model = keras.Model(inputs, keras.layers.Add()(list(inputs.values())))
    data = {"x": np.ones((4, 3)), "y": np.ones((4, 3))}
    assert as_data(data, model=model) is data
    other = {"a": np.ones((4, 3)), "y": np.ones((4, 3))}
    assert as_data(other) is other


def test_evaluation_and_refreshing_by_specs_alone(train):
    model = randomize(tiny_model(), 3)
    x, y = tiny_data()
    model.save(train / "m.keras")
    model.save_weights(train / "a.weights.h5")
    np.savez(train / "xy.npz", x=x, y=y)
    live = evaluate(train / "a.weights.h5", model=model, data={"x": x, "y": y})
    assert evaluate(train / "a.weights.h5", model="m.keras", data="xy.npz") == live
    (train / "pre.py").write_text("def same(inputs): return inputs\n")
    by_spec, by_object = (
        update_bn(
            "a.weights.h5",
            f"{name}.weights.h5",
            model=given,
            data=data,
            batch_size=48,
            preprocess=preprocess,
            device="cpu",
        )
        for name, given, data, preprocess in (
            ("spec", "m.keras", "xy.npz", "pre.py:same"),
            ("object", model, (x, y), lambda inputs: inputs),
        )
    )
    moved = [[shift.mean for shift in r.batch_norm.shifts] for r in (by_spec, by_object)]
    assert moved[0] == moved[1]
    assert by_spec.batch_norm.batches == by_object.batch_norm.batches == 2
    assert (by_spec.record.batch_norm.data, by_object.record.batch_norm.data) == ("xy.npz", None)
    former = refresh_batch_norm("a.weights.h5", "b.weights.h5", model="m.keras", data="xy.npz")
    assert (former.batch_norm.mode, former.record.batch_norm.data) == ("batch", "xy.npz")
    with pytest.raises(SpecError, match=r"there is no data file gone\.npz"):
        update_batch_norm(model, "gone.npz")
