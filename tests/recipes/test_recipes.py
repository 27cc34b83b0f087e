"""Recipes: against the update rules they stand for, over time, and on the command line."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptavg
from ckptavg import recipes
from ckptavg.errors import RecipeError
from ckptavg.recipes import BY_POSITION, EMA, POWER_EMA, SUMMARIES, Recipe
from ckptavg.recipes.moving_averages import ema, power_ema
from ckptavg.recipes.power_profiles import decay_over, gamma_of, overlap
from ckptavg.runs.describe import list_coefficients
from tests.helpers.command_line import main
from tests.helpers.files import read_tensors
from tests.helpers.merges import wide_mean
from tests.helpers.posthoc_ema import decay_at
from tests.helpers.processes import run_blocked

EVEN = [100.0, 200.0, 300.0, 400.0, 500.0]
UNEVEN = [100.0, 150.0, 400.0, 410.0, 500.0]
ALL = [
    Recipe(name, **{EMA: {"decay": 0.7}, POWER_EMA: {"sigma_rel": 0.15}}.get(name, {}))
    for name in BY_POSITION
]

steps = st.lists(st.integers(1, 10**9), min_size=1, max_size=40, unique=True)


@given(steps, st.sampled_from(ALL))
def test_every_recipe_is_an_average(found, recipe):
    coefficients = recipe.coefficients(found)
    assert math.fsum(coefficients) == pytest.approx(1.0, abs=1e-13)
    assert min(coefficients) >= 0.0
    assert recipes.check_coefficients(coefficients, len(found)) == pytest.approx(coefficients)
    if recipe.name == EMA:  # only distances count; only ratios count in the others
        shifted = recipe.coefficients([step + 10**6 for step in found])
    else:
        shifted = recipe.coefficients([step * 3 for step in found])
    assert shifted == pytest.approx(coefficients, abs=1e-6)


@pytest.mark.parametrize("recipe", ALL, ids=str)
def test_a_coefficient_belongs_to_its_step_not_to_its_place(recipe):
    order = [3, 0, 4, 1, 2]
    expected = recipe.coefficients(UNEVEN)
    shuffled = recipe.coefficients([UNEVEN[n] for n in order])
    assert shuffled == tuple(expected[n] for n in order)
    assert (recipe.coefficients(EVEN) == expected) == (recipe.name == "uniform")


def test_ema_is_the_bias_corrected_running_average():
    values, decay = [3.0, -1.0, 4.0, 1.0, 5.0], 0.7
    average = correction = 0.0
    for value in values:
        average = decay * average + (1 - decay) * value
        correction = decay * correction + (1 - decay)
    found = np.dot(Recipe("ema", decay=decay).coefficients(EVEN), values)
    assert found == pytest.approx(average / correction, rel=1e-14)


def test_power_ema_is_the_online_average_of_weights_that_stand_between_checkpoints():
    gamma = gamma_of(0.15)
    found = Recipe("power-ema", sigma_rel=0.15).coefficients(EVEN)
    for number in range(5):
        average = 0.0
        for step in range(1, 501):
            decay = decay_at(step, gamma)
            average = decay * average + (1 - decay) * ((step - 1) // 100 == number)
        assert found[number] == pytest.approx(average, rel=1e-12)


@pytest.mark.parametrize("positions", [EVEN, UNEVEN])
@pytest.mark.parametrize(
    ("name", "multiplier"),
    [
        ("linear-decay", lambda t: 1 - t),
        ("cosine-decay", lambda t: (1 + math.cos(math.pi * t)) / 2),
        ("sqrt-decay", lambda t: 1 - math.sqrt(t)),
    ],
)
def test_a_decay_recipe_does_to_updates_what_the_learning_rate_would_have(
    name, multiplier, positions
):
    rng = np.random.default_rng(0)
    updates = rng.normal(size=(4, 7))
    checkpoints = np.cumsum(np.vstack([rng.normal(size=7), updates]), axis=0)
    length = positions[-1] - positions[0] + (positions[-1] - positions[0]) / 4
    decayed = checkpoints[0].copy()
    for position, update in zip(positions[1:], updates, strict=True):
        decayed += multiplier((position - positions[0]) / length) * update
    found = np.array(Recipe(name).coefficients(positions)) @ checkpoints
    np.testing.assert_allclose(found, decayed, rtol=1e-13, atol=1e-13)


def test_a_falling_line_is_the_plain_mean():
    assert Recipe("linear-decay").coefficients(EVEN) == pytest.approx((0.2,) * 5)
    assert Recipe("ema", decay=1 - 1e-9).coefficients(EVEN) == pytest.approx((0.2,) * 5)
    assert Recipe("power-ema", sigma_rel=12**-0.5).coefficients(EVEN) == pytest.approx((0.2,) * 5)


def test_moving_averages_check_what_they_are_called_with():
    with pytest.raises(RecipeError, match="decay is 2"):
        ema(EVEN, 2)
    with pytest.raises(RecipeError, match=r"sigma_rel is 0\.5"):
        power_ema(EVEN, 0.5)


def test_only_ratios_of_steps_count_however_small_or_large_they_are():
    early = power_ema([2, 3, 5], 0.28)  # the first stands for the time from 1 on
    assert early == pytest.approx(power_ema([200, 300, 500], 0.28), rel=1e-12)
    late = power_ema([10**9, 2 * 10**9], 0.01)
    assert late == pytest.approx(power_ema([1, 2], 0.01), rel=1e-12)


def test_effective_sample_size():
    assert recipes.effective_sample_size([0.25] * 4) == pytest.approx(4)
    assert recipes.effective_sample_size([0.0, 1.0, 0.0]) == 1
    assert recipes.effective_sample_size([0.5, 0.3, 0.2]) == pytest.approx(1 / 0.38)
    assert recipes.effective_sample_size([1.0, -1.0]) == 0


@pytest.mark.parametrize("sigma_rel", [0.001, 0.05, 0.1, 0.2, 0.2886, 0.2889])
def test_sigma_and_gamma_are_each_others_inverse(sigma_rel):
    gamma = gamma_of(sigma_rel)
    sigma = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
    assert sigma == pytest.approx(sigma_rel, rel=1e-12)
    # and sigma is what its name says, by the moments of the profile
    time = (np.arange(2_000_000) + 0.5) / 2_000_000
    profile = (gamma + 1) * time**gamma
    mean, square = np.mean(profile * time), np.mean(profile * time**2)
    if sigma_rel > 0.001:
        assert math.sqrt(square - mean**2) == pytest.approx(sigma_rel, rel=1e-3)


def test_one_decay_does_what_those_of_all_steps_between_would():
    gamma = gamma_of(0.15)
    every = math.prod(decay_at(step, gamma) for step in range(101, 121))
    assert decay_over(100, 120, gamma) == pytest.approx(every, rel=1e-13)
    assert decay_over(0, 7, gamma) == 0.0


@pytest.mark.parametrize("times", [(1.0, 1.0), (0.3, 1.0), (1.0, 0.6)])
def test_overlap_is_the_integral_of_the_product(times):
    (gamma_a, t_a), (gamma_b, t_b) = (6.9, times[0]), (17.0, times[1])
    end = min(times)
    tau = (np.arange(1_000_000) + 0.5) / 1_000_000 * end
    a = (gamma_a + 1) * tau**gamma_a / t_a ** (gamma_a + 1)
    b = (gamma_b + 1) * tau**gamma_b / t_b ** (gamma_b + 1)
    assert overlap(gamma_a, t_a, gamma_b, t_b) == pytest.approx(np.mean(a * b) * end, rel=1e-6)
    # no power overflows, whatever the unit of time
    scaled = overlap(gamma_a, t_a * 1e9, gamma_b, t_b * 1e9)
    assert scaled == pytest.approx(overlap(gamma_a, t_a, gamma_b, t_b) / 1e9)
    assert math.isfinite(overlap(9000.0, 1e9, 9000.0, 1e9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "median"}, "there is no recipe 'median', there are uniform, ema"),
        ({"name": "ema"}, "needs --decay"),
        ({"name": "ema", "decay": 1.0}, "decay is 1.0, but must lie between 0 and 1"),
        ({"name": "ema", "decay": 0.0}, "decay is 0.0, but must lie between 0 and 1"),
        ({"name": "uniform", "decay": 0.9}, "--decay belongs to ema"),
        ({"name": "power-ema", "sigma_rel": 0.289}, "sigma_rel is 0.289"),
        ({"name": "power-ema", "sigma_rel": float("nan")}, "sigma_rel is nan"),
    ],
)
def test_recipes_that_cannot_be(arguments, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(**arguments)


def test_recipes_as_text():
    for recipe in ALL:
        assert Recipe.parse(str(recipe)) == recipe
    for text in ("ema:fast", "uniform:0.9", "ema:"):
        with pytest.raises(RecipeError):
            Recipe.parse(text)
    with pytest.raises(RecipeError, match="two checkpoints are at step 5"):
        Recipe("sqrt-decay").coefficients([5, 7, 5])


def test_a_merge_goes_by_the_steps_in_the_records(trained_run, tmp_path):
    run = ckptavg.open_run(trained_run)
    chosen = [run.checkpoints[n] for n in (0, 1, 3)]
    recipe = Recipe("ema", decay=0.6)
    report = ckptavg.merge(chosen, tmp_path / "o.weights.h5", recipe="ema:0.6")
    steps = [checkpoint.record.step for checkpoint in chosen]
    assert steps[2] - steps[1] == 2 * (steps[1] - steps[0])
    found = [source.coefficient for source in report.record.sources]
    assert found == list(recipe.coefficients(steps)) != list(recipe.coefficients([1, 2, 3]))
    assert report.record.recipe == "ema:0.6"
    expected = wide_mean([checkpoint.path for checkpoint in chosen], found)
    for name, values in read_tensors(tmp_path / "o.weights.h5").items():
        np.testing.assert_allclose(values, expected[name].astype(values.dtype), rtol=1e-7)
    (verified,) = ckptavg.verify(tmp_path / "o.weights.h5")
    assert verified.average == "reproduced"
    with pytest.raises(RecipeError, match="coefficients belong to the recipe coefficients"):
        ckptavg.merge(
            chosen, tmp_path / "p.weights.h5", recipe="sqrt-decay", coefficients=[0.2, 0.3, 0.5]
        )


def test_merge_prints_coefficients_and_what_they_are_worth(trained_run, tmp_path):
    out = tmp_path / "o.weights.h5"
    status, text, err = main("merge", trained_run, "-o", out, "--recipe", "ema", "--decay", 0.5)
    assert status == 0, err
    assert "ema:0.5: 0.06667, 0.1333, 0.2667, 0.5333" in text
    assert "effective sample size 2.65 of 4" in text
    for arguments, message in (
        (("--recipe", "ema"), "needs --decay"),
        (("--decay", 0.5), "--decay belongs to ema"),
        (("--recipe", "coefficients"), "needs coefficients (--coefficients)"),
        (("--recipe", "best"), "there is no recipe 'best'"),
    ):
        status, _, err = main("merge", trained_run, "-o", tmp_path / "p.weights.h5", *arguments)
        assert (status, message in err) == (1, True), err
    text = main("merge", trained_run, "-o", tmp_path / "p.weights.h5", "--dry-run")[1]
    assert "uniform: 4 x 0.25" in text
    report = json.loads(main("merge", trained_run, "-o", out, "--overwrite", "--json")[1])
    assert report["effective_sample_size"] == pytest.approx(4)


def test_rows_of_coefficients_stay_short():
    assert list_coefficients([0.1, 0.3, 0.3, 0.3]) == "0.1, 3 x 0.3"
    assert list_coefficients([1 / 500] * 500) == "500 x 0.002"
    many = Recipe(EMA, decay=0.9).coefficients(tuple(range(1, 181)))
    assert list_coefficients(many) == f"180 from {many[0]:.4g} to {many[-1]:.4g}"


def test_the_recipes_command(trained_run, tmp_path):
    status, text, err = main("recipes")
    assert status == 0, err
    assert all(name in text for name in SUMMARIES)
    assert "█" * 10 in text
    # bars of a decay that are all equal look like a mistake
    (decay,) = (line for line in text.splitlines() if line.startswith("linear-decay"))
    assert decay.split()[1:4] == ["=", "uniform", "10"]
    assert "effective: how many equally weighted checkpoints" in " ".join(text.split())
    content = json.loads(main("recipes", trained_run, "--decay", 0.5, "--json")[1])
    assert content["positions"] == [r.step for r in ckptavg.open_run(trained_run).records]
    found = {entry["recipe"]: entry["coefficients"] for entry in content["recipes"]}
    assert found["ema:0.5"] == pytest.approx([1 / 15, 2 / 15, 4 / 15, 8 / 15])
    assert main("recipes", "--count", 200)[0] == 0
    picture = tmp_path / "recipes.png"
    assert main("recipes", "--plot", picture)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    status, _, err = main("recipes", "--plot", tmp_path / "recipes.what")
    assert (status, "cannot write the picture" in err) == (1, True)


def test_only_the_picture_needs_matplotlib(tmp_path):
    code = "import ckptavg.cli; ckptavg.cli.main()"
    assert run_blocked(code, "recipes").returncode == 0
