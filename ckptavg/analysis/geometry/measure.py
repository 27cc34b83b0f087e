"""One pass over checkpoints that measures how they lie to each other, in fixed memory."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

import numpy as np
import xxhash
from threadpoolctl import threadpool_limits

from ckptavg.analysis.geometry.geometry import Geometry
from ckptavg.analysis.geometry.points import Average, coefficients_of, labels_of
from ckptavg.analysis.statistics_shift import statistics_in
from ckptavg.errors import FormatError, IntegrityError, SpecError
from ckptavg.formats.layers import layer_of
from ckptavg.merging.lockstep import AHEAD, BlockRead, read_side_by_side
from ckptavg.merging.memory import fit_threads, index_memory
from ckptavg.merging.plan import MergePlan, plan_mean
from ckptavg.merging.tensor_rules import AVERAGE, DROP, EQUAL, PlanItem
from ckptavg.merging.work import total_blocks
from ckptavg.merging.worker import Advance, not_finite
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.selection import positions_in
from ckptavg.runs.sources import Sources, resolve

_PIECES = 4 * 1024 * 1024
"""Bytes of the float64 pieces of all checkpoints that a thread holds at once."""
_FEWEST = 1024
"""The fewest values of a piece: smaller ones cost more time than they save memory."""
_TOO_LARGE = 1e150
"""Magnitude from which squares, or sums of them over a model, exceed float64."""
_THREAD = 2 * 1024 * 1024
"""Bytes that a thread takes besides its piece: buffers of BLAS, and the thread itself."""


def measure_geometry(
    sources: Sources,
    *,
    averages: Mapping[str, Average] | None = None,
    leave_out: Sequence[str] = (),
    max_memory: int | None = None,
    progress: Advance | None = None,
) -> Geometry:
    """Measures how checkpoints lie to each other, layer by layer.

    Every byte is read once, and only a piece of each checkpoint is in memory at a time. The result
    holds inner products, 8 bytes for each layer and pair of checkpoints. Only weights count, not
    optimizer state, integers or the moving statistics of BatchNorm layers. Statistics are
    recognized by records, by their own names, or by the names of layers; if a layer of a subclassed
    model has neither, name them in `leave_out`.

    Args:
        sources: checkpoints of one model, as in `merge`, in the order of training.
        averages: averages to place among the checkpoints, by name: coefficients with sum 1, a
            `Recipe`, or a merged file, whose record lists its sources (its weights are not read).
        leave_out: patterns of stored names of tensors that do not count, such as
            `*/bn*/vars/[23]`.
        max_memory: bytes that may be used beyond what the interpreter and its libraries use; by
            default 64 MiB, or more if many checkpoints and layers need it.
        progress: called with the number of bytes read since the last call.

    Returns:
        Inner products, and methods for what follows from them.

    Raises:
        RunError: `sources` holds no checkpoints, or an average has other sources than these.
        FormatError: a file is not a checkpoint, or holds no weights.
        MismatchError: the checkpoints belong to different models.
        RecipeError: there are not as many coefficients as checkpoints, or their sum is not 1.
        SpecError: a pattern in `leave_out` matches no tensor.
        IntegrityError: a file differs from its record, holds NaN or infinity, or changed meanwhile.
        MemoryLimitError: `max_memory` is too low; the error says how much is needed.

    Example:
        >>> ema = ckptavg.Recipe("ema", decay=0.9)
        >>> averages = {"SWA": "swa.weights.h5", "EMA": ema}
        >>> geometry = ckptavg.analysis.measure_geometry("run", averages=averages)
        >>> geometry.distances().to_frame().loc["SWA"]
    """
    checkpoints = resolve(sources)
    vectors = {name: coefficients_of(a, checkpoints) for name, a in (averages or {}).items()}
    plan = plan_mean(checkpoints)
    weights, left_out = _weights(plan, leave_out)
    _check_records(plan, weights)

    def check(found: BlockRead[_Products]) -> None:
        found.check_intact(plan.sources)  # first, because damage may look like NaN
        _check_finite(plan, found)

    geometry = _measure(plan, checkpoints, weights, weights, check, max_memory, progress)
    return replace(geometry, averages=vectors, left_out=left_out)


@dataclass(frozen=True, slots=True)
class Survey:
    """How checkpoints lie to each other, and what is wrong with each of them.

    Attributes:
        geometry: of all checkpoints; values that cannot be measured count as 0.
        damaged: for each checkpoint the first tensor whose bytes differ from the record, if any.
        not_finite: for each checkpoint the first tensor with NaN, infinity or numbers whose squares
            overflow, if any.
        contents: for each checkpoint a digest of all its tensors.
        differing: names of integer and string tensors in which checkpoints differ that must agree.
    """

    geometry: Geometry
    damaged: tuple[str | None, ...]
    not_finite: tuple[str | None, ...]
    contents: tuple[bytes, ...]
    differing: tuple[str, ...]


def survey(
    checkpoints: Sequence[Checkpoint], progress: Advance | None = None, *, non_float: str = EQUAL
) -> Survey:
    """Measures checkpoints as `measure_geometry` does, but notes damage instead of refusing it.

    It also reads the tensors that do not count, because they may be damaged as well.
    See docs/decisions/0070-the-doctor-judges-a-geometry.md

    Args:
        checkpoints: of one model.
        progress: called with the number of bytes read since the last call.
        non_float: as in `merge`.

    Raises:
        CkptavgError: as `measure_geometry` does, except for damage and values that are not finite.
    """
    plan = plan_mean(checkpoints, non_float=non_float)
    weights, left_out = _weights(plan, ())
    damaged: list[str | None] = [None] * len(checkpoints)
    not_finite: list[str | None] = [None] * len(checkpoints)
    contents = [xxhash.xxh3_128() for _ in checkpoints]
    differing: dict[str, None] = {}

    def note(found: BlockRead[_Products]) -> None:
        name = found.item.tensor.name
        for number in found.damaged:
            # The first tensor is named, in the order of the file.
            damaged[number] = damaged[number] or name
        for number in found.measured.unmeasured if found.measured is not None else ():
            not_finite[number] = not_finite[number] or name
        for hasher, digest in zip(contents, found.digests, strict=True):
            hasher.update(digest)
        intact = {d for n, d in enumerate(found.digests) if n not in found.damaged}
        if found.item.action == EQUAL and len(intact) > 1:
            differing[name] = None

    items = [item for item in plan.items if item.action != DROP]
    geometry = _measure(plan, checkpoints, weights, items, note, None, progress)
    return Survey(
        replace(geometry, left_out=left_out),
        tuple(damaged),
        tuple(not_finite),
        tuple(hasher.digest() for hasher in contents),
        tuple(differing),
    )


@dataclass(frozen=True, slots=True)
class _Products:
    """Inner products of a block's deviations from the mean, and with the mean.

    Attributes:
        unmeasured: by the number of the checkpoint, the largest magnitude among values that were
            taken as 0, because they or their squares are not finite; NaN if any of them is NaN.
    """

    gram: np.ndarray
    along: np.ndarray
    mean_square: float
    unmeasured: Mapping[int, float]


def _measure(
    plan: MergePlan,
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[PlanItem],
    items: Sequence[PlanItem],
    check: Callable[[BlockRead[_Products]], None],
    max_memory: int | None,
    progress: Advance | None,
) -> Geometry:
    """Reads items once, has every block checked, and measures those that are weights."""
    count = len(checkpoints)
    parameters: dict[str, int] = defaultdict(int)
    for item in weights:
        size = item.tensor.nbytes // item.tensor.numpy_dtype.itemsize
        parameters[layer_of(item.tensor.name)] += size
    numbers = {name: number for number, name in enumerate(parameters)}
    counted = {item.tensor.name for item in weights}
    gram = np.zeros((len(parameters), count, count))
    along = np.zeros((len(parameters), count))
    mean_squares = np.zeros(len(parameters))
    piece, jobs = _fit_memory(plan, items, len(parameters), max_memory)
    # BLAS' own threads wait for each other in a busy loop: beside ours, or beside other programs,
    # they take many times as long as the products.
    # See docs/decisions/0069-blas-is-limited-to-one-thread.md
    with threadpool_limits(1, "blas"):
        for found in read_side_by_side(
            plan, items, partial(_products, count), piece=piece, jobs=jobs, progress=progress
        ):
            check(found)
            name = found.item.tensor.name
            if found.measured is not None and name in counted:
                number = numbers[layer_of(name)]
                gram[number] += found.measured.gram
                along[number] += found.measured.along
                mean_squares[number] += found.measured.mean_square
    places, unit = positions_in(checkpoints)
    return Geometry(
        checkpoints=tuple(checkpoints),
        labels=labels_of(checkpoints),
        positions=places,
        position_unit=unit,
        layers=tuple(parameters),
        parameters=tuple(parameters.values()),
        gram=gram,
        along=along,
        mean_squares=mean_squares,
    )


def _products(count: int, _: PlanItem, pieces: Iterator[np.ndarray]) -> _Products:
    gram, along, mean_square = np.zeros((count, count)), np.zeros(count), 0.0
    unmeasured: dict[int, float] = {}
    for values in pieces:
        # One sum of squares for each checkpoint shows NaN, infinity and overflow alike.
        squares = np.einsum("kn,kn->k", values, values)
        for number in np.flatnonzero(~np.isfinite(squares)).tolist():
            sizes = np.abs(values[number])
            # np.maximum hands NaN on, which max() would lose.
            unmeasured[number] = float(np.maximum(sizes.max(), unmeasured.get(number, 0.0)))
            values[number, ~(sizes < _TOO_LARGE)] = 0.0
        # Deviations, because the distance of neighbours as a difference of the squares of weights
        # would lose half of its digits.
        mean = values.mean(axis=0)
        values -= mean
        gram += values @ values.T
        along += values @ mean
        mean_square += float(mean @ mean)
    return _Products(gram, along, mean_square, unmeasured)


def _weights(
    plan: MergePlan, patterns: Sequence[str]
) -> tuple[tuple[PlanItem, ...], tuple[str, ...]]:
    """The tensors that count as weights, and the names of the others."""
    statistics = {name for names in statistics_in(plan).values() for name in names}
    items = [item for item in plan.items if item.action != DROP]
    for pattern in patterns:
        # A pattern without a match is a mistake that would go unnoticed.
        matched = {i.tensor.name for i in items if fnmatchcase(i.tensor.name, pattern)}
        if not matched:
            raise SpecError(f"no tensor matches the pattern {pattern!r:.80} in leave_out")
        statistics |= matched
    weights = tuple(
        i
        for i in items
        if i.action == AVERAGE and i.tensor.nbytes and i.tensor.name not in statistics
    )
    if not weights:
        raise FormatError(f"{plan.sources[0].path} holds no weights except those left out")
    counted = {item.tensor.name for item in weights}
    return weights, tuple(i.tensor.name for i in items if i.tensor.name not in counted)


def _fit_memory(
    plan: MergePlan, items: Sequence[PlanItem], layers: int, max_memory: int | None
) -> tuple[int, int]:
    """Values of a piece, and threads: as many as there is work and memory for."""
    count = len(plan.sources)
    # Each value of a piece also needs room for the mean, the bytes read, and temporary results.
    matrix, value = 8 * count**2, 8 * (count + 6)
    fixed = index_memory(plan.sources) + layers * (matrix + 8 * count + 8)
    # The sum, a product and a temporary one, and the results that wait for those before them.
    thread = (3 + AHEAD) * matrix + _THREAD
    work, least = total_blocks(items), thread + _FEWEST * value
    jobs, room = fit_threads(work, fixed, least, max_memory)
    return min((room - thread) // value, max(_FEWEST, _PIECES // (8 * count))), jobs


def _check_records(plan: MergePlan, items: Sequence[PlanItem]) -> None:
    """Refuses checkpoints whose records list NaN or infinity, before anything is read."""
    counted = {item.tensor.name for item in items}
    for source in plan.sources:
        bad = [] if source.record is None else counted.intersection(source.record.non_finite)
        if bad:
            raise IntegrityError(
                f"'{min(bad)}' in {source.path} holds NaN or infinity, as its record says: leave "
                "out this checkpoint"
            )


def _check_finite(plan: MergePlan, found: BlockRead[_Products]) -> None:
    """Refuses NaN, infinity, and numbers whose squares overflow."""
    if found.measured is None or not found.measured.unmeasured:
        return
    number, size = min(found.measured.unmeasured.items())
    name = found.item.tensor.name
    if not math.isfinite(size):
        raise not_finite(plan.sources[number].path, name, np.array(size))
    raise IntegrityError(
        f"'{name}' in {plan.sources[number].path} holds numbers whose squares exceed float64: "
        "leave the tensor out"
    )
