"""`ckptavg evaluate`: loss and metrics of checkpoints."""

from typing import Any

import typer

from ckptavg.cli.command import command
from ckptavg.cli.comparison_report import print_comparison
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
            "FILE|RUN",
            "A .weights.h5 or .keras file; for a run, its last checkpoint. Several are compared.",
            several=True,
        ),
        "model": Option(
            SELECTION,
            f"Compiled Keras model: {CALLABLE}, or a .keras file. "
            "Not needed if the checkpoint comes with one.",
            "SPEC",
        ),
        "data": Option(SELECTION, HELD_OUT, "SPEC"),
    },
    example="ckptavg evaluate run swa-bn.weights.h5 --data train.py:test_data",
)
def evaluate(*, checkpoint: tuple[str, ...], json: bool, bn_data: Any, **options: Any) -> None:
    """Print loss and metrics of a checkpoint on data, or compare several.

    A comparison says whether an average is better than the last checkpoint, and what the path of
    the weights has to do with it. With --bn-data, like is compared with like.
    """
    paths = list(map(checkpoint_file, checkpoint))
    if len(paths) > 1 or bn_data is not None:
        with session():
            found = compute(paths, bn_data=bn_data, **options)
        print_json(found.to_dict()) if json else print_comparison(found)
        return
    with session():
        metrics = compute(paths[0], **options)
    if json:
        print_json({"checkpoint": paths[0], "metrics": metrics})
        return
    typer.echo(f"{paths[0]}")
    print_metrics(metrics)
