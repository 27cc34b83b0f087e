"""Outputs on real small disks that are full, fill up, are read-only, or vanish under a merge."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

import ckptavg
from ckptavg import cli
from ckptavg.commands.merge import plan_merge
from ckptavg.errors import IntegrityError, OutputError, ResourceError
from ckptavg.formats import ModelConfig
from ckptavg.merging import merge as merging
from tests.helpers.files import fill, read_tensors, write_h5
from tests.helpers.models import randomize, tiny_model

PAGE = 4096

_ANYBODY = ["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


@pytest.fixture
def large(tmp_path) -> list[Path]:
    """Three checkpoints of 600 kB, elsewhere."""
    rng = np.random.default_rng(0)
    return [
        write_h5(
            tmp_path / f"{k}.weights.h5",
            {f"layers/d{n}/vars/0": rng.normal(size=50_000).astype("float32") for n in range(3)},
        )
        for k in range(3)
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return contents_of(sorted(folder.iterdir()))


def contents_of(files: Iterable[Path]) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in files}


def at(total: int, act: Callable[[], object]) -> Callable[[int], None]:
    """A progress that acts once, when it has been told of so many bytes."""
    seen = [0]

    def progress(nbytes: int) -> None:
        before, seen[0] = seen[0], seen[0] + nbytes
        if before < total <= seen[0]:
            act()

    return progress


@pytest.mark.parametrize("when", ["first tensor", "last tensor"])
@pytest.mark.parametrize(
    "name",
    ["o.weights.h5", "o.keras", "o.weights.json", "o.safetensors", "o.safetensors.index.json"],
)
def test_a_disk_that_fills_after_planning(large, small_disk, tmp_path, name, when):
    """After the last tensor there are still indexes, the zip around the weights, the record."""
    out, options = small_disk / name, {"overwrite": True, "jobs": 1}
    if name == "o.keras":  # its configuration is carried, whatever it is of
        tiny_model().save(tmp_path / "model.keras")
        options["model"] = tmp_path / "model.json"
        options["model"].write_text(ModelConfig.read(tmp_path / "model.keras").to_json())
    ckptavg.merge(large[:2], out, **options)
    before, sources = contents(small_disk), contents(tmp_path)
    plan = plan_merge(large, out, **options)
    total = 1 if when == "first tensor" else plan.bytes_read
    with pytest.raises(ResourceError, match=f"cannot write .*{name}: the disk of .* is full"):
        merging.run_plan(plan, at(total, lambda: fill(small_disk)))
    assert contents(small_disk) == before
    assert contents(tmp_path) == sources


def test_a_disk_that_fills_before_the_journal_is_written(large, small_disk):
    plan = plan_merge(large, small_disk / "o.weights.h5")
    ballast = fill(small_disk)
    with pytest.raises(ResourceError, match=r"cannot write .*o.weights.h5: the disk of .* is full"):
        merging.run_plan(plan, resume=True)
    assert contents(small_disk) == {}
    ballast.unlink()
    merging.run_plan(plan, resume=True)


@pytest.fixture
def sources(tmp_path, request) -> list[str]:
    """What the command line is to merge into a suffix."""
    names = []
    for seed in range(2):
        model = randomize(tiny_model(), seed)
        if request.param == ".index":
            import tensorflow as tf

            names.append(tmp_path / f"{seed}-ckpt")
            tf.train.Checkpoint(model=model).write(str(names[-1]))
        else:
            names.append(tmp_path / f"{seed}{request.param}")
            model.save_weights(names[-1]) if "weights" in request.param else model.save(names[-1])
    options = ["--model", str(names[0])] if request.param == ".keras" else []
    return [*map(str, names), *options]


@pytest.mark.parametrize("sources", [".weights.h5", ".keras", ".index"], indirect=True)
def test_whatever_does_not_fit_on_the_disk(sources, small_disk, tmp_path, monkeypatch, capfd):
    """From where the plan lets the merge begin, page by page, to where all of it fits."""
    suffix = ".index" if "-ckpt" in sources[0] else "".join(Path(sources[0]).suffixes)
    out, elsewhere = small_disk / f"o{suffix}", tmp_path / f"elsewhere{suffix}"

    def merge(output: Path) -> str:
        monkeypatch.setattr(sys, "argv", ["ckptavg", "merge", *sources, "-o", str(output)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        said = capfd.readouterr().err
        assert (status, said.startswith("error: ")) in ((0, False), (1, True)), said
        return said if status else ""

    assert merge(elsewhere) == ""
    failed, pages = [], 0
    while True:
        ballast = fill(small_disk, pages * PAGE)
        said = merge(out)
        ballast.unlink()
        if not said:
            break
        assert said.count("\n") == 1
        assert str(out).removesuffix(".index") in said
        assert contents(small_disk) == {}
        failed.append(said)
        pages += 1
    assert sum("is full" in said for said in failed) >= 3
    assert read_tensors(out).keys() == read_tensors(elsewhere).keys()


def test_an_output_elsewhere_is_proven_by_sources_here(large):
    other = Path("/dev/shm")
    if not os.access(other, os.W_OK) or other.stat().st_dev == large[0].stat().st_dev:
        pytest.skip("there is no second file system")
    with TemporaryDirectory(dir=other) as folder:
        out = Path(folder) / "o.weights.h5"
        ckptavg.merge(large, out)
        assert [found.average for found in ckptavg.verify(out)] == ["reproduced"]


@pytest.mark.parametrize("when", ["first tensor", "last tensor"])
@pytest.mark.parametrize("name", ["o.weights.h5", "o.weights.json", "o.safetensors.index.json"])
def test_a_folder_that_is_removed_under_its_output(large, tmp_path, name, when):
    folder = tmp_path / "out"
    folder.mkdir()
    sources = contents_of(large)
    plan = plan_merge(large, folder / name, jobs=1)
    total = 1 if when == "first tensor" else plan.bytes_read
    with pytest.raises(OutputError, match=f"cannot write .*{name}: No such file or directory"):
        merging.run_plan(plan, at(total, lambda: shutil.rmtree(folder)))
    assert not folder.exists()
    assert contents_of(large) == sources


def test_a_source_that_is_truncated_during_the_merge(large, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    plan = plan_merge(large, folder / "o.weights.h5", jobs=1)
    cut = at(1, lambda: os.truncate(large[1], 400_000))
    with pytest.raises(IntegrityError, match=r"1.weights.h5 .*truncated while it was read"):
        merging.run_plan(plan, cut)
    assert list(folder.iterdir()) == []


def run_as_anybody(*arguments: object) -> subprocess.CompletedProcess:
    """Runs Python without the right of root to read and write whatever it likes."""
    command = [sys.executable, *map(str, arguments)]
    if os.geteuid() == 0:
        command = ["setpriv", *_ANYBODY, *command]
    result = subprocess.run(command, capture_output=True, text=True)
    if "setpriv:" in result.stderr:
        pytest.skip(f"root cannot give up its rights here: {result.stderr}")
    return result


def test_a_source_that_becomes_unreadable_during_the_merge(large, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    code = (
        "import os, sys\n"
        "from ckptavg import CkptavgError\n"
        "from ckptavg.merging import merge as merging, plan\n"
        "planned = plan.plan_merge(sys.argv[2:], sys.argv[1])\n"
        "os.chmod(sys.argv[3], 0)\n"
        "try: merging.run_plan(planned)\n"
        "except CkptavgError as error: print(repr(error))\n"
    )
    result = run_as_anybody("-c", code, folder / "o.weights.h5", *large)
    assert re.search("FormatError.*cannot open .*1.weights.h5: Permission denied", result.stdout)
    assert list(folder.iterdir()) == []


def test_a_folder_without_permission(large, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir(mode=0o555)
    result = run_as_anybody("-m", "ckptavg", "merge", *large, "-o", folder / "o.weights.h5")
    assert result.returncode == 1
    assert re.fullmatch(r"error: cannot write .*o.weights.h5: no permission .*\n", result.stderr)
    assert list(folder.iterdir()) == []


def test_a_disk_that_is_read_only(large, disks):
    command = ["-m", "ckptavg", "merge", *large, "-o", disks / "ro" / "o.weights.h5"]
    result = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert result.returncode == 1
    assert re.fullmatch(r"error: cannot write .*o.weights.h5: .*\n", result.stderr)
