"""Runs and records: reading, selecting, and what is not one."""

import dataclasses
import json
import math

import pytest

from ckptavg import open_run
from ckptavg.errors import CkptavgWarning, RecordError, RunError
from ckptavg.runs.record import BatchNormRecord, Record, SourceRecord, TensorRecord, now
from ckptavg.runs.record_files import find_record

TENSORS = {"layers/a/vars/0": TensorRecord((2, 3), "float32", ("ab" * 16,))}


def make_record(epoch=1, **changes) -> Record:
    fields = {
        "file": f"epoch-{epoch:04d}.weights.h5",
        "size": 10,
        "time": now(),
        "versions": {"ckptavg": "0"},
        "epoch": epoch,
    }
    return Record(**{**fields, **changes})


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    # sockeye, test/unit/test_average.py: the best 3 by minimum of these
    values = [(2.2, 4), (1.1, 3), (3.3, 2), (4.4, 1)]
    for loss, epoch in values:
        record = make_record(epoch, metrics={"val_loss": loss, "val_accuracy": 1 / loss, "x": 1.0})
        record.write(folder / f"epoch-{epoch:04d}.json", TENSORS)
        (folder / record.file).write_bytes(b"0" * 10)
    return tmp_path / "run"


def epochs(checkpoints) -> list[int]:
    return [checkpoint.record.epoch for checkpoint in checkpoints]


def test_records_come_in_order_of_epochs(run):
    assert [record.epoch for record in open_run(run).records] == [1, 2, 3, 4]


def test_select(run):
    opened = open_run(run)
    assert epochs(opened.select()) == [1, 2, 3, 4]
    assert epochs(opened.select(last=2)) == [3, 4]
    assert epochs(opened.select(epochs=[4, 1])) == [1, 4]
    assert epochs(opened.select(best=3)) == [2, 3, 4]
    assert epochs(opened.select(best=1)) == [3]
    assert epochs(opened.select(best=1, monitor="val_accuracy")) == [3]
    assert epochs(opened.select(best=1, mode="max")) == [1]
    assert epochs(opened.select(epochs=range(1, 4), last=2, best=1, mode="max")) == [2]
    # a range means those that there are
    assert epochs(opened.select(epochs=range(3, 100))) == [3, 4]
    assert epochs(opened.select(epochs=[1, range(3, 100, 2)])) == [1, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": [2, 9]}, "no checkpoint of epoch 9.*4 checkpoints of epochs 1-4"),
        ({"epochs": range(2, 0)}, "no checkpoint was selected"),
        ({"epochs": [1, range(7, 10)]}, "no checkpoint of epochs 7-9, only 4 checkpoints"),
        ({"epochs": []}, "no checkpoint was selected"),
        ({"last": 5}, "ask for 1 to 4"),
        ({"last": 0}, "ask for 1 to 4"),
        ({"best": 9}, "ask for 1 to 4"),
        (
            {"best": 1, "monitor": "val_f1"},
            "has no metric 'val_f1', it has: val_accuracy, val_loss",
        ),
        ({"best": 1, "monitor": "x"}, "cannot tell whether lower or higher"),
        ({"best": 1, "mode": "least"}, "must be 'min', 'max' or 'auto'"),
    ],
)
def test_selections_that_cannot_be(run, arguments, message):
    with pytest.raises(RunError, match=message):
        open_run(run).select(**arguments)


def test_nan_is_never_best(run):
    path = run / "checkpoints" / "epoch-0003.json"
    record = Record.read(path)
    dataclasses.replace(record, metrics={"val_loss": math.nan}).write(path, TENSORS)
    assert epochs(open_run(run).select(best=3)) == [1, 2, 4]
    assert epochs(open_run(run).select(best=3, mode="max")) == [1, 2, 4]
    message = "'val_loss' is NaN in 1 of 4 checkpoints: instead of the best 4, the 3 others"
    with pytest.warns(CkptavgWarning, match=message):
        assert epochs(open_run(run).select(best=4)) == [1, 2, 4]
    with pytest.raises(RunError, match="'val_loss' is NaN in 1 of 1 checkpoints, so there is no"):
        open_run(run).select(epochs=[3], best=1)


def test_a_file_without_record_does_not_count(run):
    torn = run / "checkpoints" / "epoch-0005.weights.h5"
    torn.write_bytes(b"half")
    opened = open_run(run)
    assert epochs(opened.checkpoints) == [1, 2, 3, 4]
    assert opened.uncommitted == (torn,)


def test_directories_that_are_no_run(tmp_path):
    with pytest.raises(RunError, match="there is no run"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match="lacks the folder 'checkpoints'"):
        open_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunError, match="holds no checkpoint yet"):
        open_run(tmp_path)


def test_a_record_survives_its_file(tmp_path):
    record = make_record(
        metrics={"loss": math.nan, "val_loss": math.inf, "accuracy": 0.1 + 0.2},
        learning_rate=0.1,
        batch_norm=BatchNormRecord(2, "fresh", 10, 2, "train.py:data"),
        sources=(SourceRecord("a.weights.h5", 5, 0.5, 3, True),),
        recipe="uniform",
        model="../model.json",
    )
    record.write(tmp_path / "r.json", TENSORS)
    again = Record.read(tmp_path / "r.json")
    assert again.read_tensors() == TENSORS
    assert math.isnan(again.metrics["loss"])
    assert again.metrics["val_loss"] == math.inf
    without = {"metrics": {"accuracy": 0.1 + 0.2}}
    assert again.metrics["accuracy"] == 0.1 + 0.2
    assert dataclasses.replace(again, **without) == dataclasses.replace(record, **without)
    json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)  # strict JSON


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("[]", "not a record"),
        ('{"format": "ckptavg-record", "version": 99}', "version 99"),
        ('{"format": "ckptavg-record", "version": 1}', "is damaged"),
        ("[" * 100_000, "cannot read"),
    ],
)
def test_damaged_records(run, content, message):
    (run / "checkpoints" / "epoch-0002.json").write_text(content)
    with pytest.raises(RecordError, match=message):
        open_run(run)


def test_a_record_cannot_point_out_of_the_run(run):
    path = run / "checkpoints" / "epoch-0002.json"
    dataclasses.replace(Record.read(path), file="../../secret.weights.h5").write(path, TENSORS)
    with pytest.raises(RecordError, match="not in its folder"):
        open_run(run)


def test_a_record_holds_for_its_own_file_only(run, tmp_path):
    folder = run / "checkpoints"
    assert find_record(folder / "epoch-0001.weights.h5").epoch == 1
    (folder / "epoch-0001.json").rename(folder / "epoch-0009.json")
    (folder / "epoch-0009.weights.h5").write_bytes(b"")
    assert find_record(folder / "epoch-0009.weights.h5") is None
    (tmp_path / "other.json").write_text('{"somebody": "else"}')
    assert find_record(tmp_path / "other.weights.h5") is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", "Infinity"),
        ("size", str(10**400)),
        ("size", "-1"),
        ("epoch", '"3"'),
        ("step", "1.5"),
        ("learning_rate", str(10**400)),
        ("model", '"a\\u0000b"'),
        ("model", '"\\ud800"'),
        ("batch_norm", '{"layers": NaN, "statistics": "stale"}'),
        ("batch_norm", '{"layers": 1, "statistics": "fresh"}'),
        ("sources", '[{"epoch": "a"}]'),
        ("tensors", "[]"),
        ("file", "null"),
    ],
)
def test_values_that_a_record_cannot_hold(run, field, value):
    path = run / "checkpoints" / "epoch-0002.json"
    content = json.loads(path.read_text())
    content[field] = "PLACE"
    path.write_text(json.dumps(content).replace('"PLACE"', value))
    with pytest.raises(RecordError, match="is damaged"):
        open_run(run)
