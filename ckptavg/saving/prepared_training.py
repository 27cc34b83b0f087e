"""What a training holds from its beginning, before it is known which epoch comes first."""

import atexit
from pathlib import Path

from ckptavg.errors import SaverError, warn
from ckptavg.saving.framework import Training
from ckptavg.saving.learning_rate import initial_rates, scheduled
from ckptavg.saving.options import Options
from ckptavg.saving.run_writer import RunWriter
from ckptavg.saving.save_queue import Outcome, SaveQueue
from ckptavg.saving.schedule import Schedule
from ckptavg.saving.weight_placement import PlacementFinder, WeightPlacement


class PreparedTraining:
    """A training that may begin: its run is locked, and what can fail has been checked.

    Which epoch comes first is unknown yet: `BackupAndRestore` decides it, and may do so after the
    saver was told that training begins.

    Attributes:
        training: the call of `fit`.
        directory: directory of the run.
        schedule: when to save, at which rates to train.
        options: what to write and to keep.
        initial_rates: the learning rates of the optimizers; None where the schedule sets none.
        queue: the saves under way.
        run: the run while it is written; None in a process that is not the chief.
    """

    def __init__(
        self, training: Training, directory: Path, schedule: Schedule, options: Options
    ) -> None:
        """Locks the run, in the process that is to write.

        Raises:
            SaverError: the options do not suit the model, or the directory cannot be used.
            RecordError: a record in the directory is damaged.
        """
        self.training = training
        self.directory = directory
        self.schedule = schedule
        self.options = options
        self.initial_rates = initial_rates(training, schedule)
        if options.tracked_sigmas:
            training.framework.check_tracking(training.model)
        if self.initial_rates is not None and options.existing != "resume":
            scheduled(schedule, self.initial_rates)
        self._placements = PlacementFinder(training, options)
        self.queue = SaveQueue(options.in_flight, 1 + len(options.tracked_sigmas))
        self.run: RunWriter | None = None
        try:
            if training.framework.is_chief(training.model):
                self.run = RunWriter(directory, options, self.abandon)
                atexit.register(self.abandon)
            if training.framework.is_built(training.model, options.include_optimizer):
                self.placement()
        except BaseException:
            self.close()
            raise

    def placement(self) -> WeightPlacement:
        """Where the model's variables go now.

        Raises:
            SaverError: only the framework can write the files, but not as the options ask for it.
        """
        found = self._placements.current()
        changed = self.options.save_dtype is not None or self.options.max_shard_size is not None
        if found.files is None and changed:
            raise SaverError(
                "a layer of the model saves more than its variables, so that its checkpoints can "
                "only be written as Keras does: omit save_dtype and max_shard_size"
            )
        return found

    def close(self) -> list[Outcome]:
        """Waits for the saves under way, gives up the run and returns what came of them."""
        outcomes = self.queue.drain()
        atexit.unregister(self.abandon)
        if self.run is not None:
            self.run.lock.release()
        return outcomes

    def abandon(self) -> None:
        """Ends a training that an exception has ended: saves under way are finished."""
        for outcome in self.close():
            if isinstance(outcome, BaseException):
                warn(f"after training was interrupted: {outcome}")
