"""A trajectory of weights, and its averages as a training would track them."""

import numpy as np

from ckptavg.recipes.power_ema import decay_at, gamma_of

STEPS, EVERY = 4096, 64


TRACKED = (0.05, 0.10)


def track(trajectory: np.ndarray, sigma_rel: float) -> np.ndarray:
    """The online average after each step, as a training would hold it, but in float64."""
    gamma, average, found = gamma_of(sigma_rel), np.zeros(trajectory.shape[1]), []
    for step, weights in enumerate(trajectory, 1):
        decay = decay_at(step, gamma)
        average = decay * average + (1 - decay) * weights
        found.append(average)
    return np.array(found)
