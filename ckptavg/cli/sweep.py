"""`ckptavg sweep`: many averages of a run, evaluated."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckptavg.cli.leaderboard import Line, check_csv, csv_path, print_lines, write_csv
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
    Choosing,
    Json,
    Mode,
    Model,
    Monitor,
    Overwrite,
    Reporting,
    SameData,
    model_spec,
    parse_size,
    print_json,
)
from ckptavg.errors import SpecError
from ckptavg.runs.checkpoint import list_epochs
from ckptavg.runs.run import open_run

if TYPE_CHECKING:
    from ckptavg.search.sweep import Entry, SweepReport


def sweep(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run.", show_default=False)],
    model: Model = None,
    data: Training = None,
    eval_data: Choosing = None,
    monitor: Monitor = "val_loss",
    mode: Mode = "auto",
    windows: Annotated[
        str,
        typer.Option(
            metavar="WHICH", help="last: windows that end with the last checkpoint; all: any."
        ),
    ] = "last",
    stride: Annotated[
        int, typer.Option(metavar="N", help="Distance of the ends and lengths of windows.")
    ] = 1,
    recipes: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Ways to weigh a window, like uniform,ema:0.9,sqrt-decay."
        ),
    ] = "uniform",
    budget: Annotated[
        int | None, typer.Option(metavar="N", help="Candidates at most, spread over all.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the best average, .weights.h5 or .keras, and a CSV beside it.",
            show_default=False,
        ),
    ] = None,
    test_data: Reporting = None,
    allow_same_data: SameData = False,
    steps: Steps = None,
    batch_size: BatchSize = None,
    preprocess: Preprocess = None,
    bn_mode: BatchNormMode = "batch",
    device: Device = "auto",
    distribute: Distribute = None,
    mixed_precision: MixedPrecision = False,
    max_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Of sums in memory; larger ones go to a file.")
    ] = "1GiB",
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Evaluate averages over windows of a run, print a leaderboard.

    Each average goes through a BatchNorm pass over --data and is evaluated on --eval-data. Scores
    are kept in the run's folder `search`: a sweep that was stopped goes on.
    """
    if eval_data is None:
        raise SpecError("a sweep needs data that choose: pass --eval-data SPEC")
    options = PassOptions(
        steps, batch_size, preprocess, bn_mode, device, distribute, mixed_precision
    )
    options.check(data)
    if output is not None:
        check_csv(output, overwrite)
    opened = open_run(run)
    spec = model_spec(model, opened.checkpoints[-1].path)
    memory = parse_size(max_memory)
    with options.session(spec, data) as (live, loaded, bar):
        from ckptavg.models.specs import as_data
        from ckptavg.search.sweep import list_candidates
        from ckptavg.search.sweep import sweep as run_sweep

        chosen = [text.strip() for text in recipes.split(",")]
        limits = {"windows": windows, "stride": stride, "recipes": chosen, "budget": budget}
        count = len(list_candidates(opened, **limits))
        report = run_sweep(
            opened,
            output,
            model=live,
            data=loaded,
            eval_data=as_data(eval_data),
            test_data=None if test_data is None else as_data(test_data),
            monitor=monitor,
            mode=mode,
            **limits,
            **options.of_each_pass,
            allow_same_data=allow_same_data,
            data_name=data,
            max_memory=memory,
            overwrite=overwrite,
            progress=bar("candidates", count),
        )
    lines = [_line(entry) for entry in report.entries]
    if report.output is not None:
        write_csv(csv_path(report.output), lines, report.monitor)
    if json:
        print_json(_content(report, lines))
        return
    print_lines(lines, report.monitor)
    typer.echo()
    _print_summary(report, eval_data, test_data)


def _line(entry: "Entry") -> Line:
    epochs = [c.epoch for c in entry.checkpoints if c.epoch is not None]
    return Line(
        {
            "epochs": list_epochs(epochs),
            "checkpoints": len(entry.checkpoints),
            "recipe": entry.recipe,
            "effective": entry.effective_sample_size,
        },
        entry.metrics,
    )


def _print_summary(report: "SweepReport", eval_data: str, test_data: str | None) -> None:
    known = f", {report.known} of them known from before" if report.known else ""
    typer.echo(f"tried {report.tried} candidates{known}, chosen by {report.monitor} on {eval_data}")
    if report.output is not None:
        typer.echo(f"wrote {report.output} and {csv_path(report.output).name}")
    if report.test_metrics is None:
        typer.echo(
            "The best score is that of the luckiest, too: for a fair one pass --test-data that "
            "chose nothing."
        )
    else:
        told = ", ".join(f"{name} {value:.5g}" for name, value in report.test_metrics.items())
        typer.echo(f"the best one on {test_data}: {told}")


def _content(report: "SweepReport", lines: list[Line]) -> dict[str, object]:
    return {
        "monitor": report.monitor,
        "tried": report.tried,
        "known": report.known,
        "output": report.output and str(report.output),
        "test_metrics": report.test_metrics,
        "leaderboard": [
            {
                **line.content(),
                "files": [os.fspath(c.path) for c in entry.checkpoints],
                "coefficients": entry.coefficients,
            }
            for line, entry in zip(lines, report.entries, strict=True)
        ],
    }
