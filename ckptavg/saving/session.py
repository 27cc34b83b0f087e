"""One training of a saver: each save from the copy of the weights to the record."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from ckptavg.errors import ModelError, SaverError, warn
from ckptavg.recipes.posthoc_ema import TrackedAverage
from ckptavg.runs.history import EpochLog
from ckptavg.runs.record import Record, now, versions
from ckptavg.runs.run import MODEL_FILE
from ckptavg.saving.checkpoint_files import save_beside
from ckptavg.saving.learning_rate import LearningRates
from ckptavg.saving.prepared_training import PreparedTraining
from ckptavg.saving.resumed_run import doubts_about_resuming
from ckptavg.saving.retention import AwaitedMetric
from ckptavg.saving.run_writer import Content, RunWriter, read_rates
from ckptavg.saving.save_queue import Outcome, Work
from ckptavg.saving.step_counter import StepCounter
from ckptavg.saving.tracking import SaveKind, TrackedAverages
from ckptavg.saving.weight_placement import PlacementFinder, WeightPlacement

_PATIENCE = 1.0
"""Seconds that training may wait for the disk before its user is warned."""

Say = Callable[[int | None, str], None]
"""Prints a message, of a 0-based epoch if one is given, where the user asked for messages."""


class TrainingSession:
    """One training, from the beginning of its first epoch to its end.

    Attributes:
        blocked: seconds that each save kept the training waiting.
    """

    def __init__(self, prepared: PreparedTraining, epoch: int, say: Say) -> None:
        """Begins with a 0-based epoch, or resumes with it.

        Raises:
            SaverError: the run holds checkpoints that this training does not resume from, or
                tracked averages that do not suit it.
            IntegrityError: a tracked average differs from its record.
        """
        training, options, run = prepared.training, prepared.options, prepared.run
        self.blocked: list[float] = []
        self._prepared = prepared
        self._training = training
        self._schedule = prepared.schedule
        self._options = options
        self._say = say
        self._epoch = epoch
        self._versions = versions(training.framework.packages)
        self._has_config = False
        self._has_trained = False  # a batch has begun
        self._is_checked = training.framework.is_built(training.model, options.include_optimizer)
        self._has_warned = False
        self._metric = AwaitedMetric(options.keep_best)
        self._steps = StepCounter(training, epoch)
        resumes = options.existing == "resume" and (epoch > 0 or self._steps.taken > 0)
        if run is not None:
            # Another saver of the same `fit` may have taken the run: a former training, which the
            # lock takes this one for, would not begin an epoch.
            run.lock.renew()
            run.begin(epoch if resumes else 0, resumes)
            for checkpoint in run.checkpoints:
                self._metric.see(checkpoint.record.metrics)
        self._tracked: TrackedAverages | None = None
        if options.tracked_sigmas:
            saved = run.averages if run is not None and resumes else []
            self._tracked = TrackedAverages(training, options, saved, self._steps.taken)
        initial = prepared.initial_rates
        if initial is not None and resumes:
            initial = read_rates(prepared.directory, len(initial)) or initial
        if run is not None and resumes:
            for doubt in doubts_about_resuming(run, prepared.schedule, epoch, self._steps_loaded()):
                warn(doubt)
        self._rates = LearningRates(training, prepared.schedule, initial)
        if initial is not None and run is not None:
            run.write_rates(initial)

    def begin_epoch(self, epoch: int) -> float | None:
        """Begins a 0-based epoch; returns its learning rate, or None without an optimizer."""
        self._epoch = epoch
        self._steps.begin_epoch()
        return self._rates.begin_epoch(epoch)

    def begin_batch(self, batch: int) -> None:
        """Begins a 0-based batch of the epoch.

        Raises:
            SaverError: after the first batch the model cannot be saved.
        """
        if self._has_trained:
            self._check_once()
        self._has_trained = True
        self._rates.begin_batch(self._epoch, batch, self._steps.length)

    def end_batch(self, batch: int, logs: Mapping[str, Any]) -> None:
        """Ends a batch; saves if its step is one to save at."""
        former, seen = self._steps.taken, self._steps.seen
        self._steps.end_batch(batch)
        step = self._steps.taken
        kind = None
        if self._tracked is not None:
            batches = seen, self._steps.seen
            kind = self._tracked.end_batch(step - former, batches, self._steps.length)
        is_due = self._schedule.saves_step(step, former, self._epoch)
        self._save(f"step-{step:08d}" if is_due else None, logs, kind)

    def end_epoch(self, logs: dict[str, Any], is_due: bool) -> None:
        """Ends the epoch, whose checkpoint may be due; puts its learning rate among the logs.

        Raises:
            SaverError: the model cannot be saved, or a former save failed.
        """
        self._check_once()
        self._steps.end_epoch()
        rate = self._rates.current()
        if rate is not None:
            logs.setdefault("learning_rate", rate)
        if self._schedule.save_freq is None:
            self._metric.see(logs.keys() - {"learning_rate"})  # which records keep apart
        self._add_epoch(logs)
        kind = None if self._tracked is None else self._tracked.end_epoch(self._epoch, is_due)
        self._save(f"epoch-{self._epoch + 1:04d}" if is_due else None, logs, kind)
        self.collect()

    def end(self) -> None:
        """Ends the training: what is left is saved, and the run is given up."""
        if self._tracked is not None:
            self._save(None, {}, self._tracked.end())
        self._report(self._prepared.close())

    def collect(self) -> None:
        """Reports the saves that have finished.

        Raises:
            SaverError: one has failed, and `on_error` is `raise`.
        """
        self._report(self._prepared.queue.collect())

    def wait(self) -> None:
        """Waits for all saves, and reports them as `collect` does."""
        self._report(self._prepared.queue.drain())

    def _check_once(self) -> None:
        """Makes sure, once the first batch has built the layers, that saving will work."""
        if self._is_checked:
            return
        self._is_checked = True
        training = self._training
        with self._failing():
            if not training.model.built:
                raise SaverError(training.framework.why_unbuilt(training.model))
            self._prepared.placement()

    def _add_epoch(self, logs: Mapping[str, Any]) -> None:
        """Adds an epoch to the history of the run, before its checkpoint is begun."""
        if self._prepared.run is None:
            return
        rate = logs.get("learning_rate")
        with self._failing():
            log = EpochLog(
                epoch=self._epoch + 1,
                step=self._step(),
                learning_rate=None if rate is None else float(rate),
                metrics=_metrics(logs),
                time=now(),
            )
            self._prepared.run.add_epoch(log)

    def _save(self, stem: str | None, logs: Mapping[str, Any], kind: SaveKind | None) -> None:
        """Begins to save a checkpoint, tracked averages, or both, once there is room for it."""
        if stem is None and kind is None:
            return
        started = time.perf_counter()
        self._make_room()
        work: list[Work] = []
        # Averages come first: a checkpoint must never stand without those to resume with.
        if kind is not None and self._tracked is not None:
            with self._failing():
                work += self._prepare_averages(self._tracked, kind)
        if stem is not None:
            with self._failing():
                work += self._prepare_checkpoint(stem, logs)
        if work:
            with self._failing():
                self._prepared.queue.submit(work)
        self.blocked.append(time.perf_counter() - started)

    def _make_room(self) -> None:
        outcomes, waited = self._prepared.queue.make_room()
        self._report(outcomes)
        if waited > _PATIENCE and not self._has_warned:
            self._has_warned = True
            warn(
                f"epoch {self._epoch + 1}: training waited {waited:.1f} s for the previous "
                "checkpoint to be written: save less often, to a faster disk, or raise in_flight"
            )

    def _prepare_checkpoint(self, stem: str, logs: Mapping[str, Any]) -> list[Work]:
        """Copies the weights; returns what is left to do in the other thread."""
        framework, run = self._training.framework, self._prepared.run
        placement = self._placement()
        files, copy = placement.files, self._prepared.queue.copies[0]
        if files is not None:
            # In every process: under some strategies values are read by all at once only.
            copy.take(framework.host_view, files.variables)
        if run is None:  # another process writes
            return []
        metrics = _metrics(logs)
        self._metric.check(metrics, of_epoch=self._schedule.save_freq is None)
        record = self._record(
            stem,
            placement,
            epoch=self._epoch + 1,
            step=self._step(),
            learning_rate=self._rates.current(),
            initial_learning_rate=self._rates.initial,
            metrics=metrics,
        )
        self._hand_over_config(run)
        path = run.path(record)
        self._say(self._epoch, f"saving {path}")
        if files is not None:
            return [partial(run.write, Content(stem, files.structure, copy.values, record))]
        include = self._options.include_optimizer
        save = partial(framework.save, self._training.model, include_optimizer=include)
        return [partial(run.adopt, stem, save_beside(path, save), record)]

    def _prepare_averages(self, tracked: TrackedAverages, kind: SaveKind) -> list[Work]:
        """Copies the tracked averages; returns what is left to do in the other thread."""
        run = self._prepared.run
        if run is None:
            return []
        placement = self._placement(tracked.placements)
        copies = self._prepared.queue.copies[1:]
        structure, contents = tracked.copy_to(copies, placement), []
        self._steps.ask()
        for sigma, copy in zip(self._options.tracked_sigmas, copies, strict=True):
            stem = f"ema-{sigma:.3f}-step-{tracked.step:08d}"
            ema = TrackedAverage(sigma, tracked.step)
            record = self._record(stem, placement, step=self._steps.taken, ema=ema)
            contents.append(Content(stem, structure, copy.values, record))
        self._hand_over_config(run)
        self._say(None, f"saving averages at step {tracked.step}")
        is_passing = kind is SaveKind.PASSING
        return [partial(run.write_averages, contents, tracked.step, is_passing=is_passing)]

    def _placement(self, finder: PlacementFinder | None = None) -> WeightPlacement:
        """Makes sure that the run is this training's, and variables are where they are stored."""
        if self._prepared.run is not None:
            # A process loses a POSIX lock by closing any descriptor of its file, as whoever copies
            # the run does. See docs/decisions/0033-a-posix-record-lock-guards-the-run.md.
            self._prepared.run.lock.renew()
        found = self._prepared.placement() if finder is None else finder.current()
        self._training.framework.synchronize(self._training.model)
        return found

    def _record(self, stem: str, placement: WeightPlacement, **facts: Any) -> Record:
        """The record of a file: what those of all files have in common, and its own facts."""
        framework, whole = self._training.framework, self._options.max_shard_size is None
        return Record(
            file=stem + (framework.suffix if whole else ".weights.json"),
            size=0,
            time=now(),
            versions=self._versions,
            batch_norm=placement.batch_norm,
            **facts,
        )

    def _step(self) -> int | None:
        """Optimizer steps taken; None without an optimizer that counts them."""
        by_steps = self._schedule.save_freq is not None
        return self._steps.taken or None if by_steps else self._steps.exact()

    def _steps_loaded(self) -> int | None:
        """The steps that the optimizers of a training that resumes have taken; None without any."""
        return (self._steps.exact() or 0) if self._training.optimizers else None

    def _hand_over_config(self, run: RunWriter) -> None:
        """Hands the model's configuration to the other thread, once in each training."""
        if self._has_config:
            return
        self._has_config = True
        try:
            run.config = self._training.framework.model_json(self._training.model)
        except ModelError as error:
            self._say(None, f"no {run.directory / MODEL_FILE}: {error}")

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Treats an error as one of the save, as `on_error` says."""
        try:
            yield
        except Exception as error:  # reading a model, or what others logged, may raise anything
            self._fail(error)

    def _report(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                self._fail(outcome)
            elif outcome.non_finite:
                place = f"epoch {outcome.epoch}"
                if outcome.ema is not None:
                    place = f"tracked averages at step {outcome.ema.step}"
                warn(
                    f"{place}: '{outcome.non_finite[0]}' holds NaN or infinity. Its record says "
                    "so, and merges leave the checkpoint out"
                )

    def _fail(self, error: BaseException) -> None:
        explained = error
        if not isinstance(error, SaverError):
            explained = SaverError(f"a checkpoint could not be saved: {error!r}")
            explained.__cause__ = error
        if self._options.on_error == "warn":
            warn(str(explained))
            return
        for other in self._prepared.close():
            if isinstance(other, BaseException):
                explained.add_note(f"also: {other}")
        raise explained


def _metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    """What Keras logged, as far as it is numbers."""
    metrics = {}
    for name, value in logs.items():
        if name != "learning_rate":
            with contextlib.suppress(TypeError, ValueError):
                metrics[name] = float(value)
    return metrics
