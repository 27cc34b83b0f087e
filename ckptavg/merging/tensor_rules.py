"""What becomes of each tensor in an average, and why (pure)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptavg.errors import MismatchError, RecipeError
from ckptavg.formats import Structure
from ckptavg.formats.tensors import TensorInfo

AVERAGE, EQUAL, LAST, DROP = "average", "equal", "last", "drop"
"""The mean of all checkpoints; a copy, if all agree; the last one's; nothing."""

NON_FLOAT = (EQUAL, LAST)
"""What may become of integers, booleans and strings: see `decide`."""

_COUNTERS = re.compile(r"(^|/)(save_counter(/|$)|global_step$)")
_GENERATOR = re.compile(r"seed_generator|random_generator")


@dataclass(frozen=True, slots=True)
class PlanItem:
    """What becomes of one tensor, and why."""

    tensor: TensorInfo
    action: str
    reason: str


def decide(
    structure: Structure, count: int, non_float: str = EQUAL, *, copy: bool = False
) -> tuple[PlanItem, ...]:
    """Decides on every tensor of `count` checkpoints of one structure.

    Args:
        structure: of the last checkpoint.
        count: number of checkpoints.
        non_float: what to do with integers, booleans and strings, which have no mean: `equal`: all
            checkpoints must agree; `last`: take the last checkpoint's.
        copy: whether every tensor is to be the last checkpoint's, to the bit.

    Raises:
        RecipeError: `non_float` is something else.
    """
    check_non_float(non_float)
    return tuple(
        PlanItem(tensor, DROP, "optimizer state")
        if name in structure.optimizer
        else PlanItem(tensor, LAST, "copied")
        if copy
        else PlanItem(tensor, *_decide(tensor, count, non_float))
        for name, tensor in structure.tensors.items()
    )


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
