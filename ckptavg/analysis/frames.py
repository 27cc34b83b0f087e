"""Runs and reports of searches as data frames: a row for each checkpoint or candidate."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptavg.analysis.tables import LENGTH, RATIO, Column, frame
from ckptavg.runs.describe import list_epochs
from ckptavg.runs.run import Run, open_run

if TYPE_CHECKING:
    import pandas as pd

    from ckptavg.analysis.doctor.doctor import DoctorReport
    from ckptavg.search.soup import SoupReport
    from ckptavg.search.sweep import SweepReport


def run_frame(run: Run | str | Path) -> "pd.DataFrame":
    """The records of a run, a row for each checkpoint, named by its file.

    Args:
        run: a run or its directory.

    Returns:
        Columns `epoch`, `step`, `learning_rate`, `size` (bytes) and metrics, NaN where a record
        lacks one.

    Raises:
        RunError: the directory is not a run.
        RecordError: a record is damaged.

    Example:
        >>> ckptavg.analysis.run_frame("run").sort_values("val_loss").head()
    """
    records = (run if isinstance(run, Run) else open_run(run)).records
    columns = {
        name: [getattr(record, name) for record in records]
        for name in ("epoch", "step", "learning_rate", "size")
    }
    columns |= _metrics([record.metrics for record in records])
    return frame(columns, {"units": {"size": "bytes"}}, index=[record.file for record in records])


def sweep_frame(report: "SweepReport") -> "pd.DataFrame":
    """The leaderboard of a sweep, a row for each candidate, the best first.

    Args:
        report: as `sweep` gives it.

    Returns:
        Columns `epochs`, `checkpoints` (their number), `recipe`, `effective` (sample size: how many
        equally weighted checkpoints would reduce noise as much) and metrics; the index is the rank,
        from 1.

    Example:
        >>> report = ckptavg.sweep("run", model=model, data=x, eval_data=val, monitor="loss")
        >>> ckptavg.analysis.sweep_frame(report).head()
    """
    entries = report.entries
    columns: dict[str, Column] = {
        "epochs": [
            list_epochs(c.epoch for c in entry.checkpoints if c.epoch is not None)
            for entry in entries
        ],
        "checkpoints": [len(entry.checkpoints) for entry in entries],
        "recipe": [entry.recipe for entry in entries],
        "effective": [entry.effective_sample_size for entry in entries],
    }
    columns |= _metrics([entry.metrics for entry in entries])
    return _ranked(columns, {"units": {"effective": "checkpoints"}})


def soup_frame(report: "SoupReport") -> "pd.DataFrame":
    """The ingredients of a soup, a row for each checkpoint, in the order in which it was tried.

    Args:
        report: as `soup` gives it.

    Returns:
        Columns `checkpoint`, `kept`, its own metrics, and `soup ...` metrics of the soup that
        includes it (NaN for the first one, and in a uniform soup); the index is the rank, from 1.

    Example:
        >>> ckptavg.analysis.soup_frame(report).query("kept")
    """
    ingredients = report.ingredients
    columns: dict[str, Column] = {
        "checkpoint": [str(ingredient.checkpoint.path) for ingredient in ingredients],
        "kept": [ingredient.kept for ingredient in ingredients],
    }
    columns |= _metrics([ingredient.metrics for ingredient in ingredients])
    with_soup = _metrics([ingredient.with_soup or {} for ingredient in ingredients])
    columns |= {f"soup {name}": values for name, values in with_soup.items()}
    return _ranked(columns, {})


def doctor_frame(report: "DoctorReport") -> "pd.DataFrame":
    """What the doctor found, a row for each checkpoint, named by its file.

    Args:
        report: as `doctor` gives it.

    Returns:
        Columns `verdict`, `reasons`, `norm`, `cosine` (to the mean), `worst_layer`,
        `worst_cosine`, `to_mean`, `step` (distance to the previous one), and, if the doctor had
        evaluation data, `loss` and `barrier`.

    Example:
        >>> ckptavg.analysis.doctor_frame(ckptavg.doctor("run"))["verdict"]
    """
    found = report.diagnoses
    names = ["norm", "cosine", "worst_layer", "worst_cosine", "to_mean", "step"]
    if any(diagnosis.loss is not None for diagnosis in found):
        names += ["loss", "barrier"]
    columns = {
        "verdict": [diagnosis.verdict for diagnosis in found],
        "reasons": ["; ".join(diagnosis.reasons) for diagnosis in found],
        **{name: [getattr(diagnosis, name) for diagnosis in found] for name in names},
    }
    lengths = dict.fromkeys(("norm", "to_mean", "step"), LENGTH)
    units = {**lengths, "cosine": RATIO, "worst_cosine": RATIO}
    return frame(columns, {"units": units}, index=[d.checkpoint.path.name for d in found])


def _metrics(found: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """A column for each metric that any row has."""
    names = dict.fromkeys(name for metrics in found for name in metrics)
    return {name: [metrics.get(name, math.nan) for metrics in found] for name in names}


def _ranked(columns: Mapping[str, Column], attrs: Mapping[str, Any]) -> "pd.DataFrame":
    table = frame(columns, attrs)
    table.index = table.index + 1
    table.index.name = "rank"
    return table
