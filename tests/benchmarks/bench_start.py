"""Processor time of a whole `ckptavg merge` of tiny checkpoints beside imports of numpy and h5py.

    .venv/bin/python tests/benchmarks/bench_start.py

Every run is a fresh process, and cases take turns. The time is that of user and system together, of
all threads; figures are medians over the rounds. What averaging itself takes, with its journal,
digests and record, is measured within a process and subtracted.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from _processes import ROOT, measure
from _tables import number, table

_IMPORTS, _MERGE = "import numpy, h5py", "ckptavg merge"
_RUN = ROOT / "tests" / "data" / "run-0.1.0" / "run"
_WORKER = Path(__file__).parent / "_workers" / "averaging.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, help="rounds (default 15)")
    parser.add_argument("--quick", action="store_true", help="one round, to see that it runs")
    arguments = parser.parse_args()
    # An installed package has its bytecode beside it; here it is compiled once, in the first round.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPYCACHEPREFIX"] = f"{folder}/bytecode"
        run = shutil.copytree(_RUN, Path(folder, "run"))
        merge = ("-m", "ckptavg", "merge")
        commands = {
            _IMPORTS: ("-c", _IMPORTS),
            _MERGE: (*merge, run, "-o", f"{folder}/o.weights.h5", "--overwrite", "--json"),
        }
        averaging = (sys.executable, _WORKER, run)
        seconds: dict[str, list[float]] = {name: [] for name in (*commands, "averaging")}
        for turn in range(1 + (arguments.runs or (1 if arguments.quick else 15))):
            for name, command in commands.items():
                usage = measure((sys.executable, *command))
                if turn:
                    seconds[name].append(usage.cpu)
            own = measure((*averaging, f"{folder}/{turn}.weights.h5")).printed["seconds"]
            if turn:
                seconds["averaging"].append(own)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    base, start = median[_IMPORTS], median[_MERGE] - median["averaging"]
    rows = [
        [_IMPORTS, number(1000 * base), "1"],
        [_MERGE, number(1000 * median[_MERGE]), number(median[_MERGE] / base)],
        ["ckptavg merge without its averaging", number(1000 * start), number(start / base)],
    ]
    print(table(("process", "processor ms", "ratio"), rows))


if __name__ == "__main__":
    main()
