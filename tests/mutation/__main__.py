"""`python -m tests.mutation [MODULE ...]`: do the tests notice small changes of what decides?

MODULE is the path of a module, such as `ckptavg/recipes/swad.py`; all of `TARGETS` without one.
"""

import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).parents[2]
TARGETS = {
    "ckptavg/merging/exact_mean.py": "tests/merging",
    "ckptavg/merging/work.py": "tests/merging",
    "ckptavg/merging/worker.py": "tests/merging",
    "ckptavg/merging/tensor_rules.py": "tests/merging",
    "ckptavg/merging/weighting.py": "tests/merging",
    "ckptavg/recipes/moving_averages.py": "tests/recipes",
    "ckptavg/recipes/decay_schedules.py": "tests/recipes",
    "ckptavg/recipes/posthoc_ema.py": "tests/recipes",
    "ckptavg/recipes/power_profiles.py": "tests/recipes",
    "ckptavg/recipes/registry.py": "tests/recipes",
    "ckptavg/recipes/swad.py": "tests/recipes",
    "ckptavg/recipes/vectors.py": "tests/recipes",
    "ckptavg/runs/proof.py": "tests/runs",
    "ckptavg/runs/record.py": "tests/runs",
    "ckptavg/batch_norm/moments.py": "tests/batch_norm",
    "ckptavg/batch_norm/statistics.py": "tests/batch_norm",
    "ckptavg/batch_norm/gathering.py": "tests/batch_norm",
    "ckptavg/saving/schedule.py": "tests/saving",
    "ckptavg/saving/retention.py": "tests/saving",
}
"""Modules that decide what comes out, and the tests of their rooms."""


def main() -> None:
    import hypothesis
    import keras
    import pandas  # noqa: F401 (imported once, before processes are forked from this one)

    from tests.mutation.equivalent import EQUIVALENT
    from tests.mutation.runner import SURVIVED, Shadow, run_mutants

    assert hypothesis
    assert keras
    shadow, missed = Shadow(ROOT), 0
    try:
        for module in sys.argv[1:] or TARGETS:
            counts: Counter[str] = Counter()
            for result in run_mutants(shadow, Path(module), [TARGETS[module]]):
                counts[result.outcome] += 1
                if result.outcome == SURVIVED:
                    reason = EQUIVALENT.get(module, {}).get(result.mutant.name)
                    missed += reason is None
                    told = "SURVIVED" if reason is None else f"equivalent: {reason}"
                    print(f"{module}:{result.mutant.line} {result.mutant.name}: {told}", flush=True)
            killed = counts.total() - counts[SURVIVED]
            print(f"{module}: {killed} of {counts.total()} mutants killed", flush=True)
    finally:
        shadow.close()
    sys.exit(f"{missed} mutants survived that are not equivalent" if missed else 0)


if __name__ == "__main__":
    main()
