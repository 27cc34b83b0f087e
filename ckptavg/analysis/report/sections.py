"""The words and tables of a report."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence

from ckptavg.analysis.average import Average
from ckptavg.analysis.comparison.results import Comparison
from ckptavg.analysis.geometry.geometry import Geometry
from ckptavg.analysis.report.html import Content, facts, table, tag
from ckptavg.errors import FormatError
from ckptavg.formats import ModelConfig
from ckptavg.merging.reproduce import SPEC, refreshing
from ckptavg.recipes import effective_sample_size
from ckptavg.runs.checkpoint import Checkpoint, TrackedCheckpoint
from ckptavg.runs.describe import (
    describe_epochs,
    describe_tracked,
    human_number,
    human_size,
    list_coefficients,
)
from ckptavg.runs.history import EpochLog
from ckptavg.runs.record import BatchNormRecord, Record, SourceRecord
from ckptavg.runs.run import Run

_LISTED = 8
"""The most coefficients that are listed; the table has all."""
_STATISTICS = {
    "running": "from training",
    "stale": "stale: averaged with the weights, so they are not those of the averaged network",
    "fresh": "fresh: re-estimated by a forward pass of the averaged network",
    "partly fresh": "partly fresh: some layers are frozen, or the forward pass did not reach them",
}


def header(run: Run, average: Average | None) -> Content:
    """The title of the page, and one line about its contents."""
    text = describe_epochs(run.checkpoints)
    if average is not None:
        text += f"; {average.path.name} is an average of {len(average.coefficients)}"
    name = run.directory.resolve().name
    return tag("header", tag("h1", f"Run {name}"), tag("p", text))


def section(title: str, *content: Content) -> Content:
    return tag("section", tag("h2", title), content)


def about_run(
    run: Run, logs: Sequence[EpochLog | Record], geometry: Geometry | None, notes: Sequence[str]
) -> Content:
    """The facts of a run, and what a reader should know about it."""
    records, weights = run.records, None
    if geometry is not None:
        weights = f"{sum(geometry.parameters):,} in {len(geometry.layers)} layers"
    size = human_size(sum(record.size for record in records))
    known = facts(
        [
            ("directory", tag("code", str(run.directory))),
            ("model", _model(run)),
            ("weights", weights),
            ("training", _training(logs)),
            ("saved", f"{describe_epochs(run.checkpoints)}, {size}"),
            ("written", _span([record.time for record in records])),
            ("versions", _versions(records)),
            ("BatchNorm", _batch_norm(records[-1].batch_norm)),
            ("tracked", describe_tracked(run.averages) if run.averages else None),
        ]
    )
    odd = section("Notes", tag("ul", [tag("li", note) for note in notes])) if notes else None
    return known, odd


def about_scores(found: Comparison) -> Content:
    """Whether averaging helped, and the scores that show it."""
    metrics = list(found.rows[0].metrics)
    rows = [
        [
            *(human_number(row.metrics[name]) for name in metrics),
            row.title + (", the best" if row is found.best else ""),
        ]
        for row in found.rows
    ]
    return section(
        "Did averaging help?",
        [tag("p", sentence) for sentence in found.verdict],
        table([*metrics, "on the held-out data"], rows, label="Scores on the held-out data"),
        _explained(
            "All rows are evaluated on the same data. A pass re-estimates the BatchNorm statistics "
            "from training data; it improves single checkpoints, too, so an average with a pass is "
            "compared with the last checkpoint with a pass."
        ),
    )


def _explained(text: str) -> Content:
    """What a table shows, below it."""
    return tag("p", text, class_="quiet")


def about_checkpoints(run: Run, average: Average | None) -> Content:
    """The records of all checkpoints, with their coefficients in an average."""
    metrics = list(dict.fromkeys(name for record in run.records for name in record.metrics))
    shares = {}
    # By real paths, because a record names sources from where the average lies.
    if average is not None:
        places = map(os.path.realpath, average.source_paths)
        shares = dict(zip(places, average.coefficients, strict=True))
    columns = ["epoch", "step", "learning rate", *metrics, "size"]
    columns += ["file"] if average is None else ["coefficient", "file"]
    rows = []
    for checkpoint in run.checkpoints:
        record = checkpoint.record
        share = [] if average is None else [shares.get(os.path.realpath(checkpoint.path))]
        state = "" if Checkpoint.exists(checkpoint.path) else " (missing)"
        state += " (NaN or infinity)" if record.non_finite else ""
        rows.append(
            [
                str(record.epoch),
                human_number(record.step),
                human_number(record.learning_rate),
                *(human_number(record.metrics.get(name)) for name in metrics),
                human_size(record.size),
                *map(human_number, share),
                checkpoint.path.name + state,
            ]
        )
    explained = "A row for each saved checkpoint. Metrics are those that Keras logged for its epoch"
    explained += "." if average is None else "; a coefficient is its share in the average."
    return table(columns, rows, label="Records of the checkpoints"), _explained(explained)


def about_average(average: Average, sources: Sequence[Checkpoint], picture: Content) -> Content:
    """The sources of an average, and how far it can be trusted."""
    record, coefficients = average.record, average.coefficients
    size = effective_sample_size(coefficients)
    known = facts(
        [
            ("file", tag("code", str(average.path))),
            ("recipe", record.recipe or "unknown"),
            ("of", _described(sources)),
            ("trainings differ in", ", ".join(record.differences)),
            ("coefficients", list_coefficients(coefficients, _LISTED)),
            ("effective sample size", f"{size:.3g} of {len(coefficients)} checkpoints"),
            ("verified", _verified(record.sources)),
            ("BatchNorm", _batch_norm(record.batch_norm)),
            ("written", f"{_time(record.time)}, {human_size(record.size)}"),
            ("versions", _versions([record])),
        ]
    )
    columns = ["epoch", "coefficient", "size", "verified", "file"]
    rows = [
        [
            human_number(source.epoch),
            human_number(source.coefficient),
            human_size(source.size),
            "yes" if source.verified else "no",
            source.path,
        ]
        for source in record.sources
    ]
    listed = table(columns, rows, label="Sources of the average")
    explained = _explained(
        "What was averaged. Verified: every byte was held against a record or checksum while it "
        "was read."
    )
    return section("The average", known, picture, listed, explained)


def about_commands(commands: Sequence[str], average: Average | None) -> Iterator[Content]:
    """Commands to copy."""
    if average is None:
        yield tag("p", "To average this run:")
    else:
        yield tag("p", "To reproduce and verify the average, run in the folder of these paths:")
    yield tag("pre", "\n".join(commands))
    state = average.record.batch_norm if average is not None else None
    if state is not None and state.samples is not None:
        text = f"The BatchNorm statistics were estimated {_origin(state)}. Randomly shuffled or "
        yield tag("p", text, "augmented data give different ones each time.")
    stale = state is not None and state.statistics == "stale"
    if average is not None and stale and (command := refreshing(average)):
        yield tag("p", "To re-estimate its BatchNorm statistics:"), tag("pre", command)
        commands = [*commands, command]
    if any(SPEC in command.split() for command in commands):
        example = tag("code", "train.py:build_model")
        yield tag("p", f"{SPEC} stands for your model or data, such as ", example, ".")
    yield tag("p", "Existing files are replaced only with ", tag("code", "--overwrite"), ".")


def _model(run: Run) -> str:
    if run.model_file is None:
        return "no configuration in the run: commands need --model"
    try:
        config = json.loads(ModelConfig.read(run.model_file).config)
    except FormatError as error:
        return str(error)
    inner = config.get("config")
    name = inner.get("name") if isinstance(inner, dict) else None
    return f"{name} ({config['class_name']})" if name else str(config["class_name"])


def _training(logs: Sequence[EpochLog | Record]) -> str:
    last = logs[-1]
    return f"{last.epoch} epochs" + ("" if last.step is None else f", {last.step:,} steps")


def _span(times: Sequence[str]) -> str:
    first, last = min(times), max(times)
    return _time(first) if first == last else f"{_time(first)} to {_time(last)}"


def _described(sources: Sequence[Checkpoint]) -> str:
    tracked = [source for source in sources if isinstance(source, TrackedCheckpoint)]
    if len(tracked) == len(sources):
        return f"{len(sources)} tracked {describe_tracked(tracked)}"
    return describe_epochs(sources)


def _time(text: str) -> str:
    # Records hold ISO 8601, which is harder to read.
    return text.replace("T", " ").replace("+00:00", " UTC")


def _versions(records: Iterable[Record]) -> str:
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for package, version in record.versions.items():
            found.setdefault(package, {})[version] = None
    return ", ".join(f"{package} {' and '.join(numbers)}" for package, numbers in found.items())


def _batch_norm(state: BatchNormRecord | None) -> str:
    if state is None:
        return "none"
    kind = _STATISTICS.get(state.statistics, state.statistics)
    text = f"{state.layers} layers, statistics {kind}"
    return text if state.samples is None else f"{text}, {_origin(state)}"


def _origin(state: BatchNormRecord) -> str:
    """The data from which a pass estimated statistics."""
    text = f"from {state.samples:,} samples"
    text += f" in {state.batches:,} batches" if state.batches is not None else ""
    text += f" of {state.data}" if state.data else ""
    return text + (f", mode {state.mode}" if state.mode else "")


def _verified(sources: Sequence[SourceRecord]) -> str:
    # A source without a share is not read, and so proves nothing.
    counted = [source for source in sources if source.coefficient != 0.0]
    verified = sum(source.verified for source in counted)
    if verified == len(counted):
        return "every byte that was averaged was checked against a record or checksum"
    return f"{len(counted) - verified} of {len(counted)} checkpoints were averaged unverified"
