"""What surrounds the work of a command: progress bars, and Keras kept quiet."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from ckptavg.commands.display import Advance, Display, shown_by

if TYPE_CHECKING:
    from rich.progress import Progress


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
        finally:
            display.close()


class _Terminal(Display):
    """Bars on stderr, each shown from its first progress on; none without a terminal."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def bar(self, description: str, total: int | None) -> Advance:
        if not sys.stderr.isatty():
            return super().bar(description, total)
        if self._progress is None:
            self._progress = _new_progress()
            self._progress.start()
        return _advance(self._progress, description, total)

    @contextmanager
    def importing(self) -> Iterator[None]:
        with _quiet_tensorflow():
            yield
        # Every BatchNorm pass traces a step of its own, on purpose.
        logging.getLogger("tensorflow").addFilter(lambda r: "retracing" not in r.getMessage())

    def close(self) -> None:
        """Clears the bars away."""
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


@contextmanager
def _quiet_tensorflow() -> Iterator[None]:
    """Holds back what TensorFlow's libraries write to stderr while they are imported.

    They write it before any setting can stop them, from C++, so the file descriptor itself is
    redirected. If the import fails, it is printed after all; and nothing is held back when
    TF_CPP_MIN_LOG_LEVEL is set.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    import tempfile  # with what it imports, two milliseconds of a merge that needs none of it

    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
