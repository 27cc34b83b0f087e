"""A recipe from outside: one function with one decorator, and everything knows it."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Iterator

import pytest

import ckptavg
from ckptavg import recipes
from ckptavg.errors import RecipeError
from ckptavg.recipes import RECIPES, Parameter, Recipe, recipe
from ckptavg.search.windows import list_candidates
from tests.helpers.command_line import main

_SLOPE = Parameter("slope", "How much faster than linearly it rises.", "P", example=2.0)


@pytest.fixture
def triangle() -> Iterator[None]:
    @recipe("triangle", summary="rises from the first checkpoint on", parameters=[_SLOPE])
    def _triangle(positions, slope):
        shares = [n**slope for n in range(1, len(positions) + 1)]
        return [share / sum(shares) for share in shares]

    yield
    del RECIPES["triangle"]


def test_it_has_a_text_and_coefficients(triangle):
    found = Recipe("triangle", slope=1.0)
    assert found.slope == 1.0
    assert found.coefficients([30, 10, 20]) == pytest.approx((3 / 6, 1 / 6, 2 / 6))
    assert Recipe.parse(str(found)) == found == Recipe.parse("triangle:1")
    assert repr(found) == "Recipe('triangle', slope=1.0)"
    assert {found: 1}[pickle.loads(pickle.dumps(copy.copy(found)))] == 1
    assert "triangle" in recipes.SUMMARIES
    assert "triangle" in recipes.BY_POSITION
    with pytest.raises(RecipeError, match=r"triangle needs --slope \(in Python slope=\)"):
        Recipe("triangle")
    with pytest.raises(RecipeError, match="--slope belongs to triangle, not ema"):
        Recipe("ema", decay=0.9, slope=1.0)


def test_it_is_a_dataclass_whose_parameters_may_be_given_in_order(triangle):
    assert Recipe("ema", 0.9) == Recipe("ema", decay=0.9)
    assert Recipe("posthoc-ema", None, 0.1, 2048).at_step == 2048
    longer = dataclasses.replace(Recipe("posthoc-ema", sigma_rel=0.1), at_step=2048)
    assert (longer.sigma_rel, longer.at_step) == (0.1, 2048)
    assert dataclasses.replace(Recipe("triangle", slope=1.0), slope=2.0).slope == 2.0
    with pytest.raises(RecipeError, match="--decay belongs to ema, not uniform"):
        dataclasses.replace(Recipe("ema", 0.9), name="uniform")


def test_merges_and_sweeps_know_it(triangle, trained_run, tmp_path, monkeypatch):
    out = tmp_path / "o.weights.h5"
    report = ckptavg.merge(trained_run, out, recipe="triangle:1")
    assert report.record.recipe == "triangle:1"
    assert [s.coefficient for s in report.record.sources] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    (found,) = ckptavg.verify(out)
    assert found.average == "reproduced"
    run = ckptavg.open_run(trained_run)
    candidates = list_candidates(run, windows="last", stride=3, recipes=["triangle:2"])
    assert {str(candidate.recipe) for candidate in candidates} == {"triangle:2"}


def test_the_list_of_recipes_shows_it(triangle):
    status, text, err = main("recipes")
    assert status == 0, err
    assert "triangle:2" in text
    assert "rises from the first" in text
    content = json.loads(main("recipes", "--count", 2, "--json")[1])
    shown = {entry["recipe"]: entry["coefficients"] for entry in content["recipes"]}
    assert shown["triangle:2"] == pytest.approx([1 / 5, 4 / 5])


@pytest.mark.parametrize("name", ["uniform", "a:b", "a b", ""])
def test_names_are_new_and_can_be_written(name):
    with pytest.raises(RecipeError, match="cannot register"):
        recipe(name, summary="")


def test_a_parameter_means_one_thing():
    with pytest.raises(RecipeError, match="decay means something else"):
        recipe("mine", summary="", parameters=[Parameter("decay", "Other.", "D")])
    assert "mine" not in RECIPES


def test_coefficients_that_are_not_an_average_are_refused(triangle):
    with pytest.raises(RecipeError, match="gave 3 coefficients with sum"):
        Recipe("triangle", slope=float("nan")).coefficients([1, 2, 3])


def test_former_public_names():
    for name in ("UNIFORM", "EMA", "POWER_EMA", "LINEAR", "COSINE", "SQRT", "POSTHOC_EMA"):
        assert getattr(recipes, name) in recipes.SUMMARIES
    assert (
        *("uniform", "ema", "power-ema", "linear-decay", "cosine-decay", "sqrt-decay"),
    ) == recipes.BY_POSITION
    assert [*recipes.SUMMARIES] == [*recipes.BY_POSITION, "posthoc-ema", "coefficients"]
    for name in recipes.__all__:
        assert getattr(recipes, name) is not None
