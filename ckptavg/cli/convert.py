"""`ckptavg convert`: write a checkpoint in another format."""

from pathlib import Path
from typing import Annotated

import typer

from ckptavg.cli.printing import Json, Overwrite, print_json, progress_bars
from ckptavg.merging.convert import convert as convert_checkpoint
from ckptavg.runs.describe import human_size


def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="IN", help="A checkpoint of any format.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The file to write; its suffix says the format.", show_default=False
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For a .keras file: model.json of a run, or a .keras file of the same model.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a checkpoint in another format, the same to the bit.

    Optimizer state is left out.
    """
    with progress_bars() as bar:
        report = convert_checkpoint(
            checkpoint,
            output,
            model=model,
            overwrite=overwrite,
            progress=bar("converting", None),
        )
    kept = len(report.plan.structure.tensors)
    by = "its record" if report.plan.sources[0].proof else "the checksums of its format"
    proof = "unverified: it has no record" if report.unverified else f"proven by {by}"
    if json:
        print_json(
            {
                "output": str(report.output),
                "tensors": kept,
                "dropped": len(report.plan.items) - kept,
                "bytes_written": report.plan.bytes_written,
                "unverified": [str(path) for path in report.unverified],
            }
        )
        return
    dropped = len(report.plan.items) - kept
    typer.echo(f"wrote {report.output}")
    suffix = f", {dropped} of the optimizer left out" if dropped else ""
    typer.echo(f"  tensors     {kept} copied, {human_size(report.plan.bytes_written)}{suffix}")
    typer.echo(f"  proof       {proof}")
