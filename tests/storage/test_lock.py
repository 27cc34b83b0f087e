"""Lock files: one owner at a time."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from ckptavg.storage.lock import ProcessLock, open_locked

_OTHER_PROCESS = """
import sys
from pathlib import Path
from ckptavg.storage.lock import ProcessLock
lock = ProcessLock(Path(sys.argv[1]))
try:
    lock.acquire()
except BlockingIOError:
    sys.exit(f"held by {lock.read_note()}")
"""


def attempt(path):
    """What another process says that tries to take a lock."""
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS, path], capture_output=True, text=True, check=False
    )
    return done.stderr.strip()


def test_one_process_holds_a_lock_until_it_releases_it(tmp_path):
    lock = ProcessLock(tmp_path / ".lock")
    assert lock.acquire()
    assert lock.acquire()  # again, by the same process
    lock.write_note("a long note that is replaced")
    lock.write_note("this test")
    assert attempt(tmp_path / ".lock") == "held by this test"
    lock.release()
    lock.release()
    assert attempt(tmp_path / ".lock") == ""


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    lock = ProcessLock(tmp_path / ".lock")
    assert not lock.acquire()
    lock.release()


def test_a_locked_file_is_open_once_even_within_a_process(tmp_path):
    path = tmp_path / "journal"
    descriptor = open_locked(path)
    with pytest.raises(BlockingIOError):
        open_locked(path)
    os.close(descriptor)
    os.close(open_locked(path))


def test_a_file_that_its_owner_removed_is_made_again(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    path.touch()
    flock = fcntl.flock

    def removed_meanwhile(descriptor, flags):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(descriptor, flags)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    descriptor = open_locked(path)
    assert os.path.samestat(path.stat(), os.fstat(descriptor))
    os.close(descriptor)


def test_only_a_regular_file_with_one_name_is_locked(tmp_path):
    path = tmp_path / "journal"
    path.touch()
    os.link(path, tmp_path / "other")
    with pytest.raises(FileExistsError):
        open_locked(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="link"):
        open_locked(tmp_path / "link")
