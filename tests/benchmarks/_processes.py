"""Runs one process to its end and says what it cost, by the kernel's own accounts."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_SAMPLE_MS = 10
_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),  # the package beside these files is the one that is measured
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "tensorflow",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process cost.

    Attributes:
        whole: seconds from its start to its end, imports included.
        cpu: seconds of user and system time.
        peak: MiB resident at most (ru_maxrss); pages of files that it maps count.
        anonymous: MiB of memory of its own at most (RssAnon, sampled every 10 ms).
        printed: the JSON object that it printed; empty if it printed nothing.
    """

    whole: float
    cpu: float
    peak: float
    anonymous: float
    printed: dict[str, Any]

    @property
    def part(self) -> float | None:
        """Seconds of averaging alone, as the program itself timed it; None if it did not."""
        return self.printed.get("seconds")

    @property
    def cores(self) -> float:
        """Cores that were busy on average."""
        return self.cpu / self.whole


def measure(command: Sequence[object]) -> Usage:
    """Runs a command; ends the program with the command's own words if it fails."""
    arguments = [str(argument) for argument in command]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        with subprocess.Popen(
            arguments, stdout=out, stderr=err, env={**os.environ, **_ENVIRONMENT}
        ) as process:
            try:
                anonymous = _watch(process.pid)
                whole = time.perf_counter() - started
            except BaseException:
                process.kill()
                raise
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            err.seek(0)
            sys.exit(f"{' '.join(arguments)[:300]}\nfailed:\n{err.read()[-3000:]}")
        out.seek(0)
        printed = json.loads(out.read() or "{}")
    cpu = usage.ru_utime + usage.ru_stime
    return Usage(whole, cpu, usage.ru_maxrss / 1024, anonymous / 1024, printed)


def _watch(pid: int) -> int:
    """Waits for the end of a process, which it does not reap; its largest RssAnon in KiB."""
    largest = 0
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll(_SAMPLE_MS):
            largest = max(largest, _anonymous(pid))
    finally:
        os.close(descriptor)
    return largest


def _anonymous(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0  # it has just ended
