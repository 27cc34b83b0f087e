"""What becomes of tensors that have no mean, and which models are refused."""

import keras
import ml_dtypes
import numpy as np
import pytest

import ckptavg
from ckptavg.errors import MismatchError, RecipeError
from ckptavg.merging.tensor_rules import decide
from tests.helpers.files import read_tensors, write_h5
from tests.helpers.models import tiny_data


def test_integers_of_the_last_checkpoint_on_request(tmp_path):
    paths = [
        write_h5(
            tmp_path / f"{k}.weights.h5",
            {
                "layers/x/vars/0": np.float32([k]),
                "layers/x/vars/1": np.int32([k]),
                "layers/x/vars/2": np.array([k > 1]),
                "layers/x/vars/3": np.array([f"n{k}".encode()]),
            },
        )
        for k in range(3)
    ]
    out = tmp_path / "o.weights.h5"
    with pytest.raises(MismatchError, match="non_float='last'"):
        ckptavg.merge(paths, out)
    with pytest.raises(RecipeError, match="must be 'equal' or 'last'"):
        ckptavg.merge(paths, out, non_float="mean")
    ckptavg.merge(paths, out, non_float="last")
    found = read_tensors(out)
    assert found["layers/x/vars/0"] == 1.0
    assert found["layers/x/vars/1"] == 2
    assert found["layers/x/vars/2"] == True  # noqa: E712 (an array)
    assert found["layers/x/vars/3"] == b"n2"
    ckptavg.verify(out)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_models_of_keras_are_refused(tmp_path, mode):
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(6), keras.layers.Dense(4, use_bias=False)]
    )
    model.quantize(mode)
    model.save_weights(tmp_path / "q.weights.h5")
    for rule in ("equal", "last"):
        with pytest.raises(MismatchError, match="is a quantized model"):
            ckptavg.merge(tmp_path / "q.weights.h5", tmp_path / "o.weights.h5", non_float=rule)


def test_float8_models_of_keras_are_refused_by_their_configuration(tmp_path):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6)])
    model.quantize("float8")
    model.save(tmp_path / "q.keras")
    with pytest.raises(MismatchError, match="is a quantized model"):
        ckptavg.merge(tmp_path / "q.keras", tmp_path / "o.weights.h5")


def test_float8_with_scales_is_refused_and_without_is_averaged(tmp_path):
    values = np.float32([1, 2, 4]).astype(ml_dtypes.float8_e4m3fn)
    bare = write_h5(tmp_path / "a.weights.h5", {"x/vars/0": values})
    ckptavg.merge(bare, tmp_path / "o.weights.h5")
    scaled = write_h5(
        tmp_path / "b.weights.h5", {"x/vars/kernel": values, "x/vars/kernel_scale": np.ones(1)}
    )
    with pytest.raises(MismatchError, match="is a quantized model"):
        ckptavg.merge(scaled, tmp_path / "p.weights.h5")


def test_layers_with_integers_are_not_taken_for_quantized(tmp_path):
    x, _ = tiny_data(16)
    normalization = keras.layers.Normalization()
    normalization.adapt(x)
    model = keras.Sequential(
        [keras.Input((6,)), normalization, keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    )
    model.save_weights(tmp_path / "n.weights.h5")
    report = ckptavg.merge(tmp_path / "n.weights.h5", tmp_path / "o.weights.h5")
    reasons = {item.reason for item in report.plan.items}
    assert reasons == {"the only one", "int64 has no mean, all must agree"}


def test_counters_come_from_the_last_checkpoint():
    from ckptavg.formats import Structure
    from ckptavg.formats.tensors import Extent, TensorInfo

    names = ("save_counter/.ATTRIBUTES/VARIABLE_VALUE", "global_step", "my_global_step")
    tensors = {n: TensorInfo(n, (), "int64", Extent(0, 8)) for n in names}
    actions = [item.action for item in decide(Structure(tensors, {}), 3)]
    assert actions == ["last", "last", "equal"]


def test_sums_of_task_vectors_need_no_normalization(tmp_path):
    paths = [
        write_h5(tmp_path / f"{k}.weights.h5", {"x/vars/0": np.float32([k, 10])}) for k in (1, 2, 4)
    ]
    out = tmp_path / "o.weights.h5"
    ckptavg.merge(paths, out, coefficients=[1, 1, -0.5], normalize=False)
    assert read_tensors(out)["x/vars/0"].tolist() == [1.0, 15.0]
    ckptavg.merge(paths, out, coefficients=[1, 1, 1], normalize=False, overwrite=True)
    assert read_tensors(out)["x/vars/0"].tolist() == [7.0, 30.0]
    ckptavg.merge(paths, out, coefficients=[1.5, -0.5, 0], overwrite=True)
    assert read_tensors(out)["x/vars/0"].tolist() == [0.5, 10.0]
    with pytest.raises(RecipeError, match="--no-normalize"):
        ckptavg.merge(paths, out, coefficients=[1, 1, 1], overwrite=True)


def test_half_precision_rounds_once(tmp_path):
    for dtype in ("float16", "bfloat16"):
        paths = [
            write_h5(tmp_path / f"{dtype}{k}.weights.h5", {"x/vars/0": np.array([v], dtype)})
            for k, v in enumerate((4096, 1))
        ]
        out = tmp_path / f"o-{dtype}.weights.h5"
        ckptavg.merge(paths, out)
        assert read_tensors(out)["x/vars/0"] == np.array([2048.5]).astype(dtype)
