"""Merges as tests need them: done naively, and interrupted."""

from pathlib import Path

import numpy as np
import pytest

import ckptavg
from tests.helpers.files import read_tensors


def wide_mean(paths, coefficients=None):
    """The mean in extended precision, not yet rounded, with everything in memory."""
    factors, divisor = (coefficients, 1) if coefficients else ([1] * len(paths), len(paths))
    loaded = [read_tensors(path) for path in paths]
    return {
        name: sum(
            np.longdouble(factor) * one[name].astype(np.longdouble)
            for factor, one in zip(factors, loaded, strict=True)
        )
        / divisor
        for name in loaded[0]
        if not name.startswith("optimizer")
    }


def interrupted(paths: list[Path], out: Path, after: int = 5) -> None:
    """Merges until the progress has been told `after` blocks of it; leaves the partial files."""
    seen = []

    def stop(nbytes):
        seen.append(nbytes)
        if sum(seen) > after * 3 * 2**23:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ckptavg.merge(paths, out, resume=True, jobs=1, progress=stop)
