"""`python -m tests.fuzzing`: reads thousands of mutated files, and tells what came of them.

The same seed gives the same changes to the same files. What a failed case had is left in
`fuzzing-failures`, with a line that runs it again.
"""

import argparse
import gc
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

FAILED = Path("fuzzing-failures")


def main() -> int:
    options = _options()
    # On a disk, the thousands of small files and their fsyncs would take most of the time.
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    scratch = Path(tempfile.mkdtemp(prefix="ckptavg-fuzzing-", dir=place))
    try:
        return _again(options.case, scratch) if options.case else _fuzz(options, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--cases", type=int, default=30_000, help="by default 30000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="SUBJECT", help="rows of the table")
    parser.add_argument("--case", type=Path, help="a folder that a failed case has left")
    return parser.parse_args()


def _fuzz(options: argparse.Namespace, scratch: Path) -> int:
    from tests.fuzzing import subjects
    from tests.fuzzing.farm import FAILURES, Case, run

    _make_corpus(scratch / "corpus")
    gc.collect()
    gc.freeze()  # what is imported stays shared between processes
    names = options.only or list(subjects.SUBJECTS)
    numbers = range(options.first, options.first + options.cases)
    cases = (Case(name, options.seed, n) for n, name in zip(numbers, itertools.cycle(names)))
    start = partial(subjects.start, scratch / "corpus", scratch)
    counts: Counter[tuple[str, str]] = Counter()
    began, slowest, peak = time.monotonic(), 0.0, 0
    for result in run(cases, start, options.processes):
        counts[result.case.subject, result.outcome] += 1
        slowest, peak = max(slowest, result.seconds), max(peak, result.peak)
        if result.outcome in FAILURES:
            left = FAILED / str(result.case).replace(" ", "_")
            shutil.rmtree(left, ignore_errors=True)
            _copy(scratch / str(result.process) / result.case.subject, left)
            print(f"\n{result.case}: {result.outcome}: {result.detail[-3000:]}")
            print(f"again: python -m tests.fuzzing --case {left}", flush=True)
    print(_table(counts, names))
    seconds = time.monotonic() - began
    print(
        f"{counts.total():,} cases in {seconds:.0f} s, the slowest in {slowest:.2f} s, the largest "
        f"process {peak / 1e6:,.0f} MB with all libraries"
    )
    return int(any(counts[name, outcome] for name in names for outcome in FAILURES))


def _copy(folder: Path, target: Path) -> None:
    """Copies what a case has left, with pipes, links and holes as they are."""
    target.parent.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", "--sparse=always", folder, target], check=True)


def _make_corpus(folder: Path) -> None:
    """Makes the files in a process of its own: TensorFlow then starts its threads there alone."""
    folder.mkdir()
    child = os.fork()
    if child == 0:
        from tests.fuzzing.corpus import make_corpus

        status = 1
        try:
            make_corpus(folder)
            status = 0
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit("the files to be changed could not be made")


def _again(left: Path, scratch: Path) -> int:
    from tests.fuzzing.farm import FAILURES, Case, outcome_of
    from tests.fuzzing.subjects import Bench

    subject, seed, number = left.name.replace("_", " ").rsplit(":", 2)
    _make_corpus(scratch / "corpus")
    bench = Bench(scratch / "corpus", scratch / "again")
    case = Case(subject, int(seed), int(number))
    outcome, detail = outcome_of(lambda case: bench.recheck(case, left), case)
    print(f"{case}: {outcome}: {detail}")
    return int(outcome in FAILURES)


def _table(counts: Counter[tuple[str, str]], names: Iterable[str]) -> str:
    from tests.fuzzing.farm import OUTCOMES

    rows = [("", *OUTCOMES)]
    rows += [(name, *(f"{counts[name, outcome]:,}" for outcome in OUTCOMES)) for name in names]
    totals = [sum(counts[name, outcome] for name in names) for outcome in OUTCOMES]
    rows.append(("all", *(f"{total:,}" for total in totals)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
