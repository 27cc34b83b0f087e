"""The short form of the fuzzing, and whether it notices what it is to notice."""

import ctypes
import os
import subprocess
import threading
import time
from pathlib import Path

from ckptavg.errors import FormatError
from tests.fuzzing import farm
from tests.fuzzing.farm import CRASH, EQUAL, HANG, MEMORY, REFUSED, TRACEBACK, WRONG, Case

ROOT = Path(__file__).parents[2]
CASES = 560


def test_mutated_files_are_refused_or_read_as_others_read_them(warm, tmp_path):
    done = subprocess.run(
        [*warm, "-m", "tests.fuzzing", "--cases", str(CASES), "--seed", "7"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\n{CASES} cases in " in done.stdout


def misbehave(case: Case) -> str:
    """A reader with every kind of mistake, one for each number."""
    match case.number:
        case 0:
            ctypes.string_at(0)
        case 1:
            time.sleep(60)
        case 2:
            raise KeyError("x")
        case 3:
            bytearray(80 * 1024**2).count(1)
        case 4:
            bytearray(2**40)
        case 5:
            raise farm.WrongError("it is another one")
        case 6:
            raise FormatError("it is damaged")
        case 7:
            os._exit(0)
    return EQUAL


def test_every_kind_of_mistake_is_noticed_and_blamed_on_its_case():
    before = children()
    cases = [Case("files", 1, number) for number in (8, 0, 9, 1, 2, 3, 4, 5, 6, 7, 10)]
    results = list(farm.run(cases, lambda: misbehave, deadline=1))
    assert {result.case.number: result.outcome for result in results} == {
        **dict(enumerate((CRASH, HANG, TRACEBACK, MEMORY, MEMORY, WRONG, REFUSED, CRASH))),
        **dict.fromkeys((8, 9, 10), EQUAL),
    }
    details = {result.case.number: result.detail for result in results}
    assert details[0] == "SIGSEGV"
    assert details[2].endswith("KeyError: 'x'\n")
    assert children() == before, "processes were left"


def children() -> str:
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()


def test_a_failed_case_can_be_run_again_with_the_files_that_it_left(warm, tmp_path):
    left = tmp_path / "scores:0:0"
    left.mkdir()
    (left / "scores.jsonl").write_text('{"key": 1}\n')
    done = subprocess.run(
        [*warm, "-m", "tests.fuzzing", "--case", str(left)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scores:0:0: equal" in done.stdout
