"""What is shown while a command works: its progress, and how Keras is imported."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from ckptavg.errors import SpecError

Advance = Callable[..., None]
"""Called with the work done since the last call, in units of the total, and with new samples."""


class Display:
    """Shows nothing. The command line sets one that draws bars on a terminal."""

    def bar(self, description: str, total: int | None) -> Advance:  # noqa: ARG002
        """Starts a progress bar; a total of None is not known."""
        return lambda *_: None

    def importing(self) -> AbstractContextManager[None]:
        """Encloses the import of Keras and its backend."""
        return nullcontext()


# A context variable, not a parameter: the functions are public, and their keywords are the
# options of the commands; how progress is drawn is not one of them.
_current: ContextVar[Display] = ContextVar("ckptavg_display", default=Display())  # noqa: B039


@contextmanager
def shown_by(display: Display) -> Iterator[None]:
    """Sets what shows the progress of the functions of this room, until the exit."""
    token = _current.set(display)
    try:
        yield
    finally:
        _current.reset(token)


def bar(description: str, total: int | None) -> Advance:
    """A progress bar of the current display."""
    return _current.get().bar(description, total)


def import_keras() -> None:
    """Imports Keras with its backend.

    Raises:
        SpecError: Keras or its backend is not installed.
    """
    try:
        with _current.get().importing():
            import keras

            keras.ops.ones(())  # the backend looks for devices at the first operation
    except ImportError as error:
        raise SpecError(
            f"this needs Keras and TensorFlow, which cannot be imported: {error}"
        ) from error
