"""The benchmark programs themselves, at tiny sizes: they are run by hand, and would rot unseen."""

import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

# Runs a program whose own processes are started by another interpreter.
_PROGRAM = """
import runpy, sys
sys.executable, program, *sys.argv[1:] = sys.argv[1:]
sys.path.insert(0, program.rpartition("/")[0])
runpy.run_path(program, run_name="__main__")
"""


def run(command: list[object], *options: str, name: str = "bench_merge") -> list[list[str]]:
    """The cells of all tables that a benchmark prints."""
    program = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    result = subprocess.run(
        [*map(str, command), str(program), "--quick", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def bench(warm_python):
    return partial(run, [warm_python, "-c", _PROGRAM, warm_python])


def test_the_benchmark_runs_with_a_warm_and_a_cold_cache(bench):
    rows = [row for row in bench("--only", "big", "--only", "cold") if "ckptavg" in row[0]]
    assert len(rows) == 3 + 2
    for row in rows:
        assert all(row), "an empty cell"
        assert row[-1] == "0 %", "misrounded"


def test_the_benchmarks_of_the_batch_norm_pass_run(bench):
    how = [row[0] for row in bench(name="bench_batch_norm")]
    assert {"BatchNorm pass", "pass, mode batch"} <= set(how)
    backend = "jax" if find_spec("jax") else "tensorflow"
    on_cpu = ("--device", "cpu", "--backend", backend)
    assert len(bench(*on_cpu, name="bench_batch_norm_gpu")) == 2 + 4


def test_the_benchmark_of_sweeps_runs(bench):
    header, _, *rows = bench(name="bench_sweep")
    assert header == ["sums", "passes and evaluations s", "sweep s", "ratio"]
    assert len(rows) == 2
    assert all(all(row) for row in rows)


def test_the_benchmark_of_geometry_runs(bench):
    _, _, cat, ours, stacked = bench(name="bench_geometry")
    assert cat[0].startswith("cat, 3 x")
    assert all(ours), "an empty cell"
    assert float(ours[-1]) < 1e-9  # as far from the stacked weights' distances
    assert all(stacked[:-1]), "an empty cell"


def test_the_benchmark_of_loss_planes_runs(bench):
    header, _, *rows = bench(name="bench_loss_plane")
    assert header == ["beside", "points", "passes and evaluations s", "plane s", "ratio"]
    assert [row[:2] for row in rows] == [["BatchNormPass", "3 x 3"], ["update_batch_norm", "2 x 2"]]
    assert all(all(row) for row in rows)


def test_the_benchmark_of_tracked_averages_runs(bench):
    header, _, *rows = bench(name="bench_tracked")
    assert header == ["model", "plain", "batch callback", "tracked", "added by averaging"]
    assert len(rows) == 2
    assert all(all(row) for row in rows)


@pytest.mark.slow
def test_the_whole_benchmark_runs(bench):
    how = [row[0] for row in bench()]
    assert how.count("cat") == 3
    assert how.count("Keras load_weights loop") == 2
    assert how.count("h5py whole tensors, float64") == 2


def test_the_benchmark_of_the_start_runs():
    header, _, imports, whole, start = run([sys.executable], name="bench_start")
    assert header == ["process", "processor ms", "ratio"]
    assert imports[-1] == "1"
    assert float(start[1]) < float(whole[1])
