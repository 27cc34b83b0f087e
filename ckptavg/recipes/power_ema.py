"""Power-function averages over training time: how long they are, what they have in common (pure).

The profile of exponent gamma gives what the weights were at time tau, up to the present time t, the
density (gamma + 1) tau^gamma / t^(gamma + 1) (Karras et al., arXiv 2312.02696, section 3.1). Its
standard deviation as a share of t is `sigma_rel`, by which users name it.
"""

import math

import numpy as np

from ckptavg.errors import RecipeError

SIGMA_LIMIT = 0.289
"""All profiles are shorter: 1/sqrt(12) is the plain mean over the whole training."""


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile with a relative standard deviation.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) is a cubic equation in gamma, of which
    the largest real root is meant (arXiv 2312.02696, appendix C).

    Args:
        sigma_rel: between 0 and 0.289.

    Raises:
        RecipeError: it is not.

    Example:
        >>> round(gamma_of(0.10), 2)
        6.94
    """
    if not (isinstance(sigma_rel, int | float) and 0 < sigma_rel < SIGMA_LIMIT):
        raise RecipeError(
            f"sigma_rel is {sigma_rel!r:.40}, but must lie between 0 and {SIGMA_LIMIT}: it is the "
            "length of the average as a share of the training, such as 0.1"
        )
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(root.real for root in roots))


def sigma_of(gamma: float) -> float:
    """The relative standard deviation of the profile with exponent gamma > -1."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def decay_at(step: int, gamma: float) -> float:
    """The decay of the online average at a step, counted from 1: (1 - 1/step)^(gamma + 1).

    The average becomes decay * average + (1 - decay) * weights; at step 1 it is the weights. After
    t steps it is the integral of the profile over weights that are constant between steps, exactly.
    """
    return decay_over(step - 1, step, gamma)


def decay_over(former: int, step: int, gamma: float) -> float:
    """The decay of the online average over several steps in which weights stood still.

    The product of `decay_at` of all steps after `former` up to `step`, (former / step)^(gamma + 1):
    that one update gives what updates at every step would, had weights been the same in all.

    Args:
        former: the step that the average stands at; 0 where it holds nothing yet.
        step: that it is to stand at.
        gamma: exponent of the profile.
    """
    return (former / step) ** (gamma + 1)


def overlap(gamma_a: float, t_a: float, gamma_b: float, t_b: float) -> float:
    """The inner product of two profiles: the integral of their product over time.

    With m = min(t_a, t_b) it is (a + 1)(b + 1) / (a + b + 1) * m^(a + b + 1) / (t_a^(a + 1)
    t_b^(b + 1)); the powers are taken in logarithms, where none overflows.
    """
    total = gamma_a + gamma_b + 1
    exponent = (
        total * math.log(min(t_a, t_b))
        - (gamma_a + 1) * math.log(t_a)
        - (gamma_b + 1) * math.log(t_b)
    )
    return (gamma_a + 1) * (gamma_b + 1) / total * math.exp(exponent)
