"""`ckptavg report`: a run, and an average of it, as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from ckptavg.cli.printing import Json, Overwrite, parse_size, print_json, progress_bars
from ckptavg.runs.describe import human_size
from ckptavg.runs.run import open_run


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run.", show_default=False)],
    merged: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="An average of the run, to tell of it, too.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .html file to write.")
    ] = Path("report.html"),
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="For reading the checkpoints, like 160MiB.", show_default=False
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write an HTML page about a run: records, plots, commands.

    It is one file that needs no network, to look at or to hand on. With --merged it tells of an
    average, too: where it lies, what it was made of, the commands that make it again. Needs
    matplotlib.
    """
    from ckptavg.analysis.report import write_report

    opened = open_run(run)
    limit = None if max_memory is None else parse_size(max_memory)
    total = sum(record.size for record in opened.records)
    with progress_bars() as bar:
        done = write_report(
            opened,
            output,
            merged=merged,
            overwrite=overwrite,
            max_memory=limit,
            progress=bar("reading", total),
        )
    if json:
        print_json(
            {
                "output": str(done.output),
                "size": done.size,
                "run": str(run),
                "merged": merged and str(merged),
                "notes": done.notes,
                "commands": done.commands,
            }
        )
        return
    typer.echo(f"wrote {done.output}: {human_size(done.size)}")
    for note in done.notes:
        typer.echo(f"  {note}")
