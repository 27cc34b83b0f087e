"""What the source of a file shows of its names, before anything in it is run."""

import sys

import pytest

from ckptavg.errors import SpecError
from ckptavg.models.spec_source import check_specs
from tests.helpers.processes import run_blocked

_SOURCE = """
raise SystemExit("this file must not be run")
import tensorflow as tf
from helper import x_train, y_train as labels
first, (second, *rest) = range(3), (1, 2, 3)
annotated: int = 3
number = 5
text = "train"
for looped in (): pass
with open("gone") as opened: pass
if (walrus := 3): pass
if tf: branch = build()
else: branch = None
try: tried = 1 + 1
except ImportError: tried = None
match first:
    case [matched, *more] as whole: pass
    case {"a": 1, **others}: pass
def build():
    global made_global
    local = 5
class Data: attribute = 5
async def later(): pass
squares = [inner * 2 for inner in ()]
lambda parameter: parameter

if __name__ == "__main__":
    only_main = build()
    number_of_main = 3
else:
    imported = build()
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "train", raising=False)  # of another test
    (tmp_path / "train.py").write_text(_SOURCE)
    return tmp_path / "train.py"


@pytest.mark.parametrize(
    "name",
    [
        "x_train",
        "labels",
        "tf",
        "first",
        "second",
        "rest",
        "annotated",
        "looped",
        "opened",
        "walrus",
        "branch",
        "tried",
        "matched",
        "more",
        "whole",
        "others",
        "build",
        "made_global",
        "Data",
        "later",
        "squares",
        "imported",
    ],
)
def test_names_that_an_import_binds(train, name):
    check_specs(data=f"train.py:{name}", eval_data="train:build")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("local", "no 'local' in the file, it has: Data, annotated, branch, build, .*walrus"),
        ("attribute", "there is no 'attribute'"),
        ("train_ds", "there is no 'train_ds'"),
        ("parameter", "there is no 'parameter'"),
        ("only_main", r"'only_main' stands under `if __name__ == \"__main__\"`, .* move it out"),
        ("number", "'number' is 5, but must be the model or data, or a function"),
        ("text", "'text' is 'train', but must be"),
    ],
)
def test_other_names_are_refused_without_running_the_file(train, name, message):
    for spec in (f"train.py:{name}", f"train:{name}"):
        with pytest.raises(SpecError, match=message):
            check_specs(data=spec)
    with pytest.raises(SpecError, match=r"'train\.py:local'"):
        check_specs("train.py:build", "train.py:local")


@pytest.mark.parametrize(
    "line",
    [
        "from helper import *",
        "def __getattr__(name): ...",
        "globals()['anything'] = 3",
        "exec('anything = 3')",
        "import sys; setattr(sys.modules[__name__], 'anything', 3)",
    ],
)
def test_names_that_the_source_does_not_show_may_exist(train, line):
    train.write_text(line)
    check_specs("train.py:anything")


def test_modules_are_found_without_importing_the_packages_around_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "a_package_of_a_user"
    (package / "inner").mkdir(parents=True)
    for folder in (package, package / "inner"):
        (folder / "__init__.py").write_text("raise SystemExit('this file must not be run')\n")
    (package / "inner" / "train.py").write_text(_SOURCE)
    check_specs("a_package_of_a_user.inner.train:build")
    with pytest.raises(SpecError, match="there is no 'gone'"):
        check_specs("a_package_of_a_user.inner.train:gone")
    assert "a_package_of_a_user" not in sys.modules
    check_specs("no_such_package.of_a_user:build")  # the import says what is missing


def test_files_that_are_not_there_or_not_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nulls.py").write_bytes(b"a = 3\0")
    (tmp_path / "bad.py").write_text("def f(:\n")
    for arguments, message in (
        ({"model": "gone.keras"}, r"there is no model file gone\.keras"),
        ({"model": "gone.json"}, "there is no model file"),
        ({"eval_data": "gone.npz"}, "there is no data file"),
        ({"data": "gone.py:data"}, "there is no file gone.py"),
        ({"data": "gone"}, "must have the form"),
        ({"preprocess": "bad.py:f"}, r"bad\.py cannot be imported: SyntaxError.*line 1"),
        ({"preprocess": "nulls.py:f"}, r"nulls\.py cannot be imported"),
    ):
        with pytest.raises(SpecError, match=message):
            check_specs(**arguments)
    check_specs(data=tmp_path)
    check_specs(object(), data=None, eval_data=[1])


def test_commands_refuse_before_keras_is_imported(trained_run, monkeypatch):
    monkeypatch.chdir(trained_run.parent)
    (trained_run.parent / "train.py").write_text(_SOURCE)
    done = run_blocked("""
import ckptavg
from ckptavg.errors import SpecError
wrong = "train.py:train_ds"
for attempt in (
    lambda: ckptavg.merge("run", "o.keras", model="train.py:build", data=wrong),
    lambda: ckptavg.merge("run", "o.keras", model="train.py:build", eval_data=wrong),
    lambda: ckptavg.sweep("run", eval_data=wrong),
    lambda: ckptavg.soup("run", "o.keras", eval_data="train.py:build", test_data=wrong),
    lambda: ckptavg.doctor("run", eval_data=wrong),
    lambda: ckptavg.evaluate("run", data=wrong),
    lambda: ckptavg.update_bn("run/checkpoints/epoch-0003.weights.h5", "o.keras", data=wrong),
):
    try:
        attempt()
    except SpecError as error:
        assert "there is no 'train_ds' in the file" in str(error), error
    else:
        raise AssertionError
""")
    assert done.returncode == 0, done.stderr
