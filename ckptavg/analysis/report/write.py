"""Writes the report of a run: gathers its facts, has them drawn, writes the page."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckptavg.analysis.average import Average
from ckptavg.analysis.comparison.results import Comparison
from ckptavg.analysis.geometry.geometry import Geometry
from ckptavg.analysis.geometry.measure import measure_geometry
from ckptavg.analysis.geometry.points import coefficients_of, labels_of
from ckptavg.analysis.loss_surface.results import LossLine
from ckptavg.analysis.report import sections
from ckptavg.analysis.report.html import page
from ckptavg.errors import CkptavgError, MemoryLimitError, OutputError, SpecError
from ckptavg.merging.reproduce import averaging, reproduction
from ckptavg.merging.worker import Advance
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import describe_epochs
from ckptavg.runs.history import EpochLog
from ckptavg.runs.outputs import check_place, owning, writing
from ckptavg.runs.record import Record
from ckptavg.runs.run import Run, open_run
from ckptavg.storage.files import write_text

Evaluate = Callable[[Run, Average | None], tuple[Comparison, LossLine | None]]
"""Scores of a run and its average, and the loss along the line from the last checkpoint to it."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """What was written.

    Attributes:
        output: the page.
        size: its size in bytes.
        notes: what a reader should know about the run: what is missing, damaged or left out.
        commands: commands that reproduce the average, or, without one, that average the run.
        comparison: the average beside the last and the best checkpoint, if they were evaluated.
    """

    output: Path
    size: int
    notes: tuple[str, ...]
    commands: tuple[str, ...] = field(repr=False)
    comparison: Comparison | None = field(default=None, repr=False)


def write_report(
    run: Run | str | Path,
    output: str | Path = "report.html",
    *,
    merged: str | Path | None = None,
    overwrite: bool = False,
    max_memory: int | None = None,
    progress: Advance | None = None,
    evaluate: Evaluate | None = None,
) -> RunReport:
    """Writes a page about a run: its training, its checkpoints, their geometry, and an average.

    The page needs only a browser: it contains its pictures and no scripts. It appears as a whole or
    not at all, and is the same for the same run. All checkpoints are read once, in fixed memory.

    Args:
        run: a run or its directory.
        output: the `.html` file to write.
        merged: an average of the run, for its sources, its place among the checkpoints, and the
            commands that reproduce it.
        overwrite: whether to replace an existing file.
        max_memory: as in `measure_geometry`.
        progress: called with the number of bytes read since the last call.
        evaluate: finds scores of the run and its average, once the output is known to be writable.

    Returns:
        What was written.

    Raises:
        SpecError: matplotlib is not installed.
        RunError: the directory is not a run, or `merged` has no record of its sources, or is an
            average of another run.
        RecordError: a record is damaged.
        OutputError: the file exists, or cannot be written there.
        MemoryLimitError: `max_memory` does not suffice.

    Example:
        >>> ckptavg.analysis.write_report("run", "report.html", merged="swa.keras")
    """
    try:
        from ckptavg.analysis.report import figures as figures
    except ImportError as error:
        raise SpecError("a report needs matplotlib: pip install 'ckptavg[plots]'") from error
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"cannot write a report to {output}: name an .html file")
    run = run if isinstance(run, Run) else open_run(run)
    average = None if merged is None else Average.find(merged)
    if average is not None:
        average.check_of(run)
    with owning(output, overwrite, check=check_place):
        notes = list(_notes(run))
        logs = _logs(run, notes)
        geometry = _measure(run, average, notes, max_memory, progress)
        found, line = (None, None) if evaluate is None else evaluate(run, average)
        commands = averaging(run) if average is None else reproduction(average)
        text = _page(run, average, logs, geometry, notes, commands, found, line)
        with writing(output):
            check_place(output, overwrite)  # again, because reading takes a while
            write_text(output, text)
        return RunReport(output, output.stat().st_size, tuple(notes), commands, found)


def _page(
    run: Run,
    average: Average | None,
    logs: Sequence[EpochLog | Record],
    geometry: Geometry | None,
    notes: Sequence[str],
    commands: Sequence[str],
    found: Comparison | None,
    line: LossLine | None,
) -> str:
    from ckptavg.analysis.report import figures

    scores = mapped = made_of = None
    if found is not None:
        scores = sections.about_scores(found)
    if geometry is not None:
        mapped = sections.section("Geometry of the checkpoints", figures.geometry_figures(geometry))
    if average is not None:
        pictures = figures.average_figures(average, run, line)
        made_of = sections.about_average(average, average.sources_in(run), pictures)
    saved = {checkpoint.epoch for checkpoint in run.checkpoints}
    return page(
        f"Run {run.directory.resolve().name}",
        sections.header(run, average),
        sections.about_run(run, logs, geometry, notes),
        scores,
        sections.section("Training", figures.training_figures(logs, saved, found)),
        sections.section("Checkpoints", sections.about_checkpoints(run, average)),
        mapped,
        made_of,
        sections.section("Commands", sections.about_commands(commands, average)),
    )


def _notes(run: Run) -> Iterator[str]:
    if bad := [c for c in run.checkpoints if c.record.non_finite]:
        yield f"NaN or infinity in {describe_epochs(bad)}: averages omit them."
    if gone := [c for c in run.checkpoints if not Checkpoint.exists(c.path)]:
        yield f"Recorded, but the file is missing: {describe_epochs(gone)}."
    if run.uncommitted:
        names = ", ".join(path.name for path in run.uncommitted)
        yield f"Incomplete, without a record: {names}."


def _logs(run: Run, notes: list[str]) -> tuple[EpochLog, ...] | tuple[Record, ...]:
    """What is known of the epochs: the history, or the records of a run without one."""
    try:
        return run.history or run.records
    except CkptavgError as error:
        notes.append(f"The history is missing: {error}")
        return run.records


def _measure(
    run: Run,
    average: Average | None,
    notes: list[str],
    max_memory: int | None,
    progress: Advance | None,
) -> Geometry | None:
    """The geometry of the checkpoints that exist and are finite; None, with a note, without any."""
    sound = [c for c in run.checkpoints if not c.record.non_finite and Checkpoint.exists(c.path)]
    if not sound:
        return None
    # Without an average, the plain mean is what a merge would give.
    averages = {"mean of all": (1 / len(sound),) * len(sound)}
    try:
        if average is not None:
            name = average.path.name
            name = f"average {name}" if name in labels_of(sound) else name
            averages = {name: coefficients_of(average, sound)}
    except CkptavgError as error:
        notes.append(f"The average is not shown among the checkpoints: {error}")
    try:
        return measure_geometry(sound, averages=averages, max_memory=max_memory, progress=progress)
    except MemoryLimitError:  # the caller chose the limit, and can raise it
        raise
    except CkptavgError as error:
        notes.append(f"The geometry of the checkpoints could not be measured: {error}")
        return None
