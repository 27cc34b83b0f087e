"""The README and the help texts say the same."""

import re
import shlex
from pathlib import Path

import typer

from ckptavg.cli import app

_README = (Path(__file__).parent.parent / "README.md").read_text()


def test_commands_and_options_of_the_readme_exist():
    group = typer.main.get_command(app)
    commands = {name: group.get_command(None, name) for name in group.commands}
    lines = re.findall(r"^    (ckptavg .*)$", _README, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        _, command, *arguments = shlex.split(line)
        if command == "COMMAND":
            continue
        known = {option for p in commands[command].params for option in p.opts}
        used = {argument for argument in arguments if argument.startswith("-")}
        assert used <= known, line
    every = {option for c in commands.values() for p in c.params for option in p.opts}
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", _README))
    assert mentioned - every <= {"--help"}


def test_every_command_is_in_the_readme():
    for name in typer.main.get_command(app).commands:
        assert f"ckptavg {name}" in _README or f"make {name}" in _README, name


def test_tables_are_whole():
    for table in re.findall(r"(?:^\|.*\n)+", _README, re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", row)) for row in table.strip().splitlines()}
        assert len(widths) == 1, table
    assert "BENCH_" not in _README
