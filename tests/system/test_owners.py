"""An output has one owner: a second process is refused at once, whatever command it runs."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ckptavg
from ckptavg.batch_norm.refresh import merge_into_model
from ckptavg.errors import OutputError
from tests.helpers.choosing import SPECS, SPLIT
from tests.helpers.command_line import main
from tests.helpers.files import leftovers
from tests.helpers.models import evaluator, tiny_data

_OWNER = """
import sys, time
from pathlib import Path
from ckptavg.runs.outputs import check_place, owning
with owning(Path(sys.argv[1]), True, check=check_place):
    print("owned", flush=True)
    time.sleep(600)
"""

_COMMANDS = {
    "merge": (".weights.h5", ["merge", "run"]),
    "merge shards": (".weights.json", ["merge", "run"]),
    "merge with data": (".keras", ["merge", "run", *SPECS]),
    "merge with eval data": (".keras", ["merge", "run", "--eval-data", "train.py:choose"]),
    "convert": (".safetensors", ["convert", "run/checkpoints/epoch-0006.weights.h5"]),
    "update-bn": (".keras", ["update-bn", "run/checkpoints/epoch-0006.weights.h5", *SPECS]),
    "sweep": (".keras", ["sweep", "run", *SPECS, "--eval-data", "train.py:choose"]),
    "soup": (".keras", ["soup", "run", *SPECS, "--eval-data", "train.py:choose"]),
    "report": (".html", ["report", "run"]),
}


@contextmanager
def owner_of(output: Path) -> Iterator[subprocess.Popen]:
    """Another process that owns an output, stopped in the middle of its work."""
    with subprocess.Popen([sys.executable, "-c", _OWNER, output], stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout.readline() == b"owned\n"
            owner.send_signal(signal.SIGSTOP)
            yield owner
        finally:
            owner.kill()


@pytest.mark.parametrize("name", _COMMANDS)
def test_a_second_process_is_refused_until_the_first_has_ended(folder, name):
    with (folder / "train.py").open("a") as file:
        file.write(SPLIT)
    suffix, command = _COMMANDS[name]
    output = folder / f"o{suffix}"
    convert = command[0] == "convert"
    command = [*command, output.name] if convert else [*command, "-o", output.name]
    with owner_of(output) as owner:
        status, _, said = main(*command)
        assert (status, said.count("\n")) == (1, 1)
        assert f"{output.name} is being written by process {owner.pid} on " in said
        assert not output.exists()
    # It was killed: its lock file is left, but holds nobody up.
    assert leftovers(folder) == [f".tmp-{output.name}.lock"]
    assert main(*command)[0] == 0
    assert not leftovers(folder)
    if suffix != ".html":
        assert ckptavg.verify(output)


def test_nobody_writes_an_output_between_its_mean_and_its_commit(trained_run, tmp_path):
    """Otherwise a second merge replaces the mean that the first one is about to load."""
    output, (x, _) = tmp_path / "o.keras", tiny_data()
    first, second = (
        ckptavg.plan_merge(trained_run, output, epochs=epochs, overwrite=True, live_model=True)
        for epochs in ([3, 4], [5, 6])
    )
    refused = []

    def amid_the_pass(*_: int) -> None:
        with pytest.raises(OutputError, match="another thread of this process") as error:
            ckptavg.run_plan(second)
        refused.append(error)

    merge_into_model(first, model=evaluator(), data=x, batch_progress=amid_the_pass)
    assert refused
    (found,) = ckptavg.verify(output)
    assert found.average == "reproduced"
    assert [c.epoch for c in ckptavg.inspect(output).checkpoints[0].record.sources] == [3, 4]
    assert not leftovers(tmp_path)
