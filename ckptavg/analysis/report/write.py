"""Writes the report of a run: gathers what there is to tell, has it drawn, writes the page."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ckptavg.analysis.geometry.geometry import Geometry
from ckptavg.analysis.geometry.measure import measure_geometry
from ckptavg.analysis.geometry.points import coefficients_of, labels_of
from ckptavg.analysis.report.html import page
from ckptavg.analysis.report.sections import (
    about_average,
    about_checkpoints,
    about_commands,
    about_run,
    header,
    section,
)
from ckptavg.errors import CkptavgError, MemoryLimitError, OutputError, RunError, SpecError
from ckptavg.merging.reproduce import averaging, reproduction
from ckptavg.merging.worker import Progress
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import describe_epochs
from ckptavg.runs.history import EpochLog
from ckptavg.runs.outputs import check_place, writing
from ckptavg.runs.record import Record
from ckptavg.runs.run import Run, open_run
from ckptavg.storage.files import write_text

_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, slots=True)
class RunReport:
    """What was written, and what there is to say of it.

    Attributes:
        output: the page.
        size: its size in bytes.
        notes: what a reader should know of the run: what is missing, broken or left out.
        commands: that make the average again, or, without one, that average the run.
    """

    output: Path
    size: int
    notes: tuple[str, ...]
    commands: tuple[str, ...] = field(repr=False)


def write_report(
    run: Run | str | Path,
    output: str | Path = "report.html",
    *,
    merged: str | Path | None = None,
    overwrite: bool = False,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Writes a page about a run: its training, its checkpoints, where they lie, an average of it.

    The page needs nothing but a browser: pictures are in it, scripts are not. It appears whole or
    not at all, and comes out the same for the same run. All checkpoints are read once, in fixed
    memory.

    Args:
        run: a run or its directory.
        output: the `.html` file to write.
        merged: an average of the run: what it was made of, where it lies, how to make it again.
        overwrite: whether to replace an existing file.
        max_memory: as in `measure_geometry`.
        progress: called with numbers of bytes as they have been read.

    Returns:
        What was written.

    Raises:
        SpecError: matplotlib is not installed.
        RunError: there is no run, or `merged` does not tell of what it is the average.
        RecordError: a record is damaged.
        OutputError: the file exists, or cannot be written there.
        MemoryLimitError: `max_memory` does not suffice.

    Example:
        >>> ckptavg.analysis.write_report("run", "report.html", merged="swa.keras")
    """
    try:
        from ckptavg.analysis.report.figures import (
            coefficient_figure,
            geometry_figures,
            training_figures,
        )
    except ImportError as error:
        raise SpecError("a report needs matplotlib: pip install 'ckptavg[plots]'") from error
    output = Path(output)
    _check_output(output, overwrite)
    run = run if isinstance(run, Run) else open_run(run)
    average = None if merged is None else _open_average(merged)
    notes = list(_notes(run))
    logs = _logs(run, notes)
    geometry = _measure(run, average, notes, max_memory, progress)
    commands = averaging(run) if average is None else reproduction(average)
    made_of = None
    if average is not None:
        sources = _sources(average, run)
        made_of = about_average(average, sources, coefficient_figure(average, sources))
    text = page(
        f"Run {run.directory.resolve().name}",
        header(run, average),
        about_run(run, logs, geometry, notes),
        section("Training", training_figures(logs, run.records)),
        section("Checkpoints", about_checkpoints(run, average)),
        section("Where the checkpoints lie", geometry_figures(geometry)) if geometry else None,
        made_of,
        section("Commands", about_commands(commands, average)),
    )
    with writing(output):
        _check_output(output, overwrite)
        write_text(output, text)
    return RunReport(output, output.stat().st_size, tuple(notes), commands)


def _check_output(output: Path, overwrite: bool) -> None:
    if output.suffix.lower() not in _SUFFIXES:
        raise OutputError(f"cannot write a report to {output}: name an .html file")
    check_place(output, overwrite)


def _open_average(path: str | Path) -> Checkpoint:
    found = Checkpoint.open(path)
    if found.record is None or not found.record.sources:
        raise RunError(
            f"{found.path} has no record of what it is the average of: name a file that "
            "`ckptavg merge` wrote, with its record beside it"
        )
    return found


def _sources(average: Checkpoint, run: Run) -> list[Checkpoint]:
    """What an average was made of, with the records of those that are the run's."""
    known = {
        checkpoint.path.resolve(): checkpoint for checkpoint in (*run.checkpoints, *run.averages)
    }
    paths = [(average.path.parent / source.path, source) for source in average.record.sources]
    return [
        known.get(path.resolve(), Checkpoint(path, named_epoch=source.epoch))
        for path, source in paths
    ]


def _notes(run: Run) -> Iterator[str]:
    if bad := [c for c in run.checkpoints if c.record.non_finite]:
        yield f"NaN or infinity in {describe_epochs(bad)}: averages leave them out."
    if gone := [c for c in run.checkpoints if not Checkpoint.exists(c.path)]:
        yield f"Recorded, but without a file: {describe_epochs(gone)}."
    if run.uncommitted:
        names = ", ".join(path.name for path in run.uncommitted)
        yield f"Not saved whole, without a record: {names}."


def _logs(run: Run, notes: list[str]) -> tuple[EpochLog, ...] | tuple[Record, ...]:
    """What is known of the epochs: the history, or the records of runs that kept none."""
    try:
        return run.history or run.records
    except CkptavgError as error:
        notes.append(f"The history is left out: {error}")
        return run.records


def _measure(
    run: Run,
    average: Checkpoint | None,
    notes: list[str],
    max_memory: int | None,
    progress: Progress | None,
) -> Geometry | None:
    """The geometry of the checkpoints that are there and finite; None, with a note, if none is."""
    sound = [c for c in run.checkpoints if not c.record.non_finite and Checkpoint.exists(c.path)]
    if not sound:
        return None
    averages = {"mean of all": (1 / len(sound),) * len(sound)}
    try:
        if average is not None:
            name = average.path.name
            name = f"average {name}" if name in labels_of(sound) else name
            averages = {name: coefficients_of(average, sound)}
    except CkptavgError as error:
        notes.append(f"The average is not among the checkpoints in the pictures: {error}")
    try:
        return measure_geometry(sound, averages=averages, max_memory=max_memory, progress=progress)
    except MemoryLimitError:
        raise
    except CkptavgError as error:
        notes.append(f"Where the checkpoints lie could not be measured: {error}")
        return None
