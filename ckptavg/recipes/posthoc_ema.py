"""Post-hoc EMA: an average of any length from snapshots of two tracked ones (pure).

Derived from Karras et al., arXiv 2312.02696, section 3.2: what a training has averaged online
under two power-function profiles, noted at some steps, spans averages under other profiles nearly
exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckptavg.errors import RecipeError
from ckptavg.recipes.power_ema import gamma_of, overlap

_RANK = 1e-13
"""Of the correlation of snapshots: what lies below is rounding."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A power-function average as it was during training.

    Attributes:
        sigma_rel: its relative standard deviation.
        step: updates that it had seen, counted from 1.
    """

    sigma_rel: float
    step: int


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """An average as a combination of snapshots.

    Attributes:
        coefficients: one for each snapshot, with sum 1; 0 for those after the target.
        error: distance of the combined profile to the wanted one, as a share of the latter's norm:
            0 where the snapshots span it.
    """

    coefficients: tuple[float, ...]
    error: float


def reconstruct(snapshots: Sequence[Snapshot], target: Snapshot) -> Reconstruction:
    """The combination of snapshots whose profile is nearest to a wanted one.

    The least-squares solution of A x = b, where A and b are inner products of profiles (arXiv
    2312.02696, section 3.2), in float64, with profiles scaled to length 1, over x that sum to 1.

    Args:
        snapshots: of tracked averages, at different steps or lengths.
        target: what is wanted; snapshots after its step are not used.

    Raises:
        RecipeError: a `sigma_rel` is impossible, or no snapshot was taken up to the target's step.

    Example:
        >>> tracked = [Snapshot(s, t) for t in (100, 200) for s in (0.05, 0.10)]
        >>> reconstruct(tracked, Snapshot(0.10, 200)).coefficients
        (0.0, 0.0, 0.0, 1.0)
    """
    wanted = gamma_of(target.sigma_rel), float(target.step)
    if target in snapshots:
        found = snapshots.index(target)
        return Reconstruction(tuple(float(n == found) for n in range(len(snapshots))), 0.0)
    used = [n for n, snapshot in enumerate(snapshots) if snapshot.step <= target.step]
    if not used:
        raise RecipeError(
            f"no average was noted up to step {target.step}: ask for a step from "
            f"{min((s.step for s in snapshots), default='?')} on"
        )
    profiles = [(gamma_of(snapshots[n].sigma_rel), float(snapshots[n].step)) for n in used]
    lengths = np.sqrt([overlap(*p, *p) for p in profiles])
    gram = np.array([[overlap(*p, *q) for q in profiles] for p in profiles])
    gram /= np.outer(lengths, lengths)
    wanted_length = math.sqrt(overlap(*wanted, *wanted))
    shared = np.array([overlap(*p, *wanted) for p in profiles]) / (lengths * wanted_length)
    solution = np.linalg.lstsq(gram, shared, rcond=_RANK)[0]
    coefficients = solution * wanted_length / lengths
    coefficients /= coefficients.sum()
    final = coefficients * lengths / wanted_length
    error = math.sqrt(max(0.0, 1.0 - 2.0 * final @ shared + final @ gram @ final))
    every = np.zeros(len(snapshots))
    every[used] = coefficients
    return Reconstruction(tuple(map(float, every)), error)
