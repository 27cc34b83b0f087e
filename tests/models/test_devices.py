"""Where a model runs, and that nonsense is refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ckptavg import update_batch_norm
from ckptavg.errors import SpecError
from ckptavg.models.devices import computing_on


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_devices(device):
    with computing_on(device):
        assert "CPU" in keras.ops.ones(()).device or tf.config.list_physical_devices("GPU")


@pytest.mark.parametrize(
    ("device", "distribute", "message"),
    [
        ("tpu", None, "must be 'auto', 'cpu', 'gpu' or 'gpu:N'"),
        ("gpu:x", None, "must be 'auto', 'cpu', 'gpu' or 'gpu:N'"),
        ("gpu:99", None, "tensorflow finds .* GPU here"),
        ("cpu", "sharded", "must be 'mirrored'"),
        ("gpu:0", "mirrored", "uses all devices"),
    ],
)
def test_what_is_not_there_is_refused(device, distribute, message):
    with pytest.raises(SpecError, match=message), computing_on(device, distribute):
        pass


def test_a_mirrored_model_of_one_device():
    with computing_on("cpu", "mirrored"):
        model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
        x = np.random.default_rng(0).normal(2, 1, (20, 3)).astype("float32")
        update_batch_norm(model, x)
    np.testing.assert_allclose(model.layers[0].moving_mean.numpy(), x.mean(0), rtol=1e-5)
