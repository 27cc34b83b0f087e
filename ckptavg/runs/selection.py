"""The choice among checkpoints: by epoch, from the end, by a metric, by a window of the losses."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from ckptavg.errors import RunError
from ckptavg.recipes.swad import Swad
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import describe_epochs

_MAXIMIZED = {"accuracy", "acc", "auc", "precision", "recall", "f1", "iou"}
_MINIMIZED = {"loss", "error", "mse", "mae", "rmse", "mape"}

C = TypeVar("C", bound=Checkpoint)


def select(
    checkpoints: Sequence[C],
    *,
    epochs: Iterable[int] | None = None,
    last: int | None = None,
    best: int | None = None,
    monitor: str = "val_loss",
    mode: str = "auto",
    window: Swad | None = None,
) -> tuple[C, ...]:
    """Chooses among checkpoints; conditions apply one after the other.

    Args:
        checkpoints: in the order of training.
        epochs: 1-based epochs, each of which must be there.
        last: number of checkpoints to keep, counted from the end.
        best: number of checkpoints to keep: those with the best `monitor`.
        monitor: metric in the records by which `best` and `window` choose.
        mode: `min` or `max`, or `auto` to tell from the name of the metric.
        window: keep the checkpoints from where the loss `monitor` settles until it starts to rise.

    Returns:
        The chosen checkpoints, in the same order.

    Raises:
        RunError: an epoch is missing, there are fewer checkpoints than requested, they are not in
            the order of their epochs, a record lacks the metric, or it is not known whether lower
            or higher values of the metric are better.
    """
    chosen = tuple(checkpoints)
    # In this order: `last` and `best` count among the epochs that were named.
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


def leave_out_non_finite(checkpoints: Sequence[C]) -> tuple[tuple[C, ...], tuple[C, ...]]:
    """Splits checkpoints into finite ones and those whose records list NaN or infinity.

    `merging.weighting.weigh` decides when this is done: not with coefficients given by hand.

    Raises:
        RunError: there are no finite ones.
    """
    good = tuple(c for c in checkpoints if not c.non_finite)
    bad = tuple(c for c in checkpoints if c.non_finite)
    if not good:
        raise RunError(
            f"there is nothing to average: '{bad[0].non_finite[0]}' in {bad[0].path} holds "
            "NaN or infinity" + (", like every checkpoint given" if len(bad) > 1 else "")
        )
    return good, bad


def positions(checkpoints: Sequence[Checkpoint]) -> tuple[float, ...]:
    """Where checkpoints are in training: steps, else epochs, else their order, counted from 1."""
    return positions_in(checkpoints)[0]


def positions_in(checkpoints: Sequence[Checkpoint]) -> tuple[tuple[float, ...], str]:
    """`positions`, and what they count: `step`, `epoch` or `checkpoint`."""
    places = {"step": [c.step for c in checkpoints], "epoch": [c.epoch for c in checkpoints]}
    for unit, found in places.items():
        known = tuple(float(place) for place in found if place is not None)
        if len(known) == len(checkpoints):
            return known, unit
    return tuple(map(float, range(1, len(checkpoints) + 1))), "checkpoint"


def _at_epochs(checkpoints: Sequence[C], epochs: Iterable[int]) -> tuple[C, ...]:
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
            "`last` is ambiguous: the checkpoints are not in training order (epochs "
            f"{', '.join(map(str, known))}). Name them in that order, or name their folder or a "
            "quoted pattern"
        )


def _count(checkpoints: tuple[C, ...], number: int, word: str) -> tuple[C, ...]:
    if not 1 <= number <= len(checkpoints):
        raise RunError(
            f"cannot choose the {word} {number!r} of the {len(checkpoints)} checkpoints selected: "
            f"ask for 1 to {len(checkpoints)}"
        )
    return checkpoints


def _best(checkpoints: tuple[C, ...], number: int, monitor: str, mode: str) -> tuple[C, ...]:
    values, sign = _metrics(checkpoints, monitor), metric_sign(monitor, mode)
    # NaN compares with nothing: it ranks last, whichever way is better.
    ranked = sorted(range(len(values)), key=lambda n: (math.isnan(values[n]), sign * values[n]))
    return tuple(checkpoints[n] for n in sorted(ranked[:number]))


def _metrics(checkpoints: Sequence[Checkpoint], monitor: str) -> list[float]:
    """A metric of each checkpoint, from its record."""
    found = []
    for checkpoint in checkpoints:
        if checkpoint.record is None:
            raise RunError(
                f"{checkpoint.path} has no record, so its '{monitor}' is not known: name the "
                "checkpoints yourself"
            )
        if monitor not in checkpoint.record.metrics:
            known = ", ".join(sorted(checkpoint.record.metrics)) or "none"
            raise RunError(
                f"the record of {checkpoint.path} has no metric '{monitor}', it has: {known}"
            )
        found.append(checkpoint.record.metrics[monitor])
    return found


def metric_sign(monitor: str, mode: str) -> int:
    """+1 if lower values of a metric are better, -1 if higher ones are.

    Raises:
        RunError: the mode is unknown, or `auto` and the name of the metric does not say.
    """
    if mode in ("min", "max"):
        return 1 if mode == "min" else -1
    if mode != "auto":
        raise RunError(f"mode is '{mode}', but must be 'min', 'max' or 'auto'")
    # By whole words: "lossless" is not a loss, but val_loss and f1_macro say which way is better.
    words = set(monitor.lower().split("_"))
    if words & _MINIMIZED:
        return 1
    if words & _MAXIMIZED:
        return -1
    raise RunError(
        f"cannot tell whether lower or higher '{monitor}' is better: pass mode='min' or mode='max'"
    )
