"""Time and memory of `measure_geometry` beside `cat` and beside weights stacked in memory.

    .venv/bin/python tests/benchmarks/bench_geometry.py

All three read the same checkpoints, which are in the page cache. Every run is a fresh process, and
cases take turns. Times are medians over the rounds, ratios medians of runs in the same round,
memory the largest of all rounds.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from _checkpoints import Checkpoints, checkpoints, worker
from _page_cache import warm
from _processes import measure
from _rounds import Case, take_turns
from _tables import number, table

CAT, OURS, STACKED = "cat", "measure_geometry", "h5py, all weights stacked"


def compare(made: Checkpoints, runs: int, *, warm_up: bool) -> list[list[str]]:
    """Rows of the table for these checkpoints."""
    commands = {
        OURS: worker("measure_geometry", *made.recorded),
        STACKED: worker("stack_geometry", *made.recorded),
    }
    cases = [made.cat(CAT), *(Case(n, command, made.recorded) for n, command in commands.items())]
    results = take_turns(f"{made}", cases, runs, warm, warm_up=warm_up)
    ours, stacked = (np.array(measure(c).printed["distances"]) for c in commands.values())
    apart = np.abs(ours - stacked).max() / stacked.max()
    return [
        [
            f"{name}, {made}",
            number(results.median(name, "whole")),
            number(results.ratio(name, "whole", CAT)),
            number(results.median(name, "part")),
            number(results.ratio(name, "part", CAT)),
            f"{results.largest(name, 'peak'):,.0f}",
            f"{apart:.0e}" if name == OURS else "",
        ]
        for name in (CAT, OURS, STACKED)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, help="rounds (default 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--folder", help="for the files; a temporary one if left out")
    arguments = parser.parse_args()
    quick = arguments.quick
    cases = (
        [({"units": 64, "layers": 2}, (3,))]
        if quick
        else [
            ({"units": 2048, "layers": 6}, (5, 10)),
            ({"units": 96, "layers": 25, "blocks": 20}, (20,)),
        ]
    )
    header = ("how", "whole s", f"x {CAT}", "part s", f"part x {CAT}", "peak MiB", "apart")
    print(
        "whole: the process with its imports. part: from opening the files to the distances.\n"
        "apart: the largest difference of a distance to that of the stacked weights, over\n"
        f"the largest distance. Load at the start: {os.getloadavg()[0]:.1f}"
    )
    runs = arguments.runs or (1 if quick else 5)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for place, (model, counts) in enumerate(cases):
            with checkpoints(Path(folder) / str(place), model, max(counts)) as made:
                for count in counts:
                    rows = compare(made.first(count), runs, warm_up=not quick)
                    print(f"\n{table(header, rows)}", flush=True)


if __name__ == "__main__":
    main()
