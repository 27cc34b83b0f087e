"""Soups: averages of the ingredients that help (Wortsman et al., arXiv 2203.05482)."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ckptavg.batch_norm.refresh import merge_live
from ckptavg.merging.plan import plan_mean, plan_merge
from ckptavg.merging.worker import Advance
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import list_metrics
from ckptavg.search.judge import EstimatedStatistics, Judge, Score
from ckptavg.search.weight_rows import Tensor, WeightRows

GREEDY, UNIFORM = "greedy", "uniform"

_SHOWN = 10
"""Ingredients that the `repr` of a report shows."""
_ALONE, _SOUP, _MORE = range(3)
"""Rows of sums: a single ingredient, the soup, and the soup with one more."""


@dataclass(frozen=True, slots=True)
class Ingredient:
    """A checkpoint that was tried.

    Attributes:
        checkpoint: the checkpoint.
        metrics: of the checkpoint alone, with its saved statistics; empty in a uniform soup.
        with_soup: metrics of the soup that includes it; None for the first one.
        kept: whether it is in the soup.
    """

    checkpoint: Checkpoint
    metrics: dict[str, float]
    with_soup: dict[str, float] | None
    kept: bool


@dataclass(frozen=True, slots=True, repr=False)
class SoupReport:
    """What a soup is made of.

    Attributes:
        ingredients: in the order in which they were tried, the best first.
        metrics: of the soup, on the data used for selection.
        monitor: the metric used for selection.
        tried: number of averages and checkpoints that were evaluated.
        output: file of the soup.
        test_metrics: of the soup, on data not used for selection.
    """

    ingredients: tuple[Ingredient, ...]
    metrics: dict[str, float]
    monitor: str
    tried: int
    output: Path
    test_metrics: dict[str, float] | None = None

    def __repr__(self) -> str:
        kept = sum(ingredient.kept for ingredient in self.ingredients)
        lines = [
            f"SoupReport: {kept} of {len(self.ingredients)} checkpoints in {self.output}",
            f"  selection data: {list_metrics(self.metrics)}",
        ]
        if self.test_metrics is not None:
            lines.append(f"  test data: {list_metrics(self.test_metrics)}")
        for ingredient in self.ingredients[:_SHOWN]:
            alone = ingredient.metrics.get(self.monitor)
            score = "" if alone is None else f", {self.monitor} {alone:.6g} alone"
            sign = "+" if ingredient.kept else "-"
            lines.append(f"  {sign} {ingredient.checkpoint.path.name}{score}")
        if len(self.ingredients) > _SHOWN:
            lines.append(f"  and {len(self.ingredients) - _SHOWN} more")
        return "\n".join(lines)


def make_soup(
    checkpoints: Sequence[Checkpoint],
    judge: Judge,
    output: Path,
    *,
    method: str = GREEDY,
    data_name: str | None = None,
    overwrite: bool = False,
    progress: Advance | None = None,
) -> SoupReport:
    """Averages the subset of checkpoints that scores best; see `ckptavg.soup`.

    Sums are in a file, so memory does not grow with the number of checkpoints.

    Args:
        checkpoints: of one model.
        judge: scores averages; its model keeps the weights of the soup.
        output: a `.weights.h5` or `.keras` file.
        method: `greedy` or `uniform`.
        data_name: name of the BatchNorm data for the record.
        overwrite: whether to replace an existing output.
        progress: called with 1 for each evaluation.

    Raises:
        CkptavgError: as `merge`, `update_batch_norm` and `evaluate` do.
    """
    with closing(_Pot(checkpoints, judge, output.parent, progress or (lambda _: None))) as pot:
        ingredients = pot.cook_greedily() if method == GREEDY else pot.cook_all()
    plan = plan_merge(
        [ingredient.checkpoint for ingredient in ingredients if ingredient.kept],
        output,
        overwrite=overwrite,
        live_model=True,
    )
    merge_live(
        plan,
        judge.model,
        None,  # no further pass: the soup keeps the statistics that it was scored with
        judge.options,
        data_name=data_name,
        refresh=pot.statistics.restore if pot.statistics is not None else None,
    )
    return SoupReport(
        ingredients=ingredients,
        metrics=pot.metrics,
        monitor=judge.monitor,
        tried=pot.tried,
        output=output,
        test_metrics=judge.test(),
    )


class _Pot:
    """The sum of what is in the soup, and its score.

    Attributes:
        metrics: of the soup.
        statistics: of the soup's BatchNorm pass; None where it is one checkpoint as it was saved.
        tried: number of evaluations.
    """

    metrics: dict[str, float]
    statistics: EstimatedStatistics | None = None
    tried: int = 0

    def __init__(
        self, checkpoints: Sequence[Checkpoint], judge: Judge, folder: Path, progress: Advance
    ) -> None:
        self._checkpoints = checkpoints
        self._judge = judge
        self._progress = progress
        plan = plan_mean(checkpoints, folder)
        # In a file, so that soups of large models need no memory for sums.
        self._sums = WeightRows(plan, 3, folder=folder, max_memory=0)

    def cook_greedily(self) -> tuple[Ingredient, ...]:
        """Tries all checkpoints, the best first; keeps those that do not make the soup worse."""
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
            score = self._score(self._sums.mean(more, None, size + 1))
            # Equal scores keep the checkpoint, as in algorithm 1 of the paper.
            kept = self._judge.rank(score.metrics) <= self._judge.rank(self.metrics)
            if kept:
                # The two rows change roles, so nothing is copied.
                soup, more, size = more, soup, size + 1
                self.metrics, self.statistics = score.metrics, score.statistics
            found.append(Ingredient(self._checkpoints[number], scores[number], score.metrics, kept))
        return tuple(found)

    def cook_all(self) -> tuple[Ingredient, ...]:
        """Makes the mean of all checkpoints, evaluated once."""
        soup, more = _SOUP, _MORE
        self._sums.add({0: 1.0}, into=soup)
        for number in range(1, len(self._checkpoints)):
            self._sums.add({number: 1.0}, to=soup, into=more)
            soup, more = more, soup
        mean = self._sums.mean(soup, None, len(self._checkpoints))
        # One checkpoint alone keeps the statistics that it was saved with.
        score = self._score(mean, refresh=len(self._checkpoints) > 1)
        self.metrics, self.statistics = score.metrics, score.statistics
        return tuple(Ingredient(c, {}, self.metrics, True) for c in self._checkpoints)

    def close(self) -> None:
        self._sums.close()

    def _score_alone(self, number: int) -> dict[str, float]:
        self._sums.add({number: 1.0}, into=_ALONE)
        return self._score(self._sums.combine({_ALONE: 1.0}), refresh=False).metrics

    def _score(self, tensors: Iterator[Tensor], *, refresh: bool = True) -> Score:
        score = self._judge.score(tensors, refresh=refresh)
        self.tried += 1
        self._progress(1)
        return score
