"""`ckptavg report`: a run, and an average of it, as one HTML page."""

from typing import Any

import typer

from ckptavg.cli.command import command
from ckptavg.cli.comparison_report import print_comparison
from ckptavg.cli.options import CALLABLE, OUTPUT, RESOURCES, SELECTION, Option
from ckptavg.cli.printing import pick, print_json
from ckptavg.cli.session import session
from ckptavg.cli.values import parse_size
from ckptavg.commands.display import bar
from ckptavg.commands.report import report as write
from ckptavg.runs.describe import human_size
from ckptavg.runs.run import open_run


@command(
    write,
    only={
        "model": Option(
            SELECTION,
            f"Compiled Keras model: {CALLABLE}, or a .keras file. "
            "Not needed if the run comes with one.",
            "SPEC",
        ),
        "output": Option(OUTPUT, "HTML file to write.", "FILE", short="-o"),
        "max_memory": Option(
            RESOURCES, "Memory for reading the checkpoints, such as 160MiB.", "SIZE", parse_size
        ),
    },
    example="ckptavg report run --merged swa.weights.h5 -o run.html",
)
def report(*, run: str, merged: str | None, json: bool, **options: Any) -> None:
    """Write an HTML page about a run: records, plots, commands.

    The page is one file that needs no network, to look at or to hand on. With --merged it also
    shows an average: where it lies, what it was made of, the commands that make it again. With
    --eval-data it says whether averaging helped. Needs matplotlib.
    """
    opened = open_run(run)
    size = sum(record.size for record in opened.records)
    with session():
        progress = bar("reading", size)
        done = write(opened, merged=merged, progress=progress, **options)
    if json:
        named = {"run": run, "merged": merged}
        content = pick(done, "output", "size") | named | pick(done, "notes", "commands")
        found = done.comparison
        print_json(content if found is None else {**content, "comparison": found.to_dict()})
        return
    typer.echo(f"wrote {done.output}: {human_size(done.size)}")
    for note in done.notes:
        typer.echo(f"  {note}")
    if done.comparison is not None:
        typer.echo()
        print_comparison(done.comparison)
