"""Time, memory and accuracy of `ckptavg merge` beside `cat`, a Keras loop and other programs.

    make bench
    .venv/bin/python tests/benchmarks/bench_merge.py --only big --runs 3

Four sections: `big` (few large tensors, warm page cache), `cold` (the same files, not in the page
cache), `small` (thousands of tensors) and `scaling` (the number and the size of checkpoints). Every
run is a fresh process, and cases take turns: a round runs each of them once, so that a machine that
is busy for a while is busy for all. Times are medians over the rounds, and so are ratios, each of
which is of two runs in the same round.

Programs that need heavy packages are measured where another interpreter can import them (on Linux
without a GPU, torch's CPU build is enough):

    python3 -m venv peers
    peers/bin/pip install numpy h5py dask safetensors torch==2.13.0 mergekit
    .venv/bin/python tests/benchmarks/bench_merge.py --peers peers/bin/python

Up to 12 GB of disk are needed in --folder, and as much free memory for the page cache. A --folder
in memory (/dev/shm) leaves the disk out, so that outputs cost no waiting; `cold` cannot work there.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from _checkpoints import Checkpoints, Model, checkpoints, worker
from _page_cache import evict, warm
from _processes import measure
from _rounds import Case, Prepare, Results, take_turns
from _tables import comparison, number, table

SECTIONS = ("big", "cold", "small", "scaling")

PROVEN = "ckptavg merge, proven by records"
BARE = "ckptavg merge, without records"
KERAS = "Keras load_weights loop"
H5PY = "h5py whole tensors, float64"

# What it is called: the package it needs, its program in _workers, and what that reads and writes.
PEERS = {
    "safetensors per tensor, float64": (
        "safetensors",
        "safetensors_loop",
        {"reads": ".safetensors", "writes": ".safetensors"},
    ),
    "dask.array mean": ("dask", "dask_mean", {}),
    "torch AveragedModel running mean": (
        "torch",
        "torch_running_mean",
        {"reads": ".pt", "writes": ".pt"},
    ),
    "mergekit linear": ("mergekit", "mergekit_linear", {"reads": ".safetensors", "writes": ""}),
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is averaged: models, as `build` in `_workers/model.py` takes them, and how often."""

    big: Model
    big_count: int
    small: Model
    small_count: int
    step: Model
    step_counts: Sequence[int]
    one_tensor: Model


FULL = Sizes(
    big={"units": 2048, "layers": 24},
    big_count=8,
    small={"units": 96, "layers": 25, "blocks": 20},
    small_count=20,
    step={"units": 2048, "layers": 6},
    step_counts=(2, 4, 8, 16, 32, 64),
    one_tensor={"inputs": 16384, "units": 30720, "layers": 1},
)
QUICK = Sizes(
    big={"units": 64, "layers": 2},
    big_count=3,
    small={"units": 8, "layers": 2, "blocks": 2},
    small_count=3,
    step={"units": 64, "layers": 2},
    step_counts=(2, 4),
    one_tensor={"inputs": 512, "units": 1024, "layers": 1},
)


@dataclass(frozen=True, slots=True)
class Bench:
    """How sections measure.

    Attributes:
        sizes: what is averaged.
        runs: number of rounds.
        quick: whether the round that is not counted is left out.
        full: whether slow cases run in every round.
        peers: interpreter of other programs.
        packages: what that can import.
    """

    sizes: Sizes
    runs: int
    quick: bool
    full: bool
    peers: str
    packages: Iterable[str]

    def big(self, made: Checkpoints) -> None:
        cases = [
            made.cat(),
            made.ckptavg(PROVEN),
            made.ckptavg(BARE, proven=False),
            made.ckptavg("ckptavg merge --jobs 1, proven", "--jobs", 1),
            made.keras_loop(KERAS),
            made.loop(H5PY, "h5py_loop"),
        ]
        cases += [
            made.loop(name, program, python=self.peers, **formats)
            for name, (package, program, formats) in PEERS.items()
            if package in self.packages
        ]
        results = self._rounds("big", cases)
        self._title(f"Big: {made}, warm page cache")
        print(comparison(results, "cat"))
        _print_quotients(results)

    def cold(self, made: Checkpoints) -> None:
        cases = [made.cat(), made.ckptavg(PROVEN), made.ckptavg(BARE, proven=False)]
        results = self._rounds("cold", cases, prepare=evict)
        self._title(f"Cold: {made}, not in the page cache")
        print(
            "Before each run the checkpoints were dropped from the page cache (fsync, then\n"
            "posix_fadvise DONTNEED), and mincore found none of their pages left in it. Programs\n"
            "and libraries stayed in it; a virtual machine's host may have a cache of its own.\n"
        )
        print(comparison(results, "cat"))

    def small(self, made: Checkpoints) -> None:
        cases = [
            made.cat(),
            made.ckptavg(PROVEN),
            made.ckptavg(BARE, proven=False),
            made.loop(H5PY, "h5py_loop"),
            made.keras_loop(KERAS, slow=not self.full),
        ]
        results = self._rounds("small", cases)
        self._title(f"Many small tensors: {made}, warm page cache")
        if not self.full:
            print(f"{KERAS}: the first round only.\n")
        print(comparison(results, "cat"))
        _print_quotients(results)

    def scaling(self, folder: Path) -> None:
        sizes, rows = self.sizes, []
        with checkpoints(folder / "steps", sizes.step, sizes.step_counts[-1]) as made:
            rows += self._scaling([made.first(count) for count in sizes.step_counts])
        with checkpoints(folder / "one-tensor", sizes.one_tensor, 2) as made:
            rows += self._scaling([made])
        rows[-1][0] += ", one tensor"
        header = ("checkpoints", "whole s", "x cat", "part s", "part x cat", "part ns/byte")
        self._title("Scaling: ckptavg merge, proven by records, warm page cache")
        print(
            "Cores busy: user and system time over whole time, in which fsync waits for the disk.\n"
        )
        print(table((*header, "cores busy", "peak MiB", "anon MiB"), rows))

    def _scaling(self, sets: Sequence[Checkpoints]) -> list[list[str]]:
        cases = [
            case for made in sets for case in (made.cat(f"cat {made}"), made.ckptavg(f"{made}"))
        ]
        results = self._rounds("scaling", cases)
        rows = []
        for made in sets:
            name, cat, count = f"{made}", f"cat {made}", len(made.recorded)
            part = results.median(name, "part")
            rows.append(
                [
                    name,
                    number(results.median(name, "whole")),
                    number(results.ratio(name, "whole", cat)),
                    number(part),
                    number(results.ratio(name, "part", cat)),
                    number(1e9 * part / (count * made.size)),
                    number(results.median(name, "cores")),
                    *(f"{results.largest(name, kind):,.0f}" for kind in ("peak", "anonymous")),
                ]
            )
        return rows

    def _rounds(self, section: str, cases: Sequence[Case], prepare: Prepare = warm) -> Results:
        return take_turns(section, cases, self.runs, prepare, warm_up=not self.quick)

    def _title(self, text: str) -> None:
        print(f"\n## {text}; {self.runs} round{'s' if self.runs > 1 else ''}\n")


def _print_quotients(results: Results) -> None:
    quotients = (
        ("whole time of ckptavg / averaging alone of Keras", PROVEN, "whole", KERAS, "part"),
        ("whole time, proven / without records", PROVEN, "whole", BARE, "whole"),
        ("averaging alone, proven / without records", PROVEN, "part", BARE, "part"),
    )
    print()
    for text, case, attribute, to_case, to_attribute in quotients:
        print(f"- {text}: {number(results.ratio(case, attribute, to_case, to_attribute))}")


def _print_machine(peers: dict[str, str]) -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    own = measure(worker("versions", "ckptavg", "keras", "tensorflow", "numpy", "h5py")).printed
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    print("# Benchmark of ckptavg merge\n")
    print(
        f"{models[0] if models else platform.machine()}, {cores} cores, {memory:.0f} GiB, "
        f"Linux {platform.release()}, load {_load()} at the start"
    )
    print(f"Python {platform.python_version()}, {_listed(own)}")
    print(f"other programs: {_listed(peers) or 'none installed; see --peers'}\n")
    print(
        "Times are medians over the rounds, ratios medians of runs in the same round, memory the\n"
        "largest of all rounds.\n\n"
        "whole: the process with its imports. part: averaging alone, from opening the inputs to\n"
        "the written output, as the program itself times it; ckptavg's is on disk by then, the\n"
        "others' in the page cache. peak: ru_maxrss, in which mapped pages of files count; anon:\n"
        "the largest RssAnon seen. misrounded: elements, in a seventh of the tensors, that differ\n"
        "from the float64 mean rounded once."
    )


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def _listed(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="a section; may be repeated"
    )
    parser.add_argument("--runs", type=int, help="rounds (default 5)")
    parser.add_argument("--full", action="store_true", help="slow cases in every round")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test this program")
    parser.add_argument("--folder", help="for the files; a temporary one if left out")
    parser.add_argument(
        "--peers", default=sys.executable, metavar="PYTHON", help="interpreter of other programs"
    )
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.quick else 5)
    return options


def main() -> None:
    options = _parse()
    wanted = options.only or SECTIONS
    packages = [package for package, _, _ in PEERS.values()]
    found = measure(worker("versions", *packages, python=options.peers)).printed
    sizes = QUICK if options.quick else FULL
    bench = Bench(sizes, options.runs, options.quick, options.full, options.peers, found)
    _print_machine(found)
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder))
        folder = Path(name)
        if {"big", "cold"} & {*wanted}:
            with checkpoints(folder / "big", sizes.big, sizes.big_count) as made:
                if "big" in wanted:
                    bench.big(made)
                if "cold" in wanted:
                    bench.cold(made)
        if "small" in wanted:
            with checkpoints(folder / "small", sizes.small, sizes.small_count) as made:
                bench.small(made)
        if "scaling" in wanted:
            bench.scaling(folder)
    print(f"\nload {_load()} at the end")


if __name__ == "__main__":
    main()
