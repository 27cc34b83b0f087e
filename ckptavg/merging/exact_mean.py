"""Exact weighted means of pieces of tensors: summed in float64 or better, rounded once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ckptavg.formats.tensors import is_opaque

_ROUNDING = 1e-13
"""How far a sum of normalized coefficients may be from 1."""

PIECE = 128 * 1024
"""Elements that are summed at once: with half as many, threads wait a third of the time for each
other's turn in the interpreter; twice as many do not fit into the L2 cache of a core. See
docs/decisions/0031-pieces-of-128-ki-elements.md."""

_DOWN = 2.0**-64
"""Scale of places whose float64 sum would overflow although their mean does not: a power of two,
so that nothing is lost."""

V = TypeVar("V", float, np.ndarray)


@dataclass(frozen=True, slots=True)
class Terms:
    """Coefficients as factors over one divisor, so that equal ones need no multiplication.

    The mean of K values is then their sum divided by K: identical values come out as they went
    in, to the bit, which K products with the rounded 1/K would not give.
    """

    factors: tuple[float, ...]
    divisor: float
    normalized: bool = True

    @classmethod
    def of(cls, coefficients: Sequence[float]) -> "Terms":
        """Terms of coefficients that sum to 1 within rounding, or to anything else on purpose."""
        total = math.fsum(coefficients)
        if abs(total - 1.0) > _ROUNDING:
            return cls(tuple(coefficients), 1.0, normalized=False)
        if len(set(coefficients)) == 1:
            return cls((1.0,) * len(coefficients), float(len(coefficients)))
        return cls(tuple(coefficients), total)


class WeightedMean:
    """The weighted mean of up to PIECE values, to which checkpoints are added one at a time.

    float64 values are summed with their rounding errors carried along (Knuth's TwoSum and Dekker's
    product; Ogita, Rump and Oishi, SIAM J. Sci. Comput. 26, 2005), narrower ones in plain float64.
    A sum of K float32 values is exact there as long as those of one place differ in magnitude by
    less than 2^29 / K; beyond that its error is at most K 2^-53 times the sum of the magnitudes.
    """

    def __init__(self) -> None:
        self._total_buffer = np.empty(PIECE, np.float64)
        self._scratch_buffer = np.empty(PIECE, np.float64)
        self._first_buffer = np.empty(PIECE, np.float64)
        self._dtype: np.dtype | None = None
        self._scale: np.ndarray | None = None

    def add(self, values: np.ndarray, factor: float) -> None:
        """Adds factor * values; all that are added to one mean have the same length and dtype."""
        first = self._dtype is None
        if first:
            self._dtype = values.dtype
            self._total = self._total_buffer[: len(values)]
            self._scratch = self._scratch_buffer[: len(values)]
            self._adds_itself = not is_opaque(values.dtype.name)
        # float64 has no wider type to be summed in; for all others float64 is wide enough.
        if self._dtype == np.float64:
            self._add_exactly(values, factor, first)
        elif first:
            np.multiply(values, factor, out=self._total, dtype=np.float64, casting="unsafe")
        # numpy widens its own floats while it adds; those of ml_dtypes are widened by a copy.
        elif factor == 1.0 and self._adds_itself:
            np.add(self._total, values, out=self._total)
        else:
            self._scratch[...] = values
            np.multiply(self._scratch, factor, out=self._scratch)
            np.add(self._total, self._scratch, out=self._total)

    def result(
        self, divisor: float, *, keep_equal: bool = True, dtype: np.dtype | None = None
    ) -> np.ndarray:
        """The sum over the divisor, rounded once to the dtype; the next `add` starts anew.

        The dtype is that of the values, unless another one is given; float64 values are then
        rounded from their mean in float64. With `keep_equal` the mean of equal float64 values is
        that value, also where coefficients sum to 1 but for rounding; for sums of other
        coefficients it must not be set.
        """
        given, self._dtype = self._dtype, None
        assert given is not None, "nothing was added"
        dtype = given if dtype is None else dtype
        if given != np.float64:
            if divisor != 1.0:
                np.divide(self._total, divisor, out=self._total)
            return round_once(self._total, dtype)
        quotient = self._total / divisor
        product, low = _two_product(quotient, divisor)
        correction = ((self._total - product) - low + self._scratch) / divisor
        # Adding 0.0 would turn -0.0 into 0.0; beyond 2^996 Dekker's product overflows.
        usable = np.isfinite(correction) & (correction != 0.0)
        np.add(quotient, correction, out=quotient, where=usable)
        if self._scale is not None:
            np.divide(quotient, self._scale, out=quotient)
            self._scale = None
        # Equal values are their own mean, also where the coefficients sum to 1 but for rounding.
        if keep_equal:
            np.copyto(quotient, self._first, where=self._equal)
        return quotient if dtype == given else round_once(quotient, dtype)

    def _add_exactly(self, values: np.ndarray, factor: float, first: bool) -> None:
        total, error = self._total, self._scratch
        scaled = values if self._scale is None else values * self._scale
        product, low = (scaled, 0.0) if factor == 1.0 else _two_product(scaled, factor)
        new = product if first else total + product
        # A finite sum of all is the cheapest proof that none of them overflows.
        if not np.isfinite(new.sum()) and self._scale_down(values, new, first):
            self._add_exactly(values, factor, first)
            return
        if first:
            total[...] = product
            error[...] = low
            self._first = self._first_buffer[: len(values)]
            self._first[...] = values
            self._equal = np.ones(len(values), bool)
            return
        self._equal &= values.view(np.int64) == self._first.view(np.int64)
        part = new - total
        error += (total - (new - part)) + (product - part) + low
        total[...] = new

    def _scale_down(self, values: np.ndarray, new: np.ndarray, first: bool) -> bool:
        """Scales the places at which the sum overflowed; whether there are any that were not."""
        scale = np.ones(len(values)) if self._scale is None else self._scale
        over = ~np.isfinite(new) & np.isfinite(values) & (scale == 1.0)
        if not first:
            # What overflowed before, or is infinite itself, stays so.
            over &= np.isfinite(self._total)
            self._total[over] *= _DOWN
            self._scratch[over] *= _DOWN
        scale[over] = _DOWN
        self._scale = scale
        return bool(over.any())


def round_once(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounds float64 values to the nearest of `dtype`, ties to even, in one step.

    ml_dtypes converts by way of float32, which rounds twice: 1 + 2^-8 + 2^-40 becomes 1 instead of
    the next bfloat16. Rounding to odd on the way (Boldo and Melquiond, IEEE Trans. Comput. 57,
    2008) makes the second rounding see on which side of the tie the value lay.
    """
    if not is_opaque(dtype.name):
        return values.astype(dtype)
    # See docs/decisions/0004-bfloat16-is-rounded-to-odd-first.md.
    single = values.astype(np.float32)
    bits = single.view(np.int32)
    widened = single.astype(np.float64)
    even = (bits & 1) == 0
    # To odd: an even neighbour is replaced by the odd one on the other side of the value. One bit
    # more or less in the integer is the next float32 away from or towards zero.
    bits += even & (np.abs(widened) < np.abs(values))
    bits -= even & (np.abs(widened) > np.abs(values))
    return single.astype(dtype)


def _two_product(values: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """values * factor and its rounding error (Dekker), with Veltkamp's split of both."""
    product = values * factor
    high, low = _split(values)
    factor_high, factor_low = _split(factor)
    rest = ((product - high * factor_high) - low * factor_high) - high * factor_low
    return product, low * factor_low - rest


def _split(value: V) -> tuple[V, V]:
    """The upper and the lower half of the digits of float64 values (Veltkamp)."""
    scaled = value * 134217729.0  # 2^27 + 1
    high = scaled - (scaled - value)
    return high, value - high
