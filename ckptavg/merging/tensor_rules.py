"""What becomes of each tensor in an average, and why (pure)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ckptavg.errors import MismatchError, RecipeError
from ckptavg.formats import Structure
from ckptavg.formats.tensors import TensorInfo

AVERAGE, EQUAL, LAST, DROP = "average", "equal", "last", "drop"
"""The mean of all checkpoints; a copy, if all agree; the last one's; nothing."""

NON_FLOAT = (EQUAL, LAST)
"""What may become of integers, booleans and strings: see `decide`."""

DTYPES = ("float32", "float16", "bfloat16")
"""What floating-point tensors may be written as, whatever the checkpoints hold."""

_COUNTERS = re.compile(r"(^|/)(save_counter(/|$)|global_step$)")
_GENERATOR = re.compile(r"seed_generator|random_generator")


@dataclass(frozen=True, slots=True)
class PlanItem:
    """What becomes of one tensor, and why.

    Attributes:
        tensor: as the checkpoints hold it.
        action: `AVERAGE`, `EQUAL`, `LAST` or `DROP`.
        reason: why, in a few words.
        converted: its dtype in the output, if that is another one; only of what is averaged.
    """

    tensor: TensorInfo
    action: str
    reason: str
    converted: str | None = None

    @property
    def output(self) -> TensorInfo:
        """The tensor as the output will hold it."""
        if self.converted is None:
            return self.tensor
        return replace(self.tensor, dtype=self.converted, extent=None)

    @property
    def dtypes(self) -> tuple[np.dtype, np.dtype]:
        """Of the values in the checkpoints, and in the output."""
        stored = self.tensor.numpy_dtype
        return stored, stored if self.converted is None else np.dtype(self.converted)

    def in_output(self, nbytes: int) -> int:
        """Bytes of the output that so many bytes of a checkpoint become."""
        if self.converted is None:
            return nbytes
        stored, written = self.dtypes
        return nbytes // stored.itemsize * written.itemsize


def decide(
    structure: Structure,
    count: int,
    non_float: str = EQUAL,
    *,
    copy: bool = False,
    dtype: str | None = None,
) -> tuple[PlanItem, ...]:
    """Decides on every tensor of `count` checkpoints of one structure.

    Args:
        structure: of the last checkpoint.
        count: number of checkpoints.
        non_float: what to do with integers, booleans and strings, which have no mean: `equal`: all
            checkpoints must agree; `last`: take the last checkpoint's.
        copy: whether every tensor is to be the last checkpoint's, to the bit.
        dtype: of all floating-point tensors in the output; None for their own.

    Raises:
        RecipeError: `non_float` or `dtype` is something else.
    """
    check_non_float(non_float)
    if dtype not in (None, *DTYPES):
        raise RecipeError(
            f"dtype is {dtype!r:.40}, but must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
        )

    def item(name: str, tensor: TensorInfo) -> PlanItem:
        if name in structure.optimizer:
            return PlanItem(tensor, DROP, "optimizer state")
        converted = dtype if tensor.is_float and tensor.dtype != dtype else None
        if copy and converted is None:
            return PlanItem(tensor, LAST, "copied")
        action, reason = (AVERAGE, "copied") if copy else _decide(tensor, count, non_float)
        return PlanItem(
            tensor, action, reason + (f", as {converted}" if converted else ""), converted
        )

    return tuple(item(name, tensor) for name, tensor in structure.tensors.items())


def check_non_float(non_float: str) -> None:
    """Makes sure that `non_float` is one of NON_FLOAT.

    Raises:
        RecipeError: it is something else.
    """
    if non_float not in NON_FLOAT:
        raise RecipeError(f"non_float is {non_float!r:.40}, but must be 'equal' or 'last'")


def disagreement(tensor: TensorInfo, one: Path, other: Path) -> MismatchError:
    """The error that a tensor without a mean differs between two checkpoints."""
    return MismatchError(
        f"'{tensor.name}' ({tensor.dtype}) differs between {one} and {other}: values of this type "
        "have no mean, so all checkpoints must agree. Leave out those that do not, or take the "
        "last one's (--non-float last, in Python non_float='last')"
    )


def _decide(tensor: TensorInfo, count: int, non_float: str) -> tuple[str, str]:
    if tensor.is_float:
        return AVERAGE, f"mean of {count}" if count > 1 else "the only one"
    # Every training step changes it: checkpoints never agree.
    if _GENERATOR.search(tensor.name):
        return LAST, "state of a random generator, from the last checkpoint"
    if _COUNTERS.search(tensor.name):
        return LAST, "counts saves or steps, from the last checkpoint"
    if non_float == LAST:
        return LAST, f"{tensor.dtype} has no mean, from the last checkpoint"
    return EQUAL, f"{tensor.dtype} has no mean, all must agree"


def sources_read(coefficients: Sequence[float]) -> dict[str, tuple[int, ...]]:
    """Which of the checkpoints with these coefficients are read for a tensor, by its action."""
    every, last = tuple(range(len(coefficients))), (len(coefficients) - 1,)
    # Coefficients may all be 0 without normalization: the sum is then 0 times the last checkpoint.
    weighted = tuple(n for n in every if coefficients[n] != 0.0) or last
    return {AVERAGE: weighted, EQUAL: every, LAST: last, DROP: ()}
