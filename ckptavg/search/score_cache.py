"""Scores of averages kept in a folder, so that a stopped search can be continued."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ckptavg.merging.planned_sources import SourcePlan
from ckptavg.runs.digest import digest
from ckptavg.runs.outputs import writing
from ckptavg.version import __version__

SEARCH_FOLDER = "search"
"""Folder of a run that holds the scores of searches."""


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
        self.path = folder / "scores.jsonl"
        self._contents = contents
        self._context = [__version__, *fingerprint]
        self._known = dict(self._read())
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
                with self.path.open("a") as file:
                    file.write("\n")  # so that a line which a kill cut off spoils no other

    def get(self, coefficients: Sequence[float]) -> dict[str, float] | None:
        """The metrics of an average; None if it has not been evaluated."""
        return self._known.get(self._key(coefficients))

    def add(self, coefficients: Sequence[float], metrics: dict[str, float]) -> None:
        """Keeps the metrics of an average, at once and on disk."""
        key = self._key(coefficients)
        self._known[key] = metrics
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "metrics": metrics}) + "\n")
            file.flush()
            # A kill or a power failure loses no score that took minutes.
            os.fsync(file.fileno())

    def _key(self, coefficients: Sequence[float]) -> str:
        parts = [
            (content, coefficient)
            for content, coefficient in zip(self._contents, coefficients, strict=True)
            # Checkpoints without a share do not matter, so longer runs find old scores.
            if coefficient != 0.0
        ]
        return digest(json.dumps([self._context, parts]).encode()).hex()

    def _read(self) -> list[tuple[str, dict[str, float]]]:
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                metrics = {str(name): float(value) for name, value in entry["metrics"].items()}
                found.append((str(entry["key"]), metrics))
            # A line of another version, or damaged: the average is evaluated again.
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                continue
        return found
