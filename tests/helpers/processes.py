"""Processes of their own, and their ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras", "tf_keras", "jax", "torch",
                                      "matplotlib", "pandas", "sklearn"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""


def run_blocked(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", _BLOCKED + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def kill(pid: int) -> None:
    """Kills a process and waits until it is gone: files are closed then, not before."""
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def is_running(pid: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{pid}").exists()
