"""Runs cases in processes with limits of time and memory; a case that kills its process is named.

The parent forks them, so that what it has imported costs nothing again. It hands out one case at a
time: when a process dies or does not answer, the case that it had is the one to blame.
"""

import contextlib
import faulthandler
import os
import re
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from ckptavg.errors import CkptavgError

REFUSED, EQUAL, ALONE = "refused", "equal", "alone"
CRASH, HANG, TRACEBACK, MEMORY, WRONG = "crash", "hang", "traceback", "memory", "wrong"
FAILURES = (CRASH, HANG, TRACEBACK, MEMORY, WRONG)
OUTCOMES = (REFUSED, EQUAL, ALONE, *FAILURES)
"""What may come of a case; `ALONE`: it was read, but no other library reads it."""

GROWTH = 64 * 1024**2
"""Bytes that a case, whose files have a few KB, may take beyond all cases before it."""
_DATA = 512 * 1024**2
"""Bytes that a process may ask the system for."""


@dataclass(frozen=True, slots=True)
class Case:
    """One mutation: everything about it follows from these.

    Attributes:
        subject: name of the kind of files.
        seed: of the whole session.
        number: of the case.
    """

    subject: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.subject}:{self.seed}:{self.number}"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case.

    Attributes:
        case: this one.
        outcome: one of `OUTCOMES`.
        detail: about a failure or refusal.
        seconds: that it took.
        peak: bytes of memory that its process has taken at most, the libraries among them.
        process: the one that ran it. After a failure it runs no other, so that its files stay.
    """

    case: Case
    outcome: str
    detail: str = ""
    seconds: float = 0.0
    process: int = 0
    peak: int = 0


class WrongError(Exception):
    """What came out is not what it should be; nothing else is wrong with the process."""


Check = Callable[[Case], str]
"""Runs a case: `EQUAL` or `ALONE`. An error of ckptavg's own means `REFUSED`."""


def run(
    cases: Iterable[Case], start: Callable[[], Check], processes: int = 2, deadline: float = 20
) -> Iterator[Result]:
    """Runs cases, in any order.

    Args:
        cases: to be run.
        start: called in each new process; what it gives runs the cases there.
        processes: that run at a time.
        deadline: seconds for one case.
    """
    waiting = iter(cases)
    children: dict[Connection, _Child] = {}
    try:
        while True:
            while len(children) < processes and (case := next(waiting, None)) is not None:
                child = _Child(start, [*children])
                child.give(case)
                children[child.connection] = child
            if not children:
                return
            ready = wait([*children], timeout=0.5)
            for connection, child in list(children.items()):
                if connection in ready:
                    result, alive = child.take()
                elif child.seconds > deadline:
                    result, alive = child.hung(), False
                else:
                    continue
                yield result
                case = next(waiting, None) if alive else None
                if case is None:
                    child.kill()
                    del children[connection]
                else:
                    child.give(case)
    finally:
        for child in children.values():
            child.kill()


class _Child:
    """A process, seen from its parent."""

    case: Case

    def __init__(self, start: Callable[[], Check], siblings: list[Connection]) -> None:
        self.connection, theirs = Pipe()
        self._process = os.fork()
        if self._process == 0:
            for connection in (self.connection, *siblings):
                connection.close()
            _serve(theirs, start)
        theirs.close()
        self._began = 0.0

    @property
    def seconds(self) -> float:
        """Since it was given its case."""
        return time.monotonic() - self._began

    def give(self, case: Case) -> None:
        self.case, self._began = case, time.monotonic()
        with contextlib.suppress(OSError):  # it is dead: `take` will tell
            self.connection.send(case)

    def take(self) -> tuple[Result, bool]:
        """What came of the case, and whether the process can take another one."""
        try:
            result = self.connection.recv()
        except (EOFError, OSError):
            _, status = os.waitpid(self._process, 0)
            number = os.waitstatus_to_exitcode(status)
            why = signal.Signals(-number).name if number < 0 else f"exit status {number}"
            return Result(self.case, CRASH, why, self.seconds, self._process), False
        return result, result.outcome not in FAILURES

    def hung(self) -> Result:
        """The result of a case that does not end."""
        return Result(self.case, HANG, "it does not end", self.seconds, self._process)

    def kill(self) -> None:
        """Ends the process and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
        self.connection.close()


def limit_memory() -> None:
    """Limits what this process may ask for beyond what it has."""
    status = Path("/proc/self/status").read_text()
    now = int(re.search(r"VmData:\s+(\d+) kB", status)[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (now + _DATA, now + _DATA))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve(connection: Connection, start: Callable[[], Check]) -> None:
    """The life of a child."""
    os.setpgid(0, 0)
    faulthandler.disable()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    try:
        limit_memory()
        check = start()
        while True:
            case = connection.recv()
            began, before = time.monotonic(), _peak()
            outcome, detail = outcome_of(check, case)
            growth = _peak() - before
            if growth > GROWTH and outcome not in FAILURES:
                outcome, detail = MEMORY, f"{growth:,} bytes more than any case before"
            seconds = time.monotonic() - began
            connection.send(Result(case, outcome, detail, seconds, os.getpid(), _peak()))
    except (EOFError, OSError):
        os._exit(0)
    except BaseException:
        connection.send(Result(Case("", 0, 0), TRACEBACK, traceback.format_exc()))
        os._exit(70)


def outcome_of(check: Check, case: Case) -> tuple[str, str]:
    """What comes of a case in this very process."""
    try:
        return check(case), ""
    except CkptavgError as error:
        return REFUSED, f"{type(error).__name__}: {error}"
    except WrongError as error:
        return WRONG, str(error)
    except MemoryError:
        return MEMORY, traceback.format_exc()
    except BaseException:
        return TRACEBACK, traceback.format_exc()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
