"""The history of a run: every epoch of the training, also of one that broke off and went on."""

import json
import math
import re

import keras
import pytest

from ckptavg import CheckpointSaver, EpochLog, open_run
from ckptavg.errors import RecordError, SaverError
from ckptavg.runs.history import HISTORY_FILE
from ckptavg.runs.json_values import decode
from tests.helpers.files import fill, leftovers
from tests.helpers.models import compiled_model, tiny_data

EPOCHS = 5


def fit(directory, epochs=EPOCHS, *, model=None, callbacks=(), **arguments):
    """Trains a model whose state at the end of each epoch is that of any training before."""
    keras.utils.set_random_seed(3)
    model = compiled_model() if model is None else model
    model.optimizer.build(model.trainable_variables)  # so that its state can be restored
    x, y = tiny_data()
    first = arguments.pop("first", 0)
    saver = CheckpointSaver(directory, **{"start_epoch": 4} | arguments)
    return model.fit(
        x,
        y,
        initial_epoch=first,
        epochs=epochs,
        batch_size=16,
        shuffle=False,
        validation_split=0.25,
        verbose=0,
        callbacks=[*callbacks, saver],
    ).history


def facts(directory):
    """All that a history tells, but for times."""
    return [(log.epoch, log.step, log.learning_rate, log.metrics) for log in history(directory)]


def history(directory) -> tuple[EpochLog, ...]:
    return open_run(directory).history


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of a training that never broke off, and what Keras itself says of it."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, fit(directory, lr_schedule="constant", swa_lr=0.002)


def test_every_epoch_is_there_as_keras_logs_it(whole):
    directory, logged = whole
    assert [record.epoch for record in open_run(directory).records] == [4, 5]
    assert [log.epoch for log in history(directory)] == [1, 2, 3, 4, 5]
    assert [log.step for log in history(directory)] == [5, 10, 15, 20, 25]
    rates = logged.pop("learning_rate")
    assert [log.learning_rate for log in history(directory)] == rates
    assert rates[0] > rates[-1]
    assert set(logged) == {"accuracy", "loss", "val_accuracy", "val_loss"}
    for place, log in enumerate(history(directory)):
        assert log.metrics == {name: values[place] for name, values in logged.items()}
    for line in (directory / HISTORY_FILE).read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # strict JSON


@pytest.mark.parametrize("torn", [b"", b'{"epoch": 3, "st', b"\0\0\0"])
def test_a_training_that_goes_on_has_one_history(tmp_path, whole, torn):
    """Lines of epochs that it does again are dropped, and a line that a kill tore."""
    arguments = {"lr_schedule": "constant", "swa_lr": 0.002, "existing": "resume"}
    directory, backup = tmp_path / "run", tmp_path / "backup"

    class BrokenOffError(Exception):
        pass

    def crash(ended, _):
        if ended + 1 == 3:  # before the backup and the line of epoch 3
            raise BrokenOffError

    crashing = keras.callbacks.LambdaCallback(on_epoch_end=crash)
    keep = keras.callbacks.BackupAndRestore(backup)
    with pytest.raises(BrokenOffError):
        fit(directory, callbacks=[crashing, keep], **arguments)
    logs = (directory / HISTORY_FILE).read_bytes()
    later = EpochLog(3, 15, 0.1, {"loss": math.inf}, "").to_line().encode()
    (directory / HISTORY_FILE).write_bytes(logs + later + torn)
    fit(directory, callbacks=[keras.callbacks.BackupAndRestore(backup)], **arguments)
    assert facts(directory) == facts(whole[0])
    assert not leftovers(directory)


def test_a_torn_line_does_not_count_and_a_damaged_one_is_named(tmp_path, whole):
    run = open_run(whole[0])
    lines = (whole[0] / HISTORY_FILE).read_text()
    path = tmp_path / HISTORY_FILE
    path.write_text(lines + lines.splitlines()[0][:-3])
    moved = type(run)(tmp_path, run.checkpoints)
    assert moved.history == run.history
    for step in ("-1", "NaN", "1" * 400, "[" * 10_000):
        path.write_text(lines.replace('"step": 10', f'"step": {step}'))
        with pytest.raises(RecordError, match=f"line 2 of the history .*{HISTORY_FILE} is damaged"):
            moved.history  # noqa: B018
    path.write_text(re.sub('"loss": [^,}]+', f'"loss": {"1" * 400}', lines))  # beyond any float
    with pytest.raises(RecordError, match=f"line 1 of the history .*{HISTORY_FILE} is damaged"):
        moved.history  # noqa: B018
    path.unlink()
    assert moved.history == ()


def test_a_damaged_history_is_told_before_training(tmp_path):
    directory = tmp_path / "run"
    fit(directory, 4)
    (directory / HISTORY_FILE).write_text("{}\n")
    model = compiled_model()
    with pytest.raises(SaverError, match=r"line 1 .* Remove the line or the file"):
        fit(directory, model=model, first=4, existing="resume")
    fit(directory, 4, existing="overwrite")
    assert len(history(directory)) == 4


def test_a_training_that_begins_anew_begins_its_history(tmp_path):
    directory = tmp_path / "run"
    fit(directory, 5)
    before = facts(directory)
    with pytest.raises(SaverError, match="already"):
        fit(directory, 5)
    with pytest.raises(SaverError, match="starts over"):
        fit(directory, 5, existing="resume")
    assert facts(directory) == before
    fit(directory, 4, existing="overwrite")
    assert facts(directory) == before[:4]


def test_what_is_no_number_survives():
    log = EpochLog(3, None, None, {"loss": math.nan, "val_loss": -math.inf, "x": 0.1 + 0.2}, "t")
    again = decode(EpochLog, json.loads(log.to_line()))
    assert math.isnan(again.metrics["loss"])
    assert dict(again.metrics) | {"loss": 0} == dict(log.metrics) | {"loss": 0}
    assert (again.epoch, again.step, again.learning_rate, again.time) == (3, None, None, "t")


def test_a_full_disk_costs_the_line_and_not_its_neighbours(small_disk):
    directory = small_disk / "run"
    ballast = small_disk.parent / "ballast"

    def act(epoch, _):
        if epoch == 0:
            fill(small_disk)
        if epoch == 2:
            ballast.unlink()

    steps = [keras.callbacks.LambdaCallback(on_epoch_begin=act)]
    with pytest.warns(UserWarning, match="cannot add epoch 1 to the history") as told:
        fit(directory, callbacks=steps, on_error="warn", start_epoch=5)
    assert sum("the history" in str(one.message) for one in told) == 2
    assert [log.epoch for log in history(directory)] == [3, 4, 5]
    with pytest.raises(SaverError, match=r"cannot add epoch 1 .* No space left"):
        fit(small_disk / "other", callbacks=steps, start_epoch=5)
