"""`ckptavg inspect`: what a run, a folder of checkpoints or a checkpoint holds."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ckptavg.cli.printing import Json, new_table, print_json, print_table
from ckptavg.formats import open_reader
from ckptavg.runs.checkpoint import Checkpoint, describe_epochs, describe_tracked, list_epochs
from ckptavg.runs.describe import human_number, human_size
from ckptavg.runs.record import Record
from ckptavg.runs.run import CHECKPOINT_FOLDER, Run, open_run
from ckptavg.runs.sources import resolve

_STATISTICS = {
    "running": "statistics as training left them",
    "stale": "statistics stale: averages, not of the averaged network",
}


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A run, a checkpoint file, a quoted pattern, or a folder of checkpoints.",
            show_default=False,
        ),
    ],
    json: Json = False,
) -> None:
    """Show what a run, a folder of checkpoints or a checkpoint holds."""
    if (path / CHECKPOINT_FOLDER).is_dir():
        run = open_run(path)
        print_json(_run_content(run)) if json else _print_run(run)
        return
    checkpoints = resolve(path)
    if len(checkpoints) > 1 or path.is_dir():
        if json:
            print_json({"checkpoints": [_checkpoint_content(c) for c in checkpoints]})
        else:
            _print_several(path, checkpoints)
        return
    checkpoint = checkpoints[0]
    print_json(_checkpoint_content(checkpoint)) if json else _print_checkpoint(checkpoint)


def _print_run(run: Run) -> None:
    records = run.records
    metrics = list(dict.fromkeys(name for record in records for name in record.metrics))
    table = new_table()
    for title in ("epoch", "step", "rate", "size", *metrics):
        table.add_column(title, justify="right")
    for checkpoint in run.checkpoints:
        record = checkpoint.record
        size = human_size(record.size) if checkpoint.path.is_file() else "no file"
        values = (human_number(record.metrics.get(name)) for name in metrics)
        row = (
            str(record.epoch),
            human_number(record.step),
            human_number(record.learning_rate),
            size,
        )
        table.add_row(*row, *values)
    total = human_size(sum(record.size for record in records))
    typer.echo(f"{run.directory}: {describe_epochs(run.checkpoints)}, {total}")
    _describe(records[-1])
    typer.echo(f"  model       {run.model_file or 'no configuration: pass --model'}")
    if run.averages:
        typer.echo(f"  tracked     {describe_tracked(run.averages)}")
    if run.uncommitted:
        names = ", ".join(path.name for path in run.uncommitted)
        typer.echo(f"  not saved whole (no record): {names}")
    typer.echo()
    print_table(table)


def _print_several(source: Path, checkpoints: Sequence[Checkpoint]) -> None:
    table = new_table()
    table.add_column("checkpoint", overflow="fold")
    for title in ("epoch", "tensors", "size", "record"):
        table.add_column(title, justify="right", no_wrap=True)
    total = 0
    for checkpoint in checkpoints:
        with open_reader(checkpoint.path) as reader:
            tensors, size = len(reader.structure.model_tensors), reader.size
        total += size
        record = "none" if checkpoint.record is None else "yes"
        facts = (human_number(checkpoint.epoch), str(tensors), human_size(size), record)
        table.add_row(checkpoint.path.name, *facts)
    typer.echo(f"{source}: {describe_epochs(checkpoints)}, {human_size(total)}")
    typer.echo()
    print_table(table)


def _print_checkpoint(checkpoint: Checkpoint) -> None:
    with open_reader(checkpoint.path) as reader:
        structure = reader.structure
    table = new_table()
    table.add_column("tensor", overflow="fold")
    for title in ("shape", "dtype", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    for tensor in structure.model_tensors.values():
        size = human_size(tensor.nbytes)
        table.add_row(tensor.name, str(tensor.shape), tensor.dtype, size)
    typer.echo(f"{checkpoint.path}")
    if checkpoint.record is None:
        typer.echo("  record      none")
    else:
        _describe(checkpoint.record)
    dropped = len(structure.tensors) - len(structure.model_tensors)
    if dropped:
        typer.echo(f"  optimizer   {dropped} tensors, which a merge drops")
    typer.echo()
    print_table(table)


def _describe(record: Record) -> None:
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
            f"  BatchNorm   {state.layers} layers, statistics {state.statistics}: "
            f"{state.samples:,} samples" + (f" of {state.data}" if state.data else "")
        )
    else:
        meaning = _STATISTICS.get(state.statistics, state.statistics)
        typer.echo(f"  BatchNorm   {state.layers} layers, {meaning}")


def _run_content(run: Run) -> dict[str, Any]:
    return {
        "run": str(run.directory),
        "model": run.model_file and str(run.model_file),
        "uncommitted": [str(path) for path in run.uncommitted],
        "checkpoints": [
            {"path": str(checkpoint.path), **_facts(checkpoint.record)}
            for checkpoint in run.checkpoints
        ],
        "averages": [
            {"path": str(average.path), **_facts(average.record)} for average in run.averages
        ],
    }


def _checkpoint_content(checkpoint: Checkpoint) -> dict[str, Any]:
    with open_reader(checkpoint.path) as reader:
        tensors = reader.structure.tensors.values()
    return {
        "path": str(checkpoint.path),
        "epoch": checkpoint.epoch,
        "record": checkpoint.record and _facts(checkpoint.record),
        "tensors": [
            {"name": t.name, "shape": t.shape, "dtype": t.dtype, "nbytes": t.nbytes}
            for t in tensors
        ],
    }


def _facts(record: Record) -> dict[str, Any]:
    content = asdict(record)
    del content["path"]
    return content
