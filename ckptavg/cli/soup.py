"""`ckptavg soup`: an average of those checkpoints that make it better."""

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
    Output,
    Overwrite,
    Reporting,
    SameData,
    model_spec,
    print_json,
)
from ckptavg.errors import SpecError
from ckptavg.runs.sources import resolve

if TYPE_CHECKING:
    from ckptavg.search.soup import Ingredient, SoupReport


def soup(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="CKPT",
            help="Checkpoints of one model, also of different runs; runs; patterns.",
            show_default=False,
        ),
    ],
    output: Output,
    method: Annotated[
        str,
        typer.Option(metavar="NAME", help="greedy: those that help, best first; uniform: all."),
    ] = "greedy",
    model: Model = None,
    data: Training = None,
    eval_data: Choosing = None,
    monitor: Monitor = "val_loss",
    mode: Mode = "auto",
    test_data: Reporting = None,
    allow_same_data: SameData = False,
    steps: Steps = None,
    batch_size: BatchSize = None,
    preprocess: Preprocess = None,
    bn_mode: BatchNormMode = "batch",
    device: Device = "auto",
    distribute: Distribute = None,
    mixed_precision: MixedPrecision = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Average those of some checkpoints that make the average better.

    A greedy soup begins with the best checkpoint and keeps each further one with which it is not
    worse on --eval-data. A CSV beside the output tells of all that were tried.
    """
    if eval_data is None:
        raise SpecError("a soup needs data that choose: pass --eval-data SPEC")
    options = PassOptions(
        steps, batch_size, preprocess, bn_mode, device, distribute, mixed_precision
    )
    options.check(data)
    check_csv(output, overwrite)
    checkpoints = resolve(sources)
    spec = model_spec(model, checkpoints[0].path)
    with options.session(spec, data) as (live, loaded, bar):
        from ckptavg.models.specs import as_data
        from ckptavg.search.soup import soup as make_soup

        count = 2 * len(checkpoints) - 1 if method == "greedy" else 1
        report = make_soup(
            checkpoints,
            output,
            method=method,
            model=live,
            data=loaded,
            eval_data=as_data(eval_data),
            test_data=None if test_data is None else as_data(test_data),
            monitor=monitor,
            mode=mode,
            **options.of_each_pass,
            allow_same_data=allow_same_data,
            data_name=data,
            overwrite=overwrite,
            progress=bar("evaluations", count),
        )
    lines = [_line(ingredient, report.monitor) for ingredient in report.ingredients]
    write_csv(csv_path(output), lines, report.monitor)
    if json:
        print_json(_content(report, lines))
        return
    print_lines(lines, report.monitor)
    typer.echo()
    kept = sum(ingredient.kept for ingredient in report.ingredients)
    value = report.metrics[report.monitor]
    of = f"{kept} checkpoint" + ("s" if kept != 1 else "")
    typer.echo(f"wrote {output} and {csv_path(output).name}: {method} soup of {of}")
    typer.echo(
        f"tried {report.tried} candidates; {report.monitor} {value:.5g} on {eval_data}, which chose"
    )
    if report.test_metrics is not None:
        told = ", ".join(f"{name} {value:.5g}" for name, value in report.test_metrics.items())
        typer.echo(f"the soup on {test_data}: {told}")


def _line(ingredient: "Ingredient", monitor: str) -> Line:
    with_soup = (ingredient.with_soup or {}).get(monitor)
    return Line(
        {
            "checkpoint": str(ingredient.checkpoint.path),
            "kept": "yes" if ingredient.kept else "no",
            "soup_with_it": "" if with_soup is None else with_soup,
        },
        ingredient.metrics,
    )


def _content(report: "SoupReport", lines: list[Line]) -> dict[str, object]:
    return {
        "output": str(report.output),
        "monitor": report.monitor,
        "metrics": report.metrics,
        "tried": report.tried,
        "test_metrics": report.test_metrics,
        "ingredients": [line.content() for line in lines],
    }
