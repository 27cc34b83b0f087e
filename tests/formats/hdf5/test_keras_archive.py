"""`.keras` files that are no archives of HDF5 weights, though real ones bear the name."""

import keras
import numpy as np
import pytest

import ckptavg
from ckptavg.errors import FormatError
from tests.helpers.command_line import main
from tests.helpers.files import read_tensors, rewrite_zip
from tests.helpers.models import evaluator, randomize


def test_hdf5_of_keras_2_is_read_and_said(tmp_path):
    paths = []
    for seed in range(2):
        randomize(evaluator(), seed).save(tmp_path / f"{seed}.h5")
        paths.append((tmp_path / f"{seed}.h5").rename(tmp_path / f"{seed}.keras"))
    status, text, err = main("inspect", paths[0])
    assert (status, err) == (0, "")
    assert "  format      HDF5, as Keras 2 wrote to files of this name" in text
    ckptavg.merge(paths, tmp_path / "mean.h5")
    one, two, mean = map(read_tensors, (*paths, tmp_path / "mean.h5"))
    name = next(name for name in mean if "kernel" in name)
    expected = (one[name].astype("float64") + two[name]) / 2
    assert np.array_equal(mean[name], expected.astype("float32"))
    assert [found.average for found in ckptavg.verify(tmp_path / "mean.h5")] == ["reproduced"]
    assert len(keras.saving.load_model(tmp_path / "mean.h5").layers) == len(evaluator().layers)
    with pytest.raises(FormatError, match=r"names? .* Keras 2|Keras 2 files"):
        ckptavg.merge(paths, tmp_path / "mean.keras")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.weights.npz", r"its weights are in model.weights.npz, not in model.weights.h5"),
        ("weights", "it lacks model.weights.h5"),
    ],
)
def test_other_weights_are_named(tmp_path, name, reason):
    path = tmp_path / "a.keras"
    evaluator().save(path)
    other = rewrite_zip(path, tmp_path / "b.keras", {name: b"x"}, without="model.weights.h5")
    with pytest.raises(FormatError, match=reason):
        ckptavg.inspect(other)
