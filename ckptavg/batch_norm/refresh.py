"""Checkpoint files through the BatchNorm pass: load, re-estimate, save."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras

from ckptavg.batch_norm.options import BATCH, BatchNormOptions
from ckptavg.batch_norm.report import BatchNormReport
from ckptavg.batch_norm.update import ConfiguredPass
from ckptavg.formats import check_keras_output, open_reader
from ckptavg.merging.merge import MergeReport, owning_output, run_owned
from ckptavg.merging.plan import MergePlan
from ckptavg.merging.worker import Advance
from ckptavg.models.batches import Progress
from ckptavg.models.model import build, load_weights, save_model
from ckptavg.models.spec_source import data_named
from ckptavg.runs.outputs import check_output
from ckptavg.runs.proof import part_digests, tensor_records
from ckptavg.runs.record import BatchNormRecord, Record, now, versions
from ckptavg.runs.record_files import commit_with_record, find_record, record_path
from ckptavg.storage.files import commit, partial

_KEPT = ("epoch", "model", "model_digest", "recipe", "choice", "differences", "sources")
"""What a record says of a checkpoint that no pass changes."""

Refresh = Callable[[keras.Model], BatchNormReport]
"""Sets the BatchNorm statistics of a model, and reports how they were found."""


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """A checkpoint that went through the BatchNorm pass, and what the pass did.

    Attributes:
        output: the file that was written.
        record: the record beside it.
        batch_norm: what the pass did; None if there was no pass.
        merged: what the merge before it did; None if there was no merge.
    """

    output: Path
    record: Record
    batch_norm: BatchNormReport | None
    merged: MergeReport | None = None

    def __repr__(self) -> str:
        done = "no BatchNorm pass" if self.batch_norm is None else self.batch_norm.facts
        return f"RefreshReport: wrote {self.output}, {done}"


def refresh_live(
    checkpoint: Path,
    output: Path,
    model: keras.Model,
    inputs: Any,
    options: BatchNormOptions,
    *,
    data_name: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RefreshReport:
    """`update_bn` for an owner of the output, with what `options.opened` gave."""
    former = find_record(checkpoint)
    if former is not None:
        former = _moved(former, checkpoint.parent, output.parent)
    inputs = build(model, inputs)
    load_weights(model, checkpoint)
    report = ConfiguredPass(model, options).run(inputs, progress)
    record = _save(model, checkpoint, output, former, report, data_name, overwrite)
    return RefreshReport(output, record, report)


def merge_into_model(
    plan: MergePlan,
    *,
    model: keras.Model | str | Path,
    data: Any = None,
    data_name: str | None = None,
    steps: int | None = None,
    bn_mode: str = BATCH,
    mixed_precision: bool = False,
    resume: bool = False,
    bytes_progress: Advance | None = None,
    batch_progress: Progress | None = None,
    refresh: Refresh | None = None,
    mode: str | None = None,
) -> RefreshReport:
    """Merges, loads the mean into a model, runs the BatchNorm pass, saves: all of it or nothing.

    Args:
        plan: the merge whose output is wanted, from `plan_merge(..., live_model=True)`.
        model: the model that the checkpoints belong to, or its SPEC; a live model keeps the new
            weights.
        data: as in `update_batch_norm`; without data, statistics stay the stale mean.
        data_name: what the record calls the data; by default their SPEC, if they have one.
        steps: number of batches to use; all by default.
        bn_mode: as in `update_batch_norm`.
        mixed_precision: as in `update_batch_norm`.
        resume: as in `merge`.
        bytes_progress: called with numbers of bytes as the merge has read them.
        batch_progress: called after each batch with the number of new batches (1) and of new
            samples.
        refresh: sets the statistics that an earlier pass found for the very same weights, instead
            of another pass.
        mode: former name of `bn_mode`; takes precedence if given.

    Returns:
        The new file, its record, what the pass did, and what the merge did.

    Raises:
        CkptavgError: as `merge` and `update_bn` do.
    """
    options = BatchNormOptions(
        steps=steps, bn_mode=bn_mode if mode is None else mode, mixed_precision=mixed_precision
    )
    options.check_data(data)
    with owning_output(plan), options.opened(model, data) as (live, inputs):
        return merge_live(
            plan,
            live,
            inputs,
            options,
            data_name=data_named(data, data_name),
            resume=resume,
            bytes_progress=bytes_progress,
            batch_progress=batch_progress,
            refresh=refresh,
        )


def merge_live(
    plan: MergePlan,
    model: keras.Model,
    inputs: Any,
    options: BatchNormOptions,
    *,
    data_name: str | None = None,
    resume: bool = False,
    bytes_progress: Advance | None = None,
    batch_progress: Progress | None = None,
    refresh: Refresh | None = None,
) -> RefreshReport:
    """`merge_into_model` for an owner of the output, with what `options.opened` gave."""
    check_keras_output(plan.output)
    inputs = build(model, inputs)
    # The mean goes to a file first, so that it takes the merge's own path, proofs included.
    mean = partial(plan.output.with_name(f"{plan.output.name}.mean.weights.h5"))
    try:
        merged = run_owned(
            replace(plan, output=mean, overwrite=True, model_config=None),
            bytes_progress,
            resume=resume,
        )
        load_weights(model, mean)
        report = None
        if refresh is not None:
            report = refresh(model)
        elif inputs is not None:
            report = ConfiguredPass(model, options).run(inputs, batch_progress)
        former = merged.record
        record = _save(model, mean, plan.output, former, report, data_name, plan.overwrite)
    finally:
        mean.unlink(missing_ok=True)
        record_path(mean).unlink(missing_ok=True)
    return RefreshReport(plan.output, record, report, merged)


def _save(
    model: keras.Model,
    checkpoint: Path,
    output: Path,
    former: Record | None,
    report: BatchNormReport | None,
    data_name: str | None,
    overwrite: bool,
) -> Record:
    """Writes a model as a checkpoint whose record carries on what a former record says.

    Args:
        model: the model to write.
        checkpoint: the file that was loaded into it.
        output: the file to write.
        former: the record of the file that was loaded, if it has one.
        report: what a pass did with the model since then, if there was one.
        data_name: what the record calls the data of the pass.
        overwrite: whether to replace an existing output.
    """
    temporary = partial(output)
    temporary.unlink(missing_ok=True)
    try:
        save_model(model, temporary)
        tensors = tensor_records(temporary)
        with open_reader(temporary) as reader:
            parts = part_digests(reader.parts())
        batch_norm = former.batch_norm if former is not None else None
        if report is not None:
            batch_norm = _state(report, data_name, batch_norm)
        if batch_norm is not None and batch_norm.samples is not None:
            # The pass sets nothing but statistics, so whatever differs is one of them.
            before = tensor_records(checkpoint)
            changed = (name for name in tensors if before.get(name) != tensors[name])
            batch_norm = replace(batch_norm, tensors=tuple(changed))
        record = Record(
            file=output.name,
            size=temporary.stat().st_size,
            time=now(),
            versions=versions(("numpy", "h5py", "keras", keras.backend.backend())),
            batch_norm=batch_norm,
            parts=parts,
            **{name: getattr(former, name) for name in _KEPT if former is not None},
        )
        check_output(output, overwrite)  # once more: the pass may have taken hours
        return commit_with_record(
            lambda: commit(temporary, output), record, tensors, record_path(output)
        )
    finally:
        temporary.unlink(missing_ok=True)


def _state(
    report: BatchNormReport, data_name: str | None, former: BatchNormRecord | None
) -> BatchNormRecord | None:
    """The state of the statistics after a pass that set some, all or none of them."""
    left = len(report.frozen) + len(report.unused)  # these keep the stale mean
    if not report.layers:
        return former if left else None
    return BatchNormRecord(
        layers=len(report.layers) + left,
        statistics="partly fresh" if left else "fresh",
        samples=report.samples,
        batches=report.batches,
        data=data_name,
        mode=report.mode,
        moving=former.moving if former else (),
    )


def _moved(record: Record, old: Path, new: Path) -> Record:
    """The record, with its relative paths rewritten to start from another folder."""

    def moved(path: str) -> str:
        return os.path.relpath((old / path).resolve(), new.resolve())

    return replace(
        record,
        model=moved(record.model) if record.model else None,
        sources=tuple(replace(source, path=moved(source.path)) for source in record.sources),
    )
