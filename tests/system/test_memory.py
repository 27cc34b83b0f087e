"""Memory of whole processes that merge: bounded, obeyed, the same for any size and number."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.helpers.files import MiB, sparse_checkpoints, write_h5


def peak_of_merge(folder: Path, *arguments: object) -> tuple[int, int, str]:
    """Exit status, peak resident bytes and stderr of a merge in a process of its own."""
    code = (
        "import pathlib, ckptavg.cli\n"
        "try: ckptavg.cli.main()\n"
        "finally: pathlib.Path('peak').write_text(pathlib.Path('/proc/self/status').read_text())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "merge", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    # VmHWM begins anew in a new program; ru_maxrss would count the process it was forked from.
    peak = re.search(r"VmHWM:\s+(\d+) kB", (folder / "peak").read_text())
    return result.returncode, int(peak[1]) * 1024, result.stderr


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_memory_limit_of_the_whole_process_is_obeyed(tmp_path, dtype):
    paths = sparse_checkpoints(tmp_path / "c", 4, 64 * MiB, dtype)
    merging = (*paths, "-o", "o.weights.h5", "--overwrite")
    status, _, stderr = peak_of_merge(tmp_path, *merging, "--max-memory", "40MiB")
    assert status == 1
    assert "too low" in stderr
    status, alone, _ = peak_of_merge(tmp_path, *merging, "--jobs", 1)
    assert status == 0
    limit = alone + 16 * MiB  # enough for one thread or two, of the 16 asked for
    status, peak, stderr = peak_of_merge(
        tmp_path, *merging, "--jobs", 16, "--max-memory", f"{limit}B"
    )
    assert status == 0, stderr
    assert peak <= limit


def peak_by_default(folder: Path, count: int, nbytes: int) -> int:
    paths = sparse_checkpoints(folder / f"{count}-{nbytes}", count, nbytes)
    status, peak, stderr = peak_of_merge(folder, *paths, "-o", f"{count}-{nbytes}.weights.h5")
    assert status == 0, stderr
    return peak


def test_the_peak_is_the_same_for_more_and_larger_checkpoints(tmp_path):
    peaks = [
        peak_by_default(tmp_path, 4, 20 * MiB),
        peak_by_default(tmp_path, 32, 20 * MiB),
        peak_by_default(tmp_path, 4, 200 * MiB),
    ]
    assert max(peaks) <= 160e6
    assert max(peaks) - min(peaks) <= 10e6


@pytest.mark.slow
def test_the_peak_is_the_same_for_100_mb_and_2_gb(tmp_path):
    peaks = [peak_by_default(tmp_path, 4, 10**8), peak_by_default(tmp_path, 4, 2 * 10**9)]
    assert max(peaks) <= 160e6
    assert max(peaks) - min(peaks) <= 10e6


def test_a_limit_of_96_mib_is_obeyed(tmp_path):
    paths = sparse_checkpoints(tmp_path / "c", 8, 60 * MiB)
    merging = (*paths, "-o", "o.weights.h5", "--overwrite", "--jobs", 8)
    status, peak, stderr = peak_of_merge(tmp_path, *merging, "--max-memory", "96MiB")
    assert status == 0, stderr
    assert peak <= 96 * MiB


def test_a_limit_that_cannot_be_met_says_the_least_that_would_do(tmp_path):
    paths = sparse_checkpoints(tmp_path / "c", 2, 10 * MiB)
    merging = (*paths, "-o", "o.weights.h5")
    status, _, stderr = peak_of_merge(tmp_path, *merging, "--max-memory", "40MiB")
    assert status == 1
    least = int(re.search(r"at least ([\d,]+) bytes", stderr)[1].replace(",", ""))
    assert not (tmp_path / "o.weights.h5").exists()
    status, peak, stderr = peak_of_merge(tmp_path, *merging, "--max-memory", f"{least + 2 * MiB}")
    assert status == 0, stderr
    assert peak <= least + 2 * MiB


@pytest.mark.parametrize("suffix", [".weights.h5", ".safetensors"])
def test_many_small_tensors_need_little_for_many_checkpoints(tmp_path, suffix):
    values = {f"layers/d{n}/vars/0": np.full(16, n, "float32") for n in range(3000)}
    first = tmp_path / f"0{suffix}"
    if suffix == ".safetensors":
        safetensors.numpy.save_file(values, first)
    else:
        write_h5(first, values)
    for number in range(1, 24):
        shutil.copyfile(first, tmp_path / f"{number}{suffix}")
    peaks = []
    for count in (4, 24):
        paths = [tmp_path / f"{number}{suffix}" for number in range(count)]
        status, peak, stderr = peak_of_merge(tmp_path, *paths, "-o", f"o{count}{suffix}")
        assert status == 0, stderr
        peaks.append(peak)
    assert max(peaks) <= 160e6
    # Of each checkpoint there is more than nothing: its digests, 16 bytes a tensor.
    assert peaks[1] - peaks[0] <= 20e6
    limit = f"{110 * MiB}B"
    status, peak, stderr = peak_of_merge(
        tmp_path, *paths, "-o", f"p{suffix}", "--max-memory", limit
    )
    assert status == 0, stderr
    assert peak <= 110 * MiB
