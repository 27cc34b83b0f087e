"""Runs the plan of a merge: streams checkpoints into their mean, commits it with its record."""

import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from ckptavg.formats import CheckpointWriter, open_writer
from ckptavg.merging.digests import MergeDigests, UnitDigests
from ckptavg.merging.engine import stream
from ckptavg.merging.journal import Journal
from ckptavg.merging.plan import MergePlan
from ckptavg.merging.resuming import fingerprint, recall
from ckptavg.merging.work import WorkUnit
from ckptavg.merging.worker import Advance
from ckptavg.runs.describe import human_size
from ckptavg.runs.outputs import check_output, owning, writing
from ckptavg.runs.proof import part_digests
from ckptavg.runs.record import Record, SourceRecord, now, versions
from ckptavg.runs.record_files import commit_with_record, record_path

_SETTLED = 1024 * 1024
"""Blocks of so many bytes or more are sent to the disk as soon as they are written: the disk then
writes while the merge reads. See docs/decisions/0025-writeback-begins-block-by-block.md."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    Attributes:
        output: the file that it wrote.
        record: the record beside it.
        plan: what was planned and done.
        unverified: sources that neither a record nor checksums of their format prove.
        resumed: fraction of the work that an interrupted merge had done before.
        seconds: from opening the checkpoints to the record, without the planning.
    """

    output: Path
    record: Record
    plan: MergePlan
    unverified: tuple[Path, ...]
    resumed: float
    seconds: float

    def __repr__(self) -> str:
        proof = "every byte proven"
        if self.unverified:
            proof = f"{len(self.unverified)} of {len(self.plan.sources)} checkpoints unverified"
        return (
            f"{type(self).__name__}: wrote {self.output}, {self.plan.facts}\n"
            f"  {human_size(self.plan.bytes_read)} read in {self.seconds:.2f} s, {proof}"
        )


def run_plan(
    plan: MergePlan, progress: Advance | None = None, *, resume: bool = False
) -> MergeReport:
    """Streams the checkpoints of a plan into their mean, and commits it with its record.

    Args:
        plan: as `plan_merge` gives it.
        progress: called with the number of bytes read since the last call, from any thread.
        resume: whether to continue an interrupted merge of the same plan, and to keep partial work
            if this one is interrupted.

    Raises:
        CkptavgError: as for `ckptavg.merge`, which plans and runs.
    """
    with owning_output(plan):
        return run_owned(plan, progress, resume=resume)


def owning_output(plan: MergePlan) -> AbstractContextManager[None]:
    """Owns the output of a plan, so that nobody else writes it; see `owning`."""
    return owning(plan.output, plan.overwrite, parts=plan.output_files)


def run_owned(
    plan: MergePlan, progress: Advance | None = None, *, resume: bool = False
) -> MergeReport:
    """`run_plan` for a caller that owns the output."""
    started = time.perf_counter()
    digests = MergeDigests(plan)
    with (
        writing(plan.output),
        Journal(plan.output, fingerprint(plan), resume=resume) as journal,
        open_writer(
            plan.output, plan.structure, plan.model_config, resume=bool(journal.entries)
        ) as writer,
    ):
        # The partial file is gone or laid out in another way: what the journal says is not in it.
        if not writer.resumed:
            journal.restart()
        try:
            resumed = _fill(writer, journal, plan, digests, progress)
            tensors = digests.tensor_records(writer.read)
            record = _record(plan, writer.finish(), digests)
            record = replace(record, parts=part_digests(writer.parts()))
        except (KeyboardInterrupt, SystemExit, OSError):
            # Stopped, or out of disk: with `resume` what is done waits for the next merge.
            journal.keep = writer.keep_partial = resume
            raise
        # A program other than this one may have written there since the plan was made.
        check_output(plan.output, plan.overwrite)
        record = commit_with_record(writer.commit, record, tensors, record_path(plan.output))
    unverified = tuple(source.path for source in plan.sources if not source.proven)
    seconds = time.perf_counter() - started
    return MergeReport(plan.output, record, plan, unverified, resumed, seconds)


def _fill(
    writer: CheckpointWriter,
    journal: Journal,
    plan: MergePlan,
    digests: MergeDigests,
    progress: Advance | None,
) -> float:
    """Writes all tensors; returns the fraction of the work that an earlier merge had done."""
    trusted = []

    def done(unit: WorkUnit) -> UnitDigests | None:
        found = recall(journal, writer, plan, unit)
        trusted.append(found is not None)
        return found

    def finished(unit: WorkUnit, found: UnitDigests) -> None:
        digests.add(unit, found)
        for span in unit.spans:
            # Smaller ones cost more in system calls than they gain.
            if span.nbytes >= _SETTLED:
                start, nbytes = map(span.item.in_output, (span.start, span.nbytes))
                writer.settle(span.item.tensor.name, start, nbytes)
        journal.add(unit.number, found)

    stream(plan, writer.write, finished, done, progress)
    return sum(trusted) / max(1, len(trusted))


def _record(plan: MergePlan, size: int, digests: MergeDigests) -> Record:
    folder, only = plan.output.parent.resolve(), plan.sources[0]
    made = Record(file=plan.output.name, size=size, time=now(), versions=versions())
    # Of a checkpoint that is copied, or averaged with nothing else, these stay true.
    if len(plan.sources) == 1:
        names = ("step", "learning_rate", "initial_learning_rate", "metrics")
        known = {name: getattr(only.record, name) for name in names} if only.record else {}
        made = replace(made, epoch=only.epoch, **known)
    return replace(
        made,
        batch_norm=plan.batch_norm,
        model=os.path.relpath(plan.model_file, folder) if plan.model_file else None,
        model_digest=plan.model_digest,
        recipe=plan.recipe,
        choice=plan.choice,
        differences=() if plan.trainings is None else plan.trainings.differences,
        sources=tuple(
            SourceRecord(
                path=os.path.relpath(source.path.parent.resolve() / source.path.name, folder),
                size=source.size,
                coefficient=source.coefficient,
                epoch=source.epoch,
                verified=source.proven and source.coefficient != 0.0,
                digest=digests.source(index),
            )
            for index, source in enumerate(plan.sources)
        ),
    )
