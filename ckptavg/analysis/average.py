"""An average to look at: a merged file whose record names its sources."""

import os
from dataclasses import dataclass
from pathlib import Path

from ckptavg.errors import RunError
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.record import Record
from ckptavg.runs.run import Run


@dataclass(frozen=True, slots=True)
class Average(Checkpoint):
    """A merged file. It always has a record, which names its sources."""

    record: Record

    @classmethod
    def find(cls, path: str | Path) -> "Average":
        """Opens a merged file.

        Raises:
            RunError: there is no such file, or no record of its sources.
            RecordError: its record cannot be read.
        """
        found = Checkpoint.open(path)
        if found.record is None or not found.record.sources:
            raise RunError(
                f"{found.path} has no record of its sources: name a file that `ckptavg merge` "
                "wrote, with its record beside it"
            )
        return cls(found.path, found.record)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Coefficients of the sources."""
        return tuple(source.coefficient for source in self.record.sources)

    @property
    def source_paths(self) -> tuple[Path, ...]:
        """Files of the sources."""
        return tuple(self.path.parent / source.path for source in self.record.sources)

    def open_sources(self) -> tuple[Checkpoint, ...]:
        """The sources, each with its record.

        Raises:
            RunError: one of them is gone.
            RecordError: the record of one cannot be read.
        """
        return tuple(
            Checkpoint.open(path, source.epoch)
            for path, source in zip(self.source_paths, self.record.sources, strict=True)
        )

    def check_of(self, run: Run) -> None:
        """Makes sure that the average is not one of another run.

        Raises:
            RunError: no source belongs to the run, and they are not merely gone.
        """
        known = {found.path.resolve() for found in (*run.checkpoints, *run.averages)}
        if any(path.resolve() in known for path in self.source_paths):
            return
        elsewhere = next(filter(Checkpoint.exists, self.source_paths), None)
        if elsewhere is not None:
            raise RunError(
                f"{self.path} is not an average of {run.directory}, but of checkpoints such as "
                f"{os.path.relpath(elsewhere)}: name an average of this run"
            )

    def sources_in(self, run: Run) -> tuple[Checkpoint, ...]:
        """The sources, with the records of those that belong to a run."""
        # A link leads to the same checkpoint, and records are read once, with the run.
        known = {found.path.resolve(): found for found in (*run.checkpoints, *run.averages)}
        return tuple(
            known.get(path.resolve(), Checkpoint(path, named_epoch=source.epoch))
            for path, source in zip(self.source_paths, self.record.sources, strict=True)
        )
