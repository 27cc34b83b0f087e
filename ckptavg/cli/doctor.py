"""`ckptavg doctor`: which checkpoints do not belong into an average."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptavg.cli.options import (
    BatchNormMode,
    BatchSize,
    Device,
    Distribute,
    MixedPrecision,
    PassOptions,
    Preprocess,
    Steps,
    Training,
)
from ckptavg.cli.printing import (
    Json,
    Model,
    model_spec,
    new_table,
    print_json,
    print_table,
    progress_bars,
)
from ckptavg.errors import SpecError
from ckptavg.runs.checkpoint import Checkpoint, list_epochs
from ckptavg.runs.sources import resolve

if TYPE_CHECKING:
    from ckptavg.analysis.doctor.doctor import Diagnosis, DoctorReport


def doctor(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="A run, checkpoint files, a quoted pattern, or a folder of checkpoints.",
            show_default=False,
        ),
    ],
    model: Model = None,
    data: Training = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Held-out data (x, y) for the midpoints, from a callable or an .npz file.",
            show_default=False,
        ),
    ] = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    preprocess: Preprocess = None,
    bn_mode: BatchNormMode = "batch",
    device: Device = "auto",
    distribute: Distribute = None,
    mixed_precision: MixedPrecision = False,
    json: Json = False,
) -> None:
    """Say which checkpoints do not belong into an average, and why.

    Reads all checkpoints once, side by side. With --eval-data also evaluates the midpoints between
    neighbours: a barrier of the loss means different basins.
    """
    from ckptavg.analysis.doctor.doctor import doctor as examine

    options = PassOptions(
        steps, batch_size, preprocess, bn_mode, device, distribute, mixed_precision
    )
    options.check(data)
    if eval_data is None and (model is not None or data is not None):
        raise SpecError("--model and --data are for midpoints: pass --eval-data SPEC, too")
    checkpoints = resolve(sources)
    size = sum(c.record.size for c in checkpoints if c.record is not None) or None
    if eval_data is None:
        with progress_bars() as bar:
            report = examine(checkpoints, progress=bar("reading", size))
    else:
        spec = model_spec(model, checkpoints[0].path)
        with options.session(spec, data) as (live, loaded, bar):
            from ckptavg.models.specs import as_data

            report = examine(
                checkpoints,
                model=live,
                data=loaded,
                eval_data=as_data(eval_data),
                **options.of_each_pass,
                progress=bar("reading", size),
            )
    command = _suggestion(sources, report.keep, len(checkpoints))
    if json:
        print_json(_content(report, command))
        return
    _print(report)
    typer.echo(f"\nkeep {len(report.keep)} of {len(checkpoints)} checkpoints")
    if command is not None:
        typer.echo(f"\n  {command}")


def _print(report: "DoctorReport") -> None:
    table = new_table()
    table.add_column("checkpoint", overflow="fold")
    evaluated = any(d.loss is not None for d in report.diagnoses)
    titles = ["norm", "cosine", "worst layer's", "to mean", "step"]
    for title in (*titles, *(("loss", "barrier") if evaluated else ())):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for d in report.diagnoses:
        values = [d.norm, d.cosine, d.worst_cosine, d.to_mean, d.step]
        values += [d.loss, d.barrier] if evaluated else []
        table.add_row(d.checkpoint.path.name, *map(_number, values), d.verdict)
    print_table(table)
    for d in report.diagnoses:
        for reason in d.reasons:
            typer.echo(f"\nleave out {d.checkpoint.path.name}: {reason}")
    for warning in report.warnings:
        typer.echo(f"\nwarning: {warning}")


def _suggestion(sources: Sequence[str], keep: Sequence[Checkpoint], count: int) -> str | None:
    """The merge of what belongs together."""
    if not keep:
        return None
    epochs = [checkpoint.epoch for checkpoint in keep]
    if len(keep) == count:
        chosen = [*sources]
    elif len(sources) == 1 and Path(sources[0]).is_dir() and None not in epochs:
        chosen = [*sources, "--epochs", list_epochs(epochs).replace(" ", "")]
    else:
        chosen = [str(checkpoint.path) for checkpoint in keep]
    return shlex.join(["ckptavg", "merge", *chosen, "-o", "swa.weights.h5"])


def _content(report: "DoctorReport", command: str | None) -> dict[str, Any]:
    return {
        "keep": [str(checkpoint.path) for checkpoint in report.keep],
        "command": command,
        "warnings": report.warnings,
        "checkpoints": [_facts(diagnosis) for diagnosis in report.diagnoses],
    }


def _facts(diagnosis: "Diagnosis") -> dict[str, Any]:
    names = ("norm", "cosine", "worst_layer", "worst_cosine", "to_mean", "step", "loss", "barrier")
    return {
        "path": str(diagnosis.checkpoint.path),
        "verdict": diagnosis.verdict,
        "reasons": diagnosis.reasons,
        **{name: getattr(diagnosis, name) for name in names},
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
