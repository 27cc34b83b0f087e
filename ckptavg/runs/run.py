"""A run: a directory that a saver filled with checkpoints."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckptavg.errors import CkptavgError, RecordError, RunError
from ckptavg.recipes.swad import Swad
from ckptavg.runs.checkpoint import RecordedCheckpoint, TrackedCheckpoint
from ckptavg.runs.describe import describe_epochs, describe_tracked, human_size
from ckptavg.runs.history import HISTORY_FILE, EpochLog, read_history
from ckptavg.runs.record import Record
from ckptavg.runs.selection import Epochs, select
from ckptavg.storage.background import wait_for_writes
from ckptavg.storage.files import TEMPORARY_PREFIX

CHECKPOINT_FOLDER = "checkpoints"
MODEL_FILE = "model.json"
RECORDS = re.compile(r"(epoch|step)-[^.]*\.json")
EMA_RECORDS = re.compile(r"ema-\d+\.\d+-step-\d+\.json")

_WEIGHTS = (".h5", ".weights.json")
_SHARD = re.compile(r"(.+)_\d{5,}\.weights\.h5")


@dataclass(frozen=True, slots=True)
class Run:
    """A directory of checkpoints that a saver wrote.

    Attributes:
        directory: the directory that `CheckpointSaver` was given.
        checkpoints: those that have a record, by epoch; a file without one was not saved whole.
        averages: averages of the weights that the training tracked, by step; only the recipe
            `posthoc-ema` uses them.
        uncommitted: files in the checkpoint folder that have no record.
    """

    directory: Path
    checkpoints: tuple[RecordedCheckpoint, ...]
    averages: tuple[TrackedCheckpoint, ...] = ()
    uncommitted: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        size = human_size(sum(record.size for record in self.records))
        lines = [f"Run {self.directory}: {describe_epochs(self.checkpoints)}, {size}"]
        if self.averages:
            lines.append(f"  tracked {describe_tracked(self.averages)}")
        if self.uncommitted:
            lines.append(f"  {len(self.uncommitted)} files not saved whole (no record)")
        return "\n".join(lines)

    @property
    def records(self) -> tuple[Record, ...]:
        """The records, by epoch."""
        return tuple(checkpoint.record for checkpoint in self.checkpoints)

    @property
    def model_file(self) -> Path | None:
        """The configuration of the model, if the run holds one."""
        path = self.directory / MODEL_FILE
        return path if path.is_file() else None

    @property
    def history(self) -> tuple[EpochLog, ...]:
        """What Keras logged for every epoch of the training, saved or not, read at each access.

        Empty for runs of versions that kept no history.

        Raises:
            RecordError: a line of the history is damaged.

        Example:
            >>> [(log.epoch, log.metrics["val_loss"]) for log in ckptavg.open_run("run").history]
        """
        return read_history(self.directory / HISTORY_FILE)

    def select(
        self,
        *,
        epochs: Epochs | None = None,
        last: int | None = None,
        best: int | None = None,
        monitor: str = "val_loss",
        mode: str = "auto",
        window: Swad | None = None,
    ) -> tuple[RecordedCheckpoint, ...]:
        """Chooses checkpoints of the run; conditions apply one after the other.

        Args:
            epochs: 1-based epochs, each of which must have been saved; of a `range`, also of one
                among them, those that were saved.
            last: number of checkpoints to keep, counted from the end.
            best: number of checkpoints to keep: those with the best `monitor`.
            monitor: metric in the records by which `best` and `window` choose.
            mode: `min` or `max`, or `auto` to tell from the name of the metric.
            window: keep the checkpoints from where the loss `monitor` settles until it starts to
                rise.

        Returns:
            The chosen checkpoints, by epoch.

        Warns:
            CkptavgWarning: so many metrics are NaN that fewer than `best` checkpoints are left.

        Raises:
            RunError: an epoch was not saved, there are fewer checkpoints than requested, a record
                lacks the metric, or it is not known whether lower or higher values are better.

        Example:
            >>> run = ckptavg.open_run("run")
            >>> ckptavg.merge(run.select(best=5, monitor="val_accuracy"), "best5.weights.h5")
        """
        return select(
            self.checkpoints,
            epochs=epochs,
            last=last,
            best=best,
            monitor=monitor,
            mode=mode,
            window=window,
        )


@contextmanager
def finding() -> Iterator[None]:
    """Turns errors of the system, met in finding checkpoints, into errors that say what is amiss.

    Raises:
        RunError: a file or folder cannot be read.
    """
    try:
        yield
    except CkptavgError:
        raise
    except OSError as error:
        raise RunError(f"cannot read {error.filename}: {error.strerror or error}") from error


def is_run(path: str | Path) -> bool:
    """Whether a path names the directory of a run."""
    with finding():
        return (Path(path) / CHECKPOINT_FOLDER).is_dir()


@finding()
def open_run(directory: str | Path) -> Run:
    """Opens the directory of a run, once this process has written what it is writing.

    Args:
        directory: what `CheckpointSaver` was given.

    Returns:
        The run, with the records of its checkpoints in the order of their epochs.

    Raises:
        RunError: the directory is missing, is not a run, cannot be read, or holds no checkpoint
            yet.
        RecordError: a record is damaged.
    """
    directory = Path(directory)
    folder = directory / CHECKPOINT_FOLDER
    wait_for_writes()
    if not directory.is_dir():
        raise RunError(f"there is no run {directory}")
    if not is_run(directory):
        raise RunError(
            f"{directory} is not a run: it lacks the folder '{CHECKPOINT_FOLDER}' that "
            "CheckpointSaver makes"
        )
    checkpoints, averages = recorded(folder)
    records = [*(c.record for c in checkpoints), *(a.record for a in averages)]
    # See docs/decisions/0044-what-a-killed-training-leaves-behind.md.
    torn = tuple(sorted(uncommitted(folder, records)))
    if not checkpoints:
        raise RunError(
            f"the run {directory} holds no checkpoint yet"
            + (f", only {torn[0].name} without a record" if torn else "")
        )
    return Run(directory, tuple(checkpoints), tuple(averages), torn)


def recorded(folder: Path) -> tuple[list[RecordedCheckpoint], list[TrackedCheckpoint]]:
    """What has a record in the checkpoint folder of a run; a file without one was not saved whole.

    Returns:
        The checkpoints, in the order of training; and the tracked averages, by step.

    Raises:
        RecordError: a record is damaged.
    """
    checkpoints = [RecordedCheckpoint(*found) for found in _recorded(folder, RECORDS)]
    averages = [TrackedCheckpoint(*found) for found in _recorded(folder, EMA_RECORDS)]
    return sorted(checkpoints, key=in_order_of_training), sorted(averages, key=in_order_of_tracking)


def record_files(folder: Path, pattern: re.Pattern[str] = RECORDS) -> list[Path]:
    """The records of a folder of checkpoints."""
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))


def in_order_of_training(checkpoint: RecordedCheckpoint) -> tuple[int, int, str]:
    """A key that sorts the checkpoints of a run."""
    # Of a restarted training two checkpoints may be of one epoch: the step decides, then the name.
    return checkpoint.epoch, checkpoint.step or 0, checkpoint.path.name


def in_order_of_tracking(average: TrackedCheckpoint) -> tuple[int, float]:
    """A key that sorts the tracked averages of a run."""
    return average.ema.step, average.ema.sigma_rel


def _recorded(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, Record]]:
    """Checkpoints whose records have such names."""
    for path in record_files(folder, pattern):
        try:
            record = Record.read(path)
        except RecordError:
            if path.exists():
                raise
            continue  # a training removed the checkpoint after the folder was listed
        # A record could otherwise lead a merge to any file of the machine.
        if Path(record.file).name != record.file or not record.file:
            raise RecordError(
                f"the record {path} names the file {record.file!r}, which is not in its folder"
            )
        yield folder / record.file, record


def uncommitted(folder: Path, records: Iterable[Record]) -> Iterator[Path]:
    """Files of weights that no record names, other than shards of an index that one names."""
    recorded = {record.file for record in records}
    for path in folder.iterdir():
        if path.name.startswith(TEMPORARY_PREFIX) or not path.name.endswith(_WEIGHTS):
            continue
        # A record names the index alone, and the index its shards.
        shard = _SHARD.fullmatch(path.name)
        index = f"{shard[1]}.weights.json" if shard else path.name
        if index not in recorded and path.name not in recorded:
            yield path
