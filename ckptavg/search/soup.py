"""Soups: averages of the ingredients that help (Wortsman et al., arXiv 2203.05482)."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ckptavg.batch_norm.refresh import merge_live
from ckptavg.merging.plan import MergeOptions, plan_mean, plan_merge
from ckptavg.merging.tensor_rules import EQUAL
from ckptavg.merging.worker import Advance
from ckptavg.recipes import uniform
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import list_metrics
from ckptavg.search.judge import Judge, Score
from ckptavg.search.weight_rows import WeightRows, weighted_mean

GREEDY = "greedy"

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
    non_float: str = EQUAL,
    data_name: str | None = None,
    overwrite: bool = False,
    progress: Advance | None = None,
) -> SoupReport:
    """Averages the subset of checkpoints that scores best; see `ckptavg.soup`.

    Memory does not grow with the number of checkpoints.

    Args:
        checkpoints: of one model.
        judge: scores averages; its model keeps the weights of the soup.
        output: a `.weights.h5` or `.keras` file.
        method: `greedy` or `uniform`.
        non_float: as in `merge`.
        data_name: name of the BatchNorm data for the record.
        overwrite: whether to replace an existing output.
        progress: called with 1 for each evaluation.

    Raises:
        CkptavgError: as `merge`, `update_batch_norm` and `evaluate` do.
    """
    count, folder = len(checkpoints), output.parent
    plan = plan_mean(checkpoints, folder, non_float=non_float)
    progress = progress or (lambda _: None)
    if method == GREEDY:
        # In a file, so that soups of large models need no memory for sums.
        with closing(WeightRows(plan, 3, folder=folder, max_memory=0)) as sums:
            ingredients, best = _cook_greedily(checkpoints, judge, sums, progress)
    else:
        # One checkpoint alone keeps the statistics that it was saved with.
        best = judge.score(weighted_mean(plan, uniform(count)), refresh=count > 1)
        progress(1)
        ingredients = [Ingredient(c, {}, best.metrics, True) for c in checkpoints]
    # The file is made of the checkpoints, so that it has proofs and a record like any merge.
    merge = plan_merge(
        [ingredient.checkpoint for ingredient in ingredients if ingredient.kept],
        output,
        MergeOptions(non_float=non_float, overwrite=overwrite, live_model=True),
    )
    merge_live(
        merge,
        judge.model,
        None,  # no further pass: the soup keeps the statistics that it was scored with
        judge.options,
        data_name=data_name,
        refresh=best.restore,
    )
    return SoupReport(
        ingredients=tuple(ingredients),
        metrics=best.metrics,
        monitor=judge.monitor,
        tried=2 * count - 1 if method == GREEDY else 1,
        output=output,
        test_metrics=judge.test(),
    )


def _cook_greedily(
    checkpoints: Sequence[Checkpoint], judge: Judge, sums: WeightRows, progress: Advance
) -> tuple[list[Ingredient], Score]:
    """Tries all checkpoints, the best first; keeps those that do not make the soup worse."""
    scores = []
    for number in range(len(checkpoints)):
        sums.add({number: 1.0}, into=_ALONE)
        scores.append(judge.score(sums.combine({_ALONE: 1.0}), refresh=False))
        progress(1)
    first, *others = sorted(range(len(scores)), key=lambda n: judge.rank(scores[n].metrics))
    soup, more, size, best = _SOUP, _MORE, 1, scores[first]
    sums.add({first: 1.0}, into=soup)
    found = [Ingredient(checkpoints[first], best.metrics, None, True)]
    for number in others:
        sums.add({number: 1.0}, to=soup, into=more)
        score = judge.score(sums.combine({more: 1.0}, size + 1))
        progress(1)
        # Equal scores keep the checkpoint, as in algorithm 1 of the paper.
        kept = judge.rank(score.metrics) <= judge.rank(best.metrics)
        if kept:
            # The two rows change roles, so nothing is copied.
            soup, more, size, best = more, soup, size + 1, score
        found.append(Ingredient(checkpoints[number], scores[number].metrics, score.metrics, kept))
    return found, best
