"""A sweep: many averages of one run, each with a BatchNorm pass and an evaluation."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ckptavg.batch_norm.refresh import merge_live
from ckptavg.merging.plan import MergeOptions, plan_mean, plan_merge
from ckptavg.merging.tensor_rules import EQUAL
from ckptavg.merging.worker import Advance
from ckptavg.recipes import UNIFORM, effective_sample_size
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import describe_epochs, list_metrics
from ckptavg.runs.run import Run
from ckptavg.search.judge import Judge, Score
from ckptavg.search.row_store import DEFAULT_MEMORY
from ckptavg.search.score_cache import SEARCH_FOLDER, ScoreCache, contents
from ckptavg.search.weight_rows import Tensor, WeightRows, weighted_mean
from ckptavg.search.windows import Candidate

_SHOWN = 5
"""Entries that the `repr` of a report shows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the leaderboard.

    Attributes:
        checkpoints: those averaged.
        recipe: how, such as `uniform` or `ema:0.9`.
        coefficients: one for each checkpoint.
        metrics: on the data used for selection.
    """

    checkpoints: tuple[Checkpoint, ...]
    recipe: str
    coefficients: tuple[float, ...]
    metrics: dict[str, float]

    @property
    def effective_sample_size(self) -> float:
        """Number of equally weighted checkpoints that would reduce noise as much."""
        return effective_sample_size(self.coefficients)


@dataclass(frozen=True, slots=True, repr=False)
class SweepReport:
    """What a sweep found.

    Attributes:
        entries: all candidates, the best first; of equal ones the one of more checkpoints.
        monitor: the metric used for selection.
        tried: number of candidates; the more there are, the more optimistic is the best score.
        known: how many of them have the score that an earlier sweep found. One of these was
            evaluated again, to see that it is still the same.
        output: file of the best average, if one was written.
        test_metrics: of the best average on data not used for selection.
        sums_on_disk: whether the sums of checkpoints did not fit into memory.
    """

    entries: tuple[Entry, ...]
    monitor: str
    tried: int
    known: int
    output: Path | None = None
    test_metrics: dict[str, float] | None = None
    sums_on_disk: bool = False

    @property
    def best(self) -> Entry:
        """The entry with the best score."""
        return self.entries[0]

    def __repr__(self) -> str:
        lines = [f"SweepReport: {self.tried} averages, the best by {self.monitor} first"]
        for rank, entry in enumerate(self.entries[:_SHOWN], 1):
            lines.append(
                f"  {rank}. {self.monitor} {entry.metrics[self.monitor]:.6g}, {entry.recipe} of "
                f"{describe_epochs(entry.checkpoints)}"
            )
        if len(self.entries) > _SHOWN:
            lines.append(f"  and {len(self.entries) - _SHOWN} more")
        if self.output is not None:
            lines.append(f"  the best is in {self.output}")
        if self.test_metrics is not None:
            lines.append(f"  the best on test data: {list_metrics(self.test_metrics)}")
        return "\n".join(lines)


def search_windows(
    run: Run,
    candidates: Sequence[Candidate],
    judge: Judge,
    output: Path | None = None,
    *,
    non_float: str = EQUAL,
    data_name: str | None = None,
    max_memory: int | None = None,
    overwrite: bool = False,
    progress: Advance | None = None,
) -> SweepReport:
    """Evaluates averages over windows of a run, and writes the best one; see `ckptavg.sweep`.

    Args:
        run: the run that the candidates belong to.
        candidates: at least one, from `list_candidates`.
        judge: scores averages; its model keeps the weights of the best one if that is written or
            tested, otherwise those of the last one evaluated.
        output: file for the best average; None for no file.
        non_float: as in `merge`.
        data_name: name of the BatchNorm data for the record.
        max_memory: bytes that sums may take in memory, 1 GiB by default; larger ones go to a file
            in the run.
        overwrite: whether to replace an existing output.
        progress: called with 1 for each candidate.

    Raises:
        CkptavgError: as `merge`, `update_batch_norm` and `evaluate` do.
    """
    max_memory = DEFAULT_MEMORY if max_memory is None else max_memory
    with closing(_Averages(run, candidates, max_memory, non_float)) as averages:
        scores, known = _evaluate(run, candidates, averages, judge, progress or (lambda _: None))
        best = next(iter(scores))
        if output is None and judge.tests:
            judge.show(averages.tensors(best), scores[best].restore)
    if output is not None:
        asked = MergeOptions(
            recipe=best.recipe, non_float=non_float, overwrite=overwrite, live_model=True
        )
        plan = plan_merge(run.checkpoints[best.start : best.stop], output, asked)
        merge_live(
            plan,
            judge.model,
            judge.data,
            judge.options,
            data_name=data_name,
            # The statistics that the average was scored with: a pass over data that are shuffled or
            # augmented would find others.
            refresh=scores[best].restore,
        )
    return SweepReport(
        entries=tuple(
            Entry(run.checkpoints[c.start : c.stop], str(c.recipe), c.coefficients, score.metrics)
            for c, score in scores.items()
        ),
        monitor=judge.monitor,
        tried=len(candidates),
        known=known,
        output=output,
        test_metrics=judge.test(),
        sums_on_disk=averages.on_disk,
    )


def _evaluate(
    run: Run,
    candidates: Sequence[Candidate],
    averages: "_Averages",
    judge: Judge,
    progress: Advance,
) -> tuple[dict[Candidate, Score], int]:
    """Scores of candidates, the best first, and how many of them are those of an earlier sweep.

    Only the score of the best one may have statistics, if it was not known.
    """
    folder = run.directory / SEARCH_FOLDER
    cache = ScoreCache(folder, contents(averages.plan.sources), judge.fingerprint)
    scores: dict[Candidate, Score] = {}
    known, best, count = 0, candidates[0], len(run.checkpoints)
    of_run = {candidate.of_run(count): candidate for candidate in candidates}
    cache.confirm(of_run, lambda c: judge.score(averages.tensors(of_run[tuple(c)])).metrics)

    def order(candidate: Candidate) -> tuple[float, int]:
        return judge.rank(scores[candidate].metrics), candidate.start - candidate.stop

    for candidate in candidates:
        coefficients = candidate.of_run(count)
        metrics = cache.get(coefficients)
        if metrics is None:
            scores[candidate] = judge.score(averages.tensors(candidate))
            cache.add(coefficients, scores[candidate].metrics)
        else:
            scores[candidate] = Score(metrics)
            known += 1
        # Only the statistics of the best one are kept: those of all would add up.
        best, worse = sorted((best, candidate), key=order)
        if worse is not best:
            scores[worse] = Score(scores[worse].metrics)
        progress(1)
    return {candidate: scores[candidate] for candidate in sorted(candidates, key=order)}, known


class _Averages:
    """The averages of a run's windows: plain means from sums, others from the files."""

    def __init__(
        self, run: Run, candidates: Sequence[Candidate], max_memory: int, non_float: str
    ) -> None:
        plain = [c for c in candidates if c.recipe.name == UNIFORM]
        self._base = self._read = min((c.start for c in plain), default=0)
        count = max((c.stop for c in plain), default=0) - self._base
        self.plan = plan_mean(run.checkpoints, run.directory, non_float=non_float)
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
        below = {lower: -1.0} if lower >= 0 else {}
        return self._sums.combine({upper: 1.0, **below}, candidate.stop - candidate.start)

    def close(self) -> None:
        self._sums.close()
