"""The model of a SPEC beside the one that was trained, which model.json describes."""

import json
import zipfile

import keras
import pytest

from ckptavg import evaluate, merge
from ckptavg.errors import CkptavgWarning
from tests.helpers.command_line import TRAIN

_BUILDERS = """

def uncompiled():
    return keras.Sequential.from_config(build_model().get_config())

def other_loss():
    model = build_model()
    model.compile(loss="sparse_categorical_crossentropy")
    return model

def mixed():
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        return build_model()
    finally:
        keras.mixed_precision.set_dtype_policy(before)

"""


@pytest.fixture
def builders(folder):
    (folder / "build.py").write_text(TRAIN + _BUILDERS)
    return folder


def test_a_model_that_is_not_compiled_is_compiled_as_in_the_training(builders, caplog):
    with caplog.at_level("INFO", "ckptavg"):
        merge("run", "d.keras", model="build.py:uncompiled", data="build.py:bn_data")
    assert "build.py:uncompiled is not compiled: compiled it as run/model.json says" in caplog.text
    with zipfile.ZipFile("d.keras") as archive:
        made = json.loads(archive.read("config.json"))
    trained = json.loads((builders / "run" / "model.json").read_text())["config"]
    assert made["compile_config"]["loss"] == trained["compile_config"]["loss"]
    assert evaluate("d.keras", data="build.py:test_data").keys() == {"loss", "accuracy"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "other_loss",
            r"other_loss gave a model with the loss sparse_categorical_crossentropy, but run/model"
            r"\.json says that it was trained with SparseCategoricalCrossentropy\(.*logits=True",
        ),
        (
            "mixed",
            r"mixed gave a model with the dtype policy mixed_float16, but run/model\.json says "
            "that float32 was trained: set the policy",
        ),
    ],
)
def test_differences_are_told_with_both_sides(builders, name, message):
    with pytest.warns(CkptavgWarning, match=message):
        evaluate("run", model=f"build.py:{name}", data="build.py:test_data")


def test_nothing_is_said_where_nothing_differs(builders):
    merge("run", "d.keras", model="build.py:build_model", data="build.py:bn_data")
    for model in (None, "run/model.json", "d.keras", "build.py:build_model"):
        evaluate("d.keras", model=model, data="build.py:test_data")
    # Without a record nothing is known of the training.
    keras.saving.load_model("d.keras").save_weights("other.weights.h5")
    with pytest.raises(Exception, match="not compiled"):
        evaluate("other.weights.h5", model="build.py:uncompiled", data="build.py:test_data")


def test_a_loss_that_keras_does_not_know(builders):
    path = builders / "run" / "model.json"
    path.write_text(path.read_text().replace("SparseCategoricalCrossentropy", "OwnLoss"))
    message = r"cannot be compiled as run/model\.json says \(.*OwnLoss"
    with pytest.warns(CkptavgWarning, match=message):
        merge("run", "d.keras", model="build.py:uncompiled", data="build.py:bn_data")
