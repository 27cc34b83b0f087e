"""Vectors of coefficients: which make an average, and what a wrong one is told."""

import math

import pytest

from ckptavg.errors import RecipeError
from ckptavg.recipes.vectors import check_coefficients


def test_coefficients_that_sum_to_one_are_divided_by_what_rounding_left():
    found = check_coefficients([0.3, 0.3, 0.4000009], 3)
    assert math.fsum(found) == pytest.approx(1.0, abs=1e-15)
    assert found[2] / found[0] == pytest.approx(0.4000009 / 0.3, rel=1e-15)
    assert check_coefficients(["0.5", 1.5, -1], 3) == (0.5, 1.5, -1.0)


def test_any_sum_may_be_kept():
    assert check_coefficients([1, 0.4, -0.2], 3, normalize=False) == (1.0, 0.4, -0.2)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ([0.5, "x"], "must be numbers, but are"),
        (None, "must be numbers, but are None"),
        ([0.2, 0.3, 0.5], "there are 3 coefficients for 2 checkpoints"),
        ([1.0], "there are 1 coefficients for 2 checkpoints"),
        ([math.nan, 1.0], "must be finite numbers"),
        ([math.inf, -math.inf], "must be finite numbers"),
        ([1.7e308, 1.7e308], "overflow their sum"),
    ],
)
def test_what_makes_no_average(coefficients, message, normalize):
    with pytest.raises(RecipeError, match=message):
        check_coefficients(coefficients, 2, normalize=normalize)


@pytest.mark.parametrize("second", [0.500002, 0.499998, 0.6])
def test_another_sum_is_an_error_by_default(second):
    with pytest.raises(RecipeError, match="must sum to 1, but sum to"):
        check_coefficients([0.5, second], 2)
