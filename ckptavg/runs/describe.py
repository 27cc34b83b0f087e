"""Numbers as people read them."""

from collections.abc import Mapping, Sequence
from itertools import groupby


def human_size(nbytes: float) -> str:
    """A size in decimal units, as disks are sold and `ls --si` prints them."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def human_number(value: float | None) -> str:
    """A number of a record: whole ones as they are, others with four digits, nothing for None."""
    return "" if value is None else f"{value:#.4g}" if isinstance(value, float) else str(value)


def list_coefficients(coefficients: Sequence[float], most: int = 40) -> str:
    """Coefficients in order, equal neighbours drawn together, such as `0.1, 3 x 0.3`.

    Args:
        coefficients: at least one.
        most: entries to list; of more, the least and the largest coefficient are told.
    """
    rows = [(value, len(list(row))) for value, row in groupby(f"{c:.4g}" for c in coefficients)]
    if len(rows) > most:
        return f"{len(coefficients)} from {min(coefficients):.4g} to {max(coefficients):.4g}"
    return ", ".join(value if count == 1 else f"{count} x {value}" for value, count in rows)


def list_metrics(metrics: Mapping[str, float]) -> str:
    """Metrics in a few words, such as `accuracy 0.9876, loss 0.1234`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
