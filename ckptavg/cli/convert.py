"""`ckptavg convert`: write a checkpoint in another format."""

from typing import Any

import typer

from ckptavg.cli.command import command
from ckptavg.cli.options import OTHER, OUTPUT, Argument, Option
from ckptavg.cli.printing import pick, print_json
from ckptavg.cli.session import session
from ckptavg.commands.display import bar
from ckptavg.merging.convert import convert as copy
from ckptavg.runs.describe import human_size


@command(
    copy,
    only={
        "checkpoint": Argument("IN", "A checkpoint of any format."),
        "output": Argument("OUT", "File to write; its suffix chooses the format.", group=OUTPUT),
        "model": Option(
            OTHER,
            "Configuration for a .keras file: model.json of a run, or a .keras file of the same "
            "model.",
            "FILE",
        ),
    },
    example="ckptavg convert swa.weights.h5 swa.safetensors",
)
def convert(*, json: bool, **options: Any) -> None:
    """Write a checkpoint in another format, the same to the bit.

    Optimizer state is not written.
    """
    with session():
        report = copy(**options, progress=bar("converting", None))
    plan = report.plan
    kept = len(plan.structure.tensors)
    dropped = len(plan.items) - kept
    if json:
        facts = {"tensors": kept, "dropped": dropped}
        print_json(
            pick(report, "output") | facts | pick(report, "plan.bytes_written", "unverified")
        )
        return
    by = "its record" if plan.sources[0].proof else "the checksums of its format"
    proof = "unverified: it has no record" if report.unverified else f"proven by {by}"
    suffix = f", {dropped} of the optimizer left out" if dropped else ""
    typer.echo(f"wrote {report.output}")
    typer.echo(f"  tensors     {kept} copied, {human_size(plan.bytes_written)}{suffix}")
    typer.echo(f"  proof       {proof}")
