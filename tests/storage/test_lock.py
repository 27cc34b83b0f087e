"""Lock files: one owner at a time."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckptavg.storage.lock import ProcessLock, locked, open_own

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


def test_a_lock_file_exists_while_it_is_held(tmp_path):
    path = tmp_path / ".lock"
    with locked(path) as has_locks:
        assert has_locks
        assert attempt(path) == f"held by process {os.getpid()} on {socket.gethostname()}"
    assert list(tmp_path.iterdir()) == []


def test_a_thread_cannot_hold_what_another_or_itself_holds(tmp_path):
    path = tmp_path / ".lock"
    (tmp_path.parent / "link").unlink(missing_ok=True)
    (tmp_path.parent / "link").symlink_to(tmp_path)
    with locked(path), ThreadPoolExecutor(1) as pool:
        for other in (path, tmp_path.parent / "link" / ".lock"):
            for call in (lambda take: take(), lambda take: pool.submit(take).result()):
                with pytest.raises(BlockingIOError, match="another thread of this process"):
                    call(lambda other=other: locked(other).__enter__())
        # The attempts have not given up the lock that others see.
        assert attempt(path).startswith("held by process")
    with locked(path):
        pass


def test_another_process_is_told_who_holds_a_lock(tmp_path):
    path, program = tmp_path / ".lock", _OTHER_PROCESS + "print(); sys.stdout.flush(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        with pytest.raises(BlockingIOError) as refused, locked(path):
            pass
        assert refused.value.strerror == "an unknown process"  # this program leaves no note
        holder.kill()
        holder.wait()
        with locked(path):  # which it did not remove
            pass


def test_a_file_that_its_owner_removed_is_made_again(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    path.touch()
    lockf = fcntl.lockf

    def removed_meanwhile(descriptor, flags):
        monkeypatch.setattr(fcntl, "lockf", lockf)
        path.unlink()
        lockf(descriptor, flags)

    monkeypatch.setattr(fcntl, "lockf", removed_meanwhile)
    with locked(path):
        assert attempt(path).startswith("held by process")


def test_a_child_process_holds_nothing(tmp_path):
    """A forked data loader may outlive its owner, and may write outputs itself afterwards."""
    path = tmp_path / ".lock"
    with locked(path):
        child = os.fork()
        if child == 0:
            try:
                with locked(path):
                    os._exit(1)
            except BlockingIOError as error:
                os._exit(0 if error.strerror.startswith("process") else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert attempt(path).startswith("held by process")


@pytest.mark.parametrize("kind", ["two names", "pipe", "folder"])
def test_only_a_regular_file_with_one_name_is_opened_and_locked(tmp_path, kind):
    path = tmp_path / ".lock"
    if kind == "two names":
        path.write_text("somebody's")
        os.link(path, tmp_path / "other")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    for use in (open_own, lambda path: locked(path).__enter__()):
        with pytest.raises(
            OSError, match="not a regular file" if kind != "folder" else "directory"
        ):
            use(path)
        (tmp_path / "link").symlink_to(path)
        with pytest.raises(OSError, match="link"):
            use(tmp_path / "link")
        (tmp_path / "link").unlink()
    if kind == "two names":
        assert path.read_text() == "somebody's"
