"""A sweep: many averages of one run, each through a BatchNorm pass and an evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras

from ckptavg.batch_norm import BatchNormOptions
from ckptavg.batch_norm.refresh import merge_live
from ckptavg.errors import RecipeError, RunError
from ckptavg.formats import check_keras_output
from ckptavg.merging.plan import plan_mean, plan_merge
from ckptavg.merging.worker import Progress
from ckptavg.models.evaluation import measure
from ckptavg.models.specs import as_data, as_inputs, as_model, spec_name
from ckptavg.recipes import UNIFORM, Recipe, effective_sample_size
from ckptavg.runs.checkpoint import Checkpoint, leave_out_non_finite, positions
from ckptavg.runs.outputs import check_output
from ckptavg.runs.run import Run, open_run
from ckptavg.search.data_fingerprint import data_print
from ckptavg.search.judge import Judge, Statistics, check_held_out
from ckptavg.search.row_store import DEFAULT_MEMORY
from ckptavg.search.score_cache import SEARCH_FOLDER, ScoreCache, contents
from ckptavg.search.weight_rows import Tensor, WeightRows, weighted_mean

LAST, ALL = "last", "all"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An average of neighbouring checkpoints of a run.

    Attributes:
        start: number of its first checkpoint in the run, from 0.
        stop: number after its last one.
        recipe: how it weighs them.
        coefficients: one for each of its checkpoints.
    """

    start: int
    stop: int
    recipe: Recipe
    coefficients: tuple[float, ...]

    def of_run(self, count: int) -> tuple[float, ...]:
        """Coefficients of all `count` checkpoints of the run."""
        return (0.0,) * self.start + self.coefficients + (0.0,) * (count - self.stop)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the leaderboard.

    Attributes:
        checkpoints: those averaged.
        recipe: how, such as `uniform` or `ema:0.9`.
        coefficients: one for each checkpoint.
        metrics: on the data that chose.
    """

    checkpoints: tuple[Checkpoint, ...]
    recipe: str
    coefficients: tuple[float, ...]
    metrics: dict[str, float]

    @property
    def effective_sample_size(self) -> float:
        return effective_sample_size(self.coefficients)


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep found.

    Attributes:
        entries: all candidates, the best first; of equal ones the one of more checkpoints.
        monitor: the metric that chose.
        tried: number of candidates: the more, the more the best score owes to luck.
        known: how many of them an earlier sweep had evaluated.
        output: the best average, if it was asked for.
        test_metrics: of the best one on data that chose nothing.
        sums_on_disk: whether the sums of checkpoints did not fit into memory.
    """

    entries: tuple[Entry, ...] = field(repr=False)
    monitor: str
    tried: int
    known: int
    output: Path | None = None
    test_metrics: dict[str, float] | None = None
    sums_on_disk: bool = False

    @property
    def best(self) -> Entry:
        return self.entries[0]


def sweep(
    run: Run | str | Path,
    output: str | Path | None = None,
    *,
    model: keras.Model | str | Path,
    data: Any = None,
    eval_data: Any,
    monitor: str,
    mode: str = "auto",
    windows: str = LAST,
    stride: int = 1,
    recipes: Sequence[Recipe | str] = (UNIFORM,),
    budget: int | None = None,
    steps: int | None = None,
    bn_mode: str = "batch",
    mixed_precision: bool = False,
    test_data: Any = None,
    allow_same_data: bool = False,
    data_name: str | None = None,
    max_memory: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SweepReport:
    """Evaluates averages over windows of a run, and writes the best one.

    Every checkpoint is read once, into float64 sums; a plain mean is the difference of two of
    them, and no different from that of a merge. Other recipes are averaged as `merge` does.
    Evaluations are kept in the run's folder `search`, by coefficients, model and data, so that a
    sweep that was stopped goes on.

    Args:
        run: a run or its directory.
        output: a `.weights.h5` or `.keras` file for the best average; none by default.
        model: a compiled model, or its SPEC; it keeps the weights of the best average if that is
            written, otherwise those of the last one evaluated.
        data: training inputs for the BatchNorm passes, as in `update_batch_norm`.
        eval_data: `(x, y)` that choose; they are read for every candidate.
        monitor: metric that chooses, such as `val_accuracy`.
        mode: `min`, `max` or `auto`: by the name of the metric.
        windows: `last`: those that end with the last checkpoint; `all`: those anywhere.
        stride: distance of the ends, and of the lengths, of windows.
        recipes: how to weigh each window: `Recipe`s, or texts such as `ema:0.9`.
        budget: number of candidates at most; they are spread evenly over all.
        steps: number of batches of `data` to see in each pass; all by default.
        bn_mode: the `mode` of `update_batch_norm`: `batch`, `population` or `cumulative`.
        mixed_precision: as in `update_batch_norm`; evaluations are not meant.
        test_data: `(x, y)` that choose nothing, for a report on the best one.
        allow_same_data: whether samples of `test_data` may be among those that choose.
        data_name: what the record is to call `data`.
        max_memory: bytes for sums in memory, 1 GiB by default; others go to a file in the run.
        overwrite: whether to replace an existing output.
        progress: called with 1 for each candidate.

    Raises:
        CkptavgError: as `merge`, `update_batch_norm` and `evaluate` do; the data of the report
            share samples with those that choose.

    Example:
        >>> report = sweep(
        ...     "run", "best.keras", model=model, data=x, eval_data=(x_val, y_val),
        ...     monitor="val_accuracy",
        ... )
        >>> report.best.coefficients
    """
    run = run if isinstance(run, Run) else open_run(run)
    run = replace(run, checkpoints=leave_out_non_finite(run.checkpoints)[0])
    output = _checked(output, overwrite)
    candidates = list_candidates(
        run, windows=windows, stride=stride, recipes=recipes, budget=budget
    )
    options = BatchNormOptions(steps=steps, bn_mode=bn_mode, mixed_precision=mixed_precision)
    data_name = spec_name(data) if data_name is None else data_name
    model = as_model(model)
    data = as_inputs(data, model=model)
    eval_data, test_data = (as_data(part, model=model) for part in (eval_data, test_data))
    judge = Judge(
        model,
        data=data,
        eval_data=eval_data,
        monitor=monitor,
        mode=mode,
        options=options,
    )
    if test_data is not None and not allow_same_data:
        check_held_out(judge.data_print, data_print(test_data))
    averages = _Averages(run, candidates, DEFAULT_MEMORY if max_memory is None else max_memory)
    try:
        folder = run.directory / SEARCH_FOLDER
        cache = ScoreCache(folder, contents(averages.plan.sources), judge.fingerprint)
        known, leading, scores = 0, _Leading(judge), {}
        for candidate in candidates:
            share = candidate.of_run(len(run.checkpoints))
            metrics, statistics = cache.get(share), None
            if metrics is None:
                score = judge.score(averages.tensors(candidate))
                metrics, statistics = score.metrics, score.statistics
                cache.add(share, metrics)
            else:
                known += 1
            scores[candidate] = metrics
            leading.see(candidate, metrics, statistics)
            if progress is not None:
                progress(1)
        best = leading.candidate
        if output is None and test_data is not None:
            judge.show(averages.tensors(best), leading.statistics)
    finally:
        averages.close()
    if output is not None:
        plan = plan_merge(
            run.checkpoints[best.start : best.stop],
            output,
            recipe=best.recipe,
            overwrite=overwrite,
            live_model=True,
        )
        merge_live(
            plan,
            model,
            data,
            options,
            data_name=data_name,
            refresh=leading.statistics and leading.statistics.give,
        )
    ranked = sorted(candidates, key=lambda c: leading.order(c, scores[c]))
    return SweepReport(
        entries=tuple(
            Entry(run.checkpoints[c.start : c.stop], str(c.recipe), c.coefficients, scores[c])
            for c in ranked
        ),
        monitor=judge.monitor,
        tried=len(candidates),
        known=known,
        output=output,
        test_metrics=None if test_data is None else measure(model, test_data),
        sums_on_disk=averages.on_disk,
    )


def list_candidates(
    run: Run,
    *,
    windows: str = LAST,
    stride: int = 1,
    recipes: Sequence[Recipe | str] = (UNIFORM,),
    budget: int | None = None,
) -> list[Candidate]:
    """The averages that a sweep evaluates; arguments are those of `sweep`.

    Windows come by their ends, then by their lengths; the longest of each end is among them.
    Recipes that give a window the same coefficients count once.

    Raises:
        RunError: an argument is none that is known, or not a number from 1 on.
        RecipeError: a recipe is none, or does not go by the steps of checkpoints.
    """
    if windows not in (LAST, ALL):
        raise RunError(f"windows is {windows!r:.40}, but must be '{LAST}' or '{ALL}'")
    for name, value in (("stride", stride), ("budget", budget)):
        if value is not None and value < 1:
            raise RunError(f"{name} is {value!r}, but must be a whole number, at least 1")
    if not recipes:
        raise RecipeError("there are no recipes to try: name some, such as uniform")
    chosen = [Recipe.parse(r) if isinstance(r, str) else r for r in recipes]
    count, places = len(run.checkpoints), positions(run.checkpoints)
    found: dict[tuple[float, ...], Candidate] = {}
    ends = [count] if windows == LAST else list(range(count, 0, -stride))[::-1]
    for stop in ends:
        for length in sorted({*range(1, stop + 1, stride), stop}):
            start = stop - length
            for recipe in chosen:
                coefficients = recipe.coefficients(places[start:stop])
                candidate = Candidate(start, stop, recipe, coefficients)
                same = tuple(round(c, 12) for c in candidate.of_run(count))
                found.setdefault(same, candidate)
    every = list(found.values())
    if budget is None or budget >= len(every):
        return every
    if budget == 1:
        return every[-1:]
    return [every[round(n * (len(every) - 1) / (budget - 1))] for n in range(budget)]


def _checked(output: str | Path | None, overwrite: bool) -> Path | None:
    """An output that can be written, before hours are spent on what goes into it."""
    if output is None:
        return None
    output = Path(output)
    check_keras_output(output)
    check_output(output, overwrite)
    return output


class _Leading:
    """The best candidate so far, with its statistics if it has been evaluated by this sweep."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._order: tuple[float, int] | None = None
        self.candidate: Candidate | None = None
        self.statistics: Statistics | None = None

    def order(self, candidate: Candidate, metrics: dict[str, float]) -> tuple[float, int]:
        """Better ones come first; of equal ones, that of more checkpoints."""
        return self._judge.rank(metrics), candidate.start - candidate.stop

    def see(
        self, candidate: Candidate, metrics: dict[str, float], statistics: Statistics | None
    ) -> None:
        order = self.order(candidate, metrics)
        if self._order is None or order < self._order:
            self._order, self.candidate, self.statistics = order, candidate, statistics


class _Averages:
    """The averages of a run's windows: plain means from sums, others read afresh."""

    def __init__(self, run: Run, candidates: Sequence[Candidate], max_memory: int) -> None:
        plain = [c for c in candidates if c.recipe.name == UNIFORM]
        self._base = self._read = min((c.start for c in plain), default=0)
        count = max((c.stop for c in plain), default=0) - self._base
        self.plan = plan_mean(run.checkpoints, run.directory)
        # Row k is the sum of the first k + 1 checkpoints from the base.
        self._sums = WeightRows(self.plan, count, folder=run.directory, max_memory=max_memory)
        self.on_disk = self._sums.on_disk

    def tensors(self, candidate: Candidate) -> Iterator[Tensor]:
        """All tensors of a candidate; every checkpoint is read once for all plain means."""
        if candidate.recipe.name != UNIFORM:
            return weighted_mean(self.plan, candidate.of_run(len(self.plan.sources)))
        while self._read < candidate.stop:
            row = self._read - self._base
            self._sums.add({self._read: 1.0}, to=row - 1 if row else None, into=row)
            self._read += 1
        upper, lower = candidate.stop - self._base - 1, candidate.start - self._base - 1
        size = candidate.stop - candidate.start
        return self._sums.mean(upper, lower if lower >= 0 else None, size)

    def close(self) -> None:
        self._sums.close()
