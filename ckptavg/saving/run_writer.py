"""The directory of a run while a training writes into it: what is there, what comes, what goes."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ckptavg.checkpoints import Checkpoint, describe_epochs
from ckptavg.errors import RunError, SaverError
from ckptavg.files import TEMPORARY_PREFIX, write_text
from ckptavg.formats import Structure
from ckptavg.record import Record
from ckptavg.run import (
    CHECKPOINT_FOLDER,
    MODEL_FILE,
    in_order_of_training,
    open_run,
    uncommitted,
)
from ckptavg.saving.checkpoint_files import (
    adopt_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from ckptavg.saving.options import Options

STATE_FILE = "saver.json"
_FORMAT = "ckptavg-saver"
_OWN = re.compile(r"(epoch|step)-\d{4,}[._]")


class RunWriter:
    """Writes the checkpoints of one training; it holds the run's lock already.

    Attributes:
        directory: of the run.
        checkpoints: those that stand, in the order of training.
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
        try:
            self.checkpoints = list(open_run(directory).checkpoints)
        except RunError:
            self.checkpoints = []
        if self.checkpoints and options.existing == "error":
            raise SaverError(
                f"{directory} holds {describe_epochs(self.checkpoints)} already: go on with that "
                "training (existing='resume', and initial_epoch in fit), remove it "
                "(existing='overwrite'), or name another directory"
            )

    def begin(self, goes_on: bool) -> None:
        """Makes ready for a training, and removes what a killed one left half-done.

        Args:
            goes_on: whether it goes on with the one that wrote the checkpoints.

        Raises:
            SaverError: it does not, but they are to stay.
        """
        with explained(f"cannot use the directory {self.directory}"):
            for leftover in self._leftovers():
                leftover.unlink(missing_ok=True)
            if self._options.existing == "overwrite":
                for checkpoint in self.checkpoints:
                    remove_checkpoint(checkpoint)
                self.checkpoints = []
                (self.directory / STATE_FILE).unlink(missing_ok=True)
        if self.checkpoints and not goes_on:
            raise SaverError(
                f"{self.directory} holds {describe_epochs(self.checkpoints)}, but training begins "
                f"anew: pass initial_epoch={self.checkpoints[-1].epoch} to fit and load the "
                "weights and the optimizer of then, or start over with existing='overwrite'"
            )

    def note_rate(self, initial: float) -> None:
        """Notes the learning rate that the run starts from, for a training that goes on."""
        content = {"format": _FORMAT, "version": 1, "initial_learning_rate": initial}
        with explained(f"cannot use the directory {self.directory}"):
            write_text(self.directory / STATE_FILE, json.dumps(content, indent=1) + "\n")

    def take_config(self, config: str | None) -> None:
        """Takes the configuration of the model, to be written before the next checkpoint is."""
        self._config, self._has_config = config, False

    def written(self, stem: str, write: Callable[[], Record]) -> Record:
        """Does what is left of saving a checkpoint.

        Raises:
            SaverError: the system does not let it be done.
        """
        with explained(f"cannot save the checkpoint {stem} of {self.directory}"):
            if not self._has_config:
                self._write_config()
            return write()

    def write(
        self, stem: str, structure: Structure, values: Mapping[str, np.ndarray], record: Record
    ) -> Record:
        """Writes a checkpoint named after `stem`, then removes those that are not to be kept."""
        path, place, record = self._places(stem, record)
        return self._taken_in(path, write_checkpoint(path, place, structure, values, record))

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
        if self.checkpoints:
            orphans = uncommitted(folder, (c.record for c in self.checkpoints))
            yield from (path for path in orphans if _OWN.match(path.name) and path.is_file())

    def _places(self, stem: str, record: Record) -> tuple[Path, Path, Record]:
        """Where a checkpoint and its record go, and that record with its model."""
        path = self.path(record)
        place = path.with_name(f"{stem}.json")
        if place.exists() and all(c.record.path != place for c in self.checkpoints):
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
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise SaverError(
            f"cannot read {path}: {error!r:.200}. Remove it to start from the optimizer's rate"
        ) from error
