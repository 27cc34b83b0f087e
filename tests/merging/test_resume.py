"""Merges that are stopped, killed and gone on with; two at once; real processes, real disks."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import ckptavg
from ckptavg.errors import OutputError
from ckptavg.formats import tensors
from ckptavg.merging import work
from ckptavg.merging.engine import divide_plan
from ckptavg.merging.journal import Journal
from ckptavg.runs.record import Record
from ckptavg.runs.record_files import record_path
from ckptavg.storage.files import partial
from tests.helpers.files import flip_bit, leftovers, write_h5
from tests.helpers.merges import interrupted
from tests.helpers.models import evaluator, randomize, tiny_model

_SLOWLY = """
import signal, sys, time
import ckptavg
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
output, pause, resume, *paths = sys.argv[1:]
def progress(_):
    time.sleep(float(pause))
report = ckptavg.merge(paths, output, resume=bool(int(resume)), overwrite=True, progress=progress)
print(report.resumed)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[list[Path], bytes]:
    """Three checkpoints of seven blocks and many small tensors; their mean, undisturbed."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    paths = [
        write_h5(
            folder / f"{k}.weights.h5",
            {"layers/big/vars/0": rng.normal(size=10**7).astype("float32")}
            | {f"layers/d{n}/vars/0": rng.normal(size=700).astype("float32") for n in range(200)}
            | {"layers/big/vars/1": rng.normal(size=2 * 10**6).astype("float64")},
        )
        for k in range(3)
    ]
    out = folder / "whole.weights.h5"
    ckptavg.merge(paths, out)
    return paths, out.read_bytes()


def slowly(output: Path, paths: list[Path], resume: bool, pause: float = 0.004) -> subprocess.Popen:
    arguments = map(str, (output, pause, int(resume), *paths))
    return subprocess.Popen(
        [sys.executable, "-c", _SLOWLY, *arguments], stdout=subprocess.PIPE, text=True
    )


def entries(output: Path) -> int:
    """Finished groups that the journal of an output tells of."""
    journal = partial(output.with_name(f"{output.name}.journal"))
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def digests_of_sources(output: Path) -> list[str | None]:
    return [source.digest for source in Record.read(record_path(output)).sources]


def wait_for_entries(process: subprocess.Popen, output: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while entries(output) < count:
        assert process.poll() is None, "it was finished before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_killed_merge_leaves_no_output_and_is_gone_on_with(large, tmp_path):
    paths, whole = large
    out = tmp_path / "o.weights.h5"
    for done in (2, 4):
        process = slowly(out, paths, resume=True)
        wait_for_entries(process, out, done)
        process.kill()
        process.communicate()
        assert not out.exists()
        assert not record_path(out).exists()
    process = slowly(out, paths, resume=True, pause=0)
    resumed = float(process.communicate()[0])
    assert process.returncode == 0
    assert resumed >= 4 / 6
    assert out.read_bytes() == whole
    assert digests_of_sources(out) == digests_of_sources(paths[0].with_name("whole.weights.h5"))
    assert not leftovers(tmp_path)
    assert [found.average for found in ckptavg.verify(out)] == ["reproduced"]


@pytest.mark.slow
def test_merges_killed_at_random_come_out_the_same(large, tmp_path):
    paths, whole = large
    out = tmp_path / "o.weights.h5"
    rng = random.Random(1)
    kills = 0
    while not out.exists():
        process = slowly(out, paths, resume=True, pause=0.02)
        time.sleep(rng.uniform(0.3, 2.0))
        process.kill()
        process.wait()
        kills += 1
        assert kills < 200
    assert kills > 5
    assert out.read_bytes() == whole


@pytest.mark.parametrize("resume", [True, False])
def test_a_terminated_merge_keeps_what_is_done_only_if_told(large, tmp_path, resume):
    paths, whole = large
    out = tmp_path / "o.weights.h5"
    process = slowly(out, paths, resume)
    wait_for_entries(process, out, 2)
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert bool(leftovers(tmp_path)) == resume
    assert not out.exists()
    report = ckptavg.merge(paths, out, resume=True)
    assert (report.resumed > 0) == resume
    assert out.read_bytes() == whole
    assert not leftovers(tmp_path)


def test_what_is_not_as_it_was_written_is_averaged_again(large, tmp_path):
    paths, whole = large
    out = tmp_path / "o.weights.h5"
    interrupted(paths, out)
    done = entries(out)
    assert done >= 3
    flip_bit(partial(out), 9 * 2**20)
    report = ckptavg.merge(paths, out, resume=True)
    assert report.resumed == pytest.approx((done - 1) / len(divide_plan(report.plan)))
    assert out.read_bytes() == whole


@pytest.mark.parametrize("damage", ["torn line", "other plan", "no partial", "shorter", "garbage"])
def test_a_journal_that_does_not_fit_is_not_trusted(large, tmp_path, damage):
    paths, whole = large
    out = tmp_path / "o.weights.h5"
    interrupted(paths, out)
    journal = partial(out.with_name(f"{out.name}.journal"))
    content = journal.read_bytes()
    if damage == "torn line":
        journal.write_bytes(content[:-40])
    elif damage == "other plan":
        journal.write_bytes(content.replace(content.split()[2], b"0" * 32))
    elif damage == "no partial":
        partial(out).unlink()
    elif damage == "shorter":
        os.truncate(partial(out), 10**6)
    elif damage == "garbage":
        first, *rest = content.splitlines(keepends=True)
        number, written, *others = json.loads(rest[0])
        rest[0] = json.dumps([number, "00" * (len(written) // 2), *others]).encode() + b"\n"
        journal.write_bytes(first + b"".join(rest) + b'[1, 2, 3]\n["x", {}]\n\xff\n')
    ckptavg.merge(paths, out, resume=True)
    assert out.read_bytes() == whole
    assert not leftovers(tmp_path)


def test_changed_sources_are_averaged_anew(large, tmp_path):
    paths, _ = large
    copies = [Path(shutil.copy(path, tmp_path / path.name)) for path in paths]
    out = tmp_path / "o.weights.h5"
    interrupted(copies, out)
    flip_bit(copies[1], 10**7)
    assert ckptavg.merge(copies, out, resume=True).resumed == 0


def test_two_merges_into_one_output(large, tmp_path):
    paths, _ = large
    out = tmp_path / "o.weights.h5"
    process = slowly(out, paths, resume=False)
    wait_for_entries(process, out, 1)
    with pytest.raises(OutputError, match=f"being written by process {process.pid} on "):
        ckptavg.merge(paths, out, overwrite=True)
    process.wait()
    assert process.returncode == 0
    assert not leftovers(tmp_path)


def test_a_journal_goes_with_its_owner(tmp_path):
    with Journal(tmp_path / "o.weights.h5", "f" * 32, resume=False):
        assert len(leftovers(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_parts_of_an_output_are_owned_with_it(large, tmp_path):
    paths, _ = large
    out = tmp_path / "o.weights.json"
    refused = []

    def progress(_):
        if not refused:
            with pytest.raises(OutputError, match=r"o_00000.weights.h5 is being written by"):
                ckptavg.merge(paths, tmp_path / "o_00000.weights.h5", overwrite=True)
            refused.append(True)

    ckptavg.merge(paths, out, jobs=1, progress=progress)
    assert refused
    assert [found.average for found in ckptavg.verify(out)] == ["reproduced"]
    assert not leftovers(tmp_path)


def test_the_merge_before_the_batch_norm_pass_can_be_gone_on_with(tmp_path):
    pytest.importorskip("tensorflow")
    from ckptavg.batch_norm.refresh import merge_into_model
    from ckptavg.commands.merge import plan_merge

    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.weights.h5")
        randomize(tiny_model(), seed).save_weights(paths[-1])
    out = tmp_path / "o.keras"
    plan = plan_merge(paths, out, live_model=True)
    merge_into_model(plan, model=evaluator(), resume=True)
    assert out.exists()
    assert not leftovers(tmp_path)


def test_a_partial_file_of_any_size_is_not_read(tmp_path, monkeypatch):
    for module in (tensors, work):
        monkeypatch.setattr(module, "BLOCK_SIZE", 2**16)
    paths = [write_h5(tmp_path / f"{n}.weights.h5", {"x/vars/0": np.ones(10**5)}) for n in "abc"]
    out = tmp_path / "o.weights.h5"
    calls = []

    def stop(_: int) -> None:
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ckptavg.merge(paths, out, resume=True, jobs=1, progress=stop)
    os.truncate(partial(out), 2 * 1024**3)
    tracemalloc.start()
    report = ckptavg.merge(paths, out, resume=True)
    assert tracemalloc.get_traced_memory()[1] < 256 * 1024**2
    tracemalloc.stop()
    assert report.resumed == 0
