"""SWA on the backend that Keras runs on: the mean, and statistics of the last epoch's batches."""

import keras
import numpy as np
import pytest

from ckptavg import SWA, open_run
from tests.helpers.saving import assert_trainables_are_means, blobs, network


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "use_ema"])
def test_the_model_holds_the_mean_and_the_statistics_of_the_last_epoch(tmp_path, norm, optimizer):
    model = network(norm=norm)
    given = {"use_ema": True, "ema_momentum": 0.5} if optimizer == "use_ema" else {}
    model.compile(
        keras.optimizers.SGD(0.1, **given), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    x, y = blobs()
    swa = SWA(3, "cyclic", swa_freq=2, directory=tmp_path / "run")
    history = model.fit(
        x, y, epochs=7, batch_size=20, validation_split=0.25, verbose=0, callbacks=[swa]
    ).history
    epochs = [record.epoch for record in open_run(tmp_path / "run").records]
    assert epochs == [4, 6]
    assert_trainables_are_means(model, tmp_path / "run")
    assert all(len(values) == 7 for values in history.values())
    if norm:  # otherwise the last epoch trains, and is averaged after its validation
        loss, _ = model.evaluate(x[72:], y[72:], verbose=0)
        assert history["val_loss"][-1] == pytest.approx(loss)
        kernel, bias = (np.asarray(w, np.float64) for w in model.layers[0].get_weights())
        values = np.maximum(x[:72] @ kernel + bias, 0)
        mean, variance = model.layers[1].layers[0].get_weights()[2:]
        scale = values.std(0).max()
        assert np.abs(mean - values.mean(0)).max() / scale < 1e-5
        assert np.abs(variance - values.var(0)).max() / scale**2 < 1e-5
