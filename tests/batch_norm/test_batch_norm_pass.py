"""The BatchNorm pass against numpy on the concatenated data, and that nothing else changes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ckptavg import update_batch_norm
from ckptavg.batch_norm import BatchNormPass
from ckptavg.errors import DataError, ModelError
from tests.helpers.models import randomize, tiny_data, tiny_model


def one_layer(**arguments) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((5, 5, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(**arguments),
        ]
    )
    return randomize(model, 5)


def images(samples=53) -> np.ndarray:
    rng = np.random.default_rng(11)
    x = rng.normal(3.0, 2.0, (samples, 5, 5, 3)).astype("float32")
    return x[np.argsort(x.mean(axis=(1, 2, 3)))]  # sorted: batches differ in their means


def exact(model: keras.Model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kernel = model.layers[0].kernel.numpy().astype("float64")
    bias = model.layers[0].bias.numpy().astype("float64")
    windows = np.lib.stride_tricks.sliding_window_view(x.astype("float64"), (3, 3), axis=(1, 2))
    outputs = np.einsum("nxyckl,klcf->nxyf", windows, kernel) + bias
    return outputs.mean(axis=(0, 1, 2)), outputs.var(axis=(0, 1, 2))


def statistics(model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    layer = model.layers[-1]
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


def resplit(x, sizes):
    start = 0
    for size in sizes:
        yield x[start : start + size]
        start += size


@pytest.mark.parametrize(
    "sizes", [[53], [32, 21], [1] * 53, [2, 2, 4, 8, 16, 21], [52, 1]], ids=lambda s: str(len(s))
)
def test_statistics_are_those_of_the_whole_data_however_split(sizes):
    # fvcore, tests/test_precise_bn.py: re-splitting the same data gives the same statistics
    model, x = one_layer(), images()
    report = update_batch_norm(model, list(resplit(x, sizes)))
    mean, variance = exact(model, x)
    np.testing.assert_allclose(statistics(model)[0], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(statistics(model)[1], variance, rtol=1e-5)
    assert (report.samples, report.batches) == (53, len(sizes))


def test_mean_is_exact_over_100_rows_in_batches_of_5():
    # torch, test/optim/test_swa_utils.py
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(momentum=0.37)])
    x = np.random.default_rng(0).normal(2, 1, (100, 4)).astype("float32")
    update_batch_norm(model, (x[i : i + 5] for i in range(0, 100, 5)))
    layer = model.layers[0]
    np.testing.assert_allclose(layer.moving_mean, x.astype("float64").mean(0), rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, x.astype("float64").var(0), rtol=1e-6)
    assert layer.momentum == 0.37


def data_kinds():
    x, y = tiny_data()

    class Sequence(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return x[index * 32 : index * 32 + 32], y[index * 32 : index * 32 + 32]

    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    return {
        "array": x,
        "arrays": (x, y),
        "arrays and weights": (x, y, np.ones(96)),
        "no targets": (x, None),
        "dataset": dataset,
        "dataset of inputs": dataset.map(lambda inputs, _: inputs),
        "PyDataset": Sequence(),
        "list of batches": [(x[i : i + 32], y[i : i + 32]) for i in (0, 32, 64)],
        "generator": (x[i : i + 32] for i in (0, 32, 64)),
        "tensor": tf.constant(x),
        "float64": x.astype("float64"),
    }


@pytest.mark.parametrize("kind", data_kinds())
def test_every_kind_of_data_gives_the_same(kind):
    reference, model = randomize(tiny_model(), 2), randomize(tiny_model(), 2)
    update_batch_norm(reference, tiny_data()[0])
    report = update_batch_norm(model, data_kinds()[kind])
    assert (report.samples, report.batches) == (96, 3)
    assert len(report.layers) == 2  # one of them in a nested model
    for one, two in zip(reference.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_inputs_by_name():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    outputs = keras.layers.BatchNormalization()(keras.layers.Concatenate()([a, b]))
    model = keras.Model({"a": a, "b": b}, outputs)
    rng = np.random.default_rng(3)
    x = {"a": rng.normal(1, 2, (40, 3)).astype("f4"), "b": rng.normal(0, 1, (40, 2)).astype("f4")}
    update_batch_norm(model, x)
    expected = np.concatenate([x["a"], x["b"]], axis=1).astype("float64").mean(0)
    np.testing.assert_allclose(model.layers[-1].moving_mean, expected, rtol=1e-5)


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


def state(model: keras.Model) -> dict[str, bytes]:
    variables = [*model.variables, *model.optimizer.variables]
    return {
        f"{n} {v.path}": keras.ops.convert_to_numpy(v).tobytes() for n, v in enumerate(variables)
    }


def test_nothing_but_statistics_changes():
    model = rich_model()
    before = state(model)
    report = update_batch_norm(model, tiny_data()[0])
    after = state(model)
    changed = {name.split(" ")[1] for name in before if before[name] != after[name]}
    assert changed == {"shared/moving_mean", "shared/moving_variance"}
    assert report.layers == ("shared",)
    assert report.frozen == ("frozen",)
    shared = model.get_layer("shared")
    assert shared.momentum == 0.99
    assert "call" not in vars(shared)
    model.fit(np.ones((8, 6)), np.ones((8, 3)), verbose=0)  # compiled state still works


def test_a_layer_used_twice_pools_both_uses():
    inputs = keras.Input((2,))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, norm(inputs) + norm(inputs * 10))
    x = np.random.default_rng(0).normal(0, 1, (50, 2)).astype("float32")
    update_batch_norm(model, x)
    both = np.concatenate([x, x * 10]).astype("float64")
    np.testing.assert_allclose(norm.moving_mean, both.mean(0), rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, both.var(0), rtol=1e-5)


def test_masked_positions_do_not_count():
    model = keras.Sequential(
        [keras.Input((4, 3)), keras.layers.Masking(0.0), keras.layers.BatchNormalization()]
    )
    x = np.random.default_rng(0).normal(5, 1, (30, 4, 3)).astype("float32")
    lengths = np.random.default_rng(1).integers(1, 5, 30)
    for row, length in zip(x, lengths, strict=True):
        row[length:] = 0.0
    update_batch_norm(model, [x[:7], x[7:20], x[20:]])
    valid = x[np.any(x != 0, axis=-1)].astype("float64")
    np.testing.assert_allclose(model.layers[-1].moving_mean, valid.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.layers[-1].moving_variance, valid.var(0), rtol=1e-5)


@pytest.mark.parametrize("arguments", [{"axis": 1}, {"center": False, "scale": False}])
def test_other_axes_and_no_parameters(arguments):
    model = keras.Sequential([keras.Input((3, 7)), keras.layers.BatchNormalization(**arguments)])
    x = np.random.default_rng(0).normal(5, 1, (30, 3, 7)).astype("float32")
    update_batch_norm(model, x)
    axes = (0, 2) if "axis" in arguments else (0, 1)
    mean = x.astype("float64").mean(axes)
    np.testing.assert_allclose(model.layers[0].moving_mean, mean, rtol=1e-5)


def test_mixed_precision_and_a_second_pass():
    layer = keras.layers.BatchNormalization(dtype="mixed_float16")
    model = keras.Sequential([keras.Input((4,)), layer])
    x = np.random.default_rng(0).normal(5, 1, (64, 4)).astype("float16").astype("float32")
    update_batch_norm(model, x)
    first = model.get_weights()
    np.testing.assert_allclose(model.layers[0].moving_mean, x.mean(0), rtol=1e-3)
    update_batch_norm(model, x)  # forgets nothing, keeps nothing
    assert all(np.array_equal(a, b) for a, b in zip(first, model.get_weights(), strict=True))


def test_former_statistics_do_not_matter_not_even_nan():
    model, x = one_layer(), images()
    model.layers[-1].moving_mean.assign(np.full(4, np.nan))
    model.layers[-1].moving_variance.assign(np.full(4, np.inf))
    update_batch_norm(model, x)
    np.testing.assert_allclose(statistics(model)[0], exact(model, x)[0], rtol=1e-5, atol=1e-5)


def test_a_model_without_batch_norm_returns_at_once():
    def untouched():
        raise AssertionError("the data were read")
        yield

    report = update_batch_norm(tiny_model(batch_norm=False), untouched())
    assert report.layers == ()
    assert report.batches == 0


def test_steps_limit_the_batches_and_no_more_is_read():
    read = []

    def batches():
        for index in range(10):
            read.append(index)
            yield tiny_data(8)[0]

    report = update_batch_norm(tiny_model(), batches(), steps=3)
    assert (report.batches, report.samples, read) == (3, 24, [0, 1, 2])
    endless = tf.data.Dataset.from_tensor_slices(tiny_data()[0]).batch(8).repeat()
    assert update_batch_norm(tiny_model(), endless, steps=2).batches == 2


def failing_after(batches):
    for _ in range(batches):
        yield tiny_data(8)[0]
    raise OSError("the disk is gone")


def with_nan():
    x = tiny_data(64)[0].copy()
    x[40, 2] = np.nan
    return x


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: [], "data are empty"),
        (lambda: np.zeros((0, 6), "float32"), "data are empty"),
        (lambda: failing_after(2), "batch 2 of the data cannot be read: OSError: the disk is gone"),
        (with_nan, "batch 1 of the data holds NaN or infinity"),
        (lambda: np.zeros((8, 7), "float32"), "the model rejects batch 0"),
        (lambda: np.zeros((8, 6), "complex64"), "batch 0 of the data is complex64, but the model"),
        (lambda: [tiny_data(8)[0], np.zeros((8, 2, 2), "f4")], "the model rejects batch 1"),
        (lambda: np.array([["a"] * 6]), "the model rejects batch 0"),
        (lambda: (np.zeros((8, 6)), np.zeros(7)), "differ in length"),
        (lambda: 42, "data are of type int"),
        (lambda: [1.0, 2.0], "a single value"),
        (
            lambda: tf.data.Dataset.from_tensors(np.zeros((8, 6), "f4")).repeat(),
            "repeats without end",
        ),
    ],
)
def test_bad_data_is_named_and_the_model_unchanged(data, message):
    model = randomize(tiny_model(), 4)
    before = model.get_weights()
    with pytest.raises(DataError, match=message):
        update_batch_norm(model, data())
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, model.get_weights(), strict=True))
    for layer in (model.get_layer("stem_bn"), model.get_layer("block").layers[1]):
        assert layer.momentum == 0.99
        assert "call" not in vars(layer)


def test_a_model_of_complex_numbers_takes_them():
    layers = [keras.Input((6,), dtype="complex64"), keras.layers.Lambda(keras.ops.real)]
    model = keras.Sequential([*layers, keras.layers.BatchNormalization()])
    x = tiny_data(64)[0]
    update_batch_norm(model, x * np.complex64(1 + 2j))
    np.testing.assert_allclose(model.layers[1].moving_mean, x.mean(axis=0), rtol=1e-5)


def test_nan_that_the_model_makes_names_the_layer():
    norm = keras.layers.BatchNormalization(name="after_the_log")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Activation(keras.ops.log), norm])
    x = np.ones((64, 4), "float32")
    x[40, 2] = -1.0
    with pytest.raises(DataError, match=r"batch 1 .* brought NaN or infinity .*after_the_log'"):
        update_batch_norm(model, x)


def test_values_of_sparse_inputs_are_looked_at():
    layers = [keras.Input((6,), sparse=True), keras.layers.Dense(4, "relu")]
    model = keras.Sequential([*layers, keras.layers.BatchNormalization()])
    x = np.eye(8, 6, dtype="float32")
    model.layers[0].kernel.assign(np.full((6, 4), -1.0))
    update_batch_norm(model, [tf.sparse.from_dense(x)])
    x[3, 3] = np.inf  # times -1, and a relu makes it 0
    with pytest.raises(DataError, match="batch 1 of the data holds NaN or infinity"):
        update_batch_norm(
            model, [tf.sparse.from_dense(np.eye(8, 6, dtype="f4")), tf.sparse.from_dense(x)]
        )


def test_an_interrupt_leaves_the_model_as_it_was():
    model = randomize(tiny_model(), 4)
    before = model.get_weights()

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update_batch_norm(model, tiny_data()[0], progress=interrupt)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert model.get_layer("stem_bn").momentum == 0.99


def test_renorm_is_set_as_if_its_former_statistics_had_never_been():
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(renorm=True)])
    layer = randomize(model, 3).layers[0]
    x = np.random.default_rng(0).normal(5, 2, (64, 4)).astype("float32")
    update_batch_norm(model, [x[:40], x[40:]])
    mean, variance = x.astype("f8").mean(0), x.astype("f8").var(0)
    deviation = np.sqrt(variance + layer.epsilon)
    for variable, expected in (
        (layer.moving_mean, mean),
        (layer.moving_variance, variance),
        (layer.moving_stddev, deviation),
        (layer.renorm_mean, mean),
        (layer.renorm_stddev, deviation),
    ):
        np.testing.assert_allclose(variable, expected, rtol=1e-6)
    assert layer.renorm


def test_a_batch_norm_beyond_the_forward_pass_is_reported():
    class Spare(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization(name="used")
            self.spare = keras.layers.BatchNormalization(name="spare")
            self.spare.build((None, 6))

        def call(self, inputs, training=None):
            return self.norm(inputs, training=training)

    model = Spare()
    model(np.zeros((1, 6)))
    report = update_batch_norm(model, tiny_data()[0])
    assert [path.split("/")[-1] for path in report.unused] == ["spare"]
    assert model.spare.moving_mean.numpy().tolist() == [0.0] * 6


class FineTuned(keras.Model):
    """The idiom of fine-tuning: the base runs in inference mode also while the model trains."""

    def __init__(self):
        super().__init__()
        self.base = keras.layers.BatchNormalization(name="base")
        self.head = keras.layers.BatchNormalization(name="head")

    def call(self, inputs, training=None):
        return self.head(self.base(inputs, training=False), training=training)


def test_layers_that_the_model_calls_in_inference_mode_keep_and_use_their_statistics():
    model = FineTuned()
    model(np.zeros((1, 6)))
    model.base.moving_mean.assign(np.arange(6) + 1.0)
    model.base.moving_variance.assign(np.full(6, 4.0))
    x = tiny_data()[0]
    report = update_batch_norm(model, x)
    assert [path.split("/")[-1] for path in report.layers] == ["head"]
    assert [path.split("/")[-1] for path in report.unused] == ["base"]
    assert model.base.moving_mean.numpy().tolist() == [1, 2, 3, 4, 5, 6]
    outputs = (x.astype("float64") - (np.arange(6) + 1)) / np.sqrt(4 + model.base.epsilon)
    np.testing.assert_allclose(model.head.moving_mean, outputs.mean(0), rtol=1e-4)
    np.testing.assert_allclose(model.head.moving_variance, outputs.var(0), rtol=1e-4)


def test_random_layers_draw_anew_for_every_batch():
    dropout = keras.layers.Dropout(0.5, seed=3)
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((8,)), dropout, norm])
    seed = dropout.seed_generator.state.numpy().copy()
    update_batch_norm(model, [np.ones((1, 8), "float32")] * 500)
    # Ones that are dropped or doubled: mean 1 and variance 1, within 5 standard errors.
    np.testing.assert_allclose(norm.moving_mean, np.ones(8), atol=0.23)
    np.testing.assert_allclose(norm.moving_variance, np.ones(8), atol=0.06)
    assert np.array_equal(dropout.seed_generator.state.numpy(), seed)


def test_time_distributed():
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((3, 4)), keras.layers.TimeDistributed(norm)])
    x = np.random.default_rng(0).normal(2, 3, (40, 3, 4)).astype("float32")
    update_batch_norm(model, x)
    np.testing.assert_allclose(norm.moving_mean, x.astype("f8").mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, x.astype("f8").var((0, 1)), rtol=1e-5)


def test_a_layer_whose_calls_cannot_be_seen_is_named():
    class Hidden(keras.Model):
        def __init__(self):
            super().__init__()
            self.frozen = keras.layers.BatchNormalization(name="frozen", trainable=False)
            self.frozen.build((None, 6))
            self.norm = keras.layers.BatchNormalization(name="inner")
            self.norm.build((None, 6))

        @tf.function
        def inside(self, inputs, training):
            return self.norm(inputs, training=training)

        def call(self, inputs, training=None):
            return self.inside(inputs, training)

    model = Hidden()
    model(np.zeros((1, 6), "float32"))
    before = model.get_weights()
    with pytest.raises(ModelError, match="inner' is called inside a loop or a function"):
        update_batch_norm(model, tiny_data()[0])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_nothing_is_set_when_all_positions_of_a_layer_are_masked():
    inputs = keras.Input((4, 3))
    first = keras.layers.BatchNormalization(name="first")
    second = keras.layers.BatchNormalization(name="second")
    x = keras.layers.Masking(0.0)(first(inputs) * 0.0)
    model = keras.Model(inputs, second(x))
    with pytest.raises(DataError, match="layer 'second' are masked"):
        update_batch_norm(model, np.ones((8, 4, 3), "float32"))
    assert first.moving_mean.numpy().tolist() == [0.0] * 3


def test_passes_of_one_object_are_those_of_many():
    # dropout before the layer: every pass draws the same, from the seed that the model has
    def build() -> keras.Model:
        layers = [keras.Input((6,)), keras.layers.Dropout(0.3, seed=1), CountsCalls()]
        return keras.Sequential([*layers, keras.layers.BatchNormalization(), keras.layers.Dense(2)])

    kept, fresh = build(), build()
    x = tiny_data(70)[0]
    passes = BatchNormPass(kept)
    traced = []
    for seed in (3, 4, 5):
        for model in (kept, fresh):
            randomize(model, seed)
            model.layers[0].seed_generator.state.assign([seed, 0])
        report = passes.run(x)
        traced.append(kept.layers[1].calls)
        assert (report.samples, report.batches) == (70, 3)
        update_batch_norm(fresh, x)
        for one, two in zip(kept.variables, fresh.variables, strict=True):
            np.testing.assert_array_equal(one, two)
    assert traced[0] == traced[1] == traced[2], "a pass was compiled again"
    with pytest.raises(DataError, match="NaN or infinity"):
        passes.run(np.full((8, 6), np.nan, "float32"))
    assert passes.run(x).samples == 70


class CountsCalls(keras.layers.Layer):
    """Counts how often its Python code runs: once for each compiled step."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs
