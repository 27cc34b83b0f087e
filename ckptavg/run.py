"""A run: a directory that a saver filled with checkpoints, and the choice among them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ckptavg.errors import RecordError, RunError
from ckptavg.files import TEMPORARY_PREFIX
from ckptavg.record import Record, find_record

CHECKPOINT_FOLDER = "checkpoints"
MODEL_FILE = "model.json"
WEIGHTS_SUFFIX = ".weights.h5"
RECORD_PATTERN = "epoch-*.json"

_MAXIMIZED = ("accuracy", "acc", "auc", "precision", "recall", "f1", "iou")
_MINIMIZED = ("loss", "error", "mse", "mae", "rmse", "mape")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint file with its record, if it has one."""

    path: Path
    record: Record | None = None

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """Finds the record of a checkpoint file.

        Raises:
            RunError: there is no such file.
            RecordError: its record cannot be read.
        """
        path = Path(path)
        if not path.is_file():
            raise RunError(f"there is no checkpoint {path}")
        return cls(path, find_record(path))


@dataclass(frozen=True, slots=True)
class Run:
    """A directory of checkpoints that a saver wrote.

    Attributes:
        directory: the directory that `CheckpointSaver` was given.
        checkpoints: those that have a record, by epoch; a file without one was not saved whole.
        uncommitted: files in the checkpoint folder that have no record.
    """

    directory: Path
    checkpoints: tuple[Checkpoint, ...]
    uncommitted: tuple[Path, ...] = ()

    @property
    def records(self) -> tuple[Record, ...]:
        """The records, by epoch."""
        return tuple(checkpoint.record for checkpoint in self.checkpoints)

    @property
    def model_file(self) -> Path | None:
        """The configuration of the model, if the run holds one."""
        path = self.directory / MODEL_FILE
        return path if path.is_file() else None

    def select(
        self,
        *,
        epochs: Iterable[int] | None = None,
        last: int | None = None,
        best: int | None = None,
        monitor: str = "val_loss",
        mode: str = "auto",
    ) -> tuple[Checkpoint, ...]:
        """Chooses checkpoints of the run; conditions apply one after the other.

        Args:
            epochs: 1-based epochs, each of which must have been saved.
            last: number of checkpoints to keep, counted from the end.
            best: number of checkpoints to keep, those with the best `monitor`.
            monitor: metric in the records that `best` goes by.
            mode: `min`, `max`, or `auto`: by the name of the metric.

        Returns:
            The chosen checkpoints, by epoch.

        Raises:
            RunError: an epoch was not saved, there are fewer checkpoints than asked for, a record
                lacks the metric, or the direction of the metric is not known.

        Example:
            >>> run = ckptavg.open_run("run")
            >>> ckptavg.merge(run.select(best=5, monitor="val_accuracy"), "best5.weights.h5")
        """
        chosen = self.checkpoints
        if epochs is not None:
            chosen = self._at_epochs(epochs)
        if last is not None:
            chosen = _count(chosen, last, "last")[-last:]
        if best is not None:
            chosen = _best(_count(chosen, best, "best"), best, monitor, mode)
        if not chosen:
            raise RunError(f"no checkpoint of {self.directory} was selected")
        return chosen

    def _at_epochs(self, epochs: Iterable[int]) -> tuple[Checkpoint, ...]:
        wanted = set(epochs)
        missing = sorted(wanted - {record.epoch for record in self.records})
        if missing:
            raise RunError(
                f"{self.directory} has no checkpoint of epoch {missing[0]}: "
                f"it holds {describe_epochs(self.records)}"
            )
        return tuple(c for c in self.checkpoints if c.record.epoch in wanted)


def open_run(directory: str | Path) -> Run:
    """Opens the directory of a run.

    Args:
        directory: what `CheckpointSaver` was given.

    Returns:
        The run, with the records of its checkpoints in the order of their epochs.

    Raises:
        RunError: the directory is missing, is not a run, or holds no checkpoint yet.
        RecordError: a record is damaged.
    """
    directory = Path(directory)
    folder = directory / CHECKPOINT_FOLDER
    if not directory.is_dir():
        raise RunError(f"there is no run {directory}")
    if not folder.is_dir():
        raise RunError(
            f"{directory} is not a run: it has no folder '{CHECKPOINT_FOLDER}', "
            "as CheckpointSaver makes it"
        )
    records = {path: Record.read(path) for path in sorted(folder.glob(RECORD_PATTERN))}
    for path, record in records.items():
        if Path(record.file).name != record.file or not record.file:
            raise RecordError(f"the record {path} names the file {record.file!r} of another folder")
        if record.epoch is None:
            raise RecordError(f"the record {path} names no epoch: it is not of a run's checkpoint")
    checkpoints = [Checkpoint(folder / record.file, record) for record in records.values()]
    checkpoints.sort(key=lambda checkpoint: (checkpoint.record.epoch, checkpoint.path.name))
    recorded = {checkpoint.path for checkpoint in checkpoints}
    files = (p for p in folder.iterdir() if p.name.endswith(WEIGHTS_SUFFIX) and p not in recorded)
    uncommitted = tuple(sorted(p for p in files if not p.name.startswith(TEMPORARY_PREFIX)))
    if not checkpoints:
        raise RunError(
            f"the run {directory} holds no checkpoint yet"
            + (f", only {uncommitted[0].name} without a record" if uncommitted else "")
        )
    return Run(directory, tuple(checkpoints), uncommitted)


Sources = Run | Checkpoint | str | Path | Iterable["Run | Checkpoint | str | Path"]
"""What can be averaged: a run, its directory, a checkpoint, its file, or several of them."""


def resolve(sources: Sources) -> tuple[Checkpoint, ...]:
    """The checkpoints that a caller means: a run, a run's directory, files, or checkpoints.

    Raises:
        RunError: a directory is no run, a file is missing, or nothing was named.
        RecordError: a record is damaged.
    """
    if isinstance(sources, Run):
        return sources.checkpoints
    if isinstance(sources, Checkpoint):
        return (sources,)
    if isinstance(sources, str | Path):
        path = Path(sources)
        return open_run(path).checkpoints if path.is_dir() else (Checkpoint.open(path),)
    if not isinstance(sources, Iterable) or isinstance(sources, bytes):
        raise RunError(
            f"expected a run, a checkpoint file or several, but got {type(sources).__name__}"
        )
    found = tuple(checkpoint for source in sources for checkpoint in resolve(source))
    if not found:
        raise RunError("there is no checkpoint to average: name a run or checkpoint files")
    return found


def describe_epochs(records: Iterable[Record]) -> str:
    """Epochs in a few words, such as `15 checkpoints of epochs 16-30`."""
    epochs = [record.epoch for record in records if record.epoch is not None]
    if len(epochs) == 1:
        return f"1 checkpoint of epoch {epochs[0]}"
    return f"{len(epochs)} checkpoints of epochs {list_epochs(epochs)}"


def list_epochs(epochs: Iterable[int]) -> str:
    """Epochs with those in a row drawn together, such as `16-20, 25`."""
    rows: list[list[int]] = []
    for epoch in sorted(set(epochs)):
        if rows and epoch == rows[-1][1] + 1:
            rows[-1][1] = epoch
        else:
            rows.append([epoch, epoch])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in rows)


def _count(checkpoints: tuple[Checkpoint, ...], number: int, word: str) -> tuple[Checkpoint, ...]:
    if not 1 <= number <= len(checkpoints):
        raise RunError(
            f"cannot choose the {word} {number!r} of the {len(checkpoints)} checkpoints selected: "
            f"ask for 1 to {len(checkpoints)}"
        )
    return checkpoints


def _best(
    checkpoints: tuple[Checkpoint, ...], number: int, monitor: str, mode: str
) -> tuple[Checkpoint, ...]:
    for checkpoint in checkpoints:
        if monitor not in checkpoint.record.metrics:
            known = ", ".join(sorted(checkpoint.record.metrics)) or "none"
            raise RunError(
                f"the record of {checkpoint.path} has no metric '{monitor}', it has: {known}"
            )

    sign = _sign(monitor, mode)

    def rank(checkpoint: Checkpoint) -> tuple[bool, float]:
        value = checkpoint.record.metrics[monitor]
        return (math.isnan(value), sign * value)

    best = sorted(checkpoints, key=rank)[:number]
    return tuple(checkpoint for checkpoint in checkpoints if checkpoint in best)


def _sign(monitor: str, mode: str) -> int:
    """+1 if the metric is to be small, -1 if it is to be large."""
    if mode in ("min", "max"):
        return 1 if mode == "min" else -1
    if mode != "auto":
        raise RunError(f"mode is '{mode}', but must be 'min', 'max' or 'auto'")
    words = monitor.lower().split("_")
    if any(word in _MINIMIZED for word in words):
        return 1
    if any(word in _MAXIMIZED for word in words):
        return -1
    raise RunError(f"'{monitor}' may be better small or large: say which, with mode 'min' or 'max'")
