"""What CheckpointSaver does as a callback, for any framework."""

import atexit
import contextlib
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from ckptavg.errors import ModelError, SaverError
from ckptavg.runs.history import EpochLog
from ckptavg.runs.record import Record, now, versions
from ckptavg.runs.run import CHECKPOINT_FOLDER, MODEL_FILE
from ckptavg.saving.checkpoint_files import save_beside
from ckptavg.saving.framework import Framework
from ckptavg.saving.host_copy import Snapshot
from ckptavg.saving.learning_rate import Rates
from ckptavg.saving.options import Options
from ckptavg.saving.retention import BestMetric
from ckptavg.saving.run_lock import RunLock
from ckptavg.saving.run_writer import RunWriter, explained, initial_rate
from ckptavg.saving.save_queue import Background
from ckptavg.saving.schedule import RateFunction, Schedule
from ckptavg.saving.step_counter import Steps
from ckptavg.saving.tracking import PASSING, Tracking
from ckptavg.saving.weight_placement import Layout

_PATIENCE = 1.0
"""Seconds that training may wait for the disk before its user is told."""


class SavingCallback:
    """Saves checkpoints while a model trains; mixed with the Callback class of a framework.

    The training thread copies the weights to the host; another one writes the file, makes it
    durable, writes the record and removes what is not to be kept. An error there is raised at the
    next begin or end of an epoch, and at the end of training, which waits for the last write.

    Attributes:
        directory: of the run.
        schedule: when to save, at which rates to train.
        options: what to write and to keep.
        blocked: seconds that each save of this training kept it waiting.
    """

    framework: ClassVar[Framework]

    model: Any
    params: Mapping[str, Any]
    directory: Path
    schedule: Schedule
    options: Options
    blocked: list[float]

    def __init__(
        self,
        directory: str | Path,
        *,
        start_epoch: int | None = None,
        swa_freq: int = 1,
        lr_schedule: str | RateFunction = "manual",
        swa_lr: float | str = "auto",
        swa_lr2: float | str = "auto",
        save_freq: int | None = None,
        start_step: int = 0,
        existing: str = "error",
        max_to_keep: int | None = None,
        keep_best: tuple[str, int] | tuple[str, int, str] | None = None,
        include_optimizer: bool = False,
        save_dtype: str | None = None,
        max_shard_size: float | None = None,
        on_error: str = "raise",
        in_flight: int = 1,
        tracked_sigmas: Sequence[float] | None = None,
        track_freq: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        self.directory = Path(directory)
        self.schedule = Schedule(
            lr_schedule, start_epoch, swa_freq, swa_lr, swa_lr2, save_freq, start_step
        )
        self.options = Options.of(
            existing=existing,
            max_to_keep=max_to_keep,
            keep_best=keep_best,
            include_optimizer=include_optimizer,
            save_dtype=save_dtype,
            max_shard_size=max_shard_size,
            on_error=on_error,
            in_flight=in_flight,
            tracked_sigmas=tracked_sigmas,
            track_freq=track_freq,
        )
        self.framework.check(self.options)
        self.verbose = verbose
        self.blocked = []
        self._background: Background[Record] = Background(in_flight)
        self._rates = Rates(self.framework, self.schedule)
        self._lock: RunLock | None = None
        # A callback with hooks for batches makes Keras wait for its device after each of them.
        if self.schedule.kind == "cyclic":
            self.on_train_batch_begin = self._begin_batch
        if self.schedule.kind == "cyclic" or save_freq is not None or self.options.tracked_sigmas:
            self.on_train_batch_end = self._end_batch

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._abandon()  # a former training
        self.blocked = []
        self._first_epoch: int | None = None
        self._run: RunWriter | None = None
        self._layout = Layout(self.framework, self.options, self.model)
        self._best_metric = BestMetric(self.options.keep_best)
        self._has_config = self._has_waited = False
        copies = 1 + len(self.options.tracked_sigmas)
        self._snapshots = deque(
            [Snapshot() for _ in range(copies)] for _ in range(self.options.in_flight)
        )
        self._versions = versions(self.framework.packages)
        self._rates.begin(self.model, self.params)
        self._check_epochs()
        self._tracking = None
        if self.options.tracked_sigmas:
            self._tracking = Tracking(self.framework, self.options, self.model, self.params)
        if self.schedule.sets_rate and self.options.existing != "resume":
            self.schedule.rates(self._rates.initial)
        with self._abandoned_on_error():
            if self.framework.is_chief(self.model):
                self._open_run()
            if self.framework.is_built(self.model, self.options.include_optimizer):
                self._layout.find()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._check(self._background.collect())
        self._epoch = epoch
        with self._abandoned_on_error():
            if self._first_epoch is None:
                self._first_epoch = epoch
                self._begin_run(epoch)
            self._steps.begin_epoch()
            rate = self._rates.begin_epoch(epoch)
        if logs is not None and rate is not None:
            logs["learning_rate"] = rate
        if epoch + 1 == self.schedule.start_epoch:
            self._say(epoch, f"saving checkpoints to {self.directory} from now on")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._rates.end_epoch()
        logs = {} if logs is None else logs
        rate = self._rates.current()
        if rate is not None:
            logs.setdefault("learning_rate", rate)
        if self.schedule.save_freq is None:
            self._best_metric.see(logs.keys() - {"learning_rate"})  # which records keep apart
        self._note_epoch(epoch, logs)
        is_due = self._is_due(epoch)
        note = None if self._tracking is None else self._tracking.end_epoch(epoch, is_due)
        self._save(f"epoch-{epoch + 1:04d}" if is_due else None, epoch, logs, note)
        self._check(self._background.collect())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        note = None if self._tracking is None else self._tracking.end()
        if note is not None:
            self._save(None, self._epoch, {}, note)
        outcomes = self._background.drain()
        self._release()
        self._check(outcomes)

    def _is_due(self, epoch: int) -> bool:
        """Whether a checkpoint is to be saved at the end of a 0-based epoch."""
        return self.schedule.saves(epoch)

    def _begin_batch(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        with self._abandoned_on_error():
            self._rates.begin_batch(self._epoch, batch)

    def _end_batch(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._rates.end_batch(batch)
        former, step = self._steps.end_batch(batch), self._steps.taken
        note = None
        if self._tracking is not None:
            with self._abandoned_on_error():
                note = self._tracking.end_batch(batch, step - former)
        is_due = self.schedule.saves_step(step, former, self._epoch)
        self._save(f"step-{step:08d}" if is_due else None, self._epoch, logs or {}, note)

    def _open_run(self) -> None:
        with explained(f"cannot use the directory {self.directory}"):
            (self.directory / CHECKPOINT_FOLDER).mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(self.directory, self._abandon)
        atexit.register(self._abandon)
        self._run = RunWriter(self.directory, self.options)

    def _begin_run(self, epoch: int) -> None:
        """Makes ready when it is known which epoch comes first, as BackupAndRestore may decide."""
        self._steps = Steps(self.framework, self.model, self.params, epoch)
        goes_on = self.options.existing == "resume" and (epoch > 0 or self._steps.taken > 0)
        if self._run is not None:
            self._run.begin(epoch if goes_on else 0, goes_on)
            for checkpoint in self._run.checkpoints:
                self._best_metric.see(checkpoint.record.metrics)
            if self._tracking is not None and goes_on:
                self._tracking.go_on(self._run.averages, self._steps.taken)
        if self.schedule.sets_rate:
            known = initial_rate(self.directory) if goes_on else None
            self._rates.start_from(self._rates.initial if known is None else known)
            if self._run is not None:
                self._run.note_rate(self._rates.initial)

    def _note_epoch(self, epoch: int, logs: Mapping[str, Any]) -> None:
        """Adds an epoch to the history of the run, before a checkpoint of it is begun."""
        if self._run is None:
            return
        try:
            rate = logs.get("learning_rate")
            log = EpochLog(
                epoch=epoch + 1,
                step=self._step(),
                learning_rate=None if rate is None else float(rate),
                metrics=_metrics(logs),
                time=now(),
            )
            self._run.note_epoch(log)
        except Exception as error:  # converting what others logged may raise anything
            self._fail(error)

    def _check_epochs(self) -> None:
        epochs = (self.params or {}).get("epochs")
        if epochs is not None and epochs < self.schedule.first_save:
            raise SaverError(
                f"training ends with epoch {epochs}, before the first checkpoint is due at the end "
                f"of epoch {self.schedule.first_save}: train longer or lower start_epoch"
            )

    def _save(
        self, stem: str | None, epoch: int, logs: Mapping[str, Any], note: str | None
    ) -> None:
        """Begins to save a checkpoint, tracked averages, or both, once there is room for it.

        Averages come first, so that a training can go on with them from any checkpoint.
        """
        if stem is None and note is None:
            return
        started = time.perf_counter()
        outcomes, waited = self._background.make_room()
        self._check(outcomes)
        if waited > _PATIENCE and not self._has_waited:
            self._has_waited = True
            warnings.warn(
                f"epoch {epoch + 1}: training waited {waited:.1f} s for the checkpoint before, "
                "still being written: save less often, to a faster disk, or raise in_flight",
                stacklevel=2,
            )
        prepared = []
        if note is not None:
            prepared.append(partial(self._prepared_notes, note))
        if stem is not None:
            prepared.append(partial(self._prepared, stem, epoch, logs))
        lot = []
        for prepare in prepared:
            try:
                lot.append(prepare())
            except Exception as error:
                self._fail(error)
        lot = [work for work in lot if work is not None]
        if lot:
            self._background.submit(*lot)
            self._snapshots.rotate()  # only now: until then they are no work's
        self.blocked.append(time.perf_counter() - started)

    def _prepared(
        self, stem: str, epoch: int, logs: Mapping[str, Any]
    ) -> Callable[[], Record] | None:
        """Copies the weights; returns what is left to do in the other thread."""
        self._make_ready(self._layout)
        placement, snapshot = self._layout.placement, self._snapshots[0][0]
        if placement is not None:
            snapshot.take(self.framework.host_view, placement.variables)
        if self._run is None:  # another process writes; values may be read by all at once only
            return None
        record = self._record(stem, epoch, logs)
        self._take_config()
        path = self._run.path(record)
        self._say(epoch, f"saving {path}")
        if placement is not None:
            write = partial(self._run.write, stem, self._layout.structure, snapshot.values, record)
        else:
            include = self.options.include_optimizer
            save = partial(self.framework.save, self.model, include_optimizer=include)
            write = partial(self._run.adopt, stem, save_beside(path, save), record)
        return partial(self._run.written, f"the checkpoint {stem}", write)

    def _prepared_notes(self, kind: str) -> Callable[[], Record]:
        """Copies the tracked averages; returns what is left to do in the other thread."""
        self._make_ready(self._tracking.layout)
        notes, contents = self._tracking.notes(), []
        self._steps.ask()
        for note, snapshot in zip(notes, self._snapshots[0][1:], strict=True):
            snapshot.take(note.view, note.variables)
            record = Record(
                file=note.stem + self._suffix,
                size=0,
                time=now(),
                versions=self._versions,
                step=self._steps.taken,
                batch_norm=self._tracking.layout.batch_norm,
                ema=note.ema,
            )
            contents.append((note.stem, note.structure, snapshot.values, record))
        self._take_config()
        self._say(None, f"noting averages at step {notes[0].ema.step}")
        write = partial(self._run.write_notes, contents, kind == PASSING)
        return partial(self._run.written, f"the averages at step {notes[0].ema.step}", write)

    def _make_ready(self, layout: Layout) -> None:
        """Makes sure that the run is this training's, and variables are where they are stored."""
        if self._lock is not None:
            self._lock.renew()
        layout.find()
        self.framework.synchronize(self.model)

    @property
    def _suffix(self) -> str:
        """Of the files."""
        is_sharded = self.options.max_shard_size is not None
        return self.framework.sharded_suffix if is_sharded else self.framework.suffix

    def _record(self, stem: str, epoch: int, logs: Mapping[str, Any]) -> Record:
        metrics = _metrics(logs)
        self._best_metric.check(metrics, of_epoch=self.schedule.save_freq is None)
        return Record(
            file=stem + self._suffix,
            size=0,
            time=now(),
            versions=self._versions,
            epoch=epoch + 1,
            step=self._step(),
            learning_rate=self._rates.current(),
            initial_learning_rate=self._rates.initial if self.schedule.sets_rate else None,
            metrics=metrics,
            batch_norm=self._layout.batch_norm,
        )

    def _step(self) -> int | None:
        """Optimizer steps taken; None without an optimizer that counts them."""
        optimizer = getattr(self.model, "optimizer", None)
        if self.schedule.save_freq is not None or optimizer is None:
            return self._steps.taken or None
        counted = self.framework.iterations(optimizer)
        return self._steps.earlier + counted if counted else None

    def _take_config(self) -> None:
        """Hands the model's configuration to the other thread, once in each training."""
        if self._has_config:
            return
        self._has_config = True
        config = None
        try:
            config = self.framework.model_json(self.model)
        except ModelError as error:
            self._say(None, f"no {self.directory / MODEL_FILE}: {error}")
        self._run.take_config(config)

    def _check(self, outcomes: Iterable[Record | BaseException]) -> None:
        """Tells of what went wrong in the other thread."""
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                self._fail(outcome)
            elif outcome.non_finite:
                place = f"epoch {outcome.epoch}"
                if outcome.ema is not None:
                    place = f"tracked averages at step {outcome.ema.step}"
                warnings.warn(
                    f"{place}: '{outcome.non_finite[0]}' holds NaN or infinity. Its record says "
                    "so, and merges leave the checkpoint out",
                    stacklevel=2,
                )

    def _fail(self, error: BaseException) -> None:
        explained = error
        if not isinstance(error, SaverError):
            explained = SaverError(f"a checkpoint could not be saved: {error!r}")
            explained.__cause__ = error
        if self.options.on_error == "warn":
            warnings.warn(str(explained), stacklevel=2)
            return
        outcomes = self._background.drain()
        self._release()
        for other in outcomes:
            if isinstance(other, BaseException):
                explained.add_note(f"also: {other}")
        raise explained

    def _abandon(self) -> None:
        """Ends a training that an exception has ended: what was begun is finished."""
        outcomes = self._background.drain()
        self._release()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                warnings.warn(f"after training was broken off: {outcome}", stacklevel=2)

    @contextlib.contextmanager
    def _abandoned_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._abandon()
            raise

    def _release(self) -> None:
        atexit.unregister(self._abandon)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _say(self, epoch: int | None, message: str) -> None:
        if self.verbose:
            print(f"\n{message}" if epoch is None else f"\nEpoch {epoch + 1}: {message}")  # noqa: T201


def _metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    """What Keras logged of an epoch, as far as it is numbers."""
    metrics = {}
    for name, value in logs.items():
        if name != "learning_rate":
            with contextlib.suppress(TypeError, ValueError):
                metrics[name] = float(value)
    return metrics
