"""The directory of a run while a training writes to it: what is there, added and removed."""

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ckptavg.errors import RunError, SaverError
from ckptavg.formats import Structure
from ckptavg.formats.strict_json import parse
from ckptavg.runs.checkpoint import RecordedCheckpoint, TrackedCheckpoint, former_model_file
from ckptavg.runs.describe import describe_epochs, describe_tracked
from ckptavg.runs.digest import digest
from ckptavg.runs.history import HISTORY_FILE, EpochLog, read_history
from ckptavg.runs.json_values import DAMAGE
from ckptavg.runs.reading import replacing
from ckptavg.runs.record import Record
from ckptavg.runs.run import (
    CHECKPOINT_FOLDER,
    MODEL_FILE,
    in_order_of_tracking,
    in_order_of_training,
    recorded,
    uncommitted,
)
from ckptavg.saving.checkpoint_files import (
    SavedCheckpoint,
    adopt_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from ckptavg.saving.history_writer import HistoryWriter
from ckptavg.saving.options import Options
from ckptavg.saving.retention import superfluous
from ckptavg.saving.run_lock import RunLock
from ckptavg.storage.files import TEMPORARY_PREFIX, write_text
from ckptavg.storage.open_file import read_small_file

SAVER_FILE = "saver.json"
_FORMAT = "ckptavg-saver"
_OWN = re.compile(r"(epoch|(ema-\d\.\d+-)?step)-\d{4,}[._]")

_log = logging.getLogger("ckptavg")


@dataclass(frozen=True, slots=True)
class Content:
    """A checkpoint that is to be written.

    Attributes:
        stem: the name of its file and of its record, without suffixes.
        structure: its tensors and groups.
        values: the values of each tensor.
        record: its record; size and NaN are found out while it is written.
    """

    stem: str
    structure: Structure
    values: Mapping[str, np.ndarray]
    record: Record


class RunWriter:
    """Writes the checkpoints of one training, and holds the lock of the run until it ends.

    Attributes:
        directory: directory of the run.
        checkpoints: the checkpoints that the run holds, in the order of training.
        averages: the tracked averages that it holds, by step.
        lock: the lock of the run.
        config: the configuration of the model, which is written with the first checkpoint; None if
            there is none.
    """

    def __init__(self, directory: Path, options: Options, finish: Callable[[], object]) -> None:
        """Locks the directory, which is made if it does not exist, and looks at what is there.

        Args:
            directory: directory of the run.
            options: what to do with what is there, and what to keep.
            finish: ends this training before another one of the same thread takes the lock.

        Raises:
            SaverError: another training writes there, there are checkpoints but `existing` does not
                allow them, or the system refuses.
            RecordError: a record is damaged.
        """
        self.directory = directory
        self._options = options
        self._history = HistoryWriter(directory)
        self.config: str | None = None
        self._has_config = False
        self._model_digest: str | None = None
        self._passing: list[TrackedCheckpoint] = []
        with explained(f"cannot use the directory {directory}"):
            (directory / CHECKPOINT_FOLDER).mkdir(parents=True, exist_ok=True)
            self.lock = RunLock(directory, finish)
        try:
            self.checkpoints, self.averages = recorded(directory / CHECKPOINT_FOLDER)
            if self.checkpoints and options.existing == "error":
                raise SaverError(
                    f"{directory} holds {describe_epochs(self.checkpoints)} already: resume that "
                    "training (existing='resume', and initial_epoch in fit), name another "
                    f"directory, or pass existing='overwrite', which {self._loss()}"
                )
        except BaseException:
            self.lock.release()
            raise

    def begin(self, epochs: int, resumes: bool) -> None:
        """Removes what a killed training left half-done, and what `existing` says.

        Args:
            epochs: number of epochs that the training resumes from.
            resumes: whether it resumes the one that wrote the checkpoints.

        Raises:
            SaverError: it does not, but the checkpoints are to stay; or they are to go, but are
                being read; or the history is damaged.
        """
        with explained(f"cannot use the directory {self.directory}"):
            for leftover in self._leftovers():
                _log.debug("removing %s, left by a killed training", leftover)
                leftover.unlink(missing_ok=True)
            if self._options.existing == "overwrite":
                self._overwrite()
        # Checkpoints of later epochs than the one resumed from stay until their epochs end: whoever
        # resumes from too early an epoch would lose them.
        # See docs/decisions/0034-resuming-replaces-checkpoints-one-by-one.md.
        if self.checkpoints and not resumes:
            raise SaverError(
                f"{self.directory} holds {describe_epochs(self.checkpoints)}, but this training "
                f"starts over: pass initial_epoch={self.checkpoints[-1].epoch} to fit and load the "
                "weights and the optimizer of that epoch (ckptavg.resume does both), or pass "
                f"existing='overwrite', which {self._loss()}"
            )
        with explained(f"cannot use the directory {self.directory}"):
            self._history.begin(epochs)

    def read_history(self) -> tuple[EpochLog, ...]:
        """The epochs that the training resumes from."""
        return read_history(self.directory / HISTORY_FILE)

    def add_epoch(self, log: EpochLog) -> None:
        """Adds an epoch to the history.

        Raises:
            SaverError: the system refuses.
        """
        with explained(f"cannot add epoch {log.epoch} to the history of {self.directory}"):
            self._history.append(log)

    def write_rates(self, initial: Sequence[float]) -> None:
        """Writes the learning rates that the run starts from, for a training that resumes it."""
        content = {"format": _FORMAT, "version": 1, "initial_learning_rate": initial[0]}
        if len(initial) > 1:  # one for each optimizer
            content["initial_learning_rates"] = [*initial]
        with explained(f"cannot use the directory {self.directory}"):
            write_text(self.directory / SAVER_FILE, json.dumps(content, indent=1) + "\n")

    def write(self, content: Content) -> Record:
        """Writes a checkpoint, then removes those that are not to be kept.

        Raises:
            SaverError: the system refuses.
        """
        with self._saving(f"the checkpoint {content.stem}"):
            return self._add(RecordedCheckpoint(*self._written(content)))

    def adopt(self, stem: str, temporary: Path, record: Record) -> Record:
        """Takes in a checkpoint that is written already, as `write` does."""
        try:
            with self._saving(f"the checkpoint {stem}"):
                path, place, record = self._places(stem, record)
                record = adopt_checkpoint(temporary, path, place, record)
                return self._add(RecordedCheckpoint(path, record))
        finally:
            temporary.unlink(missing_ok=True)

    def write_averages(self, contents: Sequence[Content], step: int, *, is_passing: bool) -> Record:
        """Writes tracked averages of one step, and removes those that they make out of date.

        These are averages of later steps, of a training that was given up, before; and those of
        earlier steps that were passing, afterwards.

        Args:
            contents: the averages.
            step: the step that they have come to.
            is_passing: whether they stay only until those of a later step are written.

        Returns:
            The record of one of them, of one with NaN or infinity if there is such.
        """
        with self._saving(f"the averages at step {step}"):
            # Until now, averages of later steps belonged to a training that might have been
            # resumed. See docs/decisions/0058-averages-are-tracked-after-every-step.md.
            _remove([a for a in self.averages if a.ema.step > step], self.averages)
            written = []
            for content in contents:
                average = TrackedCheckpoint(*self._written(content))
                written.append(average)
                others = [a for a in self.averages if a.record.path != average.record.path]
                self.averages = sorted([*others, average], key=in_order_of_tracking)
            passed = [a for a in self._passing if a in self.averages and a not in written]
            _remove(passed, self.averages)
            self._passing = written if is_passing else []
            return max((average.record for average in written), key=lambda r: len(r.non_finite))

    def path(self, record: Record) -> Path:
        """Where the checkpoint of a record goes."""
        return self.directory / CHECKPOINT_FOLDER / record.file

    @property
    def _saved(self) -> list[SavedCheckpoint]:
        return [*self.checkpoints, *self.averages]

    def _loss(self) -> str:
        """What overwriting the run would do, for whoever is advised to consider it."""
        count = len(self.checkpoints)
        what = f"these {count} checkpoints" if count > 1 else "this checkpoint"
        averages = f" and {describe_tracked(self.averages)}" if self.averages else ""
        return f"deletes {what}{averages} when training begins"

    def _write_config(self) -> None:
        """Writes the configuration of the model; an earlier one may be another model's.

        That of the training which is resumed gets another name, under which its checkpoints find
        it: an optimizer with another learning rate is enough to make it another one.
        """
        path = self.directory / MODEL_FILE
        new = None if self.config is None else digest(self.config.encode()).hex()
        if path.exists():
            old = digest(read_small_file(path)).hex()
            if old != new and any(saved.record.model_digest == old for saved in self._saved):
                path.replace(former_model_file(path, old))
        if self.config is None:
            path.unlink(missing_ok=True)
        else:
            write_text(path, self.config)
        self._has_config, self._model_digest = True, new

    def _overwrite(self) -> None:
        """Removes the checkpoints of an earlier training, unless somebody is reading them."""
        try:
            with replacing(self.directory / CHECKPOINT_FOLDER):
                _remove(self.checkpoints, self.checkpoints)
                _remove(self.averages, self.averages)
                for file in (self.directory / SAVER_FILE, *self._former_configs()):
                    file.unlink(missing_ok=True)
        except RunError as error:
            raise SaverError(
                f"cannot replace the checkpoints of {self.directory}, because a merge or another "
                "command is reading them: wait until it ends, or name another directory"
            ) from error

    def _leftovers(self) -> Iterator[Path]:
        """What a kill left: temporary files; beside records also checkpoints without one.

        Where there is no record at all, checkpoints may be somebody else's.
        """
        # See docs/decisions/0044-what-a-killed-training-leaves-behind.md.
        folder = self.directory / CHECKPOINT_FOLDER
        yield from folder.glob(f"{TEMPORARY_PREFIX}*")
        yield from self.directory.glob(f"{TEMPORARY_PREFIX}{'[0-9a-f]' * 16}.json")
        if self._saved:
            orphans = uncommitted(folder, (saved.record for saved in self._saved))
            yield from (path for path in orphans if _OWN.match(path.name) and path.is_file())

    def _former_configs(self) -> Iterator[Path]:
        stem, _, suffix = MODEL_FILE.partition(".")
        return self.directory.glob(f"{stem}-{'[0-9a-f]' * 8}.{suffix}")

    def _places(self, stem: str, record: Record) -> tuple[Path, Path, Record]:
        """Where a checkpoint and its record go, and that record with its model."""
        path = self.path(record)
        place = path.with_name(f"{stem}.json")
        if place.exists() and all(saved.record.path != place for saved in self._saved):
            raise SaverError(f"{path} was written meanwhile: does another training use this run?")
        model = None if self._model_digest is None else f"../{MODEL_FILE}"
        return path, place, replace(record, model=model, model_digest=self._model_digest)

    @contextmanager
    def _saving(self, what: str) -> Iterator[None]:
        """Writes what must be durable before a checkpoint is, and explains errors of the system."""
        with explained(f"cannot save {what} of {self.directory}"):
            # A training that resumes from a checkpoint finds the epochs before it in the history.
            self._history.sync()
            if not self._has_config:
                self._write_config()
            yield

    def _written(self, content: Content) -> tuple[Path, Record]:
        path, place, record = self._places(content.stem, content.record)
        record = write_checkpoint(path, place, content.structure, content.values, record)
        return path, record

    def _add(self, written: RecordedCheckpoint) -> Record:
        """Counts a checkpoint among those of the run, and removes those that are not to be kept."""
        _log.debug("saved %s", written.path)
        others = [c for c in self.checkpoints if c.record.path != written.record.path]
        self.checkpoints = sorted([*others, written], key=in_order_of_training)
        newest, best = self._options.max_to_keep, self._options.keep_best
        _remove(superfluous(self.checkpoints, newest, best), self.checkpoints)
        return written.record


def _remove(removed: Sequence[SavedCheckpoint], held: list[Any]) -> None:
    """Removes checkpoints from the disk and from the list of those that the run holds."""
    for checkpoint in [*removed]:
        _log.debug("removing %s", checkpoint.path)
        remove_checkpoint(checkpoint)
        held.remove(checkpoint)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raises an error of the system as one of saving, which says what was not done."""
    try:
        yield
    except OSError as error:
        raise SaverError(
            f"{what}: {error.strerror or error}. Checkpoints that were saved before are intact"
        ) from error


def read_rates(directory: Path, count: int) -> list[float] | None:
    """The learning rates that a run started from; None if they were not written.

    The optimizers of a training that resumes may hold lowered ones.

    Args:
        directory: directory of the run.
        count: number of optimizers.

    Raises:
        SaverError: the file that holds them is damaged, or the run had more optimizers, or fewer.
    """
    path = directory / SAVER_FILE
    try:
        content: Any = parse(read_small_file(path))
        if content["format"] != _FORMAT or content["version"] != 1:
            raise ValueError("it was written by another program or version")
        rates = content.get("initial_learning_rates", [content["initial_learning_rate"]])
        found = [*map(float, rates)]
        if not all(0 <= rate < math.inf for rate in found):
            raise ValueError("a learning rate is not a number from 0")
    except FileNotFoundError:
        return None
    except (OSError, *DAMAGE) as error:
        raise SaverError(
            f"cannot read {path}: {error!r:.200}. Remove this file, which holds nothing else, to "
            "start from the optimizer's rate"
        ) from error
    if len(found) != count:
        raise SaverError(
            f"{path} holds the learning rates of {len(found)} optimizers, but the model has "
            f"{count}: resume with the same optimizers, or remove the file to start from the "
            "present rates"
        )
    return found
