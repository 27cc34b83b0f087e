"""A plan of a merge, as a table for people and as JSON."""

from collections import Counter
from typing import Any

import typer

from ckptavg.cli.merge_report import print_left_out, print_recipe
from ckptavg.cli.printing import new_table, print_table, resident
from ckptavg.merging.plan import MergePlan
from ckptavg.recipes import effective_sample_size
from ckptavg.runs.describe import human_size

_ACTIONS = {"average": "average", "equal": "copy", "last": "copy", "drop": "drop"}


def print_plan(plan: MergePlan) -> None:
    """Prints what a merge would do: the totals, the sources, then tensor by tensor."""
    counts = Counter(_ACTIONS[item.action] for item in plan.items)
    typer.echo(f"would write {plan.output}, nothing is written now")
    typer.echo(f"  tensors     {', '.join(f'{n} {action}' for action, n in counts.items())}")
    print_recipe(plan)
    typer.echo(f"  read        {human_size(plan.bytes_read)} of {len(plan.sources)} checkpoints")
    typer.echo(f"  written     {human_size(plan.bytes_written)}")
    typer.echo(f"  disk        {human_size(plan.disk)}")
    threads = f"{plan.jobs} thread" + ("s" if plan.jobs > 1 else "")
    peak = human_size(plan.memory + resident())
    typer.echo(f"  memory      {peak} at most: {human_size(plan.memory)} to merge, by {threads}")
    decoded = sum(item.tensor.extent is None for item in plan.items)
    if decoded:
        typer.echo(f"  decoded     {decoded} tensors are compressed or in chunks: read slowly")
    print_left_out(plan)
    sources = new_table()
    sources.add_column("checkpoint", overflow="fold")
    for title in ("epoch", "coefficient", "size", "proof"):
        sources.add_column(title, justify="right", no_wrap=True)
    for source in plan.sources:
        epoch = "" if source.epoch is None else str(source.epoch)
        proof = "record" if source.proof else "checksums" if source.checksummed else "none"
        coefficient = f"{source.coefficient:.6g}"
        sources.add_row(str(source.path), epoch, coefficient, human_size(source.size), proof)
    tensors = new_table()
    tensors.add_column("tensor", overflow="fold")
    tensors.add_column("shape", justify="right", overflow="fold")
    for title in ("dtype", "action"):
        tensors.add_column(title, no_wrap=True)
    tensors.add_column("why", overflow="fold")
    for item in plan.items:
        tensor = item.tensor
        row = (tensor.name, str(tensor.shape), tensor.dtype, _ACTIONS[item.action], item.reason)
        tensors.add_row(*row)
    for table in (sources, tensors):
        typer.echo()
        print_table(table)


def plan_content(plan: MergePlan) -> dict[str, Any]:
    """A plan for machines."""
    return {
        "output": str(plan.output),
        "files": [str(file) for file in plan.output_files],
        "recipe": plan.recipe,
        "left_out": [str(checkpoint.path) for checkpoint in plan.left_out],
        "effective_sample_size": effective_sample_size(plan.coefficients),
        "sources": [
            {
                "path": str(source.path),
                "epoch": source.epoch,
                "coefficient": source.coefficient,
                "size": source.size,
                "proven": source.proven,
            }
            for source in plan.sources
        ],
        "tensors": [
            {
                "name": item.tensor.name,
                "shape": item.tensor.shape,
                "dtype": item.tensor.dtype,
                "nbytes": item.tensor.nbytes,
                "action": item.action,
                "reason": item.reason,
            }
            for item in plan.items
        ],
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "disk": plan.disk,
        "memory": plan.memory,
        "peak": plan.memory + resident(),
        "jobs": plan.jobs,
    }
