"""Layers and their statistics, found by names."""

import pytest

from ckptavg.formats import Structure
from ckptavg.formats.layers import layer_of, moving_statistics, split_name
from ckptavg.formats.tensors import TensorInfo


@pytest.mark.parametrize(
    ("name", "layer", "variable"),
    [
        ("layers/dense/vars/0", "layers/dense", "0"),
        ("dense/dense/kernel:0", "dense/dense", "kernel:0"),
        ("h.0.bias", "h.0", "bias"),
        ("model/bn/gamma/.ATTRIBUTES/VARIABLE_VALUE", "model/bn", "gamma"),
        ("a\nb/vars/0", "a\nb", "0"),
        ("vars/0", "vars", "0"),
        ("scale", "", "scale"),
        ("folder/", "folder", ""),
        ("", "", ""),
    ],
)
def test_a_name_has_a_layer_and_a_variable(name, layer, variable):
    assert split_name(name) == (layer, variable)
    assert layer_of(name) == (layer or name)


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        (["layers/batch_normalization/vars/"], 1),
        (["layers/batch_normalization/vars/", "layers/batch_normalization_1/vars/"], 2),
        (["a/layers/batch_normalization/vars/", "b/layers/batch_normalization/vars/"], 2),
        (["layers/dense/vars/"], 0),
    ],
)
def test_batch_norm_layers_of_keras_3_are_counted_by_name(layers, count):
    names = [f"{layer}{number}" for layer in layers for number in range(4)]
    tensors = {name: TensorInfo(name, (3,), "float32", None) for name in names}
    assert len(moving_statistics(Structure(tensors, {}))) == count


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["bn/bn/gamma:0", "bn/bn/moving_mean:0", "bn/bn/moving_variance:0"], 1),
        (["m/layer-1/moving_variance/.ATTRIBUTES/VARIABLE_VALUE"], 1),
        (["layers/dense/vars/0"], 0),
    ],
)
def test_batch_norm_layers_are_counted_by_the_names_of_their_statistics(names, count):
    tensors = {name: TensorInfo(name, (3,), "float32", None) for name in names}
    assert len(moving_statistics(Structure(tensors, {}))) == count
