"""The notebooks: they run in a clean kernel, leave nothing behind, and say nothing unmeasured."""

import ast
import re
import socket
from itertools import chain, groupby
from pathlib import Path

import nbformat
import pytest

from tests.system.notebooks import FOLDER, METADATA, execute, strip

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MODULES = {"ckptavg", "keras", "matplotlib", "pandas", "pathlib", "tempfile", "IPython"}
"""What notebooks may import: they compute and draw by ckptavg alone."""

_CODE = re.compile(r"```.*?```|(?m:^    .*$)|`[^`]*`|\]\([^)]*\)", re.DOTALL)
_MEASURED = re.compile(r"\d+[.,]\d+|\d+ ?%|\d+(?:\.\d+)? (?:times|seconds|s|MB|kB)\b")
_MACHINE = re.compile(r"(?<![\w.])/(?:tmp|home|root|usr|var|opt|mnt|work|Users)/|[A-Z]:\\\\")

_SHORT = """
import keras
from ckptavg import analysis, demo
from ckptavg.batch_norm import BatchNormPass

def fit(model, x, y, *, whole=keras.Model.fit, **options):
    if "validation_data" in options:
        options["validation_data"] = [part[:64] for part in options["validation_data"]]
    return whole(model, x[:64], y[:64], **options)

def loss_plane(*corners, whole=analysis.loss_plane, **options):
    return whole(*corners, **options | {"points": 3})

def digits(whole=demo._digits):
    return [part[:1000] for part in whole()]

def run(self, data, *, whole=BatchNormPass.run, **options):
    return whole(self, data[:64], **options)

keras.Model.fit, analysis.loss_plane, BatchNormPass.run = fit, loss_plane, run
demo._digits, demo.HELD_OUT = digits, 64
"""
"""Trains on a few of the images, measures at a few places: the outputs are of the same kinds."""


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What each cell puts out: text, tables, pictures.

    Text in several parts is one text: how it is divided is a matter of time.
    """
    found = []
    for cell in code_cells(notebook):
        names = [o.get("name", " ".join(sorted(o.get("data", "")))) for o in cell.outputs]
        groups = ([name] if name == "stdout" else group for name, group in groupby(names))
        found.append([*chain.from_iterable(groups)])
    return found


def test_all_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize(
    "training",
    [pytest.param(_SHORT, id="short"), pytest.param("", id="whole", marks=pytest.mark.slow)],
)
def test_it_runs_and_leaves_nothing_behind(path, notebook, warm, tmp_path, training):
    before = sorted(FOLDER.rglob("*"))
    executed = strip(execute(path, tmp_path, warm, training))
    assert kinds(executed) == kinds(notebook), "make notebooks writes the outputs anew"
    assert sorted(FOLDER.rglob("*")) == before
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == []


def test_it_is_committed_as_it_ran(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    told = [kind for cell in kinds(notebook) for kind in cell]
    assert told.count("image/png text/plain") >= 2
    assert not {"stderr", ""} & set(told)  # warnings, errors


def test_it_is_valid_and_tells_nothing_of_a_machine(path, notebook):
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    assert all(cell.metadata == {} for cell in notebook.cells)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert all(output.get("metadata", {}) == {} for output in outputs)
    texts = [cell.source for cell in notebook.cells]
    texts += [output.get("text", "") for output in outputs]
    texts += [str(t) for o in outputs for k, t in o.get("data", {}).items() if k != "image/png"]
    for text in texts:
        assert not _MACHINE.search(text), text
    assert socket.gethostname() not in path.read_text().split()


def test_it_defines_no_algorithm_and_no_plot(notebook):
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            forbidden = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
            assert not isinstance(node, forbidden), cell.source
            if isinstance(node, ast.Import):
                assert {name.name.partition(".")[0] for name in node.names} <= MODULES
            if isinstance(node, ast.ImportFrom):
                assert node.module.partition(".")[0] in MODULES
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                while isinstance(owner, ast.Attribute | ast.Subscript):
                    owner = owner.value
                name = getattr(owner, "id", "")
                assert name not in ("ax", "axes", "fig"), cell.source
                assert name != "plt" or node.func.attr == "subplots", cell.source
                assert name == "plots" or node.func.attr not in ("plot", "hist"), cell.source


def test_its_text_has_no_numbers_that_were_measured(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert not _MEASURED.search(_CODE.sub("", cell.source)), cell.source


def test_the_folder_is_small():
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 1_500_000
    pictures = [path for path in sizes if path.suffix == ".png"]
    assert {path.stem for path in pictures} == {"curves", "trajectory", "loss_plane"}
    assert all(sizes[path] < 60_000 for path in pictures)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


@pytest.mark.parametrize("said", ["a loss of 0.031", "in 40 % of cases", "1,200 images", "2 times"])
def test_numbers_in_a_text_are_found(said):
    assert _MEASURED.search(_CODE.sub("", f"It has {said}."))
    assert not _MEASURED.search(_CODE.sub("", f"[It](x/{said}) `has {said}`\n\n    {said}\n"))
