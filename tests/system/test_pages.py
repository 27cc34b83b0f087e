"""The pages in ckptavg/docs: their examples run, their links lead somewhere, their paths exist."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ckptavg import demo
from tests.helpers.command_line import known_commands, main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "ckptavg" / "docs"
GUIDE = (
    "analysis",
    "averaging",
    "batch_norm",
    "beyond_one_machine",
    "choosing",
    "coming_from_keras_swa",
    "performance",
    "recipes",
    "resuming",
    "saving",
    "specs",
    "trust",
)
DECISIONS = sorted(p for p in (DOCS / "decisions").glob("*.md") if p.name != "README.md")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

_TRAINED = {"epochs": 6, "start_epoch": 3}
"""What all examples but those of savers ask of `demo.train`, which therefore runs once."""


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_page_of_the_guide_is_tested():
    assert {page.stem for page in DOCS.glob("*.md")} == {*GUIDE, "architecture"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run that the examples begin with, and the model after its last epoch."""
    run = tmp_path_factory.mktemp("pages") / "run"
    return run, demo.train(run, **_TRAINED)


@pytest.fixture
def workplace(trained, tmp_path, monkeypatch) -> Path:
    run, model = trained
    weights = model.get_weights()

    def train(directory, **arguments):
        assert arguments == _TRAINED
        shutil.copytree(run, directory)
        model.set_weights(weights)
        return model

    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    model.set_weights(weights)


def run_shell(script: str) -> None:
    """Runs lines of a shell example; Python and ckptavg in this process, which has Keras."""
    for line in script.splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["python", "-c"]:
            exec(words[2], {})
        elif "--max-memory" in words:  # which counts what the process has imported
            command = [sys.executable, "-m", *words]
            subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        elif words[0] == "ckptavg":
            status, _, error = main(*words[1:])
            assert status == 0, (line, error)
        else:
            subprocess.run(line, shell=True, check=True)


@pytest.mark.parametrize("name", GUIDE)
def test_the_example_that_a_page_begins_with_runs(name, workplace):
    text = (DOCS / f"{name}.md").read_text()
    first = re.search(r"\A# [^\n]*\n\n```(python|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert first, "a page begins with a heading and a complete example"
    language, example = first.groups()
    if language == "sh":
        run_shell(example)
    else:
        exec(compile(example, f"{name}.md", "exec"), {"__name__": "__main__"})
    assert name == "coming_from_keras_swa" or any(workplace.iterdir())


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).splitlines()
    titles = (line.lstrip("# ").lower() for line in lines if line.startswith("#"))
    return {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if heading:
            assert heading in headings(file), target


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_tables_are_whole(page):
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", row)) for row in table.strip().splitlines()}
        assert len(widths) == 1, table


@pytest.mark.parametrize("page", [p for p in PAGES if p not in DECISIONS], ids=relative)
def test_commands_and_options_that_are_shown_exist(page):
    known = known_commands()
    text = page.read_text()
    scripts = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for script in scripts for line in script.splitlines()]
    lines += re.findall(r"^    (ckptavg (?!COMMAND).*)$", text, re.MULTILINE)
    for line in (line for line in lines if line.startswith("ckptavg ")):
        _, command, *arguments = shlex.split(line, comments=True)
        options = {option for parameter in known[command].params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("-")} <= options, line
    every = {option for c in known.values() for p in c.params for option in p.opts}
    every |= {option for c in known.values() for p in c.params for option in p.secondary_opts}
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert mentioned - every <= {"--help"}


def test_every_decision_has_its_parts_and_stands_in_the_index():
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    index = (DOCS / "decisions" / "README.md").read_text()
    for path in DECISIONS:
        text = path.read_text()
        number, title = re.match(r"# (\d{4}) (.+)\n", text).groups()
        assert path.name.startswith(f"{number}-")
        assert re.search(r"^- Date: \d{4}-\d\d-\d\d$", text, re.MULTILINE), path
        status = re.search(r"^- Status: (.+)$", text, re.MULTILINE)[1]
        assert re.match(r"accepted$|superseded by \[\d{4}\]\(\d{4}[\w-]+\.md\)", status), path
        assert "\n## Context\n" in text, path
        assert "\n## Decision\n" in text, path
        entries = [line for line in index.splitlines() if f"({path.name})" in line]
        assert len(entries) == 1, path
        assert title in entries[0]
        assert ("superseded" in status) == ("superseded" in entries[0]), path


def test_decisions_that_code_refers_to_exist():
    names = {path.name for path in DECISIONS}
    files = [*(ROOT / "ckptavg").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    for path in files:
        for name in re.findall(r"decisions/(\d{4}[\w-]*(?:\.md)?)", path.read_text()):
            assert any(known.startswith(name) for known in names), (path, name)


def test_options_of_the_savers_are_in_the_guide():
    from ckptavg.saving.options import Options

    for option in Options.__dataclass_fields__:
        assert option in (DOCS / "saving.md").read_text(), option


def test_pages_stay_out_of_the_wheel():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert "ckptavg/docs" in build["targets"]["wheel"]["exclude"]


def test_paths_in_architecture_exist_and_drawings_fit_80_columns():
    text = (DOCS / "architecture.md").read_text()
    paths = set(re.findall(r"`((?:ckptavg|tests)/[\w./*-]+)`", text))
    assert len(paths) > 40
    for path in paths:
        assert [*ROOT.glob(path)], path
    named = re.findall(r"`(ckptavg/[\w/]+\.py)` \(`(\w+)`\)", text)
    assert len(named) > 40
    for path, name in named:
        assert re.search(rf"^ *(?:(?:class|def) )?{name}\b", (ROOT / path).read_text(), re.M), name
    drawings = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(drawings) >= 4  # the rooms; the life of a merge, of a save, of a BatchNorm pass
    assert max(len(line) for drawing in drawings for line in drawing.splitlines()) <= 80
    for name in re.findall(r"\b([a-z_0-9]+\.py)\b", "".join(drawings)):
        assert [*(ROOT / "ckptavg").rglob(name)], name


def test_every_room_is_in_the_architecture():
    text = (DOCS / "architecture.md").read_text()
    rooms = {p.parent.name for p in (ROOT / "ckptavg").glob("*/__init__.py")}
    assert all(f"ckptavg/{room}/" in text for room in rooms)
