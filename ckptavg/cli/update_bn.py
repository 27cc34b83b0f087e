"""`ckptavg update-bn`: re-estimate the BatchNorm statistics of a checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ckptavg.cli.options import (
    DATA_HELP,
    BatchNormMode,
    BatchSize,
    Device,
    Distribute,
    MixedPrecision,
    PassOptions,
    Preprocess,
    Steps,
    print_pass,
)
from ckptavg.cli.printing import Json, Model, Output, Overwrite, model_spec, print_json
from ckptavg.errors import FormatError
from ckptavg.formats import check_keras_output
from ckptavg.runs.outputs import check_output


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
    steps: Steps = None,
    batch_size: BatchSize = None,
    preprocess: Preprocess = None,
    bn_mode: BatchNormMode = "batch",
    device: Device = "auto",
    distribute: Distribute = None,
    mixed_precision: MixedPrecision = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Re-estimate BatchNorm statistics by a forward pass over data.

    The pass changes nothing but the statistics, and pools them over all batches by true counts. It
    runs on the backend that KERAS_BACKEND names, and there on the GPU if it has one.
    """
    if not checkpoint.is_file():
        raise FormatError(f"there is no checkpoint {checkpoint}")
    check_keras_output(output)
    check_output(output, overwrite)
    spec = model_spec(model, checkpoint)
    options = PassOptions(
        steps, batch_size, preprocess, bn_mode, device, distribute, mixed_precision
    )
    with options.session(spec, data) as (live, loaded, bar):
        from ckptavg.batch_norm.refresh import refresh_batch_norm

        report = refresh_batch_norm(
            checkpoint,
            output,
            model=live,
            data=loaded,
            data_name=data,
            overwrite=overwrite,
            progress=bar("BatchNorm pass", options.batches(loaded)),
            **options.of_the_pass,
        )
    if json:
        print_json({"output": str(output), **asdict(report.batch_norm)})
        return
    typer.echo(f"wrote {output}")
    print_pass(report.batch_norm)
