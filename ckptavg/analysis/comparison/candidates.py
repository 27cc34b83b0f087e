"""What an average is compared with: the last checkpoint of its training, and the best one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptavg.analysis.average import Average
from ckptavg.errors import RecordError, RunError
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.run import CHECKPOINT_FOLDER, Run, open_run
from ckptavg.runs.selection import metric_sign

LAST, BEST, AVERAGE, NAMED = "last", "best", "average", "checkpoint"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint to evaluate.

    Attributes:
        role: `last` or `best` of a training, `average`, or another `checkpoint`.
        name: what tables call it.
        checkpoint: an `Average` if that is its role.
    """

    role: str
    name: str
    checkpoint: Checkpoint

    @property
    def article(self) -> str:
        """What precedes the name within a sentence: nothing if it is the path a user named."""
        return "" if self.name == str(self.checkpoint.path) else "the "


def candidates_of_average(
    average: Average, *, monitor: str = "val_loss", mode: str = "auto"
) -> tuple[Candidate, ...]:
    """An average after the last and the best checkpoint of each training that it was made of.

    Sources that are not of a run count as one training, in the order in which they were averaged.

    Args:
        average: the average.
        monitor: metric in the records that says which checkpoint is best; without it, none is.
        mode: direction of the metric: `min`, `max`, or `auto` to infer it from the name.

    Returns:
        The candidates; the average alone if its sources are gone or unreadable.
    """
    trainings: dict[Path | None, Sequence[Checkpoint]] = {}
    for path in average.source_paths:
        folder = path.resolve().parent
        run = folder.parent if folder.name == CHECKPOINT_FOLDER else None
        if run not in trainings:
            trainings[run] = _checkpoints(average, run)
    several = len(trainings) > 1
    found = [
        candidate
        for run, checkpoints in trainings.items()
        for candidate in _of_training(
            checkpoints, f" of {run.name}" if several and run is not None else "", monitor, mode
        )
    ]
    return (*found, Candidate(AVERAGE, "average", average))


def candidates_of_run(run: Run) -> tuple[Candidate, ...]:
    """The last checkpoint of a run and the best one by `val_loss`."""
    return tuple(_of_training(run.checkpoints, "", "val_loss", "auto"))


def candidates_named(paths: Sequence[Path]) -> tuple[Candidate, ...]:
    """Files that are compared because a user named them.

    The latest of those that are not averages, by step or epoch, is what averages are held against.
    """
    found = [Checkpoint.open(path) for path in paths]
    singles = [n for n, each in enumerate(found) if not _is_average(each)]
    # Of equal places, such as those of unknown ones, the last named.
    latest = max(singles, key=lambda n: (_place(found[n]), n), default=None)
    return tuple(
        Candidate(AVERAGE, str(each.path), Average.find(each.path))
        if _is_average(each)
        else Candidate(LAST if number == latest else NAMED, str(each.path), each)
        for number, each in enumerate(found)
    )


def _checkpoints(average: Average, run: Path | None) -> Sequence[Checkpoint]:
    try:
        return average.open_sources() if run is None else open_run(run).checkpoints
    except (RunError, RecordError):
        return ()


def _of_training(
    checkpoints: Sequence[Checkpoint], of_run: str, monitor: str, mode: str
) -> list[Candidate]:
    sound = [c for c in checkpoints if not c.non_finite and Checkpoint.exists(c.path)]
    if not sound:
        return []
    last, best = sound[-1], _best(sound, monitor, mode)
    if best is last:
        name = f"last and best checkpoint{of_run}{_epoch(last)}"
        return [Candidate(LAST, name, last)]
    found = [Candidate(LAST, f"last checkpoint{of_run}{_epoch(last)}", last)]
    if best is not None:
        name = f"best checkpoint{of_run} by {monitor}{_epoch(best)}"
        found.append(Candidate(BEST, name, best))
    return found


def _best(checkpoints: Sequence[Checkpoint], monitor: str, mode: str) -> Checkpoint | None:
    """The checkpoint with the best metric; None if the records do not say."""
    known = [c for c in checkpoints if not math.isnan(_metric(c, monitor))]
    try:
        sign = metric_sign(monitor, mode)
    except RunError:
        return None
    return min(known, key=lambda c: sign * _metric(c, monitor), default=None)


def _metric(checkpoint: Checkpoint, monitor: str) -> float:
    record = checkpoint.record
    return math.nan if record is None else record.metrics.get(monitor, math.nan)


def _epoch(checkpoint: Checkpoint) -> str:
    return "" if checkpoint.epoch is None else f" (epoch {checkpoint.epoch})"


def _is_average(checkpoint: Checkpoint) -> bool:
    return checkpoint.record is not None and bool(checkpoint.record.sources)


def _place(checkpoint: Checkpoint) -> tuple[int, int]:
    return checkpoint.epoch or 0, checkpoint.step or 0
