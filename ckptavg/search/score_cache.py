"""Scores of averages kept in a folder, so that a stopped search can be continued."""

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ckptavg.errors import warn
from ckptavg.formats.strict_json import parse
from ckptavg.merging.planned_sources import SourcePlan
from ckptavg.runs.digest import digest
from ckptavg.runs.json_values import DAMAGE
from ckptavg.runs.outputs import writing
from ckptavg.storage.open_file import read_small_file
from ckptavg.version import __version__

SEARCH_FOLDER = "search"
"""Folder of a run that holds the scores of searches."""
_FILE = "scores.jsonl"

_SAME = 1e-3
"""How far metrics of the same weights may be apart, as a fraction of the larger one: devices and
other orders of the samples round differently."""
_REPEATS, _SPREAD = 3, 4
"""How often data that may be shuffled or augmented are read again to see how far scores vary, and
how many times as far a former score may be away."""


def contents(sources: Sequence[SourcePlan]) -> list[object]:
    """What identifies the contents of checkpoints: digests, or names, times and sizes of files."""
    return [
        [source.path.name, list(source.stamps)]
        if source.proof is None
        else digest(source.proof.digests).hex()
        for source in sources
    ]


class ScoreCache:
    """Metrics by what they depend on: checkpoints, coefficients, model and data.

    A line is added for each average once it has been evaluated. A line that a kill cut off is
    skipped when the file is read. Several caches may share a folder.

    A model is known by its configuration, which does not show the code of a custom loss or layer.
    So one score that an earlier search found is to be found again (`confirm`) before the others are
    believed; if it is not, a further line gives this model and these data a new generation of
    scores, and no former one is used again.
    See docs/decisions/0039-scores-are-keyed-by-content.md
    """

    def __init__(
        self, folder: Path, contents: Sequence[object], fingerprint: Sequence[object]
    ) -> None:
        """Reads the scores that are known.

        Args:
            folder: made if it does not exist.
            contents: what identifies the contents of each checkpoint, JSON values.
            fingerprint: of everything else that scores depend on, the model and the data, JSON
                values.
        """
        self.path = folder / _FILE
        self._contents = contents
        self._context: list[object] = [__version__, *fingerprint]
        self._of = digest(json.dumps(self._context).encode()).hex()
        self._known: dict[str, dict[str, float]] = {}
        self._generation = 0
        with writing(self.path):
            self._is_kept = can_keep_scores(folder)
            stored = read_small_file(self.path) if self.path.exists() else b""
        if stored and not stored.endswith(b"\n"):
            self._append("\n")  # so that a line which a kill cut off spoils no other
        for line in stored.splitlines():
            # A line of another version, or damaged: the average is evaluated again.
            with suppress(*DAMAGE):
                self._take(parse(line))

    def get(self, coefficients: Sequence[float]) -> dict[str, float] | None:
        """The metrics of an average; None if it has not been evaluated."""
        return self._known.get(self._key(coefficients))

    def add(self, coefficients: Sequence[float], metrics: Mapping[str, float]) -> None:
        """Keeps the metrics of an average, at once and on disk."""
        key = self._key(coefficients)
        self._known[key] = dict(metrics)
        self._write({"key": key, "metrics": metrics})

    def confirm(
        self,
        averages: Iterable[Sequence[float]],
        evaluate: Callable[[Sequence[float]], Mapping[str, float]],
    ) -> None:
        """Evaluates one average again whose score is known; forgets all scores if it has another.

        Args:
            averages: coefficients of those that will be asked for; the first known one is taken.
            evaluate: its metrics now.

        Warns:
            CkptavgWarning: the scores of an earlier search are not used.
        """
        for coefficients in averages:
            # One that could not be evaluated has no metrics, which would prove nothing.
            if known := self.get(coefficients):
                break
        else:
            return
        now = evaluate(coefficients)
        apart = _apart(known, now)
        if apart <= _SAME:
            return
        # Shuffled and augmented data give no score twice: how far apart are those of today?
        spread = max(_apart(now, evaluate(coefficients)) for _ in range(_REPEATS))
        if apart <= _SPREAD * spread:
            return
        name = max(known, key=lambda name: _apart_in(name, known, now))
        warn(
            f"the scores in {self.path} are not used: for the same weights and data, {name} was "
            f"{known[name]:.5g} and is {now.get(name, math.nan):.5g} now, so the code of the "
            "model, its loss or its metrics has changed since. All averages are evaluated again"
        )
        self._generation += 1
        self._write({"of": self._of, "generation": self._generation})

    def _key(self, coefficients: Sequence[float]) -> str:
        parts = [
            (content, coefficient)
            for content, coefficient in zip(self._contents, coefficients, strict=True)
            # Checkpoints without a share do not matter, so longer runs find old scores.
            if coefficient != 0.0
        ]
        # The first generation has no number, so that scores of former versions are found.
        context = [*self._context, self._generation] if self._generation else self._context
        return digest(json.dumps([context, parts]).encode()).hex()

    def _write(self, entry: Mapping[str, object]) -> None:
        self._append(json.dumps({**entry, "seal": _seal(entry)}) + "\n")

    def _append(self, text: str) -> None:
        if not self._is_kept:
            return
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            # A kill or a power failure loses no score that took minutes.
            os.fsync(file.fileno())

    def _take(self, entry: dict[str, Any]) -> None:
        seal = entry.pop("seal", None)
        if seal is not None and seal != _seal(entry):  # lines of 0.1.0 have none
            return
        if "of" not in entry:
            metrics = {str(name): float(value) for name, value in entry["metrics"].items()}
            self._known[str(entry["key"])] = metrics
        elif entry["of"] == self._of:
            self._generation = max(self._generation, int(entry["generation"]))


def _seal(entry: Mapping[str, object]) -> str:
    """A digest of a line: a damaged score would otherwise choose another average."""
    return digest(json.dumps(entry).encode()).hex()


def can_keep_scores(folder: Path) -> bool:
    """Makes a folder for scores; whether they may be written there: a run may be somebody else's.

    Raises:
        OSError: the folder cannot be made for another reason.

    Warns:
        CkptavgWarning: they may not.
    """
    scores = folder / _FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_allowed = os.access(scores if scores.exists() else folder, os.W_OK)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        is_allowed = False
    if not is_allowed:
        warn(
            f"scores are not kept: no permission to write {scores}. A search that is stopped "
            "starts anew",
            4,
        )
    return is_allowed


def _apart(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The largest difference of two evaluations, as a fraction of the larger value."""
    return max((_apart_in(name, one, other) for name in {*one, *other}), default=0.0)


def _apart_in(name: str, one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The difference in one metric; infinite if only one of both has it, as a number."""
    first, second = one.get(name), other.get(name)
    if first is None or second is None:
        return math.inf
    if first == second or (math.isnan(first) and math.isnan(second)):
        return 0.0
    found = abs(first - second) / max(abs(first), abs(second))
    return math.inf if math.isnan(found) else found
