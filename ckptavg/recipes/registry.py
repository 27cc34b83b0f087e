"""The table of recipes: what each is called, which parameters it takes, and how it weighs.

A recipe is one function with the decorator `recipe`. Everything else that knows recipes reads the
table: `Recipe.parse`, the options and the help of `merge`, `recipes` and `sweep`, the error
messages, and the command that a report prints to make an average again.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

from ckptavg.errors import RecipeError

Over = Literal["positions", "tracked averages", "given numbers"]
"""What a recipe makes coefficients of."""

_SUM_TOLERANCE = 1e-6

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter that recipes may take.

    Attributes:
        name: its keyword in Python, such as `sigma_rel`; its option is `--sigma-rel`.
        help: one sentence for the help of commands, without the names of the recipes.
        metavar: what stands for its value in the help.
        value_type: of its values.
        required: whether the recipe needs it.
        example: what `ckptavg recipes` shows the recipe with; needed of one that is required.
        check: raises a `RecipeError` for impossible values.
    """

    name: str
    help: str
    metavar: str
    value_type: type[int] | type[float] = float
    required: bool = True
    example: float | None = None
    check: Callable[[Any], object] | None = None

    @property
    def option(self) -> str:
        """The option of commands."""
        return "--" + self.name.replace("_", "-")

    @property
    def words(self) -> str:
        """The name as it stands in `posthoc-ema:0.1 at step 2048`."""
        return self.name.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Definition:
    """A recipe as the decorator noted it; its fields are the arguments of `recipe`."""

    name: str
    summary: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()
    over: Over = "positions"
    distinct: bool = True


RECIPES: dict[str, Definition] = {}
"""Every recipe by its name, in the order in which they were registered."""


def recipe(
    name: str,
    *,
    summary: str,
    parameters: Sequence[Parameter] = (),
    over: Over = "positions",
    distinct: bool = True,
) -> Callable[[Function], Function]:
    """Registers a function as a recipe, under which all commands know it at once.

    The function is called with the positions of checkpoints in training, rising, and with the
    parameters as keywords. It returns one coefficient for each position; they must sum to 1.

    Args:
        name: what users write, such as `ema`.
        summary: a few words for the list of recipes.
        parameters: those it takes. `ema:0.9` gives the first; the text of the others follows it,
            as in `posthoc-ema:0.1 at step 2048`. A parameter of one name is the same in all
            recipes.
        over: what the function is given: `positions`; recipes over `tracked averages` and `given
            numbers` are ckptavg's own.
        distinct: whether no two checkpoints may be at the same position.

    Raises:
        RecipeError: the name is taken or cannot be written in a list, or a parameter of that name
            means something else in another recipe.

    Example:
        >>> @recipe("triangle", summary="rises linearly from the first checkpoint to the last")
        ... def triangle(positions):
        ...     total = sum(range(1, len(positions) + 1))
        ...     return [n / total for n in range(1, len(positions) + 1)]
        >>> Recipe("triangle").coefficients([100, 200, 300])
        (0.16666666666666666, 0.3333333333333333, 0.5)
    """
    if name in RECIPES or not name or set(name) & set(":, "):
        raise RecipeError(
            f"cannot register a recipe as {name!r:.40}: the name must be new, without commas, "
            "colons and spaces"
        )
    known = all_parameters()  # one option serves all recipes
    for parameter in parameters:
        if known.get(parameter.name, parameter) != parameter:
            raise RecipeError(f"the parameter {parameter.name} means something else already")

    def register(function: Function) -> Function:
        RECIPES[name] = Definition(name, summary, function, tuple(parameters), over, distinct)
        return function

    return register


def all_parameters() -> dict[str, Parameter]:
    """Every parameter of any recipe by its name, in the order of the recipes."""
    return {p.name: p for definition in RECIPES.values() for p in definition.parameters}


def owners(parameter: str) -> tuple[str, ...]:
    """The names of the recipes that take a parameter."""
    return tuple(name for name, d in RECIPES.items() if parameter in {p.name for p in d.parameters})


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Recipe:
    """A recipe with its parameters, which are also attributes: None where they are not given.

    Args:
        name: of a recipe in the table; `ckptavg recipes` lists them.
        decay: of `ema`, from one checkpoint to the next, at their mean distance; between 0 and 1.
        sigma_rel: of `power-ema` and `posthoc-ema`, the relative standard deviation of their
            profile.
        at_step: of `posthoc-ema`, the step at which the average ends, by default the last one.
        parameters: any of these as pairs of name and value.
        **others: the parameters of recipes that were registered elsewhere.

    Raises:
        RecipeError: the name is unknown, or a parameter is missing, impossible, or of another
            recipe.

    Example:
        >>> Recipe("ema", decay=0.9).coefficients([100, 200, 300])
        (0.2988..., 0.3321..., 0.3690...)
    """

    name: str
    parameters: tuple[tuple[str, float], ...]

    def __init__(
        self,
        name: str = "uniform",
        decay: float | None = None,
        sigma_rel: float | None = None,
        at_step: int | None = None,
        *,
        # `dataclasses.replace` passes those of the former recipe in this way.
        parameters: Iterable[tuple[str, float | None]] = (),
        **others: float | None,
    ) -> None:
        if name not in RECIPES:
            raise RecipeError(f"there is no recipe {name!r:.40}, there are {', '.join(RECIPES)}")
        known = {"decay": decay, "sigma_rel": sigma_rel, "at_step": at_step}
        named = [*parameters, *known.items(), *others.items()]
        given = {keyword: value for keyword, value in named if value is not None}
        own = {parameter.name: parameter for parameter in RECIPES[name].parameters}
        for keyword in [keyword for keyword, _ in named if keyword not in own]:
            if not (recipes := owners(keyword)):
                raise TypeError(f"Recipe() got an unexpected keyword argument '{keyword}'")
            if keyword in given:
                option = all_parameters()[keyword].option
                raise RecipeError(f"{option} belongs to {' and '.join(recipes)}, not {name}")
        for parameter in own.values():
            if parameter.name in given:
                if parameter.check is not None:
                    parameter.check(given[parameter.name])
            elif parameter.required:
                raise RecipeError(
                    f"the recipe {name} needs {parameter.option} (in Python {parameter.name}=)"
                )
        # The dataclass is frozen: this is how its fields are set once.
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "parameters", tuple((k, given[k]) for k in own if k in given))

    def __getattr__(self, name: str) -> float | None:
        if owners(name):
            return dict(self.parameters).get(name)
        raise AttributeError(f"'Recipe' object has no attribute '{name}'")

    @property
    def definition(self) -> Definition:
        """Its entry in the table."""
        return RECIPES[self.name]

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """Reads a recipe from its name, or from name and parameters such as `ema:0.9`; see `str`.

        Raises:
            RecipeError: the text is not a recipe.
        """
        name, colon, rest = text.partition(":")
        if not colon or name not in RECIPES:
            return cls(name)
        own = RECIPES[name].parameters
        if not own:
            raise RecipeError(f"the recipe {name} takes no parameter, but got '{rest:.40}'")
        values: dict[str, float] = {}
        try:
            # From the end: what is left before the first of them is the first parameter.
            for parameter in reversed(own[1:]):
                rest, found, value = rest.partition(f" {parameter.words} ")
                if found:
                    values[parameter.name] = parameter.value_type(value)
            values[own[0].name] = own[0].value_type(rest)
        except ValueError as error:
            raise RecipeError(
                f"cannot read the recipe '{text:.40}': write it like uniform or ema:0.9"
            ) from error
        return cls(name, parameters=values.items())

    def coefficients(self, positions: Sequence[float]) -> tuple[float, ...]:
        """The coefficients of checkpoints at these positions in training, in any order.

        Raises:
            RecipeError: two are at the same position, which only `uniform` allows, or the
                coefficients do not follow from positions.
        """
        definition = self.definition
        if definition.over != "positions":
            raise RecipeError(f"the recipe {self.name} does not go by the steps of checkpoints")
        # Recipes see rising positions; the coefficients go back to the order that was given.
        ordered = sorted(positions)
        twice = next((a for a, b in pairwise(ordered) if a == b), None)
        if twice is not None and definition.distinct:
            raise RecipeError(
                f"two checkpoints are at step {twice:g}, but {self.name} needs them one after the "
                "other: choose those of one training"
            )
        found = tuple(map(float, definition.function(ordered, **dict(self.parameters))))
        if len(found) != len(ordered) or not abs(math.fsum(found) - 1.0) <= _SUM_TOLERANCE:
            raise RecipeError(
                f"the recipe {self} gave {len(found)} coefficients with sum {math.fsum(found):.9g} "
                f"for {len(ordered)} checkpoints, but their sum must be 1"
            )
        by_position = dict(zip(ordered, found, strict=True))
        return tuple(by_position[position] for position in positions)

    def __str__(self) -> str:
        text, words = self.name, {p.name: f" {p.words} " for p in self.definition.parameters[1:]}
        for name, value in self.parameters:
            text += words.get(name, ":") + (
                f"{value:g}" if isinstance(value, float) else str(value)
            )
        return text

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self.parameters]
        return f"Recipe({', '.join([repr(self.name), *given])})"
