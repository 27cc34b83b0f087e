"""The choice among checkpoints: by epoch, from the end, by a metric, by a window of the losses."""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TypeVar

from ckptavg.errors import RecipeError, RunError, check_type, warn
from ckptavg.recipes.swad import Swad
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import describe_epochs
from ckptavg.runs.numbering import numbers_in

_MAXIMIZED = {"accuracy", "acc", "auc", "precision", "recall", "f1", "iou"}
_MINIMIZED = {"loss", "error", "mse", "mae", "rmse", "mape"}

Epochs = Iterable[int | range]
"""1-based epochs: each integer must be there, of a `range` those that are."""

C = TypeVar("C", bound=Checkpoint)


def select(
    checkpoints: Sequence[C],
    *,
    epochs: Epochs | None = None,
    last: int | None = None,
    best: int | None = None,
    monitor: str = "val_loss",
    mode: str = "auto",
    window: Swad | None = None,
) -> tuple[C, ...]:
    """Chooses among checkpoints; conditions apply one after the other.

    Args:
        checkpoints: in the order of training.
        epochs: 1-based epochs, each of which must be there; of a `range`, also of one among them,
            those that are there, at least one.
        last: number of checkpoints to keep, counted from the end.
        best: number of checkpoints to keep: those with the best `monitor`.
        monitor: metric in the records by which `best` and `window` choose.
        mode: `min` or `max`, or `auto` to tell from the name of the metric.
        window: keep the checkpoints from where the loss `monitor` settles until it starts to rise.

    Returns:
        The chosen checkpoints, in the same order.

    Warns:
        CkptavgWarning: so many metrics are NaN that fewer than `best` checkpoints are left.

    Raises:
        TypeError: an argument has another type.
        RunError: an epoch is missing, there are fewer checkpoints than requested, they are not in
            the order of training or it is not known, a record lacks the metric, or it is not known
            whether lower or higher values of the metric are better.
    """
    for name, count in (("last", last), ("best", best)):
        check_type(name, count, Integral, "a number of checkpoints, such as 5", optional=True)
    check_type("monitor", monitor, str, "the name of a metric, such as 'val_loss'")
    check_type("mode", mode, str, "'min', 'max' or 'auto'")
    check_type("window", window, Swad, "a ckptavg.Swad", optional=True)
    if isinstance(epochs, str) or not (epochs is None or isinstance(epochs, Iterable)):
        raise TypeError(f"epochs is {epochs!r:.80}, but must be a list of integers or a range")
    chosen = tuple(checkpoints)
    # In this order: `last` and `best` count among the epochs that were named.
    if epochs is not None:
        chosen = _at_epochs(chosen, epochs)
    if last is not None:
        check_order(chosen, "last")
        chosen = _count(chosen, last, "last")[-last:]
    if window is not None:
        check_order(chosen, "window")
        start, stop = window.window(_metrics(chosen, monitor))
        chosen = chosen[start:stop]
    if best is not None:
        chosen = _best(_count(chosen, best, "best"), best, monitor, mode)
    if not chosen:
        raise RunError("no checkpoint was selected")
    return chosen


def paired(
    coefficients: Sequence[float], epochs: Epochs, checkpoints: Sequence[Checkpoint]
) -> Sequence[float]:
    """Coefficients in the order of checkpoints, which were given in the order of the epochs.

    Args:
        coefficients: one for each checkpoint.
        epochs: as the checkpoints were chosen by, in any order.
        checkpoints: those that were chosen, in the order of training.

    Raises:
        RecipeError: the epochs have no order, or are out of order where an epoch has several
            checkpoints.
    """
    if isinstance(epochs, set | frozenset):
        raise RecipeError("a set of epochs has no order to pair coefficients with: pass a list")
    listed = all_epochs(epochs)
    places = [listed.index(c.epoch) for c in checkpoints if c.epoch is not None]
    # A number of coefficients that does not fit is refused with the recipe.
    if listed == sorted(listed) or len(coefficients) != len(places):
        return coefficients
    if len(set(places)) < len(places):
        raise RecipeError(
            "epochs that are out of order cannot be paired with coefficients where an epoch has "
            "several checkpoints: list the epochs in rising order"
        )
    return [coefficients[sorted(places).index(place)] for place in places]


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


def training_order(checkpoints: Sequence[Checkpoint]) -> list[tuple[int, ...]] | None:
    """What sorts checkpoints: epochs if all are known, else the numbers in names; None if neither.

    Folders, files in a row, `last` and recipes go by it, so that all have one order.
    """
    epochs = [checkpoint.epoch for checkpoint in checkpoints]
    if None in epochs:
        return numbers_in([str(checkpoint.path) for checkpoint in checkpoints])
    return [(epoch,) for epoch in epochs if epoch is not None]


def check_order(checkpoints: Sequence[Checkpoint], word: str, *, required: bool = True) -> None:
    """Makes sure that checkpoints stand in the order of training.

    Args:
        checkpoints: in the order in which they were named.
        word: what takes that order for granted, for the message.
        required: whether it is an error that nothing says in which order they were saved.

    Raises:
        RunError: they stand in another order.
    """
    order = training_order(checkpoints)
    if order is None and required:
        raise RunError(
            f"`{word}` is ambiguous: neither records nor numbers in the names say in which order "
            "the checkpoints were saved. Name those that you want"
        )
    if order is not None and list(order) != sorted(order):
        epochs = [checkpoint.epoch for checkpoint in checkpoints]
        first = next(n for n, place in enumerate(order[1:]) if place < order[n])
        names = " before ".join(c.path.name for c in checkpoints[first : first + 2])
        listed = names if None in epochs else f"epochs {', '.join(map(str, epochs))}"
        raise RunError(
            f"`{word}` is ambiguous: the checkpoints are not in training order ({listed}). Name "
            "them in that order, or name their folder or a quoted pattern"
        )


def all_epochs(epochs: Epochs) -> list[int]:
    """Every epoch that is listed, in the order of the list."""
    return [epoch for part in _parts(epochs) for epoch in part]


def _parts(epochs: Epochs) -> list[range]:
    """Epochs as ranges: one for each epoch that was named, and those that were given."""
    if isinstance(epochs, range):
        return [epochs]
    return [part if isinstance(part, range) else range(part, part + 1) for part in epochs]


def _at_epochs(checkpoints: Sequence[C], epochs: Epochs) -> tuple[C, ...]:
    parts = _parts(epochs)
    there = {checkpoint.epoch for checkpoint in checkpoints}
    missing = [part for part in parts if len(part) and there.isdisjoint(part)]
    if missing:
        first, last = min(missing[0]), max(missing[0])
        name = f"epoch {first}" if first == last else f"epochs {first}-{last}"
        raise RunError(f"there is no checkpoint of {name}, only {describe_epochs(checkpoints)}")
    return tuple(c for c in checkpoints if any(c.epoch in part for part in parts))


def _count(checkpoints: tuple[C, ...], number: int, word: str) -> tuple[C, ...]:
    if not 1 <= number <= len(checkpoints):
        raise RunError(
            f"cannot choose the {word} {number!r} of the {len(checkpoints)} checkpoints selected: "
            f"ask for 1 to {len(checkpoints)}"
        )
    return checkpoints


def _best(checkpoints: tuple[C, ...], number: int, monitor: str, mode: str) -> tuple[C, ...]:
    values, sign = _metrics(checkpoints, monitor), metric_sign(monitor, mode)
    measured = [n for n, value in enumerate(values) if not math.isnan(value)]
    if len(measured) < number:
        told = f"'{monitor}' is NaN in {len(values) - len(measured)} of {len(values)} checkpoints"
        if not measured:
            raise RunError(f"{told}, so there is no best one: choose by --last or --epochs")
        warn(f"{told}: instead of the best {number}, the {len(measured)} others are taken")
    ranked = sorted(measured, key=lambda n: sign * values[n])
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
