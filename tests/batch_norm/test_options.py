"""Options of a BatchNorm pass: what they refuse, and the former keyword `mode`."""

import subprocess
import sys

import numpy as np
import pytest

from ckptavg import update_batch_norm
from ckptavg.batch_norm import BatchNormOptions, BatchNormPass
from ckptavg.errors import CkptavgError, DataError, ModelError, SpecError
from tests.helpers.models import randomize, tiny_data, tiny_model


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, DataError, "steps is 0, but must be an integer >= 1"),
        ({"steps": 2.0}, DataError, r"steps is 2\.0, but"),
        ({"steps": True}, DataError, "steps is True, but"),
        ({"batch_size": -1}, DataError, "batch_size is -1, but must be an integer >= 1"),
        ({"bn_mode": "exact"}, ModelError, "must be 'batch', 'population' or 'cumulative'"),
        ({"device": "tpu"}, SpecError, "device is 'tpu', but must be 'auto', 'cpu', 'gpu' or"),
        ({"device": "cpu:0"}, SpecError, "device is 'cpu:0', but"),
        ({"distribute": "sharded"}, SpecError, "distribute is 'sharded', but must be 'mirrored'"),
        ({"device": "gpu:1", "distribute": "mirrored"}, SpecError, "omit one of them"),
    ],
)
def test_bad_values_are_refused_when_options_are_made(options, error, message):
    with pytest.raises(error, match=message):
        BatchNormOptions(**options)


def test_options_are_made_without_keras():
    code = (
        "import sys; from ckptavg.batch_norm import BatchNormOptions; BatchNormOptions(); "
        "sys.exit('keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("option", ["steps", "batch_size", "preprocess"])
def test_options_about_data_need_data(option):
    options = BatchNormOptions(**{option: "f.py:f" if option == "preprocess" else 3})
    options.check_data([])
    with pytest.raises(SpecError, match=f"^{option} has no effect without data"):
        options.check_data(None)
    BatchNormOptions(mixed_precision=True).check_data(None)


def test_the_former_keyword_mode_is_an_alias():
    x = tiny_data()[0]
    for mode in ("cumulative", "population"):
        former, present = (randomize(tiny_model(), 3) for _ in range(2))
        assert update_batch_norm(former, x, mode=mode).mode == mode
        assert update_batch_norm(present, x, bn_mode=mode).mode == mode
        for one, two in zip(former.get_weights(), present.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)
    with BatchNormPass(present, mode="cumulative") as bn_pass:
        bn_pass.add(x)
        assert bn_pass.finish().mode == "cumulative"
    with pytest.raises(ModelError, match="'population' reads the data several times"):
        BatchNormPass(present, mode="population")


def test_batch_size_and_preprocess_of_a_live_model():
    x = tiny_data()[0]
    halved, model = (randomize(tiny_model(), 3) for _ in range(2))
    report = update_batch_norm(model, x, batch_size=40, preprocess=lambda inputs: inputs / 2)
    assert (report.samples, report.batches) == (96, 3)
    update_batch_norm(halved, [x[:40] / 2, x[40:80] / 2, x[80:] / 2])
    for one, two in zip(model.get_weights(), halved.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_a_live_model_keeps_its_strategy():
    options = BatchNormOptions(distribute="mirrored")
    with pytest.raises(SpecError, match="needs a SPEC"), options.opened(tiny_model(), None):
        pass


def test_errors_of_options_are_errors_of_ckptavg():
    with pytest.raises(CkptavgError, match="steps is 0"):
        update_batch_norm(tiny_model(), tiny_data()[0], steps=0)
