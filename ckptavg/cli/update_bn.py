"""`ckptavg update-bn`: re-estimate the BatchNorm statistics of a checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ckptavg.cli.common import (
    DATA_HELP,
    Json,
    Model,
    Output,
    Overwrite,
    keras_session,
    model_spec,
    print_json,
    progress_bars,
)
from ckptavg.errors import FormatError
from ckptavg.formats import check_keras_output
from ckptavg.outputs import check_output


def update_bn(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A .weights.h5 or .keras file.", show_default=False),
    ],
    output: Output,
    data: Annotated[
        str, typer.Option(metavar="SPEC", help=f"Training data: {DATA_HELP}", show_default=False)
    ],
    model: Model = None,
    steps: Annotated[
        int | None, typer.Option(help="Batches of --data to see; all if left out.", metavar="N")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Re-estimate BatchNorm statistics by a forward pass over data.

    The pass runs in training mode, changes nothing but the statistics, and pools them over all
    batches. It runs on the GPU when TensorFlow has one.
    """
    if not checkpoint.is_file():
        raise FormatError(f"there is no checkpoint {checkpoint}")
    check_keras_output(output)
    check_output(output, overwrite)
    spec = model_spec(model, checkpoint)
    with keras_session(), progress_bars() as bar:
        from ckptavg.batches import count_batches
        from ckptavg.refresh import refresh_batch_norm
        from ckptavg.specs import load_data, load_model

        live, loaded = load_model(spec), load_data(data)
        report = refresh_batch_norm(
            checkpoint,
            output,
            model=live,
            data=loaded,
            data_name=data,
            steps=steps,
            overwrite=overwrite,
            progress=bar("BatchNorm pass", count_batches(loaded, steps)),
        )
    done = report.batch_norm
    if json:
        print_json({"output": str(output), **asdict(done)})
        return
    typer.echo(f"wrote {output}")
    if done.layers:
        typer.echo(
            f"  BatchNorm   {len(done.layers)} layers re-estimated from {done.samples:,} samples "
            f"in {done.batches:,} batches"
        )
    else:
        typer.echo("  BatchNorm   the model has no statistics to re-estimate: nothing changed")
    for what, paths in (
        ("not trainable", done.frozen),
        ("not called in training mode", done.unused),
    ):
        if paths:
            typer.echo(f"  left alone  {', '.join(paths)} ({what})")
