"""Evaluates checkpoints and averages in one live model, with and without a BatchNorm pass."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from ckptavg.analysis.average import Average
from ckptavg.analysis.comparison.candidates import AVERAGE, BEST, LAST, Candidate
from ckptavg.analysis.comparison.results import AVERAGED, PASS, SAVED, Comparison, Scores, Walk
from ckptavg.analysis.geometry.measure import measure_geometry
from ckptavg.analysis.statistics_shift import mean_statistics
from ckptavg.batch_norm.options import BatchNormOptions
from ckptavg.batch_norm.update import ConfiguredPass
from ckptavg.errors import CkptavgError, RunError
from ckptavg.models.batches import can_be_read_again
from ckptavg.models.evaluation import measure
from ckptavg.models.marks import place
from ckptavg.models.model import batch_norm_layers, build, load_weights
from ckptavg.runs.checkpoint import TrackedCheckpoint
from ckptavg.runs.selection import metric_sign

Bar = Callable[[str, int | None], Callable[..., None]]
"""Starts a progress bar of a total, and gives the function that moves it on."""

_LOSS = "loss"


def compare(
    candidates: Sequence[Candidate],
    *,
    model: keras.Model,
    held_out: Any,
    inputs: Any = None,
    options: BatchNormOptions,
    monitor: str = "val_loss",
    mode: str = "auto",
    bar: Bar = lambda *_: lambda *_: None,
) -> Comparison:
    """Evaluates checkpoints on the same data, each also after a BatchNorm pass if there are inputs.

    An average that has had its pass is evaluated with the mean of its sources' statistics, too. The
    last and the best checkpoint of a training are left out, with a note, where they cannot be
    evaluated; what a user named is not. The model keeps the weights of the last candidate.

    Args:
        candidates: at least one; an average last, whose sources tell how straight the weights went.
        model: a compiled model.
        held_out: `(x, y)`, as in `evaluate`.
        inputs: training inputs for BatchNorm passes, as `options.opened` prepares them.
        options: how passes run.
        monitor: metric that decides, with or without the prefix `val_`; the loss if the model has
            no such metric.
        mode: direction of the metric: `min`, `max`, or `auto` to infer it from the name.
        bar: starts a progress bar.

    Raises:
        ModelError: the model is not compiled, or a checkpoint does not fit it.
        DataError: the model rejects the data.
        CkptavgError: a checkpoint that a user named cannot be evaluated.
    """
    held_out = build(model, held_out)
    bench = _Bench(model, held_out, inputs, options)
    notes: list[str] = []
    if not can_be_read_again(held_out):
        candidates = candidates[-1:]
        only = f"{candidates[0].article}{candidates[0].name}"
        notes.append(f"The data can be read only once: nothing was evaluated but {only}.")
    rows: list[Scores] = []
    advance = bar("comparing", len(candidates))
    for candidate in candidates:
        try:
            rows += bench.evaluate(candidate)
        except CkptavgError as error:
            if candidate.role not in (LAST, BEST) or candidate is candidates[-1]:
                raise
            notes.append(
                f"{candidate.article.capitalize()}{candidate.name} was not compared: {error}"
            )
        advance(1)
    name, sign = _monitor(monitor, mode, rows[-1])
    averages = [c.checkpoint for c in candidates if isinstance(c.checkpoint, Average)]
    if averages and not any(row.role == LAST for row in rows) and not notes:
        notes.append("There is no checkpoint to compare the average with: its sources are gone.")
    walk = _walk(averages[-1], bar, notes) if averages else None
    return Comparison(tuple(rows), name, sign, walk, tuple(notes))


class _Bench:
    """A model in which one checkpoint after the other is evaluated."""

    def __init__(
        self, model: keras.Model, held_out: Any, inputs: Any, options: BatchNormOptions
    ) -> None:
        self._model, self._held_out, self._inputs = model, held_out, inputs
        self._has_statistics = bool(batch_norm_layers(model))
        self._pass: ConfiguredPass | None = None
        # Frozen layers keep their statistics on purpose.
        trained = any(layer.trainable for layer in batch_norm_layers(model))
        if trained and inputs is not None and can_be_read_again(inputs):
            self._pass = ConfiguredPass(model, options)

    def evaluate(self, candidate: Candidate) -> Iterator[Scores]:
        """Scores of a checkpoint with each kind of statistics that it can have, its own last.

        Its own are those after a pass if there is one, here or before.
        """
        known = self._statistics_of(candidate)
        if known == PASS and isinstance(candidate.checkpoint, Average):
            load_weights(self._model, candidate.checkpoint.path)
            if self._set_averaged(candidate.checkpoint):
                yield self._scores(candidate, AVERAGED)
        load_weights(self._model, candidate.checkpoint.path)
        yield self._scores(candidate, known)
        # The best one shows what choosing a checkpoint gives; the last one what a pass gives.
        if self._pass is not None and known != PASS and candidate.role != BEST:
            self._pass.run(self._inputs)
            yield self._scores(candidate, PASS)

    def _scores(self, candidate: Candidate, batch_norm: str | None) -> Scores:
        metrics = measure(self._model, self._held_out)
        path = candidate.checkpoint.path
        return Scores(candidate.name, candidate.role, path, batch_norm, metrics)

    def _statistics_of(self, candidate: Candidate) -> str | None:
        if not self._has_statistics:
            return None
        record = candidate.checkpoint.record
        state = record.batch_norm if record is not None else None
        if state is not None and state.samples is not None:
            return PASS
        return AVERAGED if candidate.role == AVERAGE else SAVED

    def _set_averaged(self, average: Average) -> bool:
        """Gives the model the mean of the sources' statistics; False if they are not to be had."""
        placement = place(self._model)
        try:
            values = mean_statistics(average)
        except CkptavgError:
            return False
        if placement is None or not values or not values.keys() <= placement.variables.keys():
            return False
        for name, value in values.items():
            variable = placement.variables[name]
            variable.assign(value.reshape(variable.shape))
        return True


def _monitor(monitor: str, mode: str, row: Scores) -> tuple[str, int]:
    """The metric that decides, and which way of it is better."""
    name = monitor.removeprefix("val_")
    try:
        return (name, metric_sign(monitor, mode)) if name in row.metrics else (_LOSS, 1)
    except RunError:
        return _LOSS, 1


def _walk(average: Average, bar: Bar, notes: list[str]) -> Walk | None:
    """How straight the weights went through the sources of an average; None if that says nothing.

    Checkpoints of several trainings are on no common way, and tracked averages lag behind it.
    """
    try:
        sources = [
            source
            for source, share in zip(average.open_sources(), average.coefficients, strict=True)
            if share != 0.0
        ]
        folders = {source.path.resolve().parent for source in sources}
        if len(folders) > 1 or any(isinstance(source, TrackedCheckpoint) for source in sources):
            return None
        size = sum(source.record.size for source in sources if source.record is not None) or None
        return Walk.of(measure_geometry(sources, progress=bar("measuring the path", size)))
    except CkptavgError as error:
        notes.append(f"The path through the checkpoints could not be measured: {error}")
        return None
