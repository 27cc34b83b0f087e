"""Files beside checkpoints, in whose place anything may stand: records, histories, journals."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptavg
from ckptavg.errors import CkptavgError
from ckptavg.formats import ModelConfig
from ckptavg.runs.record import Record
from ckptavg.runs.record_files import record_path
from ckptavg.saving.run_writer import read_rates
from ckptavg.search.score_cache import ScoreCache
from tests.helpers.command_line import main


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """A read that waits forever fails instead."""

    def stop(*_: object) -> None:
        raise AssertionError("it waits for what is not a file")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 20 * 10**9)


WHATEVER = pytest.mark.parametrize("put", [pipe, endless, huge])


@WHATEVER
def test_in_place_of_a_record_of_a_run(trained_run, put, tmp_path):
    put(trained_run / "checkpoints" / "epoch-0004.json")
    for words in (["inspect"], ["verify"], ["doctor"], ["merge", "-o", tmp_path / "o.h5"]):
        status, _, err = main(*words, trained_run)
        assert status == 1
        assert err.startswith("error: cannot read the record"), err


@WHATEVER
def test_in_place_of_the_record_of_a_file(trained_run, put, tmp_path):
    out = tmp_path / "swa.weights.h5"
    ckptavg.merge(trained_run, out)
    put(record_path(out))
    for words in (["inspect", out], ["verify", out], ["convert", out, tmp_path / "o.safetensors"]):
        status, _, err = main(*words)
        assert status == 1
        assert err.startswith("error: cannot read the record"), err


@WHATEVER
def test_in_place_of_a_history_or_a_configuration(trained_run, put, tmp_path):
    put(trained_run / "history.jsonl")
    with pytest.raises(CkptavgError, match="cannot read the history"):
        _ = ckptavg.open_run(trained_run).history
    assert main("report", trained_run, "-o", tmp_path / "report.html")[0] == 0
    put(trained_run / "model.json")
    with pytest.raises(CkptavgError, match="cannot read the model configuration"):
        ModelConfig.read(trained_run / "model.json")
    # What is no file is no configuration: where one is needed, that is said.
    with pytest.raises(CkptavgError, match=r"cannot read|checkpoints have none"):
        ckptavg.merge(trained_run, tmp_path / "swa.keras")


@WHATEVER
def test_in_place_of_what_a_saver_or_a_search_keeps(tmp_path, put):
    put(tmp_path / "saver.json")
    with pytest.raises(CkptavgError, match=r"cannot read .*saver.json"):
        read_rates(tmp_path, 1)
    put(tmp_path / "scores.jsonl")
    with pytest.raises(CkptavgError, match=r"scores\.jsonl"):
        ScoreCache(tmp_path, [], [])
    put(tmp_path / "checkpoint")
    (tmp_path / "m-1.index").touch()
    with pytest.raises(CkptavgError):
        ckptavg.merge(tmp_path, tmp_path / "o")


def test_a_line_of_a_journal_without_an_end(checkpoints, tmp_path):
    # The journal is opened by its own means, because it is locked and written to.
    out = tmp_path / "swa.weights.h5"
    huge(tmp_path / ".tmp-swa.weights.h5.journal")
    ckptavg.merge(checkpoints, out, resume=True)
    assert [found.average for found in ckptavg.verify(out)] == ["reproduced"]


def test_few_bytes_that_stand_for_many_values(trained_run):
    record = trained_run / "checkpoints" / "epoch-0004.json"
    content = json.loads(record.read_text())
    text = json.dumps(content | {"more": []})
    record.write_text(text.replace('"more": []', f'"more": [{"[]," * 4_000_000}0]'))
    with pytest.raises(CkptavgError, match=r"holds [\d,]+ values, but at most 4,000,000"):
        Record.read(record)


def test_the_name_of_a_record_may_be_too_long_for_a_file(checkpoints, tmp_path):
    path = checkpoints[0].rename(tmp_path / f"{'x' * 242}.weights.h5")
    ckptavg.merge([path, checkpoints[1]], tmp_path / "o.weights.h5")
