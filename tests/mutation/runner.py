"""Runs the tests of a module against each of its mutants, in processes forked from this one."""

import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.mutants import Mutant, mutants_of

KILLED, TIMED_OUT, SURVIVED = "killed", "timed out", "survived"
_MEMORY = 12 * 1024**3
"""Address space of a test process: a mutant may ask for memory without end."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a mutant."""

    module: Path
    mutant: Mutant
    outcome: str
    seconds: float


class Shadow:
    """A copy of the repository in which one module at a time is changed.

    Tests that start processes of their own meet the mutant, too, because it lies on disk.
    """

    def __init__(self, root: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        for name in ("ckptavg", "tests", "pyproject.toml", "README.md", "notebooks"):
            source, target = root / name, self.folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)

    def run(self, arguments: list[str], timeout: float, *plugins: object) -> int | None:
        """Runs pytest in a fork of this process; its exit status, or None after the timeout."""
        child = os.fork()
        if child == 0:
            self._become_pytest(arguments, list(plugins))
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _become_pytest(self, arguments: list[str], plugins: list[object]) -> None:
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        os.chdir(self.folder)
        os.environ["PYTHONPATH"] = str(self.folder)
        for name in [n for n in sys.modules if n.split(".")[0] in ("tests", "ckptavg")]:
            del sys.modules[name]
        sys.path[:] = [str(self.folder), *(p for p in sys.path if p not in ("", str(Path.cwd())))]
        status = 70
        try:
            import pytest

            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
            status = int(pytest.main([*options, *arguments], plugins))
        finally:
            os._exit(status)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class _Coverage:
    """A plugin of pytest: which tests run which lines of a module, and how long they take."""

    def __init__(self, module: Path, notes: Path) -> None:
        self._module = str(module)
        self._notes = notes
        self._lines: dict[str, set[int]] = defaultdict(set)
        self._seconds: dict[str, float] = {}
        self._now = ""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._now = nodeid
        self._begun = time.perf_counter()
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        sys.settrace(None)
        threading.settrace(None)
        self._seconds[nodeid] = time.perf_counter() - self._begun

    def pytest_sessionfinish(self) -> None:
        text = [
            f"{self._seconds.get(test, 0):.6f}\t{test}\t{','.join(map(str, sorted(lines)))}"
            for test, lines in self._lines.items()
        ]
        self._notes.write_text("\n".join(text))

    def _trace(self, frame, _event, _argument):
        if frame.f_code.co_filename != self._module:
            return None
        lines = self._lines[self._now]
        lines.add(frame.f_lineno)

        def line(frame, _event, _argument):
            lines.add(frame.f_lineno)
            return line

        return line


def tests_by_line(
    shadow: Shadow, module: Path, tests: Iterable[str], timeout: float
) -> Mapping[int, list[str]]:
    """The tests that run each line of a module, the quickest first.

    Raises:
        RuntimeError: the tests fail as they stand.
    """
    notes = shadow.folder / "coverage.txt"
    plugin = _Coverage(shadow.folder / module, notes)
    status = shadow.run([*tests], timeout, plugin)
    if status != 0:
        raise RuntimeError(f"the tests of {module} end with status {status} without a mutant")
    found: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for row in notes.read_text().splitlines():
        seconds, test, lines = row.split("\t")
        for line in filter(None, lines.split(",")):
            found[int(line)].append((float(seconds), test))
    return {line: [test for _, test in sorted(tests)] for line, tests in found.items()}


def run_mutants(
    shadow: Shadow, module: Path, tests: Iterable[str], timeout: float = 120
) -> Iterable[Result]:
    """Runs every mutant of a module against the tests that reach its line."""
    source = (shadow.folder / module).read_text()
    reached = tests_by_line(shadow, module, tests, timeout * 10)
    try:
        for mutant in mutants_of(source):
            started = time.perf_counter()
            # What runs when the module is imported is reached before the first test: try all.
            chosen = reached.get(mutant.line, [])
            outcome = _outcome(shadow, module, mutant, chosen or list(tests), timeout)
            yield Result(module, mutant, outcome, time.perf_counter() - started)
    finally:
        (shadow.folder / module).write_text(source)


def _outcome(shadow: Shadow, module: Path, mutant: Mutant, tests: list[str], timeout: float) -> str:
    (shadow.folder / module).write_text(mutant.source)
    status = shadow.run(tests, timeout)
    return TIMED_OUT if status is None else SURVIVED if status == 0 else KILLED
