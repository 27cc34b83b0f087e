"""What surrounds the work of a command: progress bars, and libraries kept quiet."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING

from ckptavg.commands.display import Advance, Display, shown_by
from ckptavg.errors import CkptavgError

if TYPE_CHECKING:
    from rich.progress import Progress

_BACKENDS = {"tensorflow", "jax", "jaxlib", "torch"}
_verbose: ContextVar[bool] = ContextVar("ckptavg_verbose", default=False)


@contextmanager
def session() -> Iterator[None]:
    """Encloses the one library call of a command.

    Progress is shown on stderr if that is a terminal. What a user's own code prints goes to stderr
    as well: stdout is for the report alone, which may be JSON.
    """
    display = _Terminal()
    with redirect_stdout(sys.stderr), shown_by(display):
        try:
            yield
        except BaseException as error:
            if _is_of_backend(error):
                display.show_held()
            raise
        finally:
            display.close()


@contextmanager
def verbosely(wanted: bool) -> Iterator[None]:
    """Lets sessions show what libraries write while they start, and what ckptavg logs."""
    if not wanted:
        yield
        return
    log, shown = logging.getLogger("ckptavg"), logging.StreamHandler(sys.stderr)
    former = log.level
    log.addHandler(shown)
    log.setLevel(logging.INFO)
    token = _verbose.set(True)
    try:
        yield
    finally:
        _verbose.reset(token)
        log.setLevel(former)
        log.removeHandler(shown)


class _Terminal(Display):
    """Bars on stderr, each shown from its first progress on; none without a terminal."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._held: IO[bytes] | None = None

    def bar(self, description: str, total: int | None) -> Advance:
        if not sys.stderr.isatty():
            return super().bar(description, total)
        if self._progress is None:
            self._progress = _new_progress()
            self._progress.start()
        return _advance(self._progress, description, total)

    @contextmanager
    def importing(self) -> Iterator[None]:
        if not _verbose.get() and self._held is None:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for what is written later
            self._held = _scratch_file()
        if self._held is None:
            yield
            return
        try:
            with _written_to(self._held):
                yield
        except Exception:
            self.show_held()
            raise
        # Every BatchNorm pass traces a step of its own, on purpose.
        logging.getLogger("tensorflow").addFilter(lambda r: "retracing" not in r.getMessage())

    def show_held(self) -> None:
        """Writes what was held back while libraries started, because it may explain a failure."""
        if self._held is not None:
            self._held.seek(0)
            sys.stderr.write(self._held.read().decode(errors="replace"))
            self._held.close()
            self._held = None

    def close(self) -> None:
        """Clears the bars away."""
        if self._held is not None:
            self._held.close()
        if self._progress is not None:
            self._progress.stop()


def _new_progress() -> "Progress":
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description:<15}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(show_speed=True),
        progress.TextColumn("{task.fields[speed]}"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _advance(progress: "Progress", description: str, total: int | None) -> Advance:
    task = progress.add_task(description, total=total, start=False, visible=False, speed="")
    seen = 0

    def advance(amount: int, samples: int = 0) -> None:
        nonlocal seen
        if not progress.tasks[task].started:
            progress.start_task(task)
            progress.update(task, visible=True)
        progress.advance(task, amount)
        seen += samples
        if seen and (elapsed := progress.tasks[task].elapsed):
            progress.update(task, speed=f"{seen / elapsed:,.0f} samples/s")

    return advance


def _scratch_file() -> IO[bytes] | None:
    """A file without a name; None where there is no room for one."""
    import tempfile  # with what it imports, two milliseconds of a merge that needs none of it

    with suppress(OSError):
        return tempfile.TemporaryFile()
    return None


@contextmanager
def _written_to(held: IO[bytes]) -> Iterator[None]:
    """Sends what is written to stderr to a file.

    TensorFlow's libraries write from C++, before any setting can stop them, so the file descriptor
    itself is redirected.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(held.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _is_of_backend(error: BaseException) -> bool:
    """Whether an error may come from TensorFlow or another backend, rather than from the input."""
    if not isinstance(error, Exception):  # Ctrl-C
        return False
    chain = (error, error.__cause__)
    modules = (type(one).__module__.partition(".")[0] for one in chain if one is not None)
    return not isinstance(error, CkptavgError | OSError) or not _BACKENDS.isdisjoint(modules)
