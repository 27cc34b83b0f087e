"""Commands on a terminal."""

import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def in_terminal():
    """Runs a command in a pseudo terminal; gives what it shows."""

    def run(command: str) -> str:
        leader, follower = pty.openpty()
        program, *arguments = shlex.split(command)
        path = Path(sys.executable).with_name(program)
        process = subprocess.Popen([path, *arguments], stdout=follower, stderr=follower)
        os.close(follower)
        shown = b""
        try:
            while chunk := os.read(leader, 65536):
                shown += chunk
        except OSError:  # the end of a terminal is an error on Linux
            pass
        os.close(leader)
        assert process.wait() == 0
        return shown.decode().replace("\r\n", "\n")

    return run
