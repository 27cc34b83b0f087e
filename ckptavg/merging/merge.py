"""Merges checkpoints: plans, streams them into their mean, commits it with its record."""

import os
import resource
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptavg.errors import ResourceError
from ckptavg.formats import CheckpointReader, open_reader, open_writer
from ckptavg.merging.digests import Digests, fingerprint, recall
from ckptavg.merging.engine import divide_plan, stream
from ckptavg.merging.journal import Journal
from ckptavg.merging.plan import MergePlan, plan_merge
from ckptavg.merging.tensor_rules import EQUAL
from ckptavg.merging.worker import GroupDigests, Progress
from ckptavg.recipes import UNIFORM, Recipe
from ckptavg.runs.describe import human_size
from ckptavg.runs.outputs import check_output, writing
from ckptavg.runs.record import Record, SourceRecord, now, versions
from ckptavg.runs.record_files import commit_with_record, record_path
from ckptavg.runs.sources import Sources

_SETTLED = 1024 * 1024
"""Bytes of a block from which on it is sent to the disk as soon as it is written."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    Attributes:
        output: the file that it wrote.
        record: the record beside it.
        plan: what was planned and done.
        unverified: sources that neither a record nor checksums of their format prove.
        resumed: share of the work, from 0 to 1, that an interrupted merge had done before.
        seconds: from opening the checkpoints to the record; planning is not in it.
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


def merge(
    sources: Sources,
    output: str | Path,
    *,
    recipe: Recipe | str = UNIFORM,
    coefficients: Sequence[float] | None = None,
    normalize: bool = True,
    non_float: str = EQUAL,
    model: str | Path | None = None,
    max_memory: int | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Averages checkpoints into one file, streaming, in fixed memory.

    Floating-point tensors become the mean sum(c_k x_k), computed in float64 (float64 ones with
    compensated summation) and rounded once. Integers, booleans and texts must agree in all
    checkpoints; the state of random generators and counters of steps are taken from the last.
    Optimizer state is dropped. The output appears whole or not at all, with a record
    `<output>.json` beside it.

    Args:
        sources: a `Run` or its directory, a checkpoint file, a pattern such as
            `ckpt/*.weights.h5`, a folder of checkpoints, or a sequence of these and of
            `Checkpoint`s, as `Run.select` returns them.
        output: the file to write, or the prefix of a TensorFlow checkpoint; its suffix says the
            format, which must be able to hold the names of the tensors. Without any suffix it
            gets that of the checkpoints.
        recipe: `uniform`, the plain mean, or another of `ckptavg.recipes`: a `Recipe`, or its name
            with its parameter, such as `ema:0.9`, `power-ema:0.1` or `sqrt-decay`. It goes by the
            steps in the records, else by the epochs, else by the order of the checkpoints.
        coefficients: one for each checkpoint, with sum 1, in place of a recipe.
        normalize: whether the coefficients must sum to 1.
        non_float: what becomes of what has no mean: `equal` (all must agree) or `last`.
        model: for a `.keras` output: the `model.json` of a run or a `.keras` file, to take the
            model's configuration from. By default that of the run.
        max_memory: bytes that the merge may use beyond what the interpreter and its libraries do;
            by default 64 MiB, or what many tensors need.
        jobs: threads; by default one for each core, up to 4, fewer if memory does not allow them.
        overwrite: whether to replace an existing output.
        resume: whether to go on with what an interrupted merge of the same plan has left, and to
            leave what is done if this one is interrupted.
        progress: called with numbers of bytes as they have been read.

    Returns:
        What was done.

    Raises:
        RunError: there are no checkpoints where `sources` points.
        FormatError: a file is not a checkpoint, or the output's format cannot be written.
        MismatchError: checkpoints are of different models.
        RecipeError: the recipe or the coefficients do not fit the checkpoints.
        IntegrityError: a file differs from its record, holds NaN or infinity, or changed meanwhile.
        OutputError: the output exists, or cannot be written there.
        ResourceError: memory or disk do not suffice.

    Example:
        >>> run = ckptavg.open_run("run")
        >>> report = ckptavg.merge(run.select(last=10), "swa.weights.h5")
    """
    plan = plan_merge(
        sources,
        output,
        recipe=recipe,
        coefficients=coefficients,
        normalize=normalize,
        non_float=non_float,
        model=model,
        max_memory=max_memory,
        jobs=jobs,
        overwrite=overwrite,
    )
    return run_plan(plan, progress, resume=resume)


def run_plan(
    plan: MergePlan, progress: Progress | None = None, *, resume: bool = False
) -> MergeReport:
    """Does what a plan says; see `merge`."""
    started = time.perf_counter()
    groups = divide_plan(plan)
    digests = Digests(plan, groups)
    resumed = 0
    with writing(plan.output), ExitStack() as stack:
        readers = open_sources(plan, stack)
        journal = stack.enter_context(Journal(plan.output, fingerprint(plan), resume=resume))
        writer = stack.enter_context(
            open_writer(
                plan.output, plan.structure, plan.model_config, resume=bool(journal.entries)
            )
        )
        if not writer.resumed:
            journal.restart()

        def done(number: int) -> GroupDigests | None:
            nonlocal resumed
            found = recall(journal, writer, plan, number, groups[number])
            resumed += found is not None
            return found

        def finished(number: int, found: GroupDigests) -> None:
            digests.add(number, found)
            for strip in groups[number]:
                if strip.nbytes >= _SETTLED:
                    segment = strip.segments[0]
                    block = segment.block
                    writer.settle(segment.item.tensor.name, block.start, block.nbytes)
            journal.add(number, found.written, found.read)

        try:
            stream(plan, readers, groups, writer.write, finished, done, progress)
            check_unchanged(plan, readers)
            record = _record(plan, writer.finish(), digests)
        except (KeyboardInterrupt, SystemExit, OSError):
            # Stopped, or out of disk: with `resume` what is done waits for the next merge.
            journal.keep = writer.keep_partial = resume
            raise
        check_output(plan.output, plan.overwrite)
        record = commit_with_record(
            writer.commit, record, digests.tensor_records(), record_path(plan.output)
        )
    return MergeReport(
        output=plan.output,
        record=record,
        plan=plan,
        unverified=tuple(source.path for source in plan.sources if not source.proven),
        resumed=resumed / max(1, len(groups)),
        seconds=time.perf_counter() - started,
    )


def open_sources(plan: MergePlan, stack: ExitStack) -> list[CheckpointReader]:
    """Opens all sources of a plan, as they were when it was made; the stack closes them.

    Raises:
        IntegrityError: one has changed since.
        ResourceError: they are more files than a process may open.
    """
    _allow_open_files(sum(len(source.stamps) for source in plan.sources))
    readers = [
        stack.enter_context(open_reader(source.path, source.structure)) for source in plan.sources
    ]
    check_unchanged(plan, readers)
    return readers


def check_unchanged(plan: MergePlan, readers: Sequence[CheckpointReader]) -> None:
    """Makes sure that no source has changed since the plan was made.

    Raises:
        IntegrityError: one has.
    """
    for source, reader in zip(plan.sources, readers, strict=True):
        reader.check_unchanged(source.stamps)


def _allow_open_files(count: int) -> None:
    """All checkpoints stay open at once: raises the process's own limit as far as it may."""
    needed = count + 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ResourceError(
            f"{count} files of checkpoints must be open at once, but the system allows {hard}: "
            "average groups of them, then the averages"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _facts_of_one(plan: MergePlan) -> dict[str, Any]:
    """What stays true of a checkpoint that is not averaged with others."""
    if len(plan.sources) > 1:
        return {}
    known = plan.sources[0].record
    if known is None:
        return {"epoch": plan.sources[0].epoch}
    names = ("epoch", "step", "learning_rate", "initial_learning_rate", "metrics")
    return {name: getattr(known, name) for name in names}


def _record(plan: MergePlan, size: int, digests: Digests) -> Record:
    folder = plan.output.parent.resolve()
    return Record(
        file=plan.output.name,
        size=size,
        time=now(),
        versions=versions(),
        **_facts_of_one(plan),
        batch_norm=plan.batch_norm,
        model=os.path.relpath(plan.model_file, folder) if plan.model_file else None,
        recipe=plan.recipe,
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
