"""What a BatchNorm pass reports, refuses and puts back, and its other modes."""

import keras
import numpy as np
import pytest

from ckptavg import update_batch_norm
from ckptavg.batch_norm import BatchNormPass
from ckptavg.errors import DataError, ModelError
from tests.helpers.models import randomize, tiny_data, tiny_model


def normal(samples=64, features=6, mean=5.0) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, 2, (samples, features)).astype("float32")


def single(**arguments) -> keras.Model:
    return keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization(**arguments)])


def policies(model: keras.Model) -> list[str]:
    return [layer.dtype_policy.name for layer in model._flatten_layers()]


def test_mixed_precision_is_put_back():
    model = randomize(tiny_model(), 3)
    before = policies(model)
    exact = randomize(tiny_model(), 3)
    update_batch_norm(exact, tiny_data()[0])
    seen = []
    update_batch_norm(
        model,
        tiny_data()[0],
        mixed_precision=True,
        progress=lambda *_: seen.append(set(policies(model))),
    )
    assert seen == [{"mixed_float16"}] * 3
    assert policies(model) == before
    for one, two in zip(model.get_weights(), exact.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-2, atol=2e-2)
    found, true = model.get_layer("stem_bn"), exact.get_layer("stem_bn")
    assert not np.array_equal(found.moving_mean, true.moving_mean)  # float16 was at work
    with pytest.raises(DataError):
        update_batch_norm(model, np.ones((8, 7)), mixed_precision=True)
    assert policies(model) == before


def test_progress_tells_batches_and_samples():
    told = []
    update_batch_norm(tiny_model(), tiny_data(70)[0], progress=lambda *new: told.append(new))
    assert told == [(1, 32), (1, 32), (1, 6)]


def test_shifts_are_in_standard_deviations():
    x = normal()
    model = single(epsilon=0.0)
    layer = model.layers[0]
    mean, deviation = x.astype("f8").mean(0), x.astype("f8").std(0)
    layer.moving_mean.assign(mean - 0.5 * deviation)
    layer.moving_variance.assign((1.25 * deviation) ** 2)
    [shift] = update_batch_norm(model, x).shifts
    assert shift.layer == layer.path
    assert shift.mean == pytest.approx(0.5, rel=1e-5)
    assert shift.deviation == pytest.approx(0.25, rel=1e-5)
    [shift] = update_batch_norm(model, x).shifts
    assert max(shift.mean, shift.deviation) < 1e-6


def test_few_samples_for_the_channels_are_doubtful():
    # 2 ln 6 / 0.1^2 = 358.4
    [warning] = update_batch_norm(single(name="bn"), normal(90)).warnings
    assert warning.startswith("90 samples are few for the 6 channels of '")
    assert "off by 0.2 standard deviations; with 359 samples or more that is 0.1 at" in warning
    assert update_batch_norm(single(), normal(358)).warnings
    assert update_batch_norm(single(), normal(359)).warnings == ()


@pytest.mark.parametrize("renorm", [False, True])
def test_cumulative_is_the_plain_mean_of_batches(renorm):
    x = normal(50)
    batches = [x[:32], x[32:]]
    model = single(renorm=renorm)
    update_batch_norm(model, batches, bn_mode="cumulative")
    mean = np.mean([b.astype("f8").mean(0) for b in batches], axis=0)
    variance = np.mean([b.astype("f8").var(0, ddof=1) for b in batches], axis=0)
    np.testing.assert_allclose(model.layers[0].moving_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(model.layers[0].moving_variance, variance, rtol=1e-6)


def test_cumulative_needs_two_values():
    with pytest.raises(DataError, match="batch 1 of the data has fewer than two values"):
        update_batch_norm(single(), [normal(4), normal(1)], bn_mode="cumulative")


def test_population_reads_the_data_again():
    with pytest.raises(DataError, match="a generator can be read only once"):
        update_batch_norm(single(), (normal() for _ in range(2)), bn_mode="population")

    class Once:
        def __init__(self):
            self._batches = iter([normal()])

        def __iter__(self):
            return self._batches

    with pytest.raises(DataError, match="64 samples at first and 0 later"):
        update_batch_norm(single(), Once(), bn_mode="population")


def test_unknown_modes_are_refused():
    with pytest.raises(ModelError, match="bn_mode is 'exact', but must be"):
        update_batch_norm(single(), normal(), bn_mode="exact")


def test_what_does_not_fit_float16_is_not_written():
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.BatchNormalization(dtype="float16", name="half")]
    )
    before = model.get_weights()
    with pytest.raises(DataError, match="half/moving_variance', which is float16"):
        update_batch_norm(model, normal(mean=0.0) * 500)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_an_interrupt_while_statistics_are_written_takes_them_all_back(monkeypatch):
    model = randomize(tiny_model(), 3)
    before = model.get_weights()
    victim = model.get_layer("block").layers[1].moving_mean
    assign, calls = type(victim).assign, []

    def interrupted(self, value):
        if self is victim and not calls:
            calls.append(1)
            raise KeyboardInterrupt
        return assign(self, value)

    monkeypatch.setattr(type(victim), "assign", interrupted)
    with pytest.raises(KeyboardInterrupt):
        update_batch_norm(model, tiny_data()[0])
    assert calls
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_pass_that_is_not_finished_changes_nothing():
    model = randomize(tiny_model(), 3)
    before = model.get_weights()
    with BatchNormPass(model) as bn:
        bn.add(tiny_data()[0])
        assert (bn.batches, bn.samples, len(bn.layers)) == (1, 96, 2)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert "call" not in vars(model.get_layer("stem_bn"))


def test_a_pass_may_be_left_between_batches():
    x, model = normal(), single()
    bn = BatchNormPass(model)
    for part in (x[:40], x[40:]):
        with bn:
            bn.add(part)
        assert "call" not in vars(model.layers[0])
    assert bn.finish().samples == 64
    np.testing.assert_allclose(model.layers[0].moving_mean, x.mean(0), rtol=1e-5)


def test_batches_are_not_gathered_outside_of_the_pass():
    with pytest.raises(RuntimeError, match="with BatchNormPass"):
        BatchNormPass(single()).add(normal())


def test_bidirectional_layers_and_masks():
    inputs = keras.Input((5, 3))
    x = keras.layers.Masking(0.0)(inputs)
    x = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))(x)
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, norm(x))
    data = np.random.default_rng(0).normal(2, 1, (40, 5, 3)).astype("float32")
    data[::3, 3:] = 0.0
    met = np.float64(keras.Model(inputs, x)(data))[data.any(axis=-1)]
    update_batch_norm(model, [data[:13], data[13:]])
    np.testing.assert_allclose(norm.moving_mean, met.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, met.var(0), rtol=1e-5)


def test_a_mask_over_channels_counts_each_of_them():
    inputs = keras.Input((4, 3))
    norm = keras.layers.BatchNormalization(axis=1)
    model = keras.Model(inputs, norm(keras.layers.Masking(0.0)(inputs)))
    data = np.random.default_rng(0).normal(2, 1, (40, 4, 3)).astype("float32")
    data[10:, 3] = data[25:, 2] = 0.0
    update_batch_norm(model, [data[:13], data[13:]])
    met = [np.float64(data[data[:, n].any(axis=-1), n]) for n in range(4)]
    np.testing.assert_allclose(norm.moving_mean, [m.mean() for m in met], rtol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, [m.var() for m in met], rtol=1e-6)


APPLICATIONS = {
    "MobileNetV3Small": keras.applications.MobileNetV3Small,
    "ResNet50": keras.applications.ResNet50,
    "EfficientNetV2B0": keras.applications.EfficientNetV2B0,
    "DenseNet121": keras.applications.DenseNet121,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "MobileNetV3Small" else pytest.mark.slow)
        for name in APPLICATIONS
    ],
)
def test_applications(name):
    model = APPLICATIONS[name](weights=None, input_shape=(64, 64, 3), classes=5)
    x = np.random.default_rng(0).uniform(0, 255, (24, 64, 64, 3)).astype("float32")
    before = {v.path: v.numpy() for v in model.variables}
    norms = [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
    report = update_batch_norm(model, [x[:16], x[16:]])
    assert set(report.layers) == {layer.path for layer in norms}
    statistics = {v.path for layer in norms for v in (layer.moving_mean, layer.moving_variance)}
    changed = {v.path for v in model.variables if not np.array_equal(before[v.path], v)}
    assert changed <= statistics
    assert len(changed) > 0.9 * len(statistics)
    first = norms[0]  # no BatchNorm before it: it meets the same however batches are divided
    met = np.float64(keras.Model(model.inputs[0], first.input)(x))
    np.testing.assert_allclose(first.moving_mean, met.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first.moving_variance, met.var((0, 1, 2)), rtol=1e-4)
