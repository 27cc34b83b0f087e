"""A trajectory of weights, and its averages as a training would track them."""

import numpy as np

from ckptavg.recipes.power_profiles import gamma_of

STEPS, EVERY = 4096, 64


TRACKED = (0.05, 0.10)


def decay_at(step: int, gamma: float) -> float:
    """The decay of the online average at a step, counted from 1 (arXiv 2312.02696, section 3.1)."""
    return (1 - 1 / step) ** (gamma + 1)


def track(trajectory: np.ndarray, sigma_rel: float) -> np.ndarray:
    """The online average after each step, as a training would hold it, but in float64."""
    gamma, average, found = gamma_of(sigma_rel), np.zeros(trajectory.shape[1]), []
    for step, weights in enumerate(trajectory, 1):
        decay = decay_at(step, gamma)
        average = decay * average + (1 - decay) * weights
        found.append(average)
    return np.array(found)
