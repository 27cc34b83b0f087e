"""Numbers and checkpoints as people read them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Protocol

from ckptavg.runs.checkpoint import TrackedCheckpoint


class HasEpoch(Protocol):
    """A checkpoint, or the plan to read one."""

    @property
    def epoch(self) -> int | None:
        """1-based; None if it is not known."""


def human_size(nbytes: float) -> str:
    """A size in decimal units, as disks are sold and `ls --si` prints them."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def human_number(value: float | None) -> str:
    """A number of a record: integers in full, others with four digits, nothing for None."""
    return "" if value is None else f"{value:#.4g}" if isinstance(value, float) else str(value)


def list_coefficients(coefficients: Sequence[float], most: int = 40) -> str:
    """Coefficients in order, equal neighbours as one entry, such as `0.1, 3 x 0.3`.

    Args:
        coefficients: at least one.
        most: entries to list; of more, only the smallest and the largest coefficient are named.
    """
    rows = [(value, len(list(row))) for value, row in groupby(f"{c:.4g}" for c in coefficients)]
    if len(rows) > most:
        return f"{len(coefficients)} from {min(coefficients):.4g} to {max(coefficients):.4g}"
    return ", ".join(value if count == 1 else f"{count} x {value}" for value, count in rows)


def list_metrics(metrics: Mapping[str, float]) -> str:
    """Metrics in a few words, such as `accuracy 0.9876, loss 0.1234`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def describe_epochs(checkpoints: Iterable[HasEpoch]) -> str:
    """Epochs in a few words, such as `15 checkpoints of epochs 16-30`."""
    epochs = [checkpoint.epoch for checkpoint in checkpoints]
    known = [epoch for epoch in epochs if epoch is not None]
    count = f"{len(epochs)} checkpoint" + ("s" if len(epochs) != 1 else "")
    if not known:
        return f"{count} of unknown epochs"
    return f"{count} of epoch" + ("s" if len(known) > 1 else "") + f" {list_epochs(known)}"


def describe_tracked(averages: Iterable[TrackedCheckpoint]) -> str:
    """Tracked averages in a few words, such as `averages of sigma_rel 0.05, 0.1 at 64 steps`."""
    found = [average.ema for average in averages]
    sigmas = ", ".join(f"{sigma:g}" for sigma in sorted({ema.sigma_rel for ema in found}))
    return f"averages of sigma_rel {sigmas} at {len({ema.step for ema in found})} steps"


def list_epochs(epochs: Iterable[int]) -> str:
    """Epochs with consecutive ones as ranges, such as `16-20, 25`."""
    rows: list[list[int]] = []
    for epoch in sorted(set(epochs)):
        if rows and epoch == rows[-1][1] + 1:
            rows[-1][1] = epoch
        else:
            rows.append([epoch, epoch])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in rows)
