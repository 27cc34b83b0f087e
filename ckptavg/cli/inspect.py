"""`ckptavg inspect`: what a run, a folder of checkpoints or a checkpoint holds."""

from pathlib import Path
from typing import Any

import typer

from ckptavg.cli.command import command
from ckptavg.cli.printing import as_json, pick, plural, print_json
from ckptavg.cli.tables import NAME, NUMBER, print_table
from ckptavg.commands.inspect import CheckpointContent, Inspection
from ckptavg.commands.inspect import inspect as read
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import (
    describe_epochs,
    describe_tracked,
    human_number,
    human_size,
    list_epochs,
)
from ckptavg.runs.record import OMITTED_IF_EMPTY, Record
from ckptavg.runs.run import Run

_STATISTICS = {
    "running": "statistics as training left them",
    "stale": "statistics stale: averages, not of the averaged network",
}


@command(read, example="ckptavg inspect run")
def inspect(*, source: str, json: bool) -> None:
    """Show what a run, a folder of checkpoints or a checkpoint holds."""
    found = read(source)
    single = len(found.contents) == 1 and not Path(source).is_dir()
    if json:
        print_json(_content(found, single))
    elif found.run is not None:
        _print_run(found.run)
    elif single:
        _print_checkpoint(found.contents[0])
    else:
        _print_several(source, found)


def _print_run(run: Run) -> None:
    records = run.records
    typer.echo(
        f"{run.directory}: {describe_epochs(run.checkpoints)}, "
        f"{human_size(sum(record.size for record in records))}"
    )
    _print_record(records[-1])
    typer.echo(f"  model       {run.model_file or 'no configuration: pass --model'}")
    if run.averages:
        typer.echo(f"  tracked     {describe_tracked(run.averages)}")
    if run.uncommitted:
        names = ", ".join(path.name for path in run.uncommitted)
        typer.echo(f"  not saved whole (no record): {names}")
    typer.echo()
    metrics = list(dict.fromkeys(name for record in records for name in record.metrics))
    rows = [
        (
            str(record.epoch),
            human_number(record.step),
            human_number(record.learning_rate),
            human_size(record.size) if checkpoint.path.is_file() else "no file",
            *(human_number(record.metrics.get(name)) for name in metrics),
        )
        for checkpoint, record in zip(run.checkpoints, records, strict=True)
    ]
    print_table(rows, (NUMBER, ["epoch", "step", "rate", "size", *metrics]))


def _print_several(source: str, found: Inspection) -> None:
    size = human_size(sum(content.size for content in found.contents))
    typer.echo(f"{source}: {describe_epochs(found.checkpoints)}, {size}")
    typer.echo()
    rows = [
        (
            content.checkpoint.path.name,
            human_number(content.checkpoint.epoch),
            str(len(content.model_tensors)),
            human_size(content.size),
            "none" if content.checkpoint.record is None else "yes",
        )
        for content in found.contents
    ]
    print_table(rows, (NAME, ["checkpoint"]), (NUMBER, ["epoch", "tensors", "size", "record"]))


def _print_checkpoint(content: CheckpointContent) -> None:
    checkpoint = content.checkpoint
    typer.echo(f"{checkpoint.path}")
    if content.remark:
        typer.echo(f"  format      {content.remark}")
    if checkpoint.record is None:
        typer.echo("  record      none")
    else:
        _print_record(checkpoint.record)
    dropped = len(content.tensors) - len(content.model_tensors)
    if dropped:
        typer.echo(f"  optimizer   {dropped} tensors, which a merge drops")
    typer.echo()
    rows = ((t.name, str(t.shape), t.dtype, human_size(t.nbytes)) for t in content.model_tensors)
    print_table(rows, (NAME, ["tensor"]), (NUMBER, ["shape", "dtype", "size"]))


def _print_record(record: Record) -> None:
    typer.echo(f"  written     {record.time} by ckptavg {record.versions.get('ckptavg', '?')}")
    if record.sources:
        epochs = [source.epoch for source in record.sources if source.epoch is not None]
        span = f", epochs {list_epochs(epochs)}" if epochs else ""
        typer.echo(f"  average     {record.recipe}, {len(record.sources)} checkpoints{span}")
    state = record.batch_norm
    if state is None:
        typer.echo("  BatchNorm   none")
    elif state.samples is not None:
        typer.echo(
            f"  BatchNorm   {plural(state.layers, 'layer')}, statistics {state.statistics}: "
            f"{state.samples:,} samples" + (f" of {state.data}" if state.data else "")
        )
    else:
        meaning = _STATISTICS.get(state.statistics, state.statistics)
        typer.echo(f"  BatchNorm   {plural(state.layers, 'layer')}, {meaning}")


def _content(found: Inspection, single: bool) -> dict[str, Any]:
    run = found.run
    if run is not None:
        return {
            "run": run.directory,
            "model": run.model_file,
            "uncommitted": run.uncommitted,
            "checkpoints": [_recorded(checkpoint) for checkpoint in run.checkpoints],
            "averages": [_recorded(average) for average in run.averages],
        }
    contents = [
        {
            **pick(content.checkpoint, "path", "epoch"),
            "record": _facts(content.checkpoint.record),
            "tensors": [pick(t, "name", "shape", "dtype", "nbytes") for t in content.tensors],
        }
        for content in found.contents
    ]
    return contents[0] if single else {"checkpoints": contents}


def _recorded(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"path": checkpoint.path, **(_facts(checkpoint.record) or {})}


def _facts(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    facts: dict[str, Any] = as_json(record)
    del facts["path"]
    for name in OMITTED_IF_EMPTY:
        if not facts[name]:
            del facts[name]
    return facts
