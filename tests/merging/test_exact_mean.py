"""The weighted mean against oracles of exact arithmetic."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptavg.merging.exact_mean import PIECE, Terms, WeightedMean, round_once


def mean_of(rows: list[np.ndarray], coefficients: list[float] | None = None) -> np.ndarray:
    terms = Terms.of(coefficients or [1 / len(rows)] * len(rows))
    mean = WeightedMean()
    for row, factor in zip(rows, terms.factors, strict=True):
        mean.add(row, factor)
    return mean.result(terms.divisor)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 49, 100])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_identical_inputs_come_out_bit_identical(count, dtype):
    row = np.random.default_rng(0).normal(0, 1e-3, 1000).astype(np.dtype(dtype))
    row[:4] = [0.0, -0.0, 1.0, -3.0]
    assert mean_of([row] * count).tobytes() == row.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_mean_is_the_correctly_rounded_one(dtype):
    rng = np.random.default_rng(1)
    rows = [rng.normal(0, 1, 500).astype(dtype) for _ in range(9)]
    expected = np.array(
        [math.fsum(map(float, column)) / 9 for column in zip(*rows, strict=True)]
    ).astype(dtype)
    assert mean_of(rows).tobytes() == expected.tobytes()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e200, 1e200, allow_subnormal=False), min_size=2, max_size=30))
def test_float64_mean_is_within_half_an_ulp_of_exact(values):
    got = float(mean_of([np.array([value]) for value in values])[0])
    exact = sum(map(Fraction, values)) / len(values)
    scale = max(abs(value) for value in values)
    # Compensated: half an ulp of the result, and next to nothing of what cancelled.
    assert abs(Fraction(got) - exact) <= Fraction(math.ulp(got)) * Fraction(501, 1000) + Fraction(
        scale
    ) * Fraction(len(values) ** 2, 2**104)


@pytest.mark.parametrize(
    ("values", "coefficients"),
    [
        ([1.797e308, 0.99 * 1.797e308], [0.5, 0.5]),
        ([1e-300, 1.797e308, 1.797e308, -1.797e308, 1.0], [0.2] * 5),
        ([1.5e308, 1.6e308, 1.5e308], [2.0, -0.5, -0.5]),
        ([-1.797e308] * 2 + [-1.7e308], [0.4, 0.3, 0.3]),
    ],
)
def test_a_float64_mean_overflows_only_if_it_is_too_large(values, coefficients):
    # beside places that are tiny, or hold infinity
    rows = [np.array([v, v * 1e-300, 5e-324, v]) for v in values]
    rows[0][3] = np.inf
    with np.errstate(all="ignore"):
        got = mean_of(rows, coefficients)
    for index in range(3):
        exact = sum(
            Fraction(c) * Fraction(float(r[index])) for c, r in zip(coefficients, rows, strict=True)
        )
        assert abs(Fraction(float(got[index])) - exact) <= Fraction(math.ulp(got[index]))
    assert not np.isfinite(got[3])
    with np.errstate(all="ignore"):
        assert mean_of([np.array([1.797e308]), np.array([1.7e308])], [1.0, 0.9])[0] == np.inf


def test_float64_with_coefficients_keeps_the_products_errors():
    rng = np.random.default_rng(2)
    rows = [rng.normal(0, 1, 200) for _ in range(5)]
    coefficients = [0.1, 0.2, 0.3, 0.15, 0.25]
    got = mean_of(rows, coefficients)
    for index in range(200):
        exact = sum(
            Fraction(c) * Fraction(r[index]) for c, r in zip(coefficients, rows, strict=True)
        )
        assert abs(Fraction(got[index]) - exact) <= Fraction(math.ulp(got[index])) * Fraction(
            51, 100
        )


def test_wide_and_narrow_halves_average_in_float64():
    # 4096 + 1 is lost in float16 and bfloat16; the mean 2048.5 is rounded once.
    for dtype in ("float16", "bfloat16"):
        rows = [np.array([value], np.dtype(dtype)) for value in (4096, 1)]
        assert float(mean_of(rows)[0]) == float(np.array([2048.5]).astype(np.float16)[0]) == 2048.0
    assert float(mean_of([np.array([v], np.float32) for v in (4096, 1)])[0]) == 2048.5


def test_rounding_to_bfloat16_is_done_once():
    # Just above the middle of two bfloat16: by way of float32 it would be rounded down.
    value = np.array([1 + 2**-8 + 2**-40, -(1 + 2**-8 + 2**-40), 1 + 2**-8, 1 + 3 * 2**-8])
    got = round_once(value, np.dtype("bfloat16")).astype(float)
    assert got.tolist() == [1 + 2**-7, -(1 + 2**-7), 1.0, 1 + 2**-6]
    assert float(value[0].astype(ml_dtypes.bfloat16)) == 1.0  # why round_once exists


@settings(max_examples=200, deadline=None)
@given(st.floats(-3e38, 3e38))
def test_bfloat16_is_the_nearest_one(value):
    got = round_once(np.array([value]), np.dtype("bfloat16"))
    bits = int(got.view(np.uint16)[0])
    error = abs(Fraction(float(got[0])) - Fraction(value)) if np.isfinite(float(got[0])) else None
    for neighbour in (bits - 1, bits + 1):
        if error is None or not 0 <= neighbour <= 0xFFFF:
            continue
        other = float(np.array([neighbour], np.uint16).view(ml_dtypes.bfloat16)[0])
        if math.isfinite(other):
            assert error <= abs(Fraction(other) - Fraction(value))


def test_golden_values_of_fairseq():
    # fairseq, tests/test_average_checkpoints.py
    assert mean_of([np.array([100.0]), np.array([1.0])]).tolist() == [50.5]
    rows = [np.array([[1.0, 2, 3]]).ravel(), np.array([4.0, 5, 6]), np.ones(3)]
    assert mean_of(rows[:1] + rows[2:]).tolist() == [1, 1.5, 2]
    assert mean_of(rows[1:]).tolist() == [2.5, 3, 3.5]


def test_one_mean_does_not_leak_into_the_next():
    # espnet's bug: averages of different lengths shared state. 1, 2, 6: n=2 -> 4, n=3 -> 3.
    mean = WeightedMean()
    for values, expected in (([2.0, 6.0], 4.0), ([1.0, 2.0, 6.0], 3.0)):
        for value in values:
            mean.add(np.array([value]), 1.0)
        assert mean.result(float(len(values)))[0] == expected


def test_a_whole_piece_fits():
    assert len(mean_of([np.ones(PIECE, np.float32)] * 2)) == PIECE
