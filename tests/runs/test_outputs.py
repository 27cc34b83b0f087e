"""Outputs that are refused, by name, before anything is read or written."""

import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

import ckptavg
from ckptavg.errors import OutputError
from ckptavg.runs.outputs import check_place
from tests.helpers.command_line import main
from tests.helpers.files import write_h5
from tests.helpers.models import tiny_data

RAW = os.fsdecode(b"caf\xe9")
"""A name in Latin-1, as old archives have them."""


@pytest.fixture
def paths(checkpoints, tmp_path, monkeypatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    return checkpoints[:2]


@pytest.mark.parametrize(
    "output", [".", "/", "", "..", "taken", "taken/", f"{RAW}.weights.h5", RAW]
)
@pytest.mark.parametrize("command", ["merge", "convert"])
def test_what_is_no_name_of_a_file(paths, tmp_path, command, output):
    (tmp_path / "taken").mkdir()
    before = sorted(tmp_path.iterdir())
    arguments = [paths[0], output] if command == "convert" else [*paths, "-o", output]
    status, _, said = main(command, *arguments)
    assert (status, said.count("\n")) == (1, 1)
    reason = "not valid UTF-8" if RAW in output else "is a directory: name a file to write"
    assert reason in said
    assert sorted(tmp_path.iterdir()) == before


def test_a_source_that_no_record_can_name(paths, tmp_path):
    source = paths[0].rename(f"{RAW}.weights.h5")
    with pytest.raises(OutputError, match=r"cannot name .*not valid UTF-8: rename it"):
        ckptavg.merge([source, paths[1]], "o.weights.h5")
    assert not Path("o.weights.h5").exists()
    # A folder above all of them is in no record.
    folder = tmp_path / RAW
    folder.mkdir()
    source.rename(folder / "0.weights.h5")
    shutil.copy(paths[1], folder / "1.weights.h5")
    ckptavg.merge(folder, folder / "o.weights.h5")
    assert [v.average for v in ckptavg.verify(folder / "o.weights.h5")] == ["reproduced"]


def special(kind: str, path: Path) -> None:
    """Makes what is no file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root may make a device")


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_overwrite_replaces_files_only(paths, kind):
    names = ["o.weights.h5", "o.safetensors", "o.keras", "r.html", "s.keras.csv", "t.weights.json"]
    for name in names:
        special(kind, Path(name))
    x, y = tiny_data()
    calls = [
        lambda: ckptavg.merge(paths, "o.weights.h5", overwrite=True),
        lambda: ckptavg.convert(paths[0], "o.safetensors", overwrite=True),
        lambda: ckptavg.update_bn(paths[0], "o.keras", data=x, model=object(), overwrite=True),
        lambda: ckptavg.soup(paths, "o.keras", eval_data=(x, y), model=object(), overwrite=True),
        lambda: ckptavg.merge(paths, "t.weights.json", overwrite=True),
        lambda: check_place(Path("r.html"), True),
    ]
    for call in calls:
        with pytest.raises(OutputError, match="is not a regular file, but a device, a named pipe"):
            call()
    command = ["soup", *paths, "-o", "s.keras", "--overwrite", "--eval-data", "train.py:choose"]
    status, _, said = main(*command)
    assert status == 1
    assert "s.keras.csv is not a regular file" in said
    assert not any(stat.S_ISREG(os.lstat(name).st_mode) for name in names)


def test_a_part_that_is_no_file_is_refused_before_anything_is_read(paths):
    special("pipe", Path("o_00000.weights.h5"))
    with pytest.raises(OutputError, match=r"o_00000.weights.h5 is in the way"):
        ckptavg.plan_merge(paths, "o.weights.json", overwrite=True)


def test_another_users_lock_file_is_named(paths, tmp_path):
    """Which nobody else may open; as root, a link stands for it."""
    Path(".tmp-o.weights.h5.lock").symlink_to(write_h5(tmp_path / "x.h5", {}))
    with pytest.raises(OutputError, match=r"Remove \.tmp-o.weights.h5.lock if nobody is writing"):
        ckptavg.merge(paths, "o.weights.h5")
