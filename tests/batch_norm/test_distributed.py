"""The BatchNorm pass on several devices, in a process of its own, where a CPU can be two."""

import json
import subprocess
from pathlib import Path

import pytest

_HEAD = """
import keras
import numpy as np
import tensorflow as tf

from ckptavg.batch_norm import BatchNormPass, update_batch_norm

[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x = np.random.default_rng(0).normal(5, 2, (45, 3, 4)).astype("float32")
x = x[np.argsort(x.mean((1, 2)))]  # replicas see different things
mean, variance = x.astype("f8").mean((0, 1)), x.astype("f8").var((0, 1))

def model(**arguments):
    layers = [keras.Input((3, 4)), keras.layers.BatchNormalization(**arguments)]
    return keras.Sequential([*layers, keras.layers.Dropout(0.5)])
"""

_CASES = {
    "counts are true however batches are divided": """
for synchronized in (False, True):
    for sizes in ([45], [16, 16, 13], [20, 1, 24]):
        with strategy.scope():
            mirrored = model(synchronized=synchronized)
        report = update_batch_norm(mirrored, np.split(x, np.cumsum(sizes)[:-1]))
        assert report.samples == 45, report
        np.testing.assert_allclose(mirrored.layers[0].moving_mean.numpy(), mean, rtol=1e-6)
        np.testing.assert_allclose(mirrored.layers[0].moving_variance.numpy(), variance, rtol=1e-6)
""",
    "synchronized layers normalize by all replicas": """
for synchronized in (False, True):
    with strategy.scope():
        mirrored = model(synchronized=synchronized)
    mirrored.layers[-1].rate = 0.0
    with BatchNormPass(mirrored) as bn:
        outputs = np.concatenate(strategy.experimental_local_results(bn.add(x)))
    expected = (x - mean) / np.sqrt(variance + 1e-3)
    assert np.allclose(outputs, expected, atol=1e-4) == synchronized
""",
    "values that a strategy has distributed": """
with strategy.scope():
    mirrored = model()
data = tf.data.Dataset.from_tensor_slices(x).batch(10)
with BatchNormPass(mirrored) as bn:
    for part in strategy.experimental_distribute_dataset(data):
        bn.add(part)
    report = bn.finish()
assert (report.samples, report.batches) == (45, 5)
np.testing.assert_allclose(mirrored.layers[0].moving_mean.numpy(), mean, rtol=1e-6)
""",
    "population statistics": """
with strategy.scope():
    mirrored = model()
update_batch_norm(mirrored, [x[:30], x[30:]], bn_mode="population")
np.testing.assert_allclose(mirrored.layers[0].moving_mean.numpy(), mean, rtol=1e-6)
np.testing.assert_allclose(mirrored.layers[0].moving_variance.numpy(), variance, rtol=1e-6)
""",
}


_TAIL = """
import json, sys, traceback

found = {}
for name, code in json.load(sys.stdin).items():
    try:
        exec(code, dict(globals()))
        found[name] = None
    except Exception:
        found[name] = traceback.format_exc()
print("found", json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(warm) -> dict[str, str | None]:
    """What became of each case: nothing, or an error. They share a process, which takes time."""
    result = subprocess.run(
        [*warm, "-c", _HEAD + _TAIL],
        cwd=Path(__file__).parents[2],
        input=json.dumps(_CASES),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.rpartition("found")[2])


@pytest.mark.parametrize("case", _CASES)
def test_two_devices(found, case):
    assert found[case] is None, found[case]
