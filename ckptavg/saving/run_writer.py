"""The directory of a run while a training writes into it: what is there, what comes, what goes."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ckptavg.errors import SaverError
from ckptavg.formats import Structure
from ckptavg.runs.checkpoint import Checkpoint, describe_epochs
from ckptavg.runs.history import EpochLog
from ckptavg.runs.record import Record
from ckptavg.runs.run import (
    CHECKPOINT_FOLDER,
    MODEL_FILE,
    in_order_of_tracking,
    in_order_of_training,
    recorded,
    uncommitted,
)
from ckptavg.saving.checkpoint_files import adopt_checkpoint, remove_checkpoint, write_checkpoint
from ckptavg.saving.history_writer import HistoryWriter
from ckptavg.saving.options import Options
from ckptavg.storage.files import TEMPORARY_PREFIX, write_text

STATE_FILE = "saver.json"
_FORMAT = "ckptavg-saver"
_OWN = re.compile(r"(epoch|(ema-\d\.\d+-)?step)-\d{4,}[._]")

Content = tuple[str, Structure, Mapping[str, np.ndarray], Record]
"""Of a checkpoint that is to be written: stem of its names, structure, values, record."""


class RunWriter:
    """Writes the checkpoints of one training; it holds the run's lock already.

    Attributes:
        directory: of the run.
        checkpoints: those that stand, in the order of training.
        averages: tracked averages that stand, by step.
    """

    def __init__(self, directory: Path, options: Options) -> None:
        """Looks at what is there.

        Raises:
            SaverError: there are checkpoints, and `existing` says that there must be none.
            RecordError: a record is damaged.
        """
        self.directory = directory
        self._has_config, self._config = True, None
        self._options = options
        self._history = HistoryWriter(directory)
        self._passing: list[Checkpoint] = []
        self.checkpoints, self.averages = recorded(directory / CHECKPOINT_FOLDER)
        if self.checkpoints and options.existing == "error":
            raise SaverError(
                f"{directory} holds {describe_epochs(self.checkpoints)} already: go on with that "
                "training (existing='resume', and initial_epoch in fit), remove it "
                "(existing='overwrite'), or name another directory"
            )

    def begin(self, epochs: int, goes_on: bool) -> None:
        """Makes ready for a training, and removes what a killed one left half-done.

        Args:
            epochs: number of epochs that it goes on from.
            goes_on: whether it goes on with the one that wrote the checkpoints.

        Raises:
            SaverError: it does not, but they are to stay; or the history is damaged.
        """
        with explained(f"cannot use the directory {self.directory}"):
            for leftover in self._leftovers():
                leftover.unlink(missing_ok=True)
            if self._options.existing == "overwrite":
                for checkpoint in (*self.checkpoints, *self.averages):
                    remove_checkpoint(checkpoint)
                self.checkpoints, self.averages = [], []
                (self.directory / STATE_FILE).unlink(missing_ok=True)
        if self.checkpoints and not goes_on:
            raise SaverError(
                f"{self.directory} holds {describe_epochs(self.checkpoints)}, but training begins "
                f"anew: pass initial_epoch={self.checkpoints[-1].epoch} to fit and load the "
                "weights and the optimizer of then, or start over with existing='overwrite'"
            )
        with explained(f"cannot use the directory {self.directory}"):
            self._history.begin(epochs)

    def note_epoch(self, log: EpochLog) -> None:
        """Adds an epoch to the history.

        Raises:
            SaverError: the system does not let it be done.
        """
        with explained(f"cannot add epoch {log.epoch} to the history of {self.directory}"):
            self._history.append(log)

    def note_rate(self, initial: float) -> None:
        """Notes the learning rate that the run starts from, for a training that goes on."""
        content = {"format": _FORMAT, "version": 1, "initial_learning_rate": initial}
        with explained(f"cannot use the directory {self.directory}"):
            write_text(self.directory / STATE_FILE, json.dumps(content, indent=1) + "\n")

    def take_config(self, config: str | None) -> None:
        """Takes the configuration of the model, to be written before the next checkpoint is."""
        self._config, self._has_config = config, False

    def written(self, what: str, write: Callable[[], Record]) -> Record:
        """Does what is left of saving a checkpoint, or averages.

        Raises:
            SaverError: the system does not let it be done.
        """
        with explained(f"cannot save {what} of {self.directory}"):
            self._history.sync()
            if not self._has_config:
                self._write_config()
            return write()

    def write(
        self, stem: str, structure: Structure, values: Mapping[str, np.ndarray], record: Record
    ) -> Record:
        """Writes a checkpoint named after `stem`, then removes those that are not to be kept."""
        path, place, record = self._places(stem, record)
        return self._taken_in(path, write_checkpoint(path, place, structure, values, record))

    def write_notes(self, notes: Sequence[Content], is_passing: bool) -> Record:
        """Writes tracked averages of one step, and removes those that they make out of date.

        These are averages of later steps, of a training that was given up, before; and those of
        earlier steps that were passing, afterwards.

        Args:
            notes: stem, structure, values and record of each, as `write` takes them.
            is_passing: whether they are there only until those of a later step are.

        Returns:
            A record of them as it was written, of one with NaN or infinity if there is such.
        """
        step = notes[0][-1].ema.step
        self._remove_averages(a for a in self.averages if a.record.ema.step > step)
        written = []
        for stem, structure, values, record in notes:
            path, place, record = self._places(stem, record)
            record = write_checkpoint(path, place, structure, values, record)
            others = [a for a in self.averages if a.record.path != place]
            written.append(Checkpoint(path, record))
            self.averages = sorted([*others, written[-1]], key=in_order_of_tracking)
        self._remove_averages(a for a in self._passing if a in self.averages and a not in written)
        self._passing = written if is_passing else []
        return max((average.record for average in written), key=lambda r: len(r.non_finite))

    def adopt(self, stem: str, temporary: Path, record: Record) -> Record:
        """Takes in a checkpoint that is written already, as `write` does."""
        path, place, record = self._places(stem, record)
        try:
            return self._taken_in(path, adopt_checkpoint(temporary, path, place, record))
        finally:
            temporary.unlink(missing_ok=True)

    def path(self, record: Record) -> Path:
        """Where the checkpoint of a record goes."""
        return self.directory / CHECKPOINT_FOLDER / record.file

    def _write_config(self) -> None:
        """Writes the configuration of the model; a former one may be another model's."""
        path = self.directory / MODEL_FILE
        if self._config is None:
            path.unlink(missing_ok=True)
        else:
            write_text(path, self._config)
        self._has_config = True

    def _leftovers(self) -> Iterator[Path]:
        """What a kill left: temporary files; beside records also checkpoints that have none.

        Where there is no record at all, checkpoints may be somebody else's.
        """
        folder = self.directory / CHECKPOINT_FOLDER
        yield from folder.glob(f"{TEMPORARY_PREFIX}*")
        yield from self.directory.glob(f"{TEMPORARY_PREFIX}{'[0-9a-f]' * 16}.json")
        if self.checkpoints or self.averages:
            orphans = uncommitted(folder, (c.record for c in (*self.checkpoints, *self.averages)))
            yield from (path for path in orphans if _OWN.match(path.name) and path.is_file())

    def _places(self, stem: str, record: Record) -> tuple[Path, Path, Record]:
        """Where a checkpoint and its record go, and that record with its model."""
        path = self.path(record)
        place = path.with_name(f"{stem}.json")
        known = (*self.checkpoints, *self.averages)
        if place.exists() and all(c.record.path != place for c in known):
            raise SaverError(f"{path} was written meanwhile: does another training use this run?")
        model = f"../{MODEL_FILE}" if (self.directory / MODEL_FILE).is_file() else None
        return path, place, replace(record, model=model)

    def _taken_in(self, path: Path, record: Record) -> Record:
        others = [c for c in self.checkpoints if c.record.path != record.path]
        self.checkpoints = sorted([*others, Checkpoint(path, record)], key=in_order_of_training)
        for checkpoint in self._superfluous():
            remove_checkpoint(checkpoint)
            self.checkpoints.remove(checkpoint)
        return record

    def _remove_averages(self, averages: Iterable[Checkpoint]) -> None:
        for average in list(averages):
            remove_checkpoint(average)
            self.averages.remove(average)

    def _superfluous(self) -> list[Checkpoint]:
        """Checkpoints that are neither among the newest nor among the best, as far as asked."""
        newest, best = self._options.max_to_keep, self._options.keep_best
        measured = []
        if best is not None:
            measured = [c for c in self.checkpoints if best.monitor in c.record.metrics]
            measured.sort(key=lambda c: _rank(c, best.monitor, best.sign))
        if newest is None and not measured:
            return []  # nothing is asked for, or the metric has not come yet
        kept = self.checkpoints[-(newest or 1) :]
        if best is not None:
            kept += measured[: best.count]
        return [checkpoint for checkpoint in self.checkpoints if checkpoint not in kept]


def _rank(checkpoint: Checkpoint, monitor: str, sign: int) -> tuple[bool, float]:
    value = sign * checkpoint.record.metrics[monitor]
    return bool(checkpoint.record.non_finite) or math.isnan(value), value


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Says of a run what the system says against writing there."""
    try:
        yield
    except OSError as error:
        raise SaverError(
            f"{what}: {error.strerror or error}. Checkpoints that were saved before are intact"
        ) from error


def initial_rate(directory: Path) -> float | None:
    """The learning rate that a run started from, which a training that goes on may have lowered.

    Raises:
        SaverError: what was noted of it is damaged.
    """
    path = directory / STATE_FILE
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT or content["version"] != 1:
            raise ValueError("it is of another program or version")
        return float(content["initial_learning_rate"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise SaverError(
            f"cannot read {path}: {error!r:.200}. Remove it to start from the optimizer's rate"
        ) from error
