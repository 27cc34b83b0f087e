"""`ckptavg merge`: average checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import typer

from ckptavg.batch_norm.options import BatchNormOptions
from ckptavg.cli.command import command
from ckptavg.cli.comparison_report import print_comparison
from ckptavg.cli.merge_report import (
    plan_content,
    print_merged,
    print_plan,
    print_state,
    result_content,
)
from ckptavg.cli.options import OUTPUT, Option
from ckptavg.cli.pass_report import print_metrics, print_pass
from ckptavg.cli.printing import print_json, resident
from ckptavg.cli.session import session
from ckptavg.commands.merge import merge as average
from ckptavg.commands.merge import plan_with_model
from ckptavg.errors import MemoryLimitError, ResourceError
from ckptavg.merging.plan import MergePlan


@command(
    average,
    only={
        "output": Option(
            OUTPUT,
            "File to write. The suffix chooses the format; without one, that of the inputs.",
            "FILE",
            short="-o",
        )
    },
    more={"dry_run": False},
    example="ckptavg merge run --last 3 -o swa.weights.h5",
)
def merge(*, dry_run: bool, json: bool, max_memory: int | None, **options: Any) -> None:
    """Average checkpoints into one file, with a record beside it.

    With --data, the mean is loaded into the model and its BatchNorm statistics are re-estimated
    before it is saved. With --eval-data, the result is compared with the last and the best
    checkpoint.
    """
    with _limit_of_the_process(max_memory) as working_memory:
        options["max_memory"] = working_memory
        if dry_run:
            plan = _plan(**options)
            print_json(plan_content(plan)) if json else print_plan(plan)
            return
        with session():
            result = average(**options)
    if json:
        print_json(result_content(result))
        return
    print_merged(result)
    if result.batch_norm is None:
        print_state(result)
    else:
        print_pass(result.batch_norm)
    if result.metrics is not None:
        print_metrics(result.metrics)
    if result.comparison is not None:
        typer.echo()
        print_comparison(result.comparison)


def _plan(*, resume: bool, **options: Any) -> MergePlan:  # noqa: ARG001 (a plan is new work)
    """What the merge would do; resuming is decided when it runs."""
    of_pass = {field.name: options.pop(field.name) for field in fields(BatchNormOptions)}
    return plan_with_model(options=BatchNormOptions(**of_pass), **options)[0]


@contextmanager
def _limit_of_the_process(limit: int | None) -> Iterator[int | None]:
    """What a limit of the whole process leaves to the merge; errors name the whole again."""
    if limit is None:
        yield None
        return
    held = resident()
    try:
        yield max(0, limit - held)
    except MemoryLimitError as error:
        raise ResourceError(
            f"--max-memory of {limit:,} bytes is too low: at least {held + error.least:,} bytes "
            f"are needed, {held:,} of them by the program itself"
        ) from error
