"""A model and a file that do not fit each other: what the errors of Keras tell must be shown."""

import keras
import pytest

from ckptavg import evaluate, update_batch_norm
from ckptavg.errors import DataError, ModelError, summary
from ckptavg.models.specs import load_model
from tests.helpers.models import tiny_data, tiny_model


def network(units):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units, name="head")])
    model.compile(loss="mse", run_eagerly=True)
    return model


def test_a_layer_of_another_size(tmp_path):
    x, y = tiny_data()
    wide = network(10)
    wide.save_weights(tmp_path / "wide.weights.h5")
    wide.save(tmp_path / "wide.keras")
    for name in ("wide.weights.h5", "wide.keras"):
        with pytest.raises(ModelError, match=r"name=head.* must match.*=\(6, 5\).*=\(6, 10\)") as e:
            evaluate(tmp_path / name, model=network(5), data=(x, y))
        assert "value=[" not in str(e.value)


def test_data_of_another_shape():
    x, _ = tiny_data()
    expected = "expected axis -1 of input shape to have value 6, but received input with shape"
    model = tiny_model()
    with pytest.raises(DataError, match=expected):
        update_batch_norm(model, x[:, :3])


def test_a_class_that_keras_does_not_know(trained_run):
    path = trained_run / "model.json"
    path.write_text(path.read_text().replace('"class_name": "Dense"', '"class_name": "Denser"'))
    with pytest.raises(ModelError, match=r"\'keras\.layers\.Denser\'"):
        load_model(path)


def test_summaries():
    assert summary(ValueError("one\n\ntwo")) == "ValueError: one"
    assert summary(ValueError()) == "ValueError"
    assert summary(ValueError("such as:\n\n\x1b[1mtwo\x1b[0m\nthree")) == "ValueError: such as: two"
    located = "Net could not be made.\n\nconfig={}\n\nException encountered: no class 'Own'\nmore"
    assert summary(TypeError(located)).endswith("made. Exception encountered: no class 'Own'")
    long = summary(ValueError("word " * 1000))
    assert long.endswith("word ...")
    assert len(long) < 700
