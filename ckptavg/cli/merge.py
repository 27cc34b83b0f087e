"""`ckptavg merge`: average checkpoints."""

import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ckptavg.checkpoints import Checkpoint, list_epochs, select
from ckptavg.cli.common import (
    Json,
    Model,
    Overwrite,
    human_size,
    model_hint,
    parse_epochs,
    parse_size,
    print_json,
    progress_bars,
    resident,
)
from ckptavg.cli.pass_options import (
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
from ckptavg.cli.plan_table import plan_content, print_left_out, print_plan
from ckptavg.errors import MemoryLimitError, ResourceError, SpecError
from ckptavg.merging import MergeReport, run_plan
from ckptavg.plan import MergePlan, plan_merge
from ckptavg.record import BatchNormRecord
from ckptavg.sources import resolve


def merge(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A run, checkpoint files, a quoted pattern, or a folder of checkpoints.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The checkpoint to write; its suffix says the format, by default the same.",
            show_default=False,
        ),
    ],
    epochs: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Epochs of the run, like 16-30 or 16,20,24.", show_default=False
        ),
    ] = None,
    last: Annotated[
        int | None, typer.Option(help="Only the last N checkpoints.", metavar="N")
    ] = None,
    best: Annotated[
        int | None, typer.Option(help="Only the N best by --monitor.", metavar="N")
    ] = None,
    monitor: Annotated[
        str, typer.Option(help="Metric that --best goes by.", metavar="NAME")
    ] = "val_loss",
    mode: Annotated[
        str, typer.Option(help="Best is min, max, or auto: by name.", metavar="MODE")
    ] = "auto",
    coefficients: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="One for each checkpoint, like 0.2,0.3,0.5; the plain mean if left out.",
            show_default=False,
        ),
    ] = None,
    no_normalize: Annotated[
        bool, typer.Option("--no-normalize", help="Let --coefficients have any sum.")
    ] = False,
    non_float: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="Integers and texts, which have no mean: equal (all must agree) or last.",
        ),
    ] = "equal",
    model: Model = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help=f"Re-estimate BatchNorm statistics from these data: {DATA_HELP}",
            show_default=False,
        ),
    ] = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    preprocess: Preprocess = None,
    bn_mode: BatchNormMode = "batch",
    device: Device = "auto",
    distribute: Distribute = None,
    mixed_precision: MixedPrecision = False,
    jobs: Annotated[
        int | None,
        typer.Option(help="Threads; one for each core, up to 4, if left out.", metavar="N"),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Limit of the whole process while it merges, like 160MiB.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with a merge that was stopped; keep what is done if stopped."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, and write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Average checkpoints into one file, with a record beside it.

    With --data, the mean is loaded into the model and its BatchNorm statistics are re-estimated
    before it is saved.
    """
    for option, value in (
        ("--steps", steps),
        ("--batch-size", batch_size),
        ("--preprocess", preprocess),
    ):
        if value is not None and data is None:
            raise SpecError(f"{option} is about --data, which is missing")
    if max_memory is not None and data is not None:
        raise ResourceError(
            "--max-memory limits a merge without --data: the BatchNorm pass needs what Keras needs"
        )
    chosen = _choose(sources, epochs, last, best, monitor, mode)
    configured = model is not None and model.endswith((".keras", ".json"))
    # A callable must be called to know the model's configuration; a file can be read.
    live = data is not None or (not configured and model is not None and output.suffix == ".keras")
    with _limit_of_the_process(max_memory) as working_memory:
        plan = plan_merge(
            chosen,
            output,
            coefficients=_numbers(coefficients),
            normalize=not no_normalize,
            non_float=non_float,
            model=model if configured else None,
            max_memory=working_memory,
            jobs=jobs,
            overwrite=overwrite,
            live_model=live,
        )
    if dry_run:
        print_json(plan_content(plan)) if json else print_plan(plan)
        return
    if live:
        options = PassOptions(
            steps, batch_size, preprocess, bn_mode, device, distribute, mixed_precision
        )
        _merge_into_model(plan, model, data, options, resume, json)
        return
    with progress_bars() as bar:
        report = run_plan(plan, bar("merging", plan.bytes_read), resume=resume)
    if json:
        print_json(_report(report))
        return
    _print_merged(report)
    _print_batch_norm(report.output, report.record.batch_norm)


def _merge_into_model(
    plan: MergePlan,
    model: str | None,
    data: str | None,
    options: PassOptions,
    resume: bool,
    json: bool,
) -> None:
    spec = model or (plan.model_file and str(plan.model_file))
    if spec is None:
        raise SpecError("the checkpoints come with no model configuration: pass --model SPEC")
    with options.session(spec, data) as (live, loaded, bar):
        from ckptavg.refresh import merge_into_model

        result = merge_into_model(
            plan,
            model=live,
            data=loaded,
            data_name=data,
            resume=resume,
            bytes_progress=bar("merging", plan.bytes_read),
            batch_progress=bar("BatchNorm pass", data and options.batches(loaded)),
            **options.of_the_pass,
        )
    if json:
        report = _report(result.merged)
        report.update(output=str(result.output), batch_norm=_batch_norm(result.record.batch_norm))
        print_json(report)
        return
    _print_merged(result.merged, result.output)
    if result.batch_norm is None:
        _print_batch_norm(result.output, result.record.batch_norm)
    else:
        print_pass(result.batch_norm)


def _choose(
    sources: list[str],
    epochs: str | None,
    last: int | None,
    best: int | None,
    monitor: str,
    mode: str,
) -> tuple[Checkpoint, ...]:
    wanted = None if epochs is None else parse_epochs(epochs)
    return select(resolve(sources), epochs=wanted, last=last, best=best, monitor=monitor, mode=mode)


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' are no numbers: write them like 0.2,0.3,0.5") from error


@contextmanager
def _limit_of_the_process(limit: str | None) -> Iterator[int | None]:
    """What a limit of the whole process leaves to the merge; errors name the whole again."""
    if limit is None:
        yield None
        return
    held = resident()
    try:
        yield max(0, parse_size(limit) - held)
    except MemoryLimitError as error:
        raise ResourceError(
            f"--max-memory {limit} is too low: at least {held + error.least:,} bytes are needed, "
            f"{held:,} of them by the program itself"
        ) from error


def _print_merged(report: MergeReport, output: Path | None = None) -> None:
    plan = report.plan
    actions = Counter(item.action for item in plan.items)
    copied = actions["equal"] + actions["last"]
    tensors = [f"{actions['average']} averaged"]
    tensors += [f"{copied} copied"] if copied else []
    tensors += [f"{actions['drop']} dropped (optimizer state)"] if actions["drop"] else []
    typer.echo(f"wrote {output or report.output}: {_described(plan)}")
    typer.echo(f"  tensors     {', '.join(tensors)}")
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


def _described(plan: MergePlan) -> str:
    epochs = [source.epoch for source in plan.sources if source.epoch is not None]
    count = f"{len(plan.sources)} checkpoint" + ("s" if len(plan.sources) != 1 else "")
    mean = "mean" if plan.recipe == "uniform" else "weighted mean"
    return f"the {mean} of {count}" + (f" (epochs {list_epochs(epochs)})" if epochs else "")


def _print_batch_norm(output: Path, state: BatchNormRecord | None) -> None:
    if state is None:
        return
    if state.statistics == "stale":
        typer.echo(
            "  BatchNorm   statistics are stale: they are averages, not those of the averaged\n"
            "              network. Re-estimate them from training data before use:\n\n"
            f"    {_how_to_refresh(output)}"
        )


def _how_to_refresh(output: Path) -> str:
    for suffix in (".weights.h5", ".keras"):
        if output.name.endswith(suffix):
            target = output.with_name(output.name.removesuffix(suffix) + "-bn" + suffix)
            return (
                f"ckptavg update-bn {shlex.quote(str(output))} -o {shlex.quote(str(target))}"
                f"{model_hint(output)} --data SPEC"
            )
    return "load it into your model, then call ckptavg.update_batch_norm(model, data)"


def _report(report: MergeReport) -> dict[str, Any]:
    plan = report.plan
    return {
        "output": str(report.output),
        "recipe": plan.recipe,
        "sources": [asdict(source) for source in report.record.sources],
        "tensors": dict(Counter(item.action for item in plan.items)),
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "seconds": report.seconds,
        "resumed": report.resumed,
        "jobs": plan.jobs,
        "unverified": [str(path) for path in report.unverified],
        "left_out": [str(checkpoint.path) for checkpoint in plan.left_out],
        "batch_norm": _batch_norm(report.record.batch_norm),
    }


def _batch_norm(state: BatchNormRecord | None) -> dict[str, Any] | None:
    return None if state is None else asdict(state)
