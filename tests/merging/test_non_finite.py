"""Checkpoints with NaN or infinity: marked when they are saved, left out when they are averaged."""

import json

import keras
import numpy as np
import pytest

import ckptavg
from ckptavg import CheckpointSaver, open_run
from ckptavg.errors import IntegrityError, RunError
from tests.helpers.command_line import main
from tests.helpers.models import compiled_model, tiny_data


class Breaking(keras.callbacks.Callback):
    """Puts NaN into the model's last variable for some epochs."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
        if epoch == 0:
            self.kept = self.model.get_weights()

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        self.model.set_weights(self.kept)
        if epoch + 1 in self.epochs:
            self.model.weights[-1].assign(np.full(self.model.weights[-1].shape, np.nan))


def broken_run(directory, epochs):
    x, y = tiny_data()
    saver = CheckpointSaver(directory, start_epoch=1)
    with pytest.warns(UserWarning, match="holds NaN or infinity"):
        compiled_model().fit(x, y, epochs=4, verbose=0, callbacks=[Breaking(epochs), saver])
    return open_run(directory)


def test_what_is_broken_is_left_out_and_said(tmp_path):
    run = broken_run(tmp_path / "run", {2, 4})
    assert [bool(record.non_finite) for record in run.records] == [False, True, False, True]
    report = ckptavg.merge(run, tmp_path / "o.weights.h5")
    assert [source.epoch for source in report.record.sources] == [1, 3]
    assert [checkpoint.epoch for checkpoint in report.plan.left_out] == [2, 4]
    good = ckptavg.merge(run.select(epochs=[1, 3]), tmp_path / "p.weights.h5")
    assert (tmp_path / "o.weights.h5").read_bytes() == (tmp_path / "p.weights.h5").read_bytes()
    assert good.plan.left_out == ()
    _, out, _ = main("merge", tmp_path / "run", "-o", tmp_path / "q.weights.h5")
    assert "left out    epoch-0002.weights.h5: " in out
    _, out, _ = main("merge", tmp_path / "run", "-o", tmp_path / "r.weights.h5", "--json")
    assert len(json.loads(out)["left_out"]) == 2


def test_coefficients_say_what_is_to_be_averaged(tmp_path):
    run = broken_run(tmp_path / "run", {2})
    with pytest.raises(IntegrityError, match="holds NaN"):
        ckptavg.merge(run, tmp_path / "o.weights.h5", coefficients=[0.25] * 4)


def test_nothing_but_broken_checkpoints(tmp_path):
    run = broken_run(tmp_path / "run", {1, 2, 3, 4})
    with pytest.raises(RunError, match="like every checkpoint given"):
        ckptavg.merge(run, tmp_path / "o.weights.h5")
