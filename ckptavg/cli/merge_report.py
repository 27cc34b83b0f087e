"""What `ckptavg merge` did, as text for people and as a report for machines."""

import textwrap
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from ckptavg.merging.merge import MergeReport
from ckptavg.merging.plan import MergePlan
from ckptavg.merging.reproduce import refreshing
from ckptavg.recipes import effective_sample_size
from ckptavg.runs.checkpoint import Checkpoint, list_epochs
from ckptavg.runs.describe import human_size, list_coefficients
from ckptavg.runs.record import BatchNormRecord

_IN_PYTHON = "load it into your model, then call ckptavg.update_batch_norm(model, data)"


def print_merged(report: MergeReport, output: Path | None = None) -> None:
    """Prints what a merge wrote, from what, and how it was proven."""
    plan = report.plan
    actions = Counter(item.action for item in plan.items)
    copied = actions["equal"] + actions["last"]
    tensors = [f"{actions['average']} averaged"]
    tensors += [f"{copied} copied"] if copied else []
    tensors += [f"{actions['drop']} dropped (optimizer state)"] if actions["drop"] else []
    typer.echo(f"wrote {output or report.output}: {_described(plan)}")
    typer.echo(f"  tensors     {', '.join(tensors)}")
    print_recipe(plan)
    speed = plan.bytes_read / max(report.seconds, 1e-9)
    typer.echo(
        f"  read        {human_size(plan.bytes_read)} in {report.seconds:.2f} s "
        f"({human_size(speed)}/s)"
    )
    unverified = len(report.unverified)
    recorded = all(source.proof is not None for source in plan.sources)
    by = "the digests in the records" if recorded else "digests and checksums"
    proof = f"every byte proven by {by}"
    if unverified:
        proof = f"{unverified} of {len(plan.sources)} checkpoints unverified: they have no record"
    typer.echo(f"  proof       {proof}")
    print_left_out(plan)
    if report.resumed:
        typer.echo(f"  resumed     {report.resumed:.0%} were done before, and proven again")


def print_left_out(plan: MergePlan) -> None:
    """Prints which checkpoints a merge leaves out, and why."""
    for checkpoint in plan.left_out:
        name = checkpoint.record.non_finite[0]
        typer.echo(f"  left out    {checkpoint.path.name}: '{name}' holds NaN or infinity")


def _described(plan: MergePlan) -> str:
    epochs = [source.epoch for source in plan.sources if source.epoch is not None]
    count = f"{len(plan.sources)} checkpoint" + ("s" if len(plan.sources) != 1 else "")
    mean = "mean" if plan.recipe == "uniform" else "weighted mean"
    return f"the {mean} of {count}" + (f" (epochs {list_epochs(epochs)})" if epochs else "")


def print_recipe(plan: MergePlan) -> None:
    """Prints the coefficients of a plan and what they are worth."""
    coefficients = plan.coefficients
    lines = textwrap.wrap(f"{plan.recipe}: {list_coefficients(coefficients)}", 66)
    worth = (
        f"effective sample size {effective_sample_size(coefficients):.3g} of {len(coefficients)}"
    )
    for label, line in zip(("recipe", *[""] * len(lines)), (*lines, worth), strict=True):
        typer.echo(f"  {label:<12}{line}")


def print_batch_norm(output: Path, state: BatchNormRecord | None) -> None:
    """Prints what the BatchNorm statistics of an output are worth."""
    if state is None:
        return
    if state.samples is not None:
        typer.echo(
            f"  BatchNorm   statistics of {state.layers} layers {state.statistics}: re-estimated "
            f"from {state.samples:,} samples"
        )
    elif state.statistics == "stale":
        typer.echo(
            "  BatchNorm   statistics are stale: they are averages, not those of the averaged\n"
            "              network. Re-estimate them from training data before use:\n\n"
            f"    {refreshing(Checkpoint.open(output)) or _IN_PYTHON}"
        )


def report_content(report: MergeReport) -> dict[str, Any]:
    """A report for machines."""
    plan = report.plan
    return {
        "output": str(report.output),
        "recipe": plan.recipe,
        "effective_sample_size": effective_sample_size(plan.coefficients),
        "sources": [asdict(source) for source in report.record.sources],
        "tensors": dict(Counter(item.action for item in plan.items)),
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "seconds": report.seconds,
        "resumed": report.resumed,
        "jobs": plan.jobs,
        "unverified": [str(path) for path in report.unverified],
        "left_out": [str(checkpoint.path) for checkpoint in plan.left_out],
        "batch_norm": batch_norm_content(report.record.batch_norm),
    }


def batch_norm_content(state: BatchNormRecord | None) -> dict[str, Any] | None:
    """What the BatchNorm statistics are worth, for machines."""
    return None if state is None else asdict(state)
