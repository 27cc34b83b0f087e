"""Mutants that no test can notice, because they do what the module does; by module and name."""

EQUIVALENT: dict[str, dict[str, str]] = {
    "ckptavg/recipes/moving_averages.py": {
        "ema: -1 -> 1": "shares are made to sum to 1, so the end of time cancels",
        "power_ema: time > 0 -> time >= 0": "0 to any power is the 0.0 of the other branch",
        "mean_distance: 1.0 -> 2.0": "a single checkpoint has the coefficient 1 at any distance",
    },
    "ckptavg/recipes/posthoc_ema.py": {
        "module: 1e-13 -> 1.0000000000001": "LAPACK takes rcond >= 1 for the precision of float64",
    },
}
"""The reason for each."""
