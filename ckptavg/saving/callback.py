"""What CheckpointSaver does as a callback, for any framework."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar

from ckptavg.errors import ModelError, SaverError
from ckptavg.files import temporary_sibling
from ckptavg.formats import Structure
from ckptavg.record import BatchNormRecord, Record, now, versions
from ckptavg.run import CHECKPOINT_FOLDER, MODEL_FILE
from ckptavg.saving.background import Background
from ckptavg.saving.checkpoint_files import stored_as
from ckptavg.saving.framework import Framework, Placement
from ckptavg.saving.options import Options
from ckptavg.saving.rates import Rates
from ckptavg.saving.run_lock import RunLock
from ckptavg.saving.run_writer import RunWriter, explained, initial_rate
from ckptavg.saving.snapshot import Snapshot
from ckptavg.schedule import RateFunction, Schedule

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
        )
        self.verbose = verbose
        self.blocked = []
        self._background: Background[Record] = Background(in_flight)
        self._rates = Rates(self.framework, self.schedule)
        self._lock: RunLock | None = None
        # A callback with hooks for batches makes Keras wait for its device after each of them.
        if self.schedule.kind == "cyclic":
            self.on_train_batch_begin = self._begin_batch
        if self.schedule.kind == "cyclic" or save_freq is not None:
            self.on_train_batch_end = self._end_batch

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.blocked = []
        self._first_epoch: int | None = None
        self._run: RunWriter | None = None
        self._placement: Placement | None = None
        self._structure: Structure | None = None
        self._is_placed = self._wrote_config = self._has_waited = False
        self._snapshots = cycle([Snapshot() for _ in range(self.options.in_flight)])
        self._versions = versions(self.framework.packages)
        self._rates.begin(self.model, self.params)
        self._check_epochs()
        if self.schedule.sets_rate and self.options.existing != "resume":
            self.schedule.rates(self._rates.initial)
        if self.framework.is_chief(self.model):
            self._open_run()
        if self.framework.is_built(self.model, self.options.include_optimizer):
            self._place()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._check(self._background.collect())
        if self._first_epoch is None:
            self._first_epoch = epoch
            self._begin_run(epoch)
        self._epoch, self._seen = epoch, 0
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
        if self._is_due(epoch):
            self._save(f"epoch-{epoch + 1:04d}", epoch, logs)
        self._check(self._background.collect())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        outcomes = self._background.drain()
        self._release()
        self._check(outcomes)

    def _is_due(self, epoch: int) -> bool:
        """Whether a checkpoint is to be saved at the end of a 0-based epoch."""
        return self.schedule.saves(epoch)

    def _begin_batch(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._rates.begin_batch(self._epoch, batch)

    def _end_batch(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._rates.end_batch(batch)
        former = self._step
        self._batches += batch + 1 - self._seen
        self._seen = batch + 1
        if self.schedule.saves_step(self._step, former, self._epoch):
            self._save(f"step-{self._step:08d}", self._epoch, logs or {})

    @property
    def _step(self) -> int:
        """Optimizer steps taken, counted by batches: to ask the optimizer would wait for it."""
        return self._first_step + self._batches // self._accumulation

    def _open_run(self) -> None:
        with explained(f"cannot use the directory {self.directory}"):
            (self.directory / CHECKPOINT_FOLDER).mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(self.directory, self._background.drain)
        try:
            self._run = RunWriter(self.directory, self.options)
        except BaseException:
            self._release()
            raise

    def _begin_run(self, epoch: int) -> None:
        """Makes ready when it is known which epoch comes first, as BackupAndRestore may decide."""
        optimizer = getattr(self.model, "optimizer", None)
        self._batches, self._accumulation = 0, 1
        self._first_step = 0
        if optimizer is not None:
            self._first_step = self.framework.iterations(optimizer)
            self._accumulation = self.framework.accumulation(optimizer)
        try:
            if self._run is not None:
                self._run.begin(epoch, self._first_step)
            if self.schedule.sets_rate:
                known = initial_rate(self.directory)
                self._rates.start_from(self._rates.initial if known is None else known)
                if self._run is not None:
                    self._run.note_rate(self._rates.initial)
        except BaseException:
            self._release()
            raise

    def _check_epochs(self) -> None:
        epochs = (self.params or {}).get("epochs")
        if epochs is not None and epochs < self.schedule.first_save:
            raise SaverError(
                f"training ends with epoch {epochs}, before the first checkpoint is due at the end "
                f"of epoch {self.schedule.first_save}: train longer or lower start_epoch"
            )

    def _place(self) -> None:
        """Finds out where variables go in the files, once in each training."""
        self._is_placed = True
        self._layers = self.framework.count_batch_norm(self.model)
        self._placement = self.framework.place(self.model, self.options.include_optimizer)
        dtype, size = self.options.save_dtype, self.options.max_shard_size
        if self._placement is not None:
            self._structure = stored_as(self._placement.structure, dtype, size)
        elif dtype is not None or size is not None:
            raise SaverError(
                "a layer of the model saves more than its variables, so that its checkpoints can "
                "only be written as Keras does: leave save_dtype and max_shard_size alone"
            )

    def _save(self, stem: str, epoch: int, logs: Mapping[str, Any]) -> None:
        """Begins to save a checkpoint, once there is room for it."""
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
        try:
            work = self._prepared(stem, epoch, logs)
        except (OSError, SaverError) as error:
            self._fail(error)
            return
        if work is not None:
            self._background.submit(work)
        self.blocked.append(time.perf_counter() - started)

    def _prepared(
        self, stem: str, epoch: int, logs: Mapping[str, Any]
    ) -> Callable[[], Record] | None:
        """Copies the weights; returns what is left to do in the other thread."""
        if not self._is_placed:
            self._place()
        self.framework.synchronize(self.model)
        snapshot = next(self._snapshots)
        if self._placement is not None:
            snapshot.take(self.framework, self._placement)
        if self._run is None:  # another process writes; values may be read by all at once only
            return None
        record = self._record(stem, epoch, logs)
        config = self._config()
        path = self._run.path(record)
        self._say(epoch, f"saving {path}")
        if self._placement is not None:
            write = partial(self._run.write, stem, self._structure, snapshot.values, record)
        else:
            temporary = temporary_sibling(path)
            self.framework.save(self.model, temporary, self.options.include_optimizer)
            write = partial(self._run.adopt, stem, temporary, record)
        return partial(self._run.written, stem, config, write)

    def _record(self, stem: str, epoch: int, logs: Mapping[str, Any]) -> Record:
        optimizer = getattr(self.model, "optimizer", None)
        metrics = _metrics(logs)
        best = self.options.keep_best
        if best is not None and best.monitor not in metrics:
            raise SaverError(
                f"keep_best goes by '{best.monitor}', but Keras logged only: "
                f"{', '.join(sorted(metrics)) or 'nothing'}"
            )
        sharded = self.options.max_shard_size is not None
        return Record(
            file=stem + (self.framework.sharded_suffix if sharded else self.framework.suffix),
            size=0,
            time=now(),
            versions=self._versions,
            epoch=epoch + 1,
            step=self.framework.iterations(optimizer) if optimizer is not None else None,
            learning_rate=self._rates.current(),
            initial_learning_rate=self._rates.initial if self.schedule.sets_rate else None,
            metrics=metrics,
            batch_norm=BatchNormRecord(self._layers, "running") if self._layers else None,
        )

    def _config(self) -> Callable[[], None] | None:
        """What writes the model's configuration, once in each training."""
        if self._wrote_config:
            return None
        self._wrote_config = True
        try:
            config = self.framework.model_json(self.model)
        except ModelError as error:
            self._say(None, f"no {self.directory / MODEL_FILE}: {error}")
            config = None
        return partial(self._run.write_model, config)

    def _check(self, outcomes: Iterable[Record | BaseException]) -> None:
        """Tells of what went wrong in the other thread."""
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                self._fail(outcome)
            elif outcome.non_finite:
                warnings.warn(
                    f"epoch {outcome.epoch}: '{outcome.non_finite[0]}' holds NaN or infinity. Its "
                    "record says so, and merges leave the checkpoint out",
                    stacklevel=2,
                )

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, SaverError):
            explained = error
        else:
            explained = SaverError(f"a checkpoint could not be saved: {error!r}")
        if self.options.on_error == "warn":
            warnings.warn(str(explained), stacklevel=2)
            return
        outcomes = self._background.drain()
        self._release()
        for other in outcomes:
            if isinstance(other, BaseException):
                explained.add_note(f"also: {other}")
        raise explained from error

    def _release(self) -> None:
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
