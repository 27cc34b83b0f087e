"""`ckptavg evaluate`: loss and metrics of a checkpoint."""

from typing import Any

import typer

from ckptavg.cli.command import command
from ckptavg.cli.options import CALLABLE, HELD_OUT, SELECTION, Argument, Option
from ckptavg.cli.pass_report import print_metrics
from ckptavg.cli.printing import print_json
from ckptavg.cli.session import session
from ckptavg.commands.defaults import checkpoint_file
from ckptavg.commands.evaluate import evaluate as compute


@command(
    compute,
    only={
        "checkpoint": Argument(
            "FILE|RUN", "A .weights.h5 or .keras file; for a run, its last checkpoint."
        ),
        "model": Option(
            SELECTION,
            f"Compiled Keras model: {CALLABLE}, or a .keras file. "
            "Not needed if the checkpoint comes with one.",
            "SPEC",
        ),
        "data": Option(SELECTION, HELD_OUT, "SPEC"),
    },
    example="ckptavg evaluate swa-bn.weights.h5 --data train.py:test_data",
)
def evaluate(*, checkpoint: str, json: bool, **options: Any) -> None:
    """Print loss and metrics of a checkpoint on data."""
    path = checkpoint_file(checkpoint)
    with session():
        metrics = compute(path, **options)
    if json:
        print_json({"checkpoint": path, "metrics": metrics})
        return
    typer.echo(f"{path}")
    print_metrics(metrics)
