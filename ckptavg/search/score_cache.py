"""Scores of candidates kept in a run's folder, so that a search that was stopped goes on."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ckptavg.outputs import writing
from ckptavg.plan import MergePlan
from ckptavg.record import digest
from ckptavg.version import __version__

SEARCH_FOLDER = "search"


class ScoreCache:
    """Metrics by what they depend on: checkpoints, coefficients, model and data.

    A line is added for each candidate as it has been evaluated; one that a kill cut off is
    skipped when the file is read.
    """

    def __init__(self, run: Path, plan: MergePlan, fingerprint: Sequence[object]) -> None:
        """Reads what is known.

        Args:
            run: directory of the run.
            plan: of its checkpoints.
            fingerprint: of the model and the data.
        """
        self.folder = run / SEARCH_FOLDER
        self.path = self.folder / "scores.jsonl"
        self._context = [__version__, *fingerprint]
        self._contents = [
            source.path.name if source.proof is None else digest(source.proof.digests).hex()
            for source in plan.sources
        ]
        # Files without records are known by their times and sizes.
        self._stamps = [
            list(source.stamps) if source.proof is None else None for source in plan.sources
        ]
        self._known = dict(self._read())
        with writing(self.path):
            self.folder.mkdir(exist_ok=True)
            if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
                with self.path.open("a") as file:
                    file.write("\n")  # so that a line which a kill cut off spoils no other

    def get(self, coefficients: Sequence[float]) -> dict[str, float] | None:
        """The metrics of a candidate; None if it has not been evaluated."""
        return self._known.get(self._key(coefficients))

    def add(self, coefficients: Sequence[float], metrics: dict[str, float]) -> None:
        """Notes what a candidate came to."""
        key = self._key(coefficients)
        self._known[key] = metrics
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "metrics": metrics}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _key(self, coefficients: Sequence[float]) -> str:
        parts = [
            (content, stamps, coefficient)
            for content, stamps, coefficient in zip(
                self._contents, self._stamps, coefficients, strict=True
            )
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
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return found
