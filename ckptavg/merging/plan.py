"""The plan of a merge: everything checked and decided before a byte is written."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckptavg.errors import FormatError, OutputError, ResourceError
from ckptavg.formats import ModelConfig, Structure, named_like, writer_of
from ckptavg.formats.layers import moving_statistics
from ckptavg.formats.tensorflow.paths import checkpoint_path, main_file
from ckptavg.formats.tensors import BLOCK_SIZE
from ckptavg.merging.exact_mean import PIECE
from ckptavg.merging.memory import fit_threads, index_memory
from ckptavg.merging.model_source import find_model
from ckptavg.merging.planned_sources import SourcePlan, plan_sources
from ckptavg.merging.quantized import check_config_not_quantized, check_not_quantized
from ckptavg.merging.tensor_rules import DROP, EQUAL, PlanItem, decide, sources_read
from ckptavg.merging.weighting import weigh
from ckptavg.merging.work import total_blocks
from ckptavg.recipes import UNIFORM, Recipe, uniform
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import describe_epochs, human_size
from ckptavg.runs.digest import DIGEST_SIZE
from ckptavg.runs.json_values import Scalar
from ckptavg.runs.outputs import check_name, check_output, is_text
from ckptavg.runs.record import BatchNormRecord
from ckptavg.runs.sources import Sources
from ckptavg.runs.trainings import Trainings, find_trainings
from ckptavg.storage.files import partial

COPY = "copy"
"""What stands for the recipe where a checkpoint is written in another format."""

_JOB_MEMORY = 14 * 8 * PIECE
"""Bytes for one thread: bytes read, sum, scratch, and what float64 or bfloat16 arithmetic needs."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """All that a merge will do. It is plain data: it can be printed, compared and pickled.

    Attributes:
        output: the file to write.
        sources: in the order in which they were named.
        items: what becomes of every tensor of the checkpoints.
        recipe: how the coefficients came about, such as `uniform` or `ema:0.9`; or `COPY`.
        jobs: number of threads; see `ckptavg.merging.memory`.
        batch_norm: what the BatchNorm statistics of the output will be worth.
        bytes_read: from all sources.
        bytes_written: of tensors.
        memory: projected working memory in bytes, beyond the interpreter and its libraries.
        overwrite: whether a file of the output's name may be replaced.
        model_file: the model's configuration, if there is one.
        model_digest: its digest, if it is a `model.json`.
        model_config: its content, if the output needs it.
        model_note: which configuration was taken, and in what others differ; empty if none does.
        disk: bytes that the folder of the output must have free.
        left_out: checkpoints that hold NaN or infinity, as their records say.
        choice: what was asked for, as the record will note it.
        trainings: those that the checkpoints come from, if they are several.
    """

    output: Path
    sources: tuple[SourcePlan, ...]
    items: tuple[PlanItem, ...]
    recipe: str
    jobs: int
    batch_norm: BatchNormRecord | None
    bytes_read: int
    bytes_written: int
    memory: int
    overwrite: bool = False
    model_file: Path | None = None
    model_digest: str | None = None
    model_config: ModelConfig | None = None
    model_note: str = ""
    disk: int = 0
    left_out: tuple[Checkpoint, ...] = ()
    choice: Mapping[str, Scalar] = field(default_factory=dict)
    trainings: Trainings | None = None

    def __repr__(self) -> str:
        tensors = sum(item.action != DROP for item in self.items)
        lines = [
            f"MergePlan of {self.output}: {self.facts}",
            f"  {tensors} tensors, reads {human_size(self.bytes_read)}, writes "
            f"{human_size(self.bytes_written)}",
            f"  memory {human_size(self.memory)}, threads {self.jobs}",
        ]
        if self.left_out:
            lines.append(f"  left out (NaN or infinity): {describe_epochs(self.left_out)}")
        if self.trainings is not None:
            lines.append(f"  {self.trainings.summary}")
        return "\n".join(lines)

    @property
    def facts(self) -> str:
        """What is averaged, in a few words, such as `uniform of 4 checkpoints of epochs 3-6`."""
        return f"{self.recipe} of {describe_epochs(self.sources)}"

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The coefficient of each source."""
        return tuple(source.coefficient for source in self.sources)

    @property
    def sources_read(self) -> dict[str, tuple[int, ...]]:
        """Numbers of the sources that are read for a tensor, by what becomes of it."""
        return sources_read(self.coefficients)

    @property
    def structure(self) -> Structure:
        """What the output will hold."""
        tensors = {i.tensor.name: i.output for i in self.items if i.action != DROP}
        return self.sources[-1].structure.with_tensors(tensors)

    @property
    def output_files(self) -> list[Path]:
        """Every file that the output will consist of."""
        structure = self.structure
        return writer_of(self.output, structure.naming).output_files(self.output, structure)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """What a merge does with its checkpoints; all that is not explained is as in `ckptavg.merge`.

    Attributes:
        live_model: whether `merge_into_model` will run the plan: a `.keras` output then takes its
            configuration from the model that it is given, not from a file.
        copy: whether every tensor is that of the last checkpoint, to the bit, as for `convert`.
        choice: how the sources were chosen, for the record.
    """

    recipe: Recipe | str = UNIFORM
    coefficients: Sequence[float] | None = None
    normalize: bool = True
    non_float: str = EQUAL
    dtype: str | None = None
    model: str | Path | None = None
    max_memory: int | None = None
    jobs: int | None = None
    overwrite: bool = False
    live_model: bool = False
    copy: bool = False
    choice: Mapping[str, Scalar] = field(default_factory=dict)


def plan_merge(
    sources: Sources, output: str | Path, options: MergeOptions | None = None
) -> MergePlan:
    """Plans a merge from metadata alone; errors are those of `ckptavg.merge`."""
    asked = MergeOptions() if options is None else options
    weighted = weigh(
        sources,
        asked.recipe,
        coefficients=asked.coefficients,
        normalize=asked.normalize,
        finite_only=not asked.copy,
    )
    output = checkpoint_path(output)
    check_name(output)
    output = named_like(output, weighted.checkpoints[0].path)
    check_output(output, asked.overwrite)
    plan = plan_average(
        weighted.checkpoints,
        output,
        recipe=COPY if asked.copy else weighted.recipe,
        coefficients=weighted.coefficients,
        non_float=asked.non_float,
        dtype=asked.dtype,
        max_memory=asked.max_memory,
        jobs=asked.jobs,
    )
    _check_names(plan)
    _check_files(plan, asked.overwrite)
    plan = _with_model(plan, asked)
    _check_disk(output, plan.disk)
    dtype = {} if asked.dtype is None else {"dtype": asked.dtype}
    return replace(
        plan,
        overwrite=asked.overwrite,
        left_out=weighted.left_out,
        choice={**asked.choice, **weighted.choice, **dtype},
        trainings=find_trainings(weighted.checkpoints),
    )


def plan_average(
    checkpoints: Sequence[Checkpoint],
    output: Path,
    *,
    recipe: str,
    coefficients: Sequence[float],
    non_float: str = EQUAL,
    dtype: str | None = None,
    max_memory: int | None = None,
    jobs: int | None = None,
) -> MergePlan:
    """Plans an average, whether or not it is ever written.

    Args:
        checkpoints: to be averaged.
        output: the output that the plan will name; it is not looked at.
        recipe: the recipe that the plan will name. With `COPY` all tensors are those of the last
            checkpoint, to the bit.
        coefficients: one for each checkpoint.
        non_float: as in `merge`.
        dtype: as in `merge`.
        max_memory: as in `merge`.
        jobs: as in `merge`.

    Raises:
        CkptavgError: as `merge` does.
    """
    sources = plan_sources(checkpoints, coefficients)
    last, copy = sources[-1], recipe == COPY
    if not copy:
        _check_not_quantized(last, max_memory)
    items = decide(last.structure, len(sources), non_float, copy=copy, dtype=dtype)
    if all(item.action == DROP for item in items):
        raise FormatError(f"{sources[0].path} holds no weights")
    read = sources_read(coefficients)
    written = sum(item.output.nbytes for item in items if item.action != DROP)
    digests = total_blocks(items) * DIGEST_SIZE * (len(sources) + 1)
    index = index_memory(sources) + digests
    threads, _ = fit_threads(-(-written // BLOCK_SIZE), index, _JOB_MEMORY, max_memory, jobs)
    return MergePlan(
        output=output,
        sources=sources,
        items=items,
        recipe=recipe,
        jobs=threads,
        batch_norm=_batch_norm(sources),
        bytes_read=sum(item.tensor.nbytes * len(read[item.action]) for item in items),
        bytes_written=written,
        memory=index + threads * _JOB_MEMORY,
    )


def _with_model(plan: MergePlan, asked: MergeOptions) -> MergePlan:
    """The plan with the configuration of the model, and the disk that the output takes with it."""
    archive = writer_of(plan.output, plan.structure.naming).needs_model_config
    found = find_model(
        plan.sources,
        plan.output,
        None if asked.model is None else Path(asked.model),
        needed=archive and not asked.live_model,
        max_memory=asked.max_memory,
    )
    # An archive needs the disk twice: the weights are written first, then the file around them.
    disk = plan.bytes_written * (2 if archive or asked.live_model else 1)
    disk += sum(found.config.assets.values()) if found.config is not None else 0
    return replace(
        plan,
        model_file=found.file,
        model_digest=found.digest,
        model_config=found.config,
        model_note=found.note,
        disk=disk,
    )


def plan_mean(
    checkpoints: Sequence[Checkpoint], output: Path = Path(), *, non_float: str = EQUAL
) -> MergePlan:
    """Plans the plain mean of checkpoints; arguments and errors are those of `plan_average`."""
    coefficients = uniform(len(checkpoints))
    return plan_average(
        checkpoints, output, recipe=UNIFORM, coefficients=coefficients, non_float=non_float
    )


def _check_names(plan: MergePlan) -> None:
    """Makes sure that the record of the output can name its sources."""
    folder = plan.output.parent.resolve()
    folders = {source.path.parent for source in plan.sources}
    found = {f: os.path.relpath(f.resolve(), folder) for f in folders}
    for source in plan.sources:
        if not is_text(found[source.path.parent] + source.path.name):
            raise OutputError(
                f"the record of {plan.output} cannot name {os.fsencode(source.path)!r}, which is "
                "not valid UTF-8: rename it"
            )


def _check_files(plan: MergePlan, overwrite: bool) -> None:
    """Makes sure that none of the output's files is one that is read, or somebody else's."""
    read = {
        main_file(source.path).with_name(file).resolve()
        for source in plan.sources
        for file in source.files
    }
    # A commit that was killed left its journal, and perhaps some of its files.
    unfinished = partial(plan.output.with_name(f"{plan.output.name}.journal")).exists()
    for file in plan.output_files:
        if file.resolve() in read:
            raise OutputError(f"{file} is also one of the checkpoints: choose another name")
        if file == plan.output or not os.path.lexists(file):
            continue
        if file.is_symlink() or not file.is_file():
            raise OutputError(f"{file} is in the way: it has the name of a file of the output")
        if not (overwrite or unfinished):
            raise OutputError(
                f"{file} exists already: {plan.output.name} would replace it. Choose another name "
                "or overwrite it (--overwrite, in Python overwrite=True)"
            )


def _check_not_quantized(source: SourcePlan, max_memory: int | None) -> None:
    check_not_quantized(source.path, source.structure)
    if source.members:
        check_config_not_quantized(source.path, ModelConfig.read(source.path, max_memory))


def _check_disk(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output.parent).free
    held = partial(output)  # what an interrupted merge left is continued or removed
    free += held.stat().st_blocks * 512 if held.is_file() else 0
    if free < needed:
        raise ResourceError(
            f"{output} needs {needed:,} bytes of disk but {output.parent} has {free:,} free"
        )


def _batch_norm(sources: Sequence[SourcePlan]) -> BatchNormRecord | None:
    known, averaged = sources[-1].record, len(sources) > 1
    if known is None:
        layers = len(moving_statistics(sources[-1].structure))
        return BatchNormRecord(layers, "stale" if averaged else "running") if layers else None
    if known.batch_norm is None or not averaged:
        return known.batch_norm
    return BatchNormRecord(known.batch_norm.layers, "stale", moving=known.batch_norm.moving)
