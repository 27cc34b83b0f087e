"""Recipes: steps of checkpoints to coefficients. Every averaging scheme is one vector of them.

What a recipe is told of a checkpoint is its position in training, which is its step where that is
known. Checkpoints in equal distances get the textbook's coefficients, others their share of time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ckptavg.errors import RecipeError
from ckptavg.recipes.power_ema import gamma_of

UNIFORM, EMA, POWER_EMA = "uniform", "ema", "power-ema"
LINEAR, COSINE, SQRT = "linear-decay", "cosine-decay", "sqrt-decay"
POSTHOC_EMA, COEFFICIENTS = "posthoc-ema", "coefficients"

SUMMARIES = {
    UNIFORM: "the plain mean, as in SWA",
    EMA: "falls by --decay from checkpoint to checkpoint into the past",
    POWER_EMA: "grows as a power of time; --sigma-rel is its length as a share of the training",
    LINEAR: "as if the learning rate had fallen to 0 in a line",
    COSINE: "as if the learning rate had fallen to 0 in half a cosine",
    SQRT: "as if the learning rate had fallen to 0 by 1 - sqrt: fast, then slowly",
    POSTHOC_EMA: "an EMA of any --sigma-rel, from the averages that a run has tracked",
    COEFFICIENTS: "any numbers, given by --coefficients",
}
"""What each recipe does, by its name."""

_OWNERS = {"decay": (EMA,), "sigma_rel": (POWER_EMA, POSTHOC_EMA), "at_step": (POSTHOC_EMA,)}
"""The recipes that each parameter belongs to."""

_SUM_TOLERANCE = 1e-6
_AT_STEP = " at step "


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe with its parameter.

    Attributes:
        name: one of `SUMMARIES`.
        decay: of `ema`, from one checkpoint to the next at their mean distance; between 0 and 1.
        sigma_rel: of `power-ema` and `posthoc-ema`, relative standard deviation of their profile.
        at_step: of `posthoc-ema`, the step that it is an average up to; the last one by default.

    Raises:
        RecipeError: the name is unknown, or the parameter is missing, impossible, or not its own.

    Example:
        >>> Recipe("ema", decay=0.9).coefficients([100, 200, 300])
        (0.2988..., 0.3321..., 0.3690...)
    """

    name: str = UNIFORM
    decay: float | None = None
    sigma_rel: float | None = None
    at_step: int | None = None

    def __post_init__(self) -> None:
        if self.name not in SUMMARIES:
            raise RecipeError(
                f"there is no recipe {self.name!r:.40}, there are {', '.join(SUMMARIES)}"
            )
        for parameter, owners in _OWNERS.items():
            given, option = getattr(self, parameter), f"--{parameter.replace('_', '-')}"
            if given is None and self.name in owners and parameter != "at_step":
                raise RecipeError(f"the recipe {self.name} needs {option} (in Python {parameter}=)")
            if given is not None and self.name not in owners:
                raise RecipeError(f"{option} belongs to {' and '.join(owners)}, not {self.name}")
        if self.decay is not None:
            _check_decay(self.decay)
        if self.sigma_rel is not None:
            gamma_of(self.sigma_rel)

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """A recipe written as its name, or as name and parameter: `uniform`, `ema:0.9`; see `str`.

        Raises:
            RecipeError: it is none.
        """
        named, at, step = text.partition(_AT_STEP)
        name, colon, parameter = named.partition(":")
        if not colon:
            return cls(text)
        try:
            value = float(parameter)
            at_step = int(step) if at else None
        except ValueError as error:
            raise RecipeError(
                f"'{text:.40}' is no recipe: write it like uniform or ema:0.9"
            ) from error
        if name == EMA:
            return cls(name, decay=value, at_step=at_step)
        return cls(name, sigma_rel=value, at_step=at_step)

    def coefficients(self, positions: Sequence[float]) -> tuple[float, ...]:
        """The coefficients of checkpoints at these positions in training, in any order.

        Raises:
            RecipeError: two are at the same position, which only `uniform` allows, or the
                coefficients do not follow from positions.
        """
        if self.name == UNIFORM:
            return uniform(len(positions))
        if self.name not in _FUNCTIONS:
            raise RecipeError(f"the recipe {self.name} does not go by the steps of checkpoints")
        ordered = sorted(positions)
        if len(set(ordered)) < len(ordered):
            twice = next(a for a, b in pairwise(ordered) if a == b)
            raise RecipeError(
                f"two checkpoints are at step {twice:g}, but {self.name} needs them one after the "
                "other: choose those of one training"
            )
        found = _FUNCTIONS[self.name](ordered, self)
        by_position = dict(zip(ordered, found, strict=True))
        return tuple(by_position[position] for position in positions)

    def __str__(self) -> str:
        parameter = self.decay if self.decay is not None else self.sigma_rel
        text = self.name if parameter is None else f"{self.name}:{parameter:g}"
        return text if self.at_step is None else f"{text}{_AT_STEP}{self.at_step}"


def uniform(count: int) -> tuple[float, ...]:
    """The plain mean of `count` checkpoints, as in SWA (Izmailov et al., arXiv 1803.05407)."""
    return (1.0 / count,) * count


def ema(positions: Sequence[float], decay: float) -> tuple[float, ...]:
    """The bias-corrected exponential moving average over checkpoints.

    In equal distances c_i = (1 - decay) decay^(k - i) / (1 - decay^k): what the update
    average <- decay * average + (1 - decay) * checkpoint gives from 0 on, over its sum of
    coefficients. In other distances a checkpoint stands for the time since the one before it.

    Args:
        positions: of the checkpoints in training, rising.
        decay: over the mean distance of checkpoints. One of d for each optimizer step is d^n
            where checkpoints are n steps apart.

    Raises:
        RecipeError: `decay` is not between 0 and 1.
    """
    _check_decay(decay)
    distance, end = _mean_distance(positions), positions[-1]
    return _shares(positions, lambda time: decay ** ((end - time) / distance))


def power_ema(positions: Sequence[float], sigma_rel: float) -> tuple[float, ...]:
    """The power-function moving average (Karras et al., arXiv 2312.02696, section 3.1).

    c_i = (t_i / T)^(gamma + 1) - (t_(i-1) / T)^(gamma + 1), the profile's integral over the time
    since the checkpoint before; made to sum to 1 where the first one comes late in training.

    Args:
        positions: of the checkpoints, counted from the beginning of training, rising.
        sigma_rel: relative standard deviation of the profile; see `gamma_of`.

    Raises:
        RecipeError: `sigma_rel` is not between 0 and 0.289.
    """
    power, end = gamma_of(sigma_rel) + 1, positions[-1]
    return _shares(positions, lambda time: (time / end) ** power if time > 0 else 0.0)


def decay_schedule(
    positions: Sequence[float], multiplier: Callable[[float], float]
) -> tuple[float, ...]:
    """The coefficients that do to updates what a falling learning rate would have done.

    With the multiplier w_i on all updates between checkpoints i - 1 and i the average is
    theta_0 + sum w_i (theta_i - theta_(i-1)), so that c_0 = 1 - w_1, c_j = w_j - w_(j+1), c_k = w_k
    (Tian et al., WSM, arXiv 2507.17634). The rate falls from the first checkpoint on and would
    reach 0 one mean distance after the last: w_i = multiplier(i / (k + 1)) in equal distances, and
    a falling line is then the plain mean.

    Args:
        positions: of the checkpoints in training, rising.
        multiplier: of the learning rate, falling from 1 to 0 over times from 0 to 1.
    """
    start = positions[0]
    length = positions[-1] + _mean_distance(positions) - start
    factors = [multiplier((position - start) / length) for position in positions]
    edges = [1.0, *factors[1:], 0.0]
    return tuple(a - b for a, b in pairwise(edges))


def linear_decay(positions: Sequence[float]) -> tuple[float, ...]:
    """`decay_schedule` of 1 - t."""
    return decay_schedule(positions, lambda time: 1.0 - time)


def cosine_decay(positions: Sequence[float]) -> tuple[float, ...]:
    """`decay_schedule` of (1 + cos(pi t)) / 2."""
    return decay_schedule(positions, lambda time: (1.0 + math.cos(math.pi * time)) / 2.0)


def sqrt_decay(positions: Sequence[float]) -> tuple[float, ...]:
    """`decay_schedule` of 1 - sqrt(t)."""
    return decay_schedule(positions, lambda time: 1.0 - math.sqrt(time))


def effective_sample_size(coefficients: Sequence[float]) -> float:
    """How many independent checkpoints their plain mean would need to be as little noisy.

    (sum c)^2 / sum c^2 (Kish), which is 1 / sum c^2 where the coefficients sum to 1.
    """
    squares = math.fsum(c * c for c in coefficients)
    return math.fsum(coefficients) ** 2 / squares if squares else 0.0


def check_coefficients(
    coefficients: Sequence[float], count: int, *, normalize: bool = True
) -> tuple[float, ...]:
    """Makes sure that coefficients describe an average of `count` checkpoints.

    Args:
        coefficients: one for each checkpoint; they may be negative.
        count: number of checkpoints.
        normalize: whether they must sum to 1, as those of an average do; sums of task vectors
            (Ilharco et al., arXiv 2212.04089) do not.

    Returns:
        The coefficients; if they must sum to 1, divided by their sum, which is 1 but for rounding.

    Raises:
        RecipeError: they are not numbers, there are more or fewer than checkpoints, one is not
            finite, or they do not sum to 1 within 1e-6 though they must.
    """
    try:
        values = tuple(float(value) for value in coefficients)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"coefficients must be numbers, but are {coefficients!r:.80}") from error
    if len(values) != count:
        raise RecipeError(f"there are {len(values)} coefficients for {count} checkpoints")
    if not all(math.isfinite(value) for value in values):
        raise RecipeError(f"coefficients must be finite numbers, but are {list(values)}")
    if not math.isfinite(sum(map(abs, values))):
        raise RecipeError(
            f"coefficients as large as {max(map(abs, values)):.3g} overflow their sum"
        )
    if not normalize:
        return values
    total = math.fsum(values)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise RecipeError(
            f"coefficients must sum to 1, but sum to {total:.9g}: change them, or keep their sum "
            "(--no-normalize, in Python normalize=False)"
        )
    return tuple(value / total for value in values)


_FUNCTIONS: dict[str, Callable[[Sequence[float], Recipe], tuple[float, ...]]] = {
    EMA: lambda positions, recipe: ema(positions, recipe.decay),
    POWER_EMA: lambda positions, recipe: power_ema(positions, recipe.sigma_rel),
    LINEAR: lambda positions, _: linear_decay(positions),
    COSINE: lambda positions, _: cosine_decay(positions),
    SQRT: lambda positions, _: sqrt_decay(positions),
}
BY_POSITION = (UNIFORM, *_FUNCTIONS)
"""Recipes whose coefficients follow from the positions of checkpoints."""


def _check_decay(decay: float) -> None:
    if not (isinstance(decay, int | float) and 0 < decay < 1):
        raise RecipeError(f"decay is {decay!r:.40}, but must lie between 0 and 1, such as 0.9")


def _mean_distance(positions: Sequence[float]) -> float:
    if len(positions) == 1:
        return 1.0
    return (positions[-1] - positions[0]) / (len(positions) - 1)


def _shares(positions: Sequence[float], until: Callable[[float], float]) -> tuple[float, ...]:
    """What each checkpoint's time, since the one before it, adds to a cumulative profile.

    The time of the first begins one mean distance before it: for what came earlier no checkpoint
    stands, and the shares are made to sum to 1 without it.
    """
    edges = [until(positions[0] - _mean_distance(positions)), *map(until, positions)]
    shares = [after - before for before, after in pairwise(edges)]
    total = math.fsum(shares)
    return tuple(share / total for share in shares)
