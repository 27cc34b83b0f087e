"""Checkpoints: files of weights, with their records where they have one."""

import os
from dataclasses import dataclass
from pathlib import Path

from ckptavg.errors import RecordError, RunError
from ckptavg.formats.tensorflow.paths import checkpoint_path, main_file
from ckptavg.recipes.posthoc_ema import TrackedAverage
from ckptavg.runs.record import Record
from ckptavg.runs.record_files import find_record
from ckptavg.storage.files import is_file


def former_model_file(path: Path, digest: str) -> Path:
    """Where the configuration of a model is kept when another one takes its name."""
    return path.with_name(f"{path.stem}-{digest[:8]}{path.suffix}") if path.name else path


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint with its record, if it has one.

    Attributes:
        path: its file, the index of its shards, or the prefix of a TensorFlow checkpoint.
        record: what `CheckpointSaver` or `merge` noted about it.
        named_epoch: the epoch in its name.
    """

    path: Path
    record: Record | None = None
    named_epoch: int | None = None

    def __repr__(self) -> str:
        known = "no record" if self.record is None else self.record.facts
        if self.record is None and self.named_epoch is not None:
            known = f"epoch {self.named_epoch}, {known}"
        return f"{type(self).__name__} {self.path}: {known}"

    @property
    def epoch(self) -> int | None:
        """1-based epoch of the record, else of the name; None if neither names one."""
        # The record knows; a name is only as good as whoever gave it.
        if self.record is not None and self.record.epoch is not None:
            return self.record.epoch
        return self.named_epoch

    @property
    def step(self) -> int | None:
        """Optimizer steps taken, by the record; None if they are not known."""
        return None if self.record is None else self.record.step

    @property
    def non_finite(self) -> tuple[str, ...]:
        """Stored names of tensors that hold NaN or infinity, by the record."""
        return () if self.record is None else self.record.non_finite

    @property
    def model_file(self) -> Path | None:
        """The configuration of the model that its record names, if the file is there."""
        if self.record is None or self.record.model is None:
            return None
        named = self.path.parent / self.record.model
        known = self.record.model_digest
        # A training that resumed the run may have given another one this name.
        places = [named] if known is None else [former_model_file(named, known), named]
        # A checkpoint that was moved away from its run has lost it.
        return next(filter(is_file, places), None)

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether there is a checkpoint of this name."""
        return is_file(main_file(path))

    @classmethod
    def open(cls, path: str | Path, named_epoch: int | None = None) -> "Checkpoint":
        """Finds the record of a checkpoint; that of a tracked average gives a `TrackedCheckpoint`.

        Raises:
            RunError: there is no such file.
            RecordError: its record cannot be read.
        """
        path = checkpoint_path(path)
        if not Checkpoint.exists(path):
            advice = (
                "what is there is not a file"
                if os.path.lexists(path)
                else "name a run, a file, a folder of checkpoints or a quoted pattern"
            )
            raise RunError(f"there is no checkpoint {path}: {advice}")
        record = find_record(path)
        if record is not None and record.ema is not None:
            return TrackedCheckpoint(path, record, named_epoch)
        return Checkpoint(path, record, named_epoch)


@dataclass(frozen=True, slots=True, repr=False)
class RecordedCheckpoint(Checkpoint):
    """A checkpoint of a run. It always has a record, which names its epoch."""

    record: Record

    @property
    def epoch(self) -> int:
        """1-based epoch that had just ended."""
        if self.record.epoch is None:
            raise RecordError(
                f"the record {self.record.path} names no epoch: it is not that of a run's "
                "checkpoint"
            )
        return self.record.epoch


@dataclass(frozen=True, slots=True, repr=False)
class TrackedCheckpoint(Checkpoint):
    """A tracked average of a run. It always has a record, which says which average it is."""

    record: Record

    @property
    def ema(self) -> TrackedAverage:
        """Which average it is."""
        if self.record.ema is None:
            raise RecordError(f"the record {self.record.path} does not say which average it is of")
        return self.record.ema
