"""The README, the guide and the help texts say the same."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import typer.testing

from ckptavg.cli import app

_ROOT = Path(__file__).parents[2]
_PAGES = ("README.md", "ckptavg/GUIDE.md")


def page(name: str) -> str:
    return (_ROOT / name).read_text()


def commands() -> dict[str, typer.core.TyperCommand]:
    group = typer.main.get_command(app)
    return {name: group.get_command(None, name) for name in group.commands}


@pytest.mark.parametrize("name", _PAGES)
def test_commands_and_options_that_are_shown_exist(name):
    known = commands()
    lines = re.findall(r"^    (ckptavg .*)$", page(name), re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        _, command, *arguments = shlex.split(line, comments=True)
        options = {option for p in known[command].params for option in p.opts}
        used = {argument for argument in arguments if argument.startswith("-")}
        assert used <= options, line
    every = {option for c in known.values() for p in c.params for option in p.opts}
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page(name)))
    assert mentioned - every <= {"--help"}


def test_every_command_is_in_the_readme():
    for name in commands():
        assert f"ckptavg {name}" in page("README.md") or f"make {name}" in page("README.md"), name


def test_no_summary_of_a_command_is_cut_at_80_columns():
    found = typer.testing.CliRunner().invoke(app, ["--help"], terminal_width=80)
    listed = found.output.partition("Commands:")[2]
    assert all(f"  {name} " in listed for name in commands())
    assert "..." not in listed


def test_every_target_that_is_shown_exists():
    targets = set(re.findall(r"^([a-z-]+):", (_ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = set(re.findall(r"^    make ([a-z-]+)", page("README.md"), re.MULTILINE))
    assert shown
    assert shown <= targets


@pytest.mark.parametrize("name", [*_PAGES, "ckptavg/DESIGN.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    headings = {
        other: {
            re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
            for line in page(other).splitlines()
            if line.startswith("#")
        }
        for other in _PAGES
    }
    for target in re.findall(r"\]\(([^)]+)\)", page(name)):
        if re.match(r"https?://", target):
            continue
        path, _, heading = target.partition("#")
        file = (_ROOT / name).parent / path if path else _ROOT / name
        assert file.exists(), target
        if heading:
            assert heading in headings[str(file.resolve().relative_to(_ROOT))], target


@pytest.mark.parametrize("name", _PAGES)
def test_tables_are_whole(name):
    for table in re.findall(r"(?:^\|.*\n)+", page(name), re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", row)) for row in table.strip().splitlines()}
        assert len(widths) == 1, table
    assert "@FIGURES@" not in page(name)


def test_options_of_the_savers_are_in_the_guide():
    from ckptavg.saving.options import Options

    for option in Options.__dataclass_fields__:
        assert option in page("ckptavg/GUIDE.md"), option
