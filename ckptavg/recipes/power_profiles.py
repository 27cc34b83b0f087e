"""Power-function averages over training time: how wide they are, how much they overlap (pure).

The profile of exponent gamma gives what the weights were at time tau, up to the present time t, the
density (gamma + 1) tau^gamma / t^(gamma + 1) (Karras et al., arXiv 2312.02696, section 3.1). Its
standard deviation as a fraction of t is `sigma_rel`, by which users name it.
"""

import math

import numpy as np

from ckptavg.errors import RecipeError
from ckptavg.recipes.registry import Parameter

SIGMA_LIMIT = 0.289
"""All profiles are narrower: 1/sqrt(12) is the plain mean over the whole training."""


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
            "width of the average as a fraction of the training, such as 0.1"
        )
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    # The largest is above 0, a profile that rises with time; the others fall or have no integral.
    return max(float(root.real) for root in roots)


SIGMA_REL = Parameter(
    "sigma_rel",
    "Width of the average as a fraction of the training, such as 0.1.",
    "S",
    example=0.1,
    check=gamma_of,
)


def decay_over(former: int, step: int, gamma: float) -> float:
    """The decay of the online average over several steps in which weights stood still.

    At one step, counted from 1, it is (1 - 1/step)^(gamma + 1): the average becomes decay * average
    + (1 - decay) * weights, and after t steps it is the integral of the profile over weights that
    are constant between steps, exactly. The product over all steps after `former` up to `step` is
    (former / step)^(gamma + 1), so that one update gives what updates at every step would, had
    weights been the same in all.

    Args:
        former: the step that the average stands at; 0 where it holds nothing yet.
        step: the step that it is to stand at.
        gamma: exponent of the profile.
    """
    return math.pow(former / step, gamma + 1)


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
