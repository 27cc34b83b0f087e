"""Runs that are read: others may read and add, nobody may replace."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from ckptavg import merge, open_run
from ckptavg.errors import RunError, SaverError
from ckptavg.runs.reading import reading, replacing
from tests.helpers.models import compiled_model
from tests.helpers.saving import fit

_OTHER = """
import sys
from pathlib import Path
from ckptavg.errors import RunError
from ckptavg.runs.reading import reading, replacing
folder = Path(sys.argv[1])
for attempt in (lambda: reading([folder / "a"]), lambda: replacing(folder)):
    try:
        with attempt():
            print("free")
    except RunError as error:
        print(error)
"""


def others(folder):
    """What another process hears that wants to read, and one that wants to replace."""
    done = subprocess.run(
        [sys.executable, "-c", _OTHER, folder], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.fixture
def checkpoints_of(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


def test_readers_stand_beside_each_other_and_keep_out_who_replaces(checkpoints_of):
    with reading([checkpoints_of / "a", checkpoints_of / "b"]), reading([checkpoints_of / "a"]):
        assert others(checkpoints_of) == [
            "free",
            f"the checkpoints in {checkpoints_of} are being read",
        ]
        with pytest.raises(RunError), replacing(checkpoints_of):
            pass
    assert others(checkpoints_of) == ["free", "free"]
    with replacing(checkpoints_of):
        assert "a training is removing the checkpoints" in others(checkpoints_of)[0]
    assert not [*checkpoints_of.iterdir()]


def test_files_outside_of_runs_are_not_locked(tmp_path, checkpoints_of):
    with reading([tmp_path / "a.weights.h5"]), replacing(tmp_path):
        pass


def test_what_cannot_be_locked_is_read_all_the_same(checkpoints_of, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with reading([checkpoints_of / "a"]), replacing(checkpoints_of):
        pass
    monkeypatch.setattr(os, "open", unsupported)  # a folder without the right to list it
    with reading([checkpoints_of / "a"]):
        pass
    with reading([checkpoints_of.parent / "gone" / "checkpoints" / "a"]):
        pass


def test_a_read_only_file_system(disks):
    with reading([disks / "ro" / "checkpoints" / "a"]):
        pass


def test_a_forked_process_does_not_keep_the_lock(checkpoints_of):
    with reading([checkpoints_of / "a"]):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            os._exit(0)
    try:
        assert others(checkpoints_of) == ["free", "free"]
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)


def test_a_training_adds_to_a_run_that_is_read_and_does_not_replace_it(tmp_path):
    directory, model = tmp_path / "run", compiled_model()
    fit(model, directory, 1, start_epoch=1)
    first = open_run(directory).checkpoints
    with reading([first[0].path]):
        with pytest.raises(SaverError, match=r"cannot replace the checkpoints of .* because a mer"):
            fit(model, directory, 1, start_epoch=1, existing="overwrite")
        assert open_run(directory).checkpoints == first
        fit(model, directory, 2, initial_epoch=1, start_epoch=1, existing="resume")
    merge(directory, tmp_path / "o.weights.h5")
    assert len(open_run(directory).checkpoints) == 2
    fit(model, directory, 1, start_epoch=1, existing="overwrite")
    assert len(open_run(directory).checkpoints) == 1
