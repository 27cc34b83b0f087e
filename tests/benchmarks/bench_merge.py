"""Time and memory of `ckptavg merge` beside `cat` and a Keras `load_weights` loop, in one run.

    make bench
    .venv/bin/python tests/benchmarks/bench_merge.py --checkpoints 8 --layers 24 --runs 5

Every case is a fresh process over the same files, cases taking turns; the page cache is warm.
`whole` is the process with its imports, `part` the averaging alone as the program itself times it,
`peak` the kernel's own figure of the process (VmHWM). Ratios are medians of each round's ratio to
the `cat` of that round.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_MAKE = """
import sys
import keras, numpy as np
from ckptavg.proof import tensor_records
from ckptavg.record import Record, now, versions
folder, count, layers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
blocks = [keras.Input((2048,))]
for _ in range(layers):
    blocks += [keras.layers.Dense(2048), keras.layers.BatchNormalization()]
model = keras.Sequential(blocks)
rng = np.random.default_rng(0)
from pathlib import Path
for epoch in range(1, count + 1):
    for variable in model.weights:
        values = rng.standard_normal(variable.shape, dtype="float32") * 0.05
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
    path = Path(folder) / f"epoch-{epoch:04d}.weights.h5"
    model.save_weights(path)
    record = Record(path.name, path.stat().st_size, now(), versions(), epoch=epoch)
    record.write(path.with_name(f"epoch-{epoch:04d}.json"), tensor_records(path))
"""

_KERAS = """
import sys, time
import keras, numpy as np
layers, output, *paths = sys.argv[1:]
blocks = [keras.Input((2048,))]
for _ in range(int(layers)):
    blocks += [keras.layers.Dense(2048), keras.layers.BatchNormalization()]
model = keras.Sequential(blocks)
started = time.perf_counter()
total = None
for path in paths:
    model.load_weights(path)
    weights = model.get_weights()
    total = weights if total is None else [a + b for a, b in zip(total, weights)]
model.set_weights([a / len(paths) for a in total])
model.save_weights(output)
print("part", time.perf_counter() - started)
"""

_CKPTAVG = """
import sys, time
import ckptavg.cli
ckptavg.cli.main()
"""

_PEAK = """
import atexit, sys
def _peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            print("peak", line.split()[1], file=sys.stderr)
atexit.register(_peak)
"""


def run(command: list[str]) -> tuple[float, float | None, float | None]:
    """Whole and part in seconds, peak in MiB, of one process."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    started = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    whole = time.perf_counter() - started
    if result.returncode:
        sys.exit(f"{command[:3]} failed:\n{result.stderr}")
    part = peak = None
    for line in (result.stdout + result.stderr).splitlines():
        if line.startswith("part "):
            part = float(line.split()[1])
        elif line.startswith("peak "):
            peak = int(line.split()[1]) / 1024
    if result.stdout.startswith("{"):
        part = json.loads(result.stdout)["seconds"]
    return whole, part, peak


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", _PEAK + code, *map(str, arguments)]


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--layers", type=int, default=24, help="of 2048x2048, 16.8 MB each")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", help="for the files; a temporary one if left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        recorded, plain = folder / "run" / "checkpoints", folder / "plain"
        recorded.mkdir(parents=True)
        plain.mkdir()
        subprocess.run(
            python(_MAKE, recorded, options.checkpoints, options.layers),
            check=True,
            stderr=subprocess.DEVNULL,
        )
        files = sorted(recorded.glob("*.weights.h5"))
        for file in files:
            (plain / file.name).hardlink_to(file)
        bare = sorted(plain.iterdir())
        output = folder / "out.weights.h5"
        merging = ("-o", output, "--overwrite", "--json")
        cases = {
            "cat": ["sh", "-c", f"cat {recorded}/*.weights.h5 > /dev/null"],
            "ckptavg merge, proven by records": python(_CKPTAVG, "merge", folder / "run", *merging),
            "ckptavg merge, without records": python(_CKPTAVG, "merge", *bare, *merging),
            "ckptavg merge --jobs 1, proven": python(
                _CKPTAVG, "merge", folder / "run", "--jobs", 1, *merging
            ),
            "Keras load_weights loop": python(_KERAS, options.layers, output, *files),
        }
        results: dict[str, list[tuple]] = {case: [] for case in cases}
        for command in cases.values():
            run(command)  # warm-up, not counted
        for _ in range(options.runs):
            for case, command in cases.items():
                results[case].append(run(command))
        size = files[0].stat().st_size
        print(f"{len(files)} x {size / 1e6:.0f} MB, medians of {options.runs} rounds")
        cores = len(os.sched_getaffinity(0))
        print(f"{processor()}, {cores} cores, Python {platform.python_version()}\n")
        print("| how | whole s | x cat | part s | part x cat | peak RSS MiB |")
        print("|---|---|---|---|---|---|")
        cat = [whole for whole, _, _ in results["cat"]]
        for case, rows in results.items():
            whole = statistics.median(row[0] for row in rows)
            ratio = statistics.median(row[0] / c for row, c in zip(rows, cat, strict=True))
            parts = [row[1] for row in rows if row[1] is not None]
            part = f"{statistics.median(parts):.2f}" if parts else ""
            part_ratio = (
                f"{statistics.median(p / c for p, c in zip(parts, cat, strict=True)):.1f}"
                if parts
                else ""
            )
            peaks = [row[2] for row in rows if row[2] is not None]
            peak = f"{max(peaks):.0f}" if peaks else ""
            print(f"| {case} | {whole:.2f} | {ratio:.1f} | {part} | {part_ratio} | {peak} |")


if __name__ == "__main__":
    main()
