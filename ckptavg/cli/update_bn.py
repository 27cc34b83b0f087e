"""`ckptavg update-bn`: re-estimate the BatchNorm statistics of a checkpoint."""

from typing import Any

import typer

from ckptavg.cli.command import command
from ckptavg.cli.pass_report import print_pass
from ckptavg.cli.printing import as_json, print_json
from ckptavg.cli.session import session
from ckptavg.commands.update_bn import update_bn as refresh


@command(
    refresh, example="ckptavg update-bn swa.weights.h5 -o swa-bn.weights.h5 --data train.py:bn_data"
)
def update_bn(*, json: bool, **options: Any) -> None:
    """Re-estimate BatchNorm statistics by a forward pass over data.

    Only the statistics change, and they are pooled over all batches by true counts. The pass runs
    on the backend that KERAS_BACKEND names, on its GPU if there is one.
    """
    with session():
        report = refresh(**options)
    if json:
        print_json({"output": report.output, **as_json(report.batch_norm)})
        return
    typer.echo(f"wrote {report.output}")
    if report.batch_norm is not None:
        print_pass(report.batch_norm)
