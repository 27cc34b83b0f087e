"""What a BatchNorm pass and an evaluation found, as lines below what was written."""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from ckptavg.cli.printing import plural

if TYPE_CHECKING:
    from ckptavg.batch_norm.report import BatchNormReport


def print_pass(done: "BatchNormReport") -> None:
    """Prints what a pass did."""
    if not done.layers:
        typer.echo("  BatchNorm   the model has no statistics to re-estimate: nothing changed")
    else:
        typer.echo(
            f"  BatchNorm   {plural(len(done.layers), 'layer')} re-estimated from "
            f"{done.samples:,} samples in {done.batches:,} batches"
            + (f", {done.mode}" if done.mode != "batch" else "")
        )
    if done.shifts:
        worst = max(done.shifts, key=lambda shift: shift.mean)
        typer.echo(
            f"  moved       by up to {worst.mean:.2g} standard deviations in the mean, "
            f"{max(shift.deviation for shift in done.shifts):.2g} in the\n"
            f"              deviation; the mean most in {worst.layer}"
        )
    for what, paths in (
        ("not trainable", done.frozen),
        ("not called in training mode", done.unused),
    ):
        if paths:
            typer.echo(f"  left alone  {', '.join(paths)} ({what})")
    for warning in done.warnings:
        lines = textwrap.wrap(warning, 66, break_on_hyphens=False)
        typer.echo("  doubtful    " + "\n              ".join(lines))


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Prints loss and metrics, one a line."""
    width = max(len(name) for name in metrics)
    for name, value in metrics.items():
        typer.echo(f"  {name:<{width}}  {value:.6g}")
