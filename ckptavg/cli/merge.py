"""`ckptavg merge`: average checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ckptavg.cli.merge_report import (
    batch_norm_content,
    print_batch_norm,
    print_merged,
    report_content,
)
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
from ckptavg.cli.plan_table import plan_content, print_plan
from ckptavg.cli.printing import (
    Json,
    Model,
    Overwrite,
    parse_epochs,
    parse_size,
    print_json,
    progress_bars,
    resident,
)
from ckptavg.errors import MemoryLimitError, RecipeError, ResourceError, SpecError
from ckptavg.merging.merge import run_plan
from ckptavg.merging.plan import MergePlan, plan_merge
from ckptavg.recipes import COEFFICIENTS, POSTHOC_EMA, UNIFORM, Recipe
from ckptavg.recipes.swad import Swad
from ckptavg.runs.checkpoint import select
from ckptavg.runs.sources import resolve


def merge(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
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
    window: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="swad: only those from the convergence of the loss --monitor to its rise.",
            show_default=False,
        ),
    ] = None,
    n_converge: Annotated[
        int, typer.Option(metavar="N", help="Of swad: checkpoints without a new best loss.")
    ] = 3,
    n_tolerance: Annotated[
        int, typer.Option(metavar="N", help="Of swad: checkpoints that are all too high.")
    ] = 6,
    tolerance_ratio: Annotated[
        float, typer.Option(metavar="R", help="Of swad: how much higher is too high.")
    ] = 0.3,
    best: Annotated[
        int | None, typer.Option(help="Only the N best by --monitor.", metavar="N")
    ] = None,
    monitor: Annotated[
        str, typer.Option(help="Metric that --best and --window go by.", metavar="NAME")
    ] = "val_loss",
    mode: Annotated[
        str, typer.Option(help="Best is min, max, or auto: by name.", metavar="MODE")
    ] = "auto",
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How to weigh the checkpoints: uniform, the plain mean, if left out; "
            "`ckptavg recipes` lists them.",
            show_default=False,
        ),
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(metavar="D", help="Of the recipe ema, from checkpoint to checkpoint."),
    ] = None,
    sigma_rel: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Of power-ema and posthoc-ema: length as a share of the training, up to 0.289.",
        ),
    ] = None,
    at_step: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of posthoc-ema: the step to end at; the last by default."),
    ] = None,
    coefficients: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="One for each checkpoint, like 0.2,0.3,0.5, in place of a recipe.",
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
    options = PassOptions(
        steps, batch_size, preprocess, bn_mode, device, distribute, mixed_precision
    )
    options.check(data)
    if max_memory is not None and data is not None:
        raise ResourceError(
            "--max-memory limits a merge without --data: the BatchNorm pass needs what Keras needs"
        )
    weights = _recipe(recipe, decay, sigma_rel, at_step, coefficients)
    if weights.name == POSTHOC_EMA:
        if any(choice is not None for choice in (epochs, last, best, window)):
            raise RecipeError("posthoc-ema takes all averages that a run has tracked: choose none")
        chosen = sources
    else:
        wanted = None if epochs is None else parse_epochs(epochs)
        swad = _swad(window, n_converge, n_tolerance, tolerance_ratio)
        chosen = select(
            resolve(sources),
            epochs=wanted,
            last=last,
            best=best,
            monitor=monitor,
            mode=mode,
            window=swad,
        )
    configured = model is not None and model.endswith((".keras", ".json"))
    # A callable must be called to know the model's configuration; a file can be read.
    live = data is not None or (not configured and model is not None and output.suffix == ".keras")
    with _limit_of_the_process(max_memory) as working_memory:
        plan = plan_merge(
            chosen,
            output,
            recipe=weights,
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
        _merge_into_model(plan, model, data, options, resume, json)
        return
    with progress_bars() as bar:
        report = run_plan(plan, bar("merging", plan.bytes_read), resume=resume)
    if json:
        print_json(report_content(report))
        return
    print_merged(report)
    print_batch_norm(report.output, report.record.batch_norm)


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
        from ckptavg.batch_norm.refresh import merge_into_model

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
        report = report_content(result.merged)
        report.update(
            output=str(result.output), batch_norm=batch_norm_content(result.record.batch_norm)
        )
        print_json(report)
        return
    print_merged(result.merged, result.output)
    if result.batch_norm is None:
        print_batch_norm(result.output, result.record.batch_norm)
    else:
        print_pass(result.batch_norm)


def _swad(
    window: str | None, n_converge: int, n_tolerance: int, tolerance_ratio: float
) -> Swad | None:
    if window not in (None, "swad"):
        raise typer.BadParameter(f"--window is '{window}', but must be swad")
    return None if window is None else Swad(n_converge, n_tolerance, tolerance_ratio)


def _recipe(
    name: str | None,
    decay: float | None,
    sigma_rel: float | None,
    at_step: int | None,
    coefficients: str | None,
) -> Recipe:
    default = UNIFORM if coefficients is None else COEFFICIENTS
    return Recipe(name or default, decay=decay, sigma_rel=sigma_rel, at_step=at_step)


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
