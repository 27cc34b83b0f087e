"""Whether a training that resumes continues the one that wrote the run."""

from collections.abc import Iterator

from ckptavg.runs.describe import list_epochs
from ckptavg.saving.run_writer import RunWriter
from ckptavg.saving.schedule import Schedule


def doubts_about_resuming(
    run: RunWriter, schedule: Schedule, epochs: int, steps: int | None
) -> Iterator[str]:
    """Yields what suggests that a training does not continue where the run ends.

    Args:
        run: the run, as the training finds it.
        schedule: when the training saves.
        epochs: epochs that the training counts as complete.
        steps: steps that its optimizer has taken; None without an optimizer.
    """
    ends = [log.step for log in run.read_history() if log.epoch == epochs]
    if schedule.save_freq is not None:  # the last one may be of the epoch that begins again
        ends += [c.step for c in run.checkpoints if c.epoch in (epochs, epochs + 1)]
    known = {step for step in ends if step is not None}
    if steps is not None and known and steps not in known:
        taken = f"has taken {steps:,} steps, " if steps else "begins anew, "
        yield (
            f"training resumes after epoch {epochs} of {run.directory}, but its optimizer {taken}"
            f"where the run has {max(known):,}: load its state with ckptavg.resume, from "
            "checkpoints saved with include_optimizer=True"
        )
    saved = [c.epoch for c in run.checkpoints if c.epoch <= epochs]
    if not saved or schedule.save_freq is not None:
        return
    # Of earlier epochs some may have been removed, which max_to_keep never does to the last.
    missing = [epoch for epoch in range(saved[-1] + 1, epochs + 1) if schedule.saves(epoch - 1)]
    if missing:
        yield (
            f"{run.directory} lacks epoch{'s' if len(missing) > 1 else ''} {list_epochs(missing)}, "
            f"which should have been saved: averages will lack them, too. Resume from epoch "
            f"{saved[-1]}, which ckptavg.resume loads"
        )
