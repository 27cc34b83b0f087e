"""What a merge did or would do, as text for people and as a report for machines."""

import shlex
import textwrap
from collections import Counter
from itertools import zip_longest
from typing import Any

import typer

from ckptavg.cli.printing import pick, plural, resident
from ckptavg.cli.tables import NAME, NUMBER, PROSE, WORD, print_table
from ckptavg.commands.merge import MergeResult
from ckptavg.merging.plan import MergePlan
from ckptavg.merging.planned_sources import SourcePlan
from ckptavg.merging.reproduce import refreshing
from ckptavg.merging.tensor_rules import AVERAGE
from ckptavg.recipes import COEFFICIENTS, effective_sample_size
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import human_size, list_coefficients, list_epochs

_ACTIONS = {"average": "average", "equal": "copy", "last": "copy", "drop": "drop"}
_MOST_PAIRS = 40
"""Checkpoints whose given coefficients are listed one by one."""
_IN_PYTHON = "load it into your model, then call ckptavg.update_batch_norm(model, data)"


def print_merged(result: MergeResult) -> None:
    """Prints what a merge wrote, from what, and how it was proven."""
    plan = result.plan
    actions = Counter(_ACTIONS[item.action] for item in plan.items)
    tensors = [f"{actions['average']} averaged"]
    tensors += [f"{actions['copy']} copied"] if actions["copy"] else []
    tensors += [f"{actions['drop']} dropped (optimizer state)"] if actions["drop"] else []
    typer.echo(f"wrote {result.output}: {_described(plan)}")
    typer.echo(f"  tensors     {', '.join(tensors)}")
    _print_recipe(plan)
    speed = human_size(plan.bytes_read / max(result.seconds, 1e-9))
    typer.echo(f"  read        {human_size(plan.bytes_read)} in {result.seconds:.2f} s ({speed}/s)")
    typer.echo(f"  proof       {_proof(result)}")
    _print_notes(plan)
    if result.resumed:
        typer.echo(f"  resumed     {result.resumed:.0%} were done before, and proven again")


def _proof(result: MergeResult) -> str:
    sources = result.plan.sources
    if result.unverified:
        return f"{len(result.unverified)} of {len(sources)} checkpoints unverified: no record"
    recorded = all(source.proof is not None for source in sources)
    by = "the digests in the records" if recorded else "digests and checksums"
    return f"every byte proven by {by}"


def print_state(result: MergeResult) -> None:
    """Prints what the BatchNorm statistics of an output are worth that no pass has set."""
    state = result.record.batch_norm
    if state is None:
        return
    if state.samples is not None:
        typer.echo(
            f"  BatchNorm   statistics of {plural(state.layers, 'layer')} {state.statistics}: "
            f"re-estimated from {state.samples:,} samples"
        )
    elif state.statistics == "stale":
        command = refreshing(Checkpoint.open(result.output))
        typer.echo(
            "  BatchNorm   statistics are stale: they are averages, not those of the averaged\n"
            "              network. Re-estimate them from training data before use:\n\n"
            f"    {command or _IN_PYTHON}"
        )


def print_plan(plan: MergePlan) -> None:
    """Prints what a merge would do: the totals, the sources, then tensor by tensor."""
    counts = Counter(_ACTIONS[item.action] for item in plan.items)
    typer.echo(f"would write {plan.output}, nothing is written now")
    typer.echo(f"  tensors     {', '.join(f'{n} {action}' for action, n in counts.items())}")
    _print_recipe(plan)
    typer.echo(f"  read        {human_size(plan.bytes_read)} of {len(plan.sources)} checkpoints")
    typer.echo(f"  written     {human_size(plan.bytes_written)}")
    typer.echo(f"  disk        {human_size(plan.disk)}")
    peak = human_size(plan.memory + resident())
    typer.echo(
        f"  memory      {peak} at most: {human_size(plan.memory)} to merge, by "
        f"{plural(plan.jobs, 'thread')}"
    )
    decoded = sum(item.tensor.extent is None for item in plan.items)
    if decoded:
        typer.echo(f"  decoded     {decoded} tensors are compressed or in chunks: read slowly")
    _print_notes(plan)
    typer.echo()
    _print_sources(plan)
    typer.echo()
    _print_tensors(plan)


def _print_sources(plan: MergePlan) -> None:
    rows = [
        (
            str(source.path),
            "" if source.epoch is None else str(source.epoch),
            f"{source.coefficient:.6g}",
            human_size(source.size),
            "record" if source.proof else "checksums" if source.proven else "none",
        )
        for source in plan.sources
    ]
    print_table(rows, (NAME, ["checkpoint"]), (NUMBER, ["epoch", "coefficient", "size", "proof"]))


def _print_tensors(plan: MergePlan) -> None:
    rows = (
        (t.name, str(t.shape), t.dtype, _ACTIONS[item.action], item.reason)
        for item in plan.items
        for t in [item.tensor]
    )
    looks = (NAME, ["tensor"]), (NUMBER, ["shape"]), (WORD, ["dtype", "action"]), (PROSE, ["why"])
    print_table(rows, *looks)


def _print_notes(plan: MergePlan) -> None:
    """Prints what a user should know about a merge besides what it does."""
    if plan.model_note:
        typer.echo(f"  model       {plan.model_note}")
    _print_trainings(plan)
    _print_half(plan)
    _print_left_out(plan)


def _print_trainings(plan: MergePlan) -> None:
    """Says of several trainings in what they differ, and what to do before their mean is used."""
    found = plan.trainings
    if found is None:
        return
    text = f"{found.summary}. Their mean is good only where they share a basin; ask first:"
    lines = textwrap.wrap(text, 66, break_long_words=False, break_on_hyphens=False)
    lines.append(shlex.join(["ckptavg", "doctor", *map(str, found.runs)]))
    for label, line in zip_longest(("trainings",), lines, fillvalue=""):
        typer.echo(f"  {label:<12}{line}")


def _print_half(plan: MergePlan) -> None:
    """Advises a wider output where rounding takes away much of what averaging gains."""
    written = Counter(i.output.dtype for i in plan.items if i.action == AVERAGE)
    dtype = next((half for half in ("bfloat16", "float16") if half in written), None)
    if dtype is not None and len(plan.sources) > 1 and "dtype" not in plan.choice:
        gain = "--dtype float32 keeps what averaging gains"
        typer.echo(f"  advice      means are rounded to {dtype}: {gain}")


def _print_left_out(plan: MergePlan) -> None:
    for checkpoint in plan.left_out:
        if checkpoint.record is not None:
            name = checkpoint.record.non_finite[0]
            typer.echo(f"  left out    {checkpoint.path.name}: '{name}' holds NaN or infinity")


def _print_recipe(plan: MergePlan) -> None:
    """Prints the coefficients of a plan and what they are worth."""
    coefficients = plan.coefficients
    listed = list_coefficients(coefficients)
    # Given numbers mean nothing without the checkpoint that each belongs to.
    if plan.recipe == COEFFICIENTS and len(coefficients) <= _MOST_PAIRS:
        listed = ", ".join(f"{s.coefficient:.4g} of {_named(s)}" for s in plan.sources)
    lines = textwrap.wrap(f"{plan.recipe}: {listed}", 66)
    size = effective_sample_size(coefficients)
    lines.append(f"effective sample size {size:.3g} of {len(coefficients)}")
    for label, line in zip(("recipe", *[""] * len(lines)), lines, strict=False):
        typer.echo(f"  {label:<12}{line}")


def _named(source: SourcePlan) -> str:
    return source.path.name if source.epoch is None else f"epoch {source.epoch}"


def _described(plan: MergePlan) -> str:
    epochs = [source.epoch for source in plan.sources if source.epoch is not None]
    mean = "mean" if plan.recipe == "uniform" else "weighted mean"
    if plan.trainings is not None:
        count = f"{plural(len(plan.sources), 'checkpoint')} of {len(plan.trainings.runs)} trainings"
        return f"the {mean} of {count}"
    of_epochs = f" (epochs {list_epochs(epochs)})" if epochs else ""
    return f"the {mean} of {plural(len(plan.sources), 'checkpoint')}{of_epochs}"


def result_content(result: MergeResult) -> dict[str, Any]:
    """What a merge did, for machines."""
    plan = result.plan
    content = {
        **pick(result, "output", "plan.recipe"),
        "effective_sample_size": effective_sample_size(plan.coefficients),
        **pick(result, "record.sources"),
        "tensors": Counter(item.action for item in plan.items),
        **pick(result, "plan.bytes_read", "plan.bytes_written", "seconds", "resumed", "plan.jobs"),
        **pick(result, "unverified"),
        "left_out": [checkpoint.path for checkpoint in plan.left_out],
        **pick(result, "record.batch_norm"),
    }
    if plan.trainings is not None:
        content["trainings"] = plan.trainings
    if result.metrics is not None:
        content["metrics"] = result.metrics
    if result.comparison is not None:
        content["comparison"] = result.comparison.to_dict()
    return content


def plan_content(plan: MergePlan) -> dict[str, Any]:
    """A plan, for machines."""
    return {
        "output": plan.output,
        "files": plan.output_files,
        "recipe": plan.recipe,
        "left_out": [checkpoint.path for checkpoint in plan.left_out],
        "effective_sample_size": effective_sample_size(plan.coefficients),
        "sources": [
            pick(source, "path", "epoch", "coefficient", "size", "proven")
            for source in plan.sources
        ],
        "tensors": [
            {
                **pick(item.tensor, "name", "shape", "dtype", "nbytes"),
                **pick(item, "action", "reason"),
            }
            for item in plan.items
        ],
        **pick(plan, "bytes_read", "bytes_written", "disk", "memory"),
        "peak": plan.memory + resident(),
        "jobs": plan.jobs,
        **({} if plan.trainings is None else {"trainings": plan.trainings}),
    }
