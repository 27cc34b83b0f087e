"""Recipes: from the positions of checkpoints in training to the coefficients of their average.

Every averaging scheme is one vector of coefficients. A recipe of your own is one function:

    from ckptavg.recipes import recipe

    @recipe("triangle", summary="rises linearly from the first checkpoint to the last")
    def triangle(positions):
        total = sum(range(1, len(positions) + 1))
        return [n / total for n in range(1, len(positions) + 1)]

    ckptavg.merge("run", "triangle.weights.h5", recipe="triangle")

Once its module is imported, the commands and their help know it, too. See `recipe` for parameters.
"""

from collections.abc import Mapping

# Recipes are listed in the order in which these modules, and those that they import, register them.
from ckptavg.recipes.decay_schedules import (
    COSINE,
    LINEAR,
    SQRT,
    cosine_decay,
    decay_schedule,
    linear_decay,
    sqrt_decay,
)
from ckptavg.recipes.moving_averages import EMA, POWER_EMA, UNIFORM, ema, power_ema, uniform
from ckptavg.recipes.posthoc_ema import POSTHOC_EMA
from ckptavg.recipes.registry import RECIPES, Parameter, Recipe, all_parameters, owners, recipe
from ckptavg.recipes.vectors import COEFFICIENTS, check_coefficients, effective_sample_size

__all__ = [
    "BY_POSITION",
    "COEFFICIENTS",
    "COSINE",
    "EMA",
    "LINEAR",
    "POSTHOC_EMA",
    "POWER_EMA",
    "RECIPES",
    "SQRT",
    "SUMMARIES",
    "UNIFORM",
    "Parameter",
    "Recipe",
    "all_parameters",
    "check_coefficients",
    "cosine_decay",
    "decay_schedule",
    "effective_sample_size",
    "ema",
    "linear_decay",
    "owners",
    "power_ema",
    "recipe",
    "sqrt_decay",
    "uniform",
]


SUMMARIES: Mapping[str, str]
"""What each recipe does, by its name."""
BY_POSITION: tuple[str, ...]
"""Recipes whose coefficients follow from the positions of checkpoints."""


def __getattr__(name: str) -> object:
    # Read from the table at each access: a recipe may be registered at any time.
    if name == "SUMMARIES":
        return {definition.name: definition.summary for definition in RECIPES.values()}
    if name == "BY_POSITION":
        return tuple(d.name for d in RECIPES.values() if d.over == "positions")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
