"""The BatchNorm pass on the backend that Keras runs on, against numpy and PyTorch."""

from functools import cache

import keras
import numpy as np
import pytest

from ckptavg import update_batch_norm
from ckptavg.batch_norm import BatchNormPass
from ckptavg.errors import DataError, ModelError
from tests.helpers.models import randomize


def images(samples: int = 53) -> np.ndarray:
    rng = np.random.default_rng(11)
    x = rng.normal(3.0, 2.0, (samples, 5, 5, 3)).astype("float32")
    return x[np.argsort(x.mean(axis=(1, 2, 3)))]  # sorted: batches differ in their means


def one_layer() -> keras.Model:
    layers = [keras.Input((5, 5, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
    return randomize(keras.Sequential(layers), 5)


def deep(*, depth: int = 4, dropout: float = 0.0) -> keras.Model:
    layers = [keras.Input((5, 5, 3))]
    for _ in range(depth):
        layers += [
            keras.layers.Conv2D(6, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(dropout),
        ]
    return randomize(keras.Sequential(layers), 8)


def exact(model: keras.Model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kernel, bias = (np.float64(w) for w in model.layers[0].get_weights())
    windows = np.lib.stride_tricks.sliding_window_view(np.float64(x), (3, 3), axis=(1, 2))
    outputs = np.einsum("nxyckl,klcf->nxyf", windows, kernel) + bias
    return outputs.mean(axis=(0, 1, 2)), outputs.var(axis=(0, 1, 2))


def resplit(x: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(x, np.cumsum(sizes)[:-1])


def state(model: keras.Model) -> dict[str, bytes]:
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer else ())]
    return {
        f"{n} {v.path}": keras.ops.convert_to_numpy(v).tobytes() for n, v in enumerate(variables)
    }


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name.split(" ")[1] for name in before if before[name] != after[name]}


SPLITS = [[53], [32, 21], [2, 2, 4, 8, 16, 21], [1] * 53]


@pytest.mark.parametrize("sizes", SPLITS, ids=lambda sizes: str(len(sizes)))
def test_statistics_are_those_of_the_whole_data_however_split(sizes):
    # fvcore, tests/test_precise_bn.py: re-splitting the same data gives the same statistics
    model, x = one_layer(), images()
    report = update_batch_norm(model, resplit(x, sizes))
    mean, variance = exact(model, x)
    found_mean, found_variance = model.layers[-1].get_weights()[2:]
    assert np.abs(found_mean - mean).max() < 1e-6 * np.sqrt(variance).min()
    np.testing.assert_allclose(found_variance, variance, rtol=1e-6)
    assert (report.samples, report.batches) == (53, len(sizes))


def test_population_statistics_do_not_depend_on_batches_at_any_depth():
    x = images()
    weights = []
    for data in (resplit(x, SPLITS[1]), resplit(x[::-1], SPLITS[2])):
        model = deep(depth=6, dropout=0.5)
        report = update_batch_norm(model, data, bn_mode="population")
        assert report.warnings[1:] == ()  # but few samples
        weights.append(model.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_population_statistics_are_those_that_the_model_meets_in_inference_mode():
    model, x = deep(), images()
    update_batch_norm(model, x, bn_mode="population")
    for before, layer in zip(model.layers, model.layers[1:], strict=False):
        if isinstance(layer, keras.layers.BatchNormalization):
            met = keras.Model(model.inputs[0], before.output)(x, training=False)
            met = np.float64(keras.ops.convert_to_numpy(met))
            mean, variance = layer.get_weights()[2:]
            np.testing.assert_allclose(mean, met.mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(variance, met.var((0, 1, 2)), rtol=1e-5)


def torch_oracle(model: keras.Model, batches: list[np.ndarray]) -> list[np.ndarray]:
    """Statistics after PyTorch's own update of the same network with the same weights."""
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import update_bn

    parts = []
    for layer in model.layers:
        weights = [torch.tensor(np.array(w)) for w in layer.get_weights()]
        if isinstance(layer, keras.layers.Conv2D):
            part = torch.nn.Conv2d(layer.input.shape[-1], layer.filters, 3, padding="same")
            state = {"weight": weights[0].permute(3, 2, 0, 1), "bias": weights[1]}
            part.load_state_dict(state)
        elif isinstance(layer, keras.layers.BatchNormalization):
            part = torch.nn.BatchNorm2d(layer.gamma.shape[0], eps=layer.epsilon)
            part.load_state_dict({"weight": weights[0], "bias": weights[1]}, strict=False)
        elif isinstance(layer, keras.layers.ReLU):
            part = torch.nn.ReLU()
        else:
            continue
        parts.append(part)
    twin = torch.nn.Sequential(*parts)
    update_bn([torch.tensor(batch).permute(0, 3, 1, 2) for batch in batches], twin)
    norms = [part for part in parts if isinstance(part, torch.nn.BatchNorm2d)]
    return [s.numpy() for norm in norms for s in (norm.running_mean, norm.running_var)]


def test_cumulative_statistics_are_those_of_pytorch():
    model, batches = deep(), resplit(images(), SPLITS[1])
    expected = torch_oracle(model, batches)
    update_batch_norm(model, batches, bn_mode="cumulative")
    found = [w for layer in model.layers if layer.weights[2:] for w in layer.get_weights()[2:]]
    assert len(found) == len(expected) == 8
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@cache
def rich_model() -> keras.Model:
    """Layers whose training-mode forward pass changes variables, and a shared BatchNorm."""
    inputs = keras.Input((6,))
    norm = keras.layers.BatchNormalization(name="shared")
    x = keras.layers.SpectralNormalization(keras.layers.Dense(6))(inputs)
    x = keras.layers.Dropout(0.3)(norm(x))
    x = keras.layers.GaussianNoise(0.1)(norm(x))
    frozen = keras.layers.BatchNormalization(name="frozen", trainable=False)
    model = keras.Model(inputs, keras.layers.Dense(3)(frozen(x)))
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    model.fit(np.ones((8, 6)), np.ones((8, 3)), verbose=0)
    return model


@pytest.mark.parametrize("mode", ["batch", "population", "cumulative"])
def test_nothing_but_statistics_changes(mode):
    model = rich_model()
    before = state(model)
    x = np.random.default_rng(0).normal(2, 1, (48, 6)).astype("float32")
    report = update_batch_norm(model, x, bn_mode=mode)
    assert changed(before, state(model)) == {"shared/moving_mean", "shared/moving_variance"}
    assert (report.layers, report.frozen) == (("shared",), ("frozen",))
    model.fit(np.ones((8, 6)), np.ones((8, 3)), verbose=0)  # compiled state still works


def test_a_loop_of_ones_own_gets_the_outputs_of_training():
    model, x = one_layer(), images()
    before = state(model)
    with BatchNormPass(model) as bn:
        outputs = [keras.ops.convert_to_numpy(bn.add(part)) for part in resplit(x, [32, 21])]
        assert not changed(before, state(model))
        report = bn.finish()
    reference = one_layer()
    for part, found in zip(resplit(x, [32, 21]), outputs, strict=True):
        expected = keras.ops.convert_to_numpy(reference(part, training=True))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert report.samples == 53


@pytest.mark.parametrize("mode", ["batch", "population"])
def test_an_exception_in_the_midst_leaves_the_model_as_it_was(mode):
    model = rich_model()
    before = state(model)

    def broken():
        yield np.ones((8, 6), "float32")
        raise OSError("the disk is gone")

    class Data:
        def __iter__(self):
            return broken()

    with pytest.raises(DataError, match="batch 1 of the data cannot be read"):
        update_batch_norm(model, Data(), bn_mode=mode)
    with pytest.raises(DataError, match="batch 1 of the data holds NaN"):
        update_batch_norm(
            model, [np.ones((8, 6), "f4"), np.full((8, 6), np.nan, "f4")], bn_mode=mode
        )
    with pytest.raises(DataError, match="the model rejects batch 0"):
        update_batch_norm(model, np.ones((8, 7), "f4"), bn_mode=mode)
    assert not changed(before, state(model))
    assert all("call" not in vars(layer) for layer in model.layers)


@pytest.mark.parametrize("mode", ["batch", "population", "cumulative"])
@pytest.mark.parametrize("hiding", [keras.layers.ReLU, keras.layers.MaxPooling2D])
def test_infinite_inputs_that_a_layer_hides_are_found(mode, hiding):
    model = keras.Sequential([keras.Input((5, 5, 3)), hiding(), keras.layers.BatchNormalization()])
    before = state(model)
    x = images()
    x[40, 1, 1, 2] = -np.inf
    with pytest.raises(DataError, match="batch 1 of the data holds NaN or infinity"):
        update_batch_norm(model, resplit(x, [32, 21]), bn_mode=mode)
    assert not changed(before, state(model))


def test_random_layers_draw_anew_for_every_batch():
    dropout = keras.layers.Dropout(0.5, seed=3)
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((8,)), dropout, norm])
    update_batch_norm(model, [np.ones((1, 8), "float32")] * 500)
    # Ones that are dropped or doubled: mean 1 and variance 1, within 5 standard errors.
    mean, variance = norm.get_weights()[2:]
    np.testing.assert_allclose(mean, np.ones(8), atol=0.23)
    np.testing.assert_allclose(variance, np.ones(8), atol=0.06)


def test_masks_shared_layers_and_time_steps():
    inputs = keras.Input((4, 3))
    norm, steps = keras.layers.BatchNormalization(), keras.layers.BatchNormalization()
    x = norm(keras.layers.Masking(0.0)(inputs))
    model = keras.Model(inputs, [norm(x), keras.layers.TimeDistributed(steps)(inputs)])
    data = np.random.default_rng(0).normal(5, 1, (30, 4, 3)).astype("float32")
    data[::2, 2:] = 0.0
    update_batch_norm(model, [data[:7], data[7:]], bn_mode="population")
    mean, variance = steps.get_weights()[2:]
    np.testing.assert_allclose(mean, np.float64(data).mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(variance, np.float64(data).var((0, 1)), rtol=1e-6)
    # A layer whose output comes back to it meets what it makes of what it meets.
    valid = np.float64(data[data.any(axis=-1)])
    mean, variance = np.float64(norm.get_weights()[2:])
    again = np.concatenate([valid, (valid - mean) / np.sqrt(variance + norm.epsilon)])
    np.testing.assert_allclose(mean, again.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, again.var(0), rtol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_half_precision(policy):
    layer = keras.layers.BatchNormalization(dtype=policy)
    model = keras.Sequential([keras.Input((4,)), layer])
    x = np.random.default_rng(0).integers(-8, 8, (64, 4)).astype("float32")  # exact in all dtypes
    update_batch_norm(model, [x[:40], x[40:]])
    mean, variance = (np.float64(keras.ops.cast(w, "float32")) for w in layer.weights[2:])
    tolerance = 2.0**-8 if policy == "bfloat16" else 1e-6
    np.testing.assert_allclose(mean, np.float64(x).mean(0), rtol=tolerance)
    np.testing.assert_allclose(variance, np.float64(x).var(0), rtol=tolerance)


@pytest.mark.backend("tensorflow", "jax")  # torch runs loops as they stand
def test_a_layer_in_a_loop_cannot_be_seen():
    class Cell(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.state_size = 3
            self.norm = keras.layers.BatchNormalization()

        def build(self, shape):
            self.norm.build(shape)

        def call(self, inputs, states, training=None):
            out = self.norm(inputs, training=training) + states[0]
            return out, [out]

    model = keras.Sequential([keras.Input((4, 3)), keras.layers.RNN(Cell())])
    before = state(model)
    x = np.random.default_rng(0).normal(5, 1, (30, 4, 3)).astype("float32")
    with pytest.raises(ModelError, match="called inside a loop or a function"):
        update_batch_norm(model, x)
    assert not changed(before, state(model))
