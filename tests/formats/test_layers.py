"""Layers and their statistics, told by names."""

import pytest

from ckptavg.formats.layers import count_batch_norm


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["layers/batch_normalization/vars/0", "layers/batch_normalization/vars/1"], 1),
        (["layers/batch_normalization/vars/0", "layers/batch_normalization_1/vars/0"], 2),
        (["a/layers/batch_normalization/vars/0", "b/layers/batch_normalization/vars/0"], 2),
        (["bn/bn/gamma:0", "bn/bn/moving_mean:0", "bn/bn/moving_variance:0"], 1),
        (["m/layer-1/moving_variance/.ATTRIBUTES/VARIABLE_VALUE"], 1),
        (["layers/dense/vars/0"], 0),
    ],
)
def test_batch_norm_layers_are_counted_by_name(names, count):
    assert count_batch_norm(names) == count
