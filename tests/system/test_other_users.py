"""Files and folders of other users, met by a process that really is another user."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptavg.storage.files import partial

_NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")

_BECOME = f"""
os.setgroups([])
os.setgid({_NOBODY})
os.setuid({_NOBODY})
"""

_IMPORT = """
import importlib, json, os, pkgutil, shutil, sys, warnings
from pathlib import Path
import matplotlib.backends.backend_svg
import ckptavg
others = ("keras2", "tf_keras", "jax", "torch", "__main__")
for module in pkgutil.walk_packages(ckptavg.__path__, "ckptavg."):
    if not any(name in module.name for name in others):
        importlib.import_module(module.name)
"""
"""Before it becomes another user, who may not read the interpreter's files."""

_ASK = """
for text in sys.argv[1:]:
    try:
        said = f"done: {eval(text)}"
    except ckptavg.CkptavgError as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps(said), flush=True)
"""

Ask = Callable[..., list[str]]


@pytest.fixture
def place(trained_run) -> Iterator[Path]:
    """A folder of root that all may read, with a run; pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(trained_run, folder / "run")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield folder


@pytest.fixture
def run(place, warm) -> Callable[..., list[str]]:
    """Runs a program in the folder, and gives the lines that it prints."""

    def run(program: str, *arguments: str) -> list[str]:
        done = subprocess.run(
            [*warm, "-c", program, *arguments],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


@pytest.fixture
def ask(run) -> Ask:
    """What expressions give as another user, or their errors."""
    return lambda *texts: [json.loads(line) for line in run(_IMPORT + _BECOME + _ASK, *texts)]


def own(folder: Path, mode: int = 0o755) -> Path:
    """Makes a folder of the other user."""
    folder.mkdir()
    os.chown(folder, _NOBODY, _NOBODY)
    folder.chmod(mode)
    return folder


def test_a_run_that_others_own_is_averaged_verified_and_shown(place, ask):
    mine = own(place / "mine")
    merged, verified, shown = ask(
        "ckptavg.merge('run', 'mine/o.weights.h5')",
        "ckptavg.verify('mine/o.weights.h5')",
        "ckptavg.report('run', 'mine/r.html')",
    )
    assert merged.startswith("done: ")
    assert "reproduced" in verified
    assert shown.startswith("done: ")
    assert sorted(path.name for path in mine.iterdir()) == [
        "o.weights.h5",
        "o.weights.h5.json",
        "r.html",
    ]


_SEARCH = f"""
{_IMPORT}
from ckptavg.analysis import loss_line
from tests.helpers.models import tiny_data, tiny_model
x, y = tiny_data()
run, model = ckptavg.open_run("run"), tiny_model()
data = {{"data": x, "eval_data": (x, y), "model": model}}

def act():
    line = loss_line(*run.select(epochs=[3, 6]), **data, points=[0, 1])
    print(line.metrics["eval"]["loss"].tolist())
    found = ckptavg.sweep(run, "mine/o.weights.h5", overwrite=True, budget=2, **data)
    print(found.best.metrics, found.known, flush=True)

act()  # compiles, imports what else is needed
shutil.rmtree("run/search")
for path in os.listdir("mine"):
    os.remove("mine/" + path)
{_BECOME}
warnings.showwarning = lambda message, *_: print("warning:", message)
act()
"""


def test_scores_of_a_run_that_others_own_are_not_kept(place, run):
    own(place / "mine")
    line, best, *again = run(_SEARCH)
    assert again[1::2] == [line, best]
    for warned in again[::2]:
        assert "scores are not kept: no permission to write" in warned
        assert "run/search/scores.jsonl" in warned
    assert not (place / "run/search").exists()
    assert (place / "mine/o.weights.h5").stat().st_uid == _NOBODY


@pytest.mark.parametrize("closed", ["run", "run/checkpoints", "run/checkpoints/epoch-0004.json"])
def test_what_may_not_be_read_is_named(place, ask, closed):
    mine = own(place / "mine")
    (place / closed).chmod(0o600)
    sources = ["'run'", "['run']", "'run/checkpoints'", "'run/checkpoints/epoch-0004.weights.h5'"]
    for said in ask(
        *(f"ckptavg.inspect({source})" for source in sources),
        *(f"ckptavg.verify({source})" for source in sources),
        *(f"ckptavg.merge({source}, 'mine/o.weights.h5')" for source in sources),
    ):
        assert said.startswith(("RunError: cannot read ", "RecordError: cannot read ")), said
        assert closed in said
    assert not list(mine.iterdir())


def test_where_nothing_may_be_written_nothing_is(place, ask):
    modes = (0o755, 0o700, 0o600)
    folders = [place / f"closed-{mode:o}" for mode in modes]
    for folder, mode in zip(folders, modes, strict=True):
        folder.mkdir()
        folder.chmod(mode)
    answers = ask(
        *(f"ckptavg.merge('run', '{f.name}/o.weights.h5')" for f in folders),
        *(
            f"ckptavg.convert('run/checkpoints/epoch-0004.weights.h5', '{f.name}/o.safetensors')"
            for f in folders
        ),
        *(f"ckptavg.report('run', '{f.name}/r.html')" for f in folders),
    )
    for said, folder in zip(answers, folders * 3, strict=True):
        assert said.startswith(f"OutputError: cannot write {folder.name}/")
        assert not list(folder.iterdir())


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_shared_folder_with_what_others_killed_there(place, ask, mode):
    """What may be replaced is; what may not, all of it in a sticky folder, is named."""
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(mode)
    outputs = [shared / f"o{number}.weights.h5" for number in range(5)]
    suffixes = ("", ".json", ".former", ".lock", ".journal")
    left = [
        partial(output.with_name(output.name + suffix))
        for output, suffix in zip(outputs, suffixes, strict=True)
    ]
    for path in left:
        path.write_text("somebody's")
    answers = ask(*(f"ckptavg.merge('run', {str(output)!r})" for output in outputs))
    assert [a.startswith("done") for a in answers] == [mode == 0o777] * 3 + [False] * 2
    for said, output, path in zip(answers, outputs, left, strict=True):
        if not said.startswith("done"):
            assert said.startswith("OutputError: cannot write ")
            assert str(path) in said
            assert not output.exists()
            assert path.read_text() == "somebody's"


def test_a_training_into_a_run_that_others_own(place, ask):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    (said,) = ask(
        "ckptavg.saving.run_writer.RunWriter(Path('run'), "
        "ckptavg.saving.options.Options(existing='overwrite'), lambda: None)"
    )
    assert said.startswith("SaverError: cannot use the directory run: Permission denied")
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
