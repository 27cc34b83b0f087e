"""Runs and reports of searches as data frames: a row for each checkpoint or candidate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptavg.analysis.tables import LENGTH, RATIO, frame
from ckptavg.runs.describe import list_epochs
from ckptavg.runs.run import Run, open_run

if TYPE_CHECKING:
    import pandas as pd

    from ckptavg.analysis.doctor import DoctorReport
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
    names = ("epoch", "step", "learning_rate", "size")
    rows = [{**{name: getattr(r, name) for name in names}, **r.metrics} for r in records]
    return frame(rows, {"units": {"size": "bytes"}}, index=[r.file for r in records])


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
    rows = [
        {
            "epochs": list_epochs(c.epoch for c in entry.checkpoints if c.epoch is not None),
            "checkpoints": len(entry.checkpoints),
            "recipe": entry.recipe,
            "effective": entry.effective_sample_size,
            **entry.metrics,
        }
        for entry in report.entries
    ]
    return _ranked(rows, {"units": {"effective": "checkpoints"}})


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
    rows = [
        {"checkpoint": str(each.checkpoint.path), "kept": each.kept}
        | each.metrics
        # The same metrics of another network, so under another name.
        | {f"soup {name}": value for name, value in (each.with_soup or {}).items()}
        for each in report.ingredients
    ]
    return _ranked(rows, {})


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
    rows = [
        {"verdict": d.verdict, "reasons": "; ".join(d.reasons)} | {n: getattr(d, n) for n in names}
        for d in found
    ]
    lengths = dict.fromkeys(("norm", "to_mean", "step"), LENGTH)
    units = {**lengths, "cosine": RATIO, "worst_cosine": RATIO}
    return frame(rows, {"units": units}, index=[d.checkpoint.path.name for d in found])


def _ranked(rows: Sequence[Mapping[str, Any]], attrs: Mapping[str, Any]) -> "pd.DataFrame":
    table = frame(rows, attrs)
    # Ranks count from 1, as the leaderboards that commands print do.
    table.index = table.index + 1
    table.index.name = "rank"
    return table
