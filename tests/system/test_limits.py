"""Too little memory, too few threads, Ctrl-C at the start: one line, and nothing half done."""

import resource
import signal
import subprocess
import sys
import threading
import time

import keras
import pytest

from ckptavg import merge, open_run
from ckptavg.errors import SaverError, ThreadLimitError
from tests.helpers.files import leftovers
from tests.helpers.models import compiled_model
from tests.helpers.saving import fit

_COMMAND = [sys.executable, "-m", "ckptavg", "merge", "run", "-o", "o.weights.h5"]


@pytest.fixture
def no_threads():
    """Lets every new thread ask for more memory than there are addresses."""
    former = threading.stack_size(1 << 47)
    yield
    threading.stack_size(former)


def test_a_merge_without_threads(trained_run, no_threads):
    with pytest.raises(ThreadLimitError, match=r"allows no more threads \(ulimit -u"):
        merge(trained_run, trained_run / "o.weights.h5", jobs=2)
    assert not leftovers(trained_run)
    assert not (trained_run / "o.weights.h5").exists()


def test_a_saver_without_threads(tmp_path, no_threads):
    with pytest.raises(SaverError, match="allows no more threads"):
        fit(compiled_model(), tmp_path / "run", 2, start_epoch=1)


def test_a_saver_that_gets_threads_later(tmp_path):
    """What could not be written is not written later, with other weights."""
    later = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: threading.stack_size(0))
    former = threading.stack_size(1 << 47)
    try:
        with pytest.warns(UserWarning, match="allows no more threads"):
            fit(
                compiled_model(), tmp_path / "run", 3, [later], start_epoch=1, on_error="warn"
            )  # fmt: skip
    finally:
        threading.stack_size(former)
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [2, 3]


@pytest.mark.parametrize("megabytes", [150, 200])
def test_too_little_memory_is_one_line(trained_run, megabytes):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    done = subprocess.run(
        _COMMAND, cwd=trained_run.parent, preexec_fn=limit, capture_output=True, check=False
    )
    if done.returncode != 0:  # how much is enough differs between systems
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("seconds", [0.1, 0.15, 0.25])
def test_ctrl_c_while_the_command_starts(trained_run, seconds):
    with subprocess.Popen(
        _COMMAND, cwd=trained_run.parent, stderr=subprocess.PIPE, text=True
    ) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    # Until Python itself has started, the traceback is its own.
    assert "ckptavg/cli" not in errors
    assert process.returncode in (0, 130, -signal.SIGINT)
    assert not leftovers(trained_run.parent)
