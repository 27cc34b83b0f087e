"""Reading a run: meanwhile no training may replace what is read."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ckptavg.errors import RunError
from ckptavg.runs.run import CHECKPOINT_FOLDER
from ckptavg.storage.lock import lock_folder


@contextmanager
def reading(checkpoints: Iterable[Path]) -> Iterator[None]:
    """Keeps checkpoints of runs from being replaced by `existing="overwrite"` until the exit.

    Others may read them too, and trainings may add to them.

    Args:
        checkpoints: files; those outside the folder of a run are not locked.

    Raises:
        RunError: a training is removing the checkpoints of such a run now.
    """
    folders = dict.fromkeys(path.parent for path in checkpoints)
    with ExitStack() as stack:
        for folder in folders:
            if folder.name != CHECKPOINT_FOLDER:
                continue
            try:
                stack.enter_context(lock_folder(folder, exclusive=False))
            except BlockingIOError as error:
                raise RunError(
                    f"a training is removing the checkpoints in {folder} now "
                    "(existing='overwrite'): name another run, or wait for new ones"
                ) from error
        yield


@contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """Keeps the checkpoints of a run from being read until the exit.

    Raises:
        RunError: they are being read.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(folder, exclusive=True))
        except BlockingIOError as error:
            raise RunError(f"the checkpoints in {folder} are being read") from error
        yield
