"""Checkpoints and the choice among them."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptavg.errors import RunError
from ckptavg.formats.tensorflow.paths import checkpoint_path, main_file
from ckptavg.recipes.swad import Swad
from ckptavg.runs.record import Record, find_record
from ckptavg.storage.files import is_file

_MAXIMIZED = ("accuracy", "acc", "auc", "precision", "recall", "f1", "iou")
_MINIMIZED = ("loss", "error", "mse", "mae", "rmse", "mape")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint with its record, if it has one.

    Attributes:
        path: its file, the index of its shards, or the prefix of a TensorFlow checkpoint.
        record: what `CheckpointSaver` or `merge` noted of it.
        named_epoch: the epoch that its name tells of.
    """

    path: Path
    record: Record | None = None
    named_epoch: int | None = None

    @property
    def epoch(self) -> int | None:
        """1-based epoch of the record, else of the name; None if neither tells."""
        known = self.record is not None and self.record.epoch is not None
        return self.record.epoch if known else self.named_epoch

    @property
    def model_file(self) -> Path | None:
        """The configuration of the model that its record names, if the file is there."""
        if self.record is None or self.record.model is None:
            return None
        found = self.path.parent / self.record.model
        return found if is_file(found) else None

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether there is a checkpoint of this name."""
        return is_file(main_file(path))

    @classmethod
    def open(cls, path: str | Path, named_epoch: int | None = None) -> "Checkpoint":
        """Finds the record of a checkpoint.

        Raises:
            RunError: there is no such file.
            RecordError: its record cannot be read.
        """
        path = checkpoint_path(path)
        if not cls.exists(path):
            advice = (
                "what is there is no file"
                if os.path.lexists(path)
                else "name a run, a file, a folder of checkpoints or a quoted pattern"
            )
            raise RunError(f"there is no checkpoint {path}: {advice}")
        return cls(path, find_record(path), named_epoch)


def select(
    checkpoints: Sequence[Checkpoint],
    *,
    epochs: Iterable[int] | None = None,
    last: int | None = None,
    best: int | None = None,
    monitor: str = "val_loss",
    mode: str = "auto",
    window: Swad | None = None,
) -> tuple[Checkpoint, ...]:
    """Chooses among checkpoints; conditions apply one after the other.

    Args:
        checkpoints: in the order of training.
        epochs: 1-based epochs, each of which must be there.
        last: number of checkpoints to keep, counted from the end.
        best: number of checkpoints to keep, those with the best `monitor`.
        monitor: metric in the records that `best` goes by.
        mode: `min`, `max`, or `auto`: by the name of the metric.
        window: keep those between the convergence of the loss `monitor` and its rise.

    Returns:
        The chosen checkpoints, in the same order.

    Raises:
        RunError: an epoch is missing, there are fewer checkpoints than asked for, their order is
            not that of their epochs, a record lacks the metric, or the direction of the metric is
            not known.
    """
    chosen = tuple(checkpoints)
    if epochs is not None:
        chosen = _at_epochs(chosen, epochs)
    if last is not None:
        _check_order(chosen)
        chosen = _count(chosen, last, "last")[-last:]
    if window is not None:
        _check_order(chosen)
        start, stop = window.window(_metrics(chosen, monitor))
        chosen = chosen[start:stop]
    if best is not None:
        chosen = _best(_count(chosen, best, "best"), best, monitor, mode)
    if not chosen:
        raise RunError("no checkpoint was selected")
    return chosen


def leave_out_non_finite(
    checkpoints: Sequence[Checkpoint],
) -> tuple[tuple[Checkpoint, ...], tuple[Checkpoint, ...]]:
    """Checkpoints without those whose records say that they hold NaN or infinity; and those.

    Raises:
        RunError: there are no others.
    """
    good = tuple(c for c in checkpoints if c.record is None or not c.record.non_finite)
    bad = tuple(c for c in checkpoints if c not in good)
    if not good:
        raise RunError(
            f"there is nothing to average: '{bad[0].record.non_finite[0]}' in {bad[0].path} holds "
            "NaN or infinity" + (", and so it is with all checkpoints" if len(bad) > 1 else "")
        )
    return good, bad


def positions(checkpoints: Sequence[Checkpoint]) -> tuple[float, ...]:
    """Where checkpoints are in training: steps, or else epochs, or else their order, from 1."""
    return positions_in(checkpoints)[0]


def positions_in(checkpoints: Sequence[Checkpoint]) -> tuple[tuple[float, ...], str]:
    """`positions`, and what they count: `step`, `epoch` or `checkpoint`."""
    steps = [checkpoint.record and checkpoint.record.step for checkpoint in checkpoints]
    epochs = [checkpoint.epoch for checkpoint in checkpoints]
    for unit, known in (("step", steps), ("epoch", epochs)):
        if None not in known:
            return tuple(map(float, known)), unit
    return tuple(float(number) for number in range(1, len(checkpoints) + 1)), "checkpoint"


def describe_epochs(checkpoints: Iterable[Checkpoint]) -> str:
    """Epochs in a few words, such as `15 checkpoints of epochs 16-30`."""
    epochs = [checkpoint.epoch for checkpoint in checkpoints]
    known = [epoch for epoch in epochs if epoch is not None]
    count = f"{len(epochs)} checkpoint" + ("s" if len(epochs) != 1 else "")
    if not known:
        return f"{count} of unknown epochs"
    return f"{count} of epoch" + ("s" if len(known) > 1 else "") + f" {list_epochs(known)}"


def describe_tracked(averages: Iterable[Checkpoint]) -> str:
    """Tracked averages in a few words, such as `averages of sigma_rel 0.05, 0.1 at 64 steps`."""
    found = [average.record.ema for average in averages]
    sigmas = ", ".join(f"{sigma:g}" for sigma in sorted({ema.sigma_rel for ema in found}))
    return f"averages of sigma_rel {sigmas} at {len({ema.step for ema in found})} steps"


def list_epochs(epochs: Iterable[int]) -> str:
    """Epochs with those in a row drawn together, such as `16-20, 25`."""
    rows: list[list[int]] = []
    for epoch in sorted(set(epochs)):
        if rows and epoch == rows[-1][1] + 1:
            rows[-1][1] = epoch
        else:
            rows.append([epoch, epoch])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in rows)


def _at_epochs(checkpoints: Sequence[Checkpoint], epochs: Iterable[int]) -> tuple[Checkpoint, ...]:
    wanted = set(epochs)
    missing = sorted(wanted - {checkpoint.epoch for checkpoint in checkpoints})
    if missing:
        raise RunError(
            f"there is no checkpoint of epoch {missing[0]}, only {describe_epochs(checkpoints)}"
        )
    return tuple(checkpoint for checkpoint in checkpoints if checkpoint.epoch in wanted)


def _check_order(checkpoints: Sequence[Checkpoint]) -> None:
    epochs = [checkpoint.epoch for checkpoint in checkpoints]
    known = [epoch for epoch in epochs if epoch is not None]
    if known != sorted(known):
        raise RunError(
            f"the last of epochs {', '.join(map(str, known))} are meant? Name the checkpoints in "
            "the order of training, their folder, or a quoted pattern"
        )


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
    values, sign = _metrics(checkpoints, monitor), metric_sign(monitor, mode)

    def rank(index: int) -> tuple[bool, float]:
        return (math.isnan(values[index]), sign * values[index])

    best = sorted(range(len(values)), key=rank)[:number]
    return tuple(checkpoints[index] for index in sorted(best))


def _metrics(checkpoints: Sequence[Checkpoint], monitor: str) -> list[float]:
    """A metric of each checkpoint, from its record."""
    for checkpoint in checkpoints:
        if checkpoint.record is None:
            raise RunError(
                f"{checkpoint.path} has no record, so that its '{monitor}' is not known: name the "
                "checkpoints yourself"
            )
        if monitor not in checkpoint.record.metrics:
            known = ", ".join(sorted(checkpoint.record.metrics)) or "none"
            raise RunError(
                f"the record of {checkpoint.path} has no metric '{monitor}', it has: {known}"
            )
    return [checkpoint.record.metrics[monitor] for checkpoint in checkpoints]


def metric_sign(monitor: str, mode: str) -> int:
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
