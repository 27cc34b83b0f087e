"""Scores of checkpoints and averages side by side, and what they say of the averages."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptavg.analysis.comparison.candidates import AVERAGE, LAST
from ckptavg.analysis.geometry.geometry import Geometry
from ckptavg.analysis.tables import frame, text_table

if TYPE_CHECKING:
    import pandas as pd

SAVED, AVERAGED, PASS = "saved", "averaged", "pass"

_EQUAL = 0.01
"""Scores that differ by less than this fraction count as equal."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Loss and metrics of a checkpoint, with one kind of BatchNorm statistics.

    Attributes:
        name: what tables call the checkpoint.
        role: `last`, `best`, `average` or `checkpoint`.
        path: its file.
        batch_norm: `saved`, the statistics that training left; `averaged` like the weights; or
            `pass`, re-estimated by a BatchNorm pass. None for a model without BatchNorm.
        metrics: by name, as `model.evaluate` gives them.
    """

    name: str
    role: str
    path: Path
    batch_norm: str | None
    metrics: Mapping[str, float]

    @property
    def article(self) -> str:
        """What precedes the name within a sentence: nothing if it is the path a user named."""
        return "" if self.name == str(self.path) else "the "

    @property
    def title(self) -> str:
        """The name, and whether a BatchNorm pass preceded where that makes a difference."""
        after = {PASS: ", with a pass", AVERAGED: ", without a pass"}
        return self.name + after.get(self.batch_norm or "", "")


@dataclass(frozen=True, slots=True)
class Walk:
    """How straight the weights went through the checkpoints of an average.

    Attributes:
        checkpoints: their number.
        straightness: as in `Geometry.straightness`.
        on_its_way: as in `Geometry.on_its_way`.
    """

    checkpoints: int
    straightness: float
    on_its_way: bool

    @classmethod
    def of(cls, geometry: Geometry) -> "Walk | None":
        """That of all checkpoints of a geometry; None for fewer than 4, or equal ones."""
        count, straightness = len(geometry.labels), geometry.straightness()
        if count < 4 or math.isnan(straightness):
            return None
        return cls(count, straightness, geometry.on_its_way)

    def meaning(self, *, worse: bool | None = None) -> str:
        """What it means for the mean of the checkpoints, in a sentence or two.

        Args:
            worse: whether the mean is worse than the last checkpoint; None if it is not known.
        """
        line = f"{self.straightness:.0%} of the path through the {self.checkpoints} checkpoints is "
        if not self.on_its_way:
            chance = 1 / math.sqrt(self.checkpoints - 1)
            return (
                f"{line}displacement (of a random walk {chance:.0%}): the weights move about, as "
                "averaging wants it."
            )
        line += "one line: the training is still on its way"
        if worse:
            return (
                f"{line} and in no basin yet, so their mean lies behind the last one. Start "
                "averaging later, or lower the learning rate."
            )
        if worse is None:
            return (
                f"{line}, so their mean may lie behind the last one: evaluate both (--eval-data)."
            )
        return f"{line}. Their mean is not worse for it here; one that starts later may be better."


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """Checkpoints and averages of them, evaluated on the same data.

    Attributes:
        rows: in the order in which they were compared.
        monitor: the metric that decides.
        sign: +1 if lower values of it are better, -1 if higher ones are.
        walk: how straight the weights went; None if it is not known.
        notes: what could not be compared, and why.
    """

    rows: tuple[Scores, ...]
    monitor: str
    sign: int = 1
    walk: Walk | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        metrics = list(self.rows[0].metrics)
        table = [["", *metrics]]
        table += [[r.title, *(f"{r.metrics[m]:.4g}" for m in metrics)] for r in self.rows]
        head = f"Comparison of {len(self.rows)} scores by {self.monitor}"
        return "\n".join((head, text_table(table), *self.verdict))

    @property
    def best(self) -> Scores:
        """The row with the best score; NaN is the worst."""
        return min(self.rows, key=self._rank)

    @property
    def worse(self) -> bool | None:
        """Whether an average is worse than the last checkpoint; None without either of them."""
        found = [self._change(*pair) > _EQUAL for pair in self._pairs()]
        return any(found) if found else None

    @property
    def verdict(self) -> tuple[str, ...]:
        """What the scores and the way of the weights say of the averages, in whole sentences."""
        pairs = list(self._pairs())
        lines = [self._sentence(*pair) for pair in pairs]
        stale = any(r.batch_norm == AVERAGED for r in self.rows)
        if stale and not any(r.batch_norm == PASS for r in self.rows):
            lines.append(
                "The BatchNorm statistics of the average are averages, not those of the averaged "
                "network, so its score says little: pass training data to re-estimate them."
            )
        if lines and self.best.role != AVERAGE and self.best not in [last for _, last in pairs]:
            as_saved = ", as it was saved" if self.best.batch_norm == SAVED else ""
            best = f"{self.best.article}{self.best.title}{as_saved}"
            lines.append(f"The best of all is {best}: {self._score(self.best)}.")
        if self.walk is not None:
            lines.append(self.walk.meaning(worse=self.worse))
            if self.worse and not self.walk.on_its_way:
                lines.append(
                    "That the average is worse all the same has another reason: `ckptavg doctor` "
                    "with --data and --eval-data finds checkpoints that lie in different basins."
                )
        return (*lines, *self.notes)

    def to_dict(self) -> dict[str, Any]:
        """The comparison for JSON: numbers and texts in dictionaries and lists."""
        return {
            "monitor": self.monitor,
            "rows": [
                {"title": r.title, **asdict(r), "path": str(r.path), "metrics": {**r.metrics}}
                for r in self.rows
            ],
            "best": self.best.title,
            "worse": self.worse,
            "walk": None if self.walk is None else asdict(self.walk),
            "verdict": list(self.verdict),
        }

    def to_frame(self) -> "pd.DataFrame":
        """A row for each score, by its title: `role`, `batch_norm` and the metrics."""
        rows = [{"role": r.role, "batch_norm": r.batch_norm, **r.metrics} for r in self.rows]
        return frame(rows, {"monitor": self.monitor}, index=[r.title for r in self.rows])

    def _pairs(self) -> Iterator[tuple[Scores, Scores]]:
        """Each average with the last checkpoint, like with like: both after a pass if possible."""
        for average in self._finals(AVERAGE):
            for last in self._finals(LAST):
                same = (r for r in self.rows if r.path == last.path)
                # After a pass only what had one is compared: it improves single checkpoints, too.
                alike = {r.batch_norm == PASS: r for r in same}
                yield average, alike.get(average.batch_norm == PASS, last)

    def _finals(self, role: str) -> Iterator[Scores]:
        """The last row of each checkpoint of a role: after a pass, if it had one."""
        yield from {r.path: r for r in self.rows if r.role == role}.values()

    def _sentence(self, average: Scores, last: Scores) -> str:
        change = self._change(average, last)
        kind = "worse than" if change > _EQUAL else "better than"
        if abs(change) <= _EQUAL:
            kind = "about as good as"
        score = last.metrics[self.monitor]
        subject = f"{average.article.capitalize()}{average.name}"
        text = f"{subject} is {kind} {last.article}{last.name}: {self._score(average)} against "
        if average.batch_norm != PASS:
            return f"{text}{score:.4g}."
        if last.batch_norm == PASS:
            return f"{text}{score:.4g}, both with a BatchNorm pass."
        return (
            f"{text}{score:.4g}, which has had no BatchNorm pass: part of the difference may be "
            "the pass. With training data, the last checkpoint gets one, too."
        )

    def _score(self, row: Scores) -> str:
        return f"{self.monitor} {row.metrics[self.monitor]:.4g}"

    def _change(self, one: Scores, other: Scores) -> float:
        """How much worse one row is than another, as a fraction of the other's score."""
        a, b = (self._rank(row) for row in (one, other))
        if a == b:
            return 0.0
        return (a - b) / abs(b) if b and math.isfinite(b) else math.copysign(math.inf, a - b)

    def _rank(self, row: Scores) -> float:
        value = row.metrics[self.monitor]
        # NaN compares as false with everything, so sorting would leave it anywhere.
        return math.inf if math.isnan(value) else self.sign * value
