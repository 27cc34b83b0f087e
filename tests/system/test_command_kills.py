"""Commands killed at random moments: nothing is half-written, and a second start completes it."""

import json
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import ckptavg
from ckptavg.runs.record_files import find_record, record_path
from ckptavg.storage.files import TEMPORARY_PREFIX
from tests.helpers.choosing import SPECS, SPLIT
from tests.helpers.command_line import TRAIN
from tests.helpers.files import leftovers, write_h5
from tests.helpers.processes import is_running, kill

_PROGRAM = """
import os, sys
print(os.getpid(), flush=True)
from ckptavg.cli import main
sys.argv[0] = "ckptavg"
main()
"""

_CHOOSE = ("--eval-data", "train.py:choose")
_WRITTEN = (".weights.h5", ".weights.json", ".safetensors", ".safetensors.index.json")

_KINDS = ("commit", "write", "commit", "any", "commit", "write", "any")


@pytest.fixture
def start(warm, tmp_path) -> Iterator[Callable[..., int]]:
    """Starts a command, and gives its process."""
    with ExitStack() as stack:
        errors = stack.enter_context((tmp_path.parent / f"{tmp_path.name}-errors").open("w"))

        def start(*arguments: object) -> int:
            process = stack.enter_context(
                subprocess.Popen(
                    [*warm, "-c", _PROGRAM, *map(str, arguments)],
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return int(process.stdout.readline())

        yield start


@pytest.fixture(scope="module")
def _large_once(tmp_path_factory) -> Path:
    """A folder of three checkpoints of 5 MB."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for number in range(3):
        write_h5(
            folder / f"c-{number}.weights.h5",
            {"layers/big/vars/0": rng.normal(size=12 * 10**5).astype("float32")}
            | {f"layers/d{n}/vars/0": rng.normal(size=700).astype("float32") for n in range(99)},
        )
    return folder


@pytest.fixture
def large(_large_once, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(_large_once)
    return tmp_path


@pytest.fixture
def place(trained_run, monkeypatch) -> Path:
    """A working folder with a run and the train.py that made it."""
    (trained_run.parent / "train.py").write_text(TRAIN + SPLIT)
    monkeypatch.chdir(trained_run.parent)
    return trained_run.parent


def strike(pid: int, output: Path, kind: str, seconds: float, rng: random.Random) -> None:
    """Kills a command at a random moment.

    Args:
        pid: its process.
        output: what it writes.
        kind: of the moment: any, amid the first writes, or about the commit.
        seconds: about as long as the command takes.
        rng: draws the moment.
    """
    if kind == "any":
        time.sleep(rng.uniform(0, seconds))
    elif kind == "write":
        wait_for(pid, lambda: amid_a_write(output.parent))
        time.sleep(rng.uniform(0, 0.2 * seconds))
    else:
        last = output if output.suffix == ".html" else record_path(output)
        wait_for(pid, hidden(last).exists)
        time.sleep(rng.choice((0, rng.uniform(0, 0.002), rng.uniform(0, 0.02))))
    if is_running(pid):
        kill(pid)


def wait_for(pid: int, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while is_running(pid) and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0002)


def amid_a_write(folder: Path) -> bool:
    """Whether there are temporary files other than the lock of an output."""
    return any(
        name.startswith(TEMPORARY_PREFIX) and not name.endswith(".lock")
        for name in (path.name for path in folder.iterdir())
    )


def hidden(path: Path) -> Path:
    return path.with_name(TEMPORARY_PREFIX + path.name)


def written(output: Path) -> dict[str, object]:
    """What stands at the output, by name: its bytes, of records all but the time."""
    found: dict[str, object] = {}
    stem = output.name.partition(".")[0]
    for path in output.parent.glob(f"{stem}[._-]*"):
        found[path.name] = path.read_bytes()
        if path == record_path(output):
            content = json.loads(path.read_text())
            del content["time"]
            found[path.name] = content
    return found


def check_whole(output: Path, former: dict, new: dict, met: Counter) -> None:
    """Makes sure that whatever is seen at the output is the former or the new one, entirely."""
    found = written(output)
    if output.name not in found:
        met["no output"] += 1
        # Of several files the index comes last: without it there is no checkpoint.
        assert record_path(output).name not in found
        return
    files = {name for name in found if not name.endswith((".csv", record_path(output).name))}
    which = new if all(found[name] == new.get(name) for name in files) else former
    met["the new one" if which is new else "the former one"] += 1
    met["without a record"] += bool(
        record_path(output).name in new and record_path(output).name not in found
    )
    for name, content in found.items():
        # The table beside the output follows it.
        assert content == which.get(name) or (name.endswith(".csv") and content == former.get(name))
    if output.suffix != ".html":
        ckptavg.verify(output)
        if find_record(output) is not None:
            assert ckptavg.verify(output)[0].average in ("reproduced", None)


def kill_and_start_again(
    start: Callable[..., int], kills: int, output: Path, commands: list[tuple], rng: random.Random
) -> Counter:
    """Kills commands that write an output, each time completes them, and checks both.

    Args:
        start: starts one.
        kills: how many.
        output: what all of them write.
        commands: each with other contents.
        rng: draws the moments.
    """
    commands = commands[:kills]  # each takes a start of its own
    met: Counter = Counter()
    contents, seconds = [], 0.0
    for command in commands:
        pid, began = start(*command, "--overwrite"), time.perf_counter()
        wait_for(pid, lambda: False)
        seconds = time.perf_counter() - began
        contents.append(written(output))
        assert output.name in contents[-1]
    assert len(commands) == 1 or contents[0] != contents[1]
    sources = {path: path.read_bytes() for path in Path("run").glob("checkpoints/*")}
    for number in range(kills):
        turn = (number + 1) % len(commands)
        former = written(output)
        if rng.random() < 0.3:
            for name in former:
                output.with_name(name).unlink()
            former = {}
        kind = _KINDS[number % len(_KINDS)]
        strike(start(*commands[turn], "--overwrite"), output, kind, seconds, rng)
        met["amid a write"] += amid_a_write(output.parent)
        check_whole(output, former, contents[turn], met)
        # In a process of its own: Keras numbers the layers of a process, also in the files.
        wait_for(start(*commands[turn], "--overwrite"), lambda: False)
        assert written(output) == contents[turn]
        assert not leftovers(output.parent)
    assert {path: path.read_bytes() for path in Path("run").glob("checkpoints/*")} == sources
    print(f"{kills} kills of {commands[0][0]}, {seconds:.1f} s each: {dict(met)}")  # noqa: T201
    return met


def many(short: int, long: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kills", [short, pytest.param(long, marks=pytest.mark.slow)])


@many(2, 100)
def test_merges(large, start, kills):
    rng = random.Random(kills)
    for number, suffix in enumerate(_WRITTEN[:kills]):
        output = large / f"o{number}{suffix}"
        both = [("merge", "run/c-[01]*"), ("merge", "run/c-*", "--recipe", "ema:0.5")]
        commands = [(*command, "-o", output.name, *["--resume"] * (number % 2)) for command in both]
        kill_and_start_again(start, -(-kills // len(_WRITTEN)), output, commands, rng)


@many(1, 100)
def test_merges_with_data(place, start, kills):
    output = place / "o.weights.h5"
    commands = [
        ("merge", "run", "-o", output.name, "--epochs", epochs, *SPECS) for epochs in ("3,4", "5,6")
    ]
    kill_and_start_again(start, kills, output, commands, random.Random(kills))


_COMMANDS = [
    ("update-bn", 1),
    ("sweep", 1),
    *(
        pytest.param(command, 50, marks=pytest.mark.slow)
        for command in ("update-bn", "sweep", "soup", "report")
    ),
]


@pytest.mark.parametrize(("command", "kills"), _COMMANDS)
def test_commands(place, start, command, kills):
    output = place / ("o.html" if command == "report" else "o.weights.h5")
    if command == "update-bn":
        files = [f"run/checkpoints/epoch-000{n}.weights.h5" for n in (4, 6)]
        commands = [(command, file, "-o", output.name, *SPECS) for file in files]
    elif command == "report":
        ckptavg.merge("run", "m.weights.h5")
        report = (command, "run", "-o", output.name)
        commands = [report, (*report, "--merged", "m.weights.h5")]
    else:
        shutil.rmtree("run/search", ignore_errors=True)
        search = (command, "run", "-o", output.name, *SPECS, *_CHOOSE, "--monitor")
        commands = [(*search, "val_loss"), (*search, "val_accuracy")]
    met = kill_and_start_again(start, kills, output, commands, random.Random(kills))
    assert sum(met.values()) >= kills
