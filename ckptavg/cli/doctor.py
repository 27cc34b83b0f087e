"""`ckptavg doctor`: which checkpoints should be left out of an average."""

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ckptavg.cli.command import command
from ckptavg.cli.options import SELECTION, Option
from ckptavg.cli.printing import pick, print_json
from ckptavg.cli.session import session
from ckptavg.cli.tables import NAME, NUMBER, WORD, print_prose, print_table
from ckptavg.commands.doctor import doctor as examine
from ckptavg.errors import CkptavgError
from ckptavg.formats import named_like
from ckptavg.merging.plan import plan_merge
from ckptavg.merging.tensor_rules import EQUAL
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import list_epochs

if TYPE_CHECKING:
    from ckptavg.analysis.doctor import DoctorReport

_VALUES = {
    "norm": "norm",
    "cosine": "cosine",
    "worst layer": "worst_cosine",
    "to mean": "to_mean",
    "step": "step",
}
_EVALUATED = {"loss": "loss", "barrier": "barrier"}
"""Columns of the table, each with the value that it shows."""

_MEANING = (
    "norm: length of the weights; cosine: to the mean of all, 1 in the same direction; worst "
    "layer: that cosine in the layer where it is smallest; to mean: distance to the mean; step: "
    "distance to the checkpoint before."
)
_MEANING_EVALUATED = (
    "loss: on --eval-data; barrier: the loss halfway to the next checkpoint minus the mean of "
    "both, below 0 where averaging the two helps."
)


@command(
    examine,
    only={
        "eval_data": Option(
            SELECTION,
            "Held-out (x, y) on which midpoints are evaluated: a name in a file or an .npz file.",
            "SPEC",
        )
    },
    example="ckptavg doctor run",
)
def doctor(*, sources: tuple[str, ...], json: bool, **options: Any) -> None:
    """Find checkpoints that should be left out of an average, and say why.

    Reads all checkpoints once, side by side. With --eval-data, also evaluates the midpoints between
    neighbours: a barrier of the loss means that they lie in different basins.
    """
    with session():
        report = examine(sources, **options)
    command = _suggestion(sources, report)
    if json:
        print_json(_content(report, command))
        return
    _print(report)
    last = f", and average the last {len(report.window)}" if report.window else ""
    typer.echo(f"\nkeep {len(report.keep)} of {len(report.diagnoses)} checkpoints{last}")
    if command is not None:
        typer.echo(f"\n  {command}")


def _print(report: "DoctorReport") -> None:
    evaluated = any(diagnosis.loss is not None for diagnosis in report.diagnoses)
    columns = _VALUES | (_EVALUATED if evaluated else {})
    rows = [
        (
            diagnosis.checkpoint.path.name,
            *(_number(getattr(diagnosis, name)) for name in columns.values()),
            diagnosis.verdict,
        )
        for diagnosis in report.diagnoses
    ]
    print_table(rows, (NAME, ["checkpoint"]), (NUMBER, [*columns]), (WORD, ["verdict"]))
    typer.echo()
    print_prose(f"{_MEANING} {_MEANING_EVALUATED}" if evaluated else _MEANING)
    for diagnosis in report.diagnoses:
        for reason in diagnosis.reasons:
            typer.echo(f"\nleave out {diagnosis.checkpoint.path.name}: {reason}")
    for warning in report.warnings:
        typer.echo()
        print_prose(f"warning: {warning}")


def _suggestion(sources: Sequence[str], report: "DoctorReport") -> str | None:
    """The merge of what belongs together, and stays about one place."""
    keep = report.window or report.keep
    if not keep:
        return None
    epochs = [checkpoint.epoch for checkpoint in keep if checkpoint.epoch is not None]
    if len(keep) == len(report.diagnoses):
        chosen = [*sources]
    elif len(sources) == 1 and Path(sources[0]).is_dir() and len(epochs) == len(keep):
        chosen = [*sources, "--epochs", list_epochs(epochs).replace(" ", "")]
    else:
        chosen = [str(checkpoint.path) for checkpoint in keep]
    rule = [] if report.non_float == EQUAL else ["--non-float", report.non_float]
    return shlex.join(["ckptavg", "merge", *chosen, *rule, "-o", str(_output(keep))])


def _output(keep: Sequence[Checkpoint]) -> Path:
    """An output that these checkpoints can be averaged into, of their own format if possible."""
    own = named_like(Path("swa"), keep[0].path)
    for output in (own, Path("swa.weights.h5")):
        free = _free(output)
        # Found by trial: a .keras file needs a configuration on which all agree.
        with suppress(CkptavgError):
            plan_merge(keep, free)
            return free
    return own


def _free(path: Path) -> Path:
    """A name that nothing has yet."""
    stem, suffixes = path.name.partition(".")[0], "".join(path.suffixes)
    names = chain([path], (Path(f"{stem}-{number}{suffixes}") for number in count(2)))
    return next(n for n in names if not (os.path.lexists(n) or Checkpoint.exists(n)))


def _content(report: "DoctorReport", command: str | None) -> dict[str, Any]:
    values = ("norm", "cosine", "worst_layer", "worst_cosine", "to_mean", "step", "loss", "barrier")
    return {
        "keep": [checkpoint.path for checkpoint in report.keep],
        "window": [checkpoint.path for checkpoint in report.window],
        "command": command,
        "warnings": report.warnings,
        "checkpoints": [
            pick(diagnosis, "checkpoint.path", "verdict", "reasons", *values)
            for diagnosis in report.diagnoses
        ],
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
