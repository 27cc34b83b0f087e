"""`ckptavg evaluate`: loss and metrics of a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from ckptavg.cli.printing import (
    Json,
    Model,
    checkpoint_of,
    keras_session,
    model_spec,
    print_json,
    progress_bars,
)
from ckptavg.errors import FormatError


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|RUN",
            help="A .weights.h5 or .keras file; of a run, its last checkpoint.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="Held-out data: file.py:callable or package.module:callable that returns a "
            "tf.data.Dataset, arrays, a PyDataset or batches; or an .npz file with x (and y).",
            show_default=False,
        ),
    ],
    model: Model = None,
    json: Json = False,
) -> None:
    """Print loss and metrics of a checkpoint on data."""
    checkpoint = checkpoint_of(checkpoint)
    if not checkpoint.is_file():
        raise FormatError(f"there is no checkpoint {checkpoint}")
    spec = model_spec(model, checkpoint)
    with keras_session(), progress_bars() as bar:
        from ckptavg.models.batches import count_batches
        from ckptavg.models.evaluation import evaluate as evaluate_checkpoint
        from ckptavg.models.specs import as_data, load_model

        live, loaded = load_model(spec), as_data(data)
        progress = bar("evaluating", count_batches(loaded, None))
        metrics = evaluate_checkpoint(checkpoint, model=live, data=loaded, progress=progress)
    if json:
        print_json({"checkpoint": str(checkpoint), "metrics": metrics})
        return
    typer.echo(f"{checkpoint}")
    width = max(len(name) for name in metrics)
    for name, value in metrics.items():
        typer.echo(f"  {name:<{width}}  {value:.6g}")
