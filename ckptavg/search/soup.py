"""Soups: averages of those ingredients that help (Wortsman et al., arXiv 2203.05482)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from ckptavg.batch_norm import BatchNormOptions
from ckptavg.batch_norm.refresh import merge_live
from ckptavg.errors import RecipeError
from ckptavg.formats import check_keras_output
from ckptavg.merging.plan import plan_mean, plan_merge
from ckptavg.merging.worker import Progress
from ckptavg.models.evaluation import measure
from ckptavg.models.specs import as_data, as_inputs, as_model, spec_name
from ckptavg.runs.checkpoint import Checkpoint, leave_out_non_finite
from ckptavg.runs.outputs import check_output
from ckptavg.runs.sources import Sources, resolve
from ckptavg.search.data_fingerprint import data_print
from ckptavg.search.judge import Judge, Statistics, check_held_out
from ckptavg.search.weight_rows import Tensor, WeightRows

GREEDY, UNIFORM = "greedy", "uniform"
_ALONE, _SOUP, _MORE = range(3)
"""Rows of sums: a single ingredient, the soup, and the soup with one more."""


@dataclass(frozen=True, slots=True)
class Ingredient:
    """A checkpoint that was tried.

    Attributes:
        checkpoint: the checkpoint.
        metrics: its own, with the statistics that it was saved with; empty if none chose.
        with_soup: metrics of the soup with it; None for the first one.
        kept: whether it is in the soup.
    """

    checkpoint: Checkpoint
    metrics: dict[str, float]
    with_soup: dict[str, float] | None
    kept: bool


@dataclass(frozen=True, slots=True)
class SoupReport:
    """What a soup is made of.

    Attributes:
        ingredients: in the order in which they were tried, the best first.
        metrics: of the soup, on the data that chose.
        monitor: the metric that chose.
        tried: number of averages and checkpoints that were evaluated.
        output: the soup.
        test_metrics: of the soup on data that chose nothing.
    """

    ingredients: tuple[Ingredient, ...] = field(repr=False)
    metrics: dict[str, float]
    monitor: str
    tried: int
    output: Path
    test_metrics: dict[str, float] | None = None


def soup(
    sources: Sources,
    output: str | Path,
    *,
    method: str = GREEDY,
    model: keras.Model | str | Path,
    data: Any = None,
    eval_data: Any,
    monitor: str,
    mode: str = "auto",
    steps: int | None = None,
    bn_mode: str = "batch",
    mixed_precision: bool = False,
    test_data: Any = None,
    allow_same_data: bool = False,
    data_name: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SoupReport:
    """Averages those of some checkpoints of one model, also of different runs, that help.

    A greedy soup begins with the best checkpoint, tries the others in the order of their metrics,
    and keeps each with which the soup is not worse (algorithm 1 of the paper): on the data that
    chose, it is never worse than its best ingredient. A uniform soup is the mean of all. Sums are
    in a file, so that memory does not grow with the number of ingredients.

    Args:
        sources: checkpoints, as in `merge`.
        output: a `.weights.h5` or `.keras` file.
        method: `greedy` or `uniform`.
        model: a compiled model, or its SPEC; it keeps the weights of the soup.
        data: training inputs for the BatchNorm passes of soups. Single checkpoints are evaluated
            with the statistics that they were saved with.
        eval_data: `(x, y)` that choose.
        monitor: metric that chooses, such as `val_accuracy`.
        mode: `min`, `max` or `auto`: by the name of the metric.
        steps: number of batches of `data` to see in each pass; all by default.
        bn_mode: the `mode` of `update_batch_norm`: `batch`, `population` or `cumulative`.
        mixed_precision: as in `update_batch_norm`; evaluations are not meant.
        test_data: `(x, y)` that choose nothing, for a report on the soup.
        allow_same_data: whether samples of `test_data` may be among those that choose.
        data_name: what the record is to call `data`.
        overwrite: whether to replace an existing output.
        progress: called with 1 for each evaluation.

    Raises:
        CkptavgError: as `merge`, `update_batch_norm` and `evaluate` do; the data of the report
            share samples with those that choose.
    """
    if method not in (GREEDY, UNIFORM):
        raise RecipeError(f"method is {method!r:.40}, but must be '{GREEDY}' or '{UNIFORM}'")
    checkpoints, output = leave_out_non_finite(resolve(sources))[0], Path(output)
    check_keras_output(output)
    check_output(output, overwrite)
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
    pot = _Pot(checkpoints, judge, output.parent, progress or (lambda _: None))
    try:
        ingredients = pot.cook_greedily() if method == GREEDY else pot.cook_all()
    finally:
        pot.close()
    plan = plan_merge(
        [ingredient.checkpoint for ingredient in ingredients if ingredient.kept],
        output,
        overwrite=overwrite,
        live_model=True,
    )
    merge_live(
        plan,
        model,
        None,
        options,
        data_name=data_name,
        refresh=pot.statistics and pot.statistics.give,
    )
    return SoupReport(
        ingredients=ingredients,
        metrics=pot.metrics,
        monitor=judge.monitor,
        tried=pot.tried,
        output=output,
        test_metrics=None if test_data is None else measure(model, test_data),
    )


class _Pot:
    """The sum of what is in the soup, and what the soup came to.

    Attributes:
        metrics: of the soup.
        statistics: of the soup's BatchNorm pass; None where it is one checkpoint as it was saved.
        tried: number of evaluations.
    """

    metrics: dict[str, float]
    statistics: Statistics | None = None
    tried: int = 0

    def __init__(
        self, checkpoints: Sequence[Checkpoint], judge: Judge, folder: Path, progress: Progress
    ) -> None:
        self._checkpoints = checkpoints
        self._judge = judge
        self._progress = progress
        plan = plan_mean(checkpoints, folder)
        self._sums = WeightRows(plan, 3, folder=folder, max_memory=0)

    def cook_greedily(self) -> tuple[Ingredient, ...]:
        """Tries all, the best first, and keeps those that do not make the soup worse."""
        scores = [self._score_alone(number) for number in range(len(self._checkpoints))]
        first, *others = sorted(
            range(len(scores)), key=lambda number: self._judge.rank(scores[number])
        )
        soup, more = _SOUP, _MORE
        self._sums.add({first: 1.0}, into=soup)
        self.metrics, size = scores[first], 1
        found = [Ingredient(self._checkpoints[first], scores[first], None, True)]
        for number in others:
            self._sums.add({number: 1.0}, to=soup, into=more)
            metrics, statistics = self._score(self._sums.mean(more, None, size + 1))
            kept = self._judge.rank(metrics) <= self._judge.rank(self.metrics)
            if kept:
                soup, more = more, soup
                self.metrics, self.statistics, size = metrics, statistics, size + 1
            found.append(Ingredient(self._checkpoints[number], scores[number], metrics, kept))
        return tuple(found)

    def cook_all(self) -> tuple[Ingredient, ...]:
        """The mean of all, evaluated once."""
        soup, more = _SOUP, _MORE
        self._sums.add({0: 1.0}, into=soup)
        for number in range(1, len(self._checkpoints)):
            self._sums.add({number: 1.0}, to=soup, into=more)
            soup, more = more, soup
        mean = self._sums.mean(soup, None, len(self._checkpoints))
        self.metrics, self.statistics = self._score(mean, refresh=len(self._checkpoints) > 1)
        return tuple(Ingredient(c, {}, self.metrics, True) for c in self._checkpoints)

    def close(self) -> None:
        self._sums.close()

    def _score_alone(self, number: int) -> dict[str, float]:
        self._sums.add({number: 1.0}, into=_ALONE)
        return self._score(self._sums.combine({_ALONE: 1.0}), refresh=False)[0]

    def _score(
        self, tensors: Iterator[Tensor], *, refresh: bool = True
    ) -> tuple[dict[str, float], Statistics | None]:
        score = self._judge.score(tensors, refresh=refresh)
        self.tried += 1
        self._progress(1)
        return score.metrics, score.statistics
