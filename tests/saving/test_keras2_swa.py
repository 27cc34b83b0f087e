"""SWA of tf_keras: the mean of what was saved, and statistics of the last epoch's batches."""

import numpy as np
import pytest

tf_keras = pytest.importorskip("tf_keras")

from ckptavg import open_run, update_batch_norm  # noqa: E402
from ckptavg.errors import DataError, ModelError  # noqa: E402
from ckptavg.tf_keras import SWA  # noqa: E402
from tests.helpers.saving import assert_trainables_are_means, blobs  # noqa: E402

LAYERS = tf_keras.layers


def network(*, norm=True):
    return tf_keras.Sequential(
        [
            LAYERS.Dense(8, activation="relu", input_shape=(2,)),
            *([LAYERS.BatchNormalization()] if norm else []),
            LAYERS.Dense(3, activation="softmax"),
        ]
    )


def train(swa, model, optimizer="sgd", epochs=6, **fitting):
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = blobs()
    fitting = {"shuffle": False, "batch_size": 32, "verbose": 0, "callbacks": [swa]} | fitting
    return model.fit(x, y, epochs=epochs, **fitting).history


def assert_statistics_are_those_of(model, x):
    kernel, bias = (np.asarray(w, np.float64) for w in model.layers[0].get_weights())
    values = np.maximum(x @ kernel + bias, 0)
    norm = model.layers[1]
    scale = values.std(0).max()
    assert np.abs(norm.moving_mean.numpy() - values.mean(0)).max() / scale < 1e-5
    assert np.abs(norm.moving_variance.numpy() - values.var(0)).max() / scale**2 < 1e-5


OPTIMIZERS = {
    "plain": lambda: tf_keras.optimizers.SGD(0.1),
    "ema": lambda: tf_keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5),
    "decay": lambda: tf_keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "legacy": lambda: tf_keras.optimizers.legacy.SGD(0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_model_holds_the_mean_and_the_statistics_of_the_last_epoch(tmp_path, optimizer):
    model = network()
    swa = SWA(3, "constant", directory=tmp_path / "run")
    history = train(swa, model, OPTIMIZERS[optimizer](), validation_split=0.25)
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [3, 4, 5]
    assert_trainables_are_means(model, tmp_path / "run")
    x, y = blobs()
    assert_statistics_are_those_of(model, x[:72])
    assert history["learning_rate"][-1] == 0
    assert all(len(values) == 6 for values in history.values())
    loss, _ = model.evaluate(x[72:], y[72:], verbose=0)
    assert history["val_loss"][-1] == pytest.approx(loss)


def test_without_batch_norm_and_with_bn_data(tmp_path, capsys):
    model = network(norm=False)
    train(SWA(3, directory=tmp_path / "run", verbose=1), model)
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [3, 4, 5, 6]
    assert_trainables_are_means(model, tmp_path / "run")
    assert "Epoch 00006: final model weights set to" in capsys.readouterr().out
    model, (x, _) = network(), blobs(40)
    train(SWA(3, directory=tmp_path / "bn", bn_data=x), model)
    assert_trainables_are_means(model, tmp_path / "bn")
    assert_statistics_are_those_of(model, x)


def test_an_error_in_the_pass_leaves_the_former_weights(tmp_path):
    model = network()
    kept = {}
    keep = tf_keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: kept.update(weights=model.get_weights())
    )
    breaking = {"now": False}
    turn = tf_keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, _: breaking.update(now=epoch == 3)
    )
    import tensorflow as tf

    def generate():
        x, y = blobs(64)
        yield x[:32], y[:32]
        yield (np.full_like(x[32:], np.inf) if breaking["now"] else x[32:]), y[32:]

    specs = (tf.TensorSpec((32, 2), tf.float32), tf.TensorSpec((32,), tf.int64))
    data = tf.data.Dataset.from_generator(generate, output_signature=specs)
    model.compile("sgd", "sparse_categorical_crossentropy")
    swa = SWA(2, directory=tmp_path / "run")
    with pytest.raises(DataError, match="batch 1 of the data holds NaN or infinity"):
        model.fit(data, epochs=4, verbose=0, callbacks=[turn, swa, keep])
    for one, two in zip(model.get_weights(), kept["weights"], strict=True):
        assert np.array_equal(one, two)
    before = model.get_weights()
    model.fit(*blobs(), epochs=1, verbose=0)
    assert not np.array_equal(before[0], model.get_weights()[0])


@pytest.mark.parametrize("mode", ["batch", "population"])
def test_the_pass_of_keras_3_refuses_the_model_and_says_what_to_do(mode):
    with pytest.raises(ModelError, match=r"a keras.Model of Keras 3.*ckptavg.tf_keras.SWA"):
        update_batch_norm(network(), blobs()[0], bn_mode=mode)
