"""Tables: whole in a pipe, fitted to a terminal of 80 columns."""

import contextlib
import io
import re
import shutil

import pytest

from ckptavg.cli.leaderboard import Leaderboard
from ckptavg.cli.tables import NAME, NUMBER, PROSE, print_prose, print_table
from tests.helpers.command_line import main

LONG = "efficientnet-b0-imagenet-finetuned-epoch_{:04}-val_loss_0.12{}.weights.h5"
STYLE = re.compile(r"\x1b\[\d+m")


@pytest.fixture
def long_names(folder):
    """A folder of checkpoints whose names alone take most of a line."""
    (folder / "mc").mkdir()
    found = sorted((folder / "run" / "checkpoints").glob("*.weights.h5"))
    for number, path in enumerate(found, 8):
        shutil.copy(path, folder / "mc" / LONG.format(number, number))
    return [LONG.format(number, number) for number in range(8, 8 + len(found))]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Prints a table on a terminal of 80 columns; gives the lines that it shows."""
    monkeypatch.setenv("COLUMNS", "80")

    def show(rows, *columns):
        with contextlib.redirect_stdout(Terminal()) as shown:
            print_table(rows, *columns)
        return [STYLE.sub("", line) for line in shown.getvalue().splitlines()]

    return show


@pytest.mark.parametrize(
    "command",
    [
        ("doctor", "mc"),
        ("inspect", "mc"),
        ("merge", "mc", "-o", "o.weights.h5", "--dry-run"),
    ],
)
def test_in_a_pipe_each_checkpoint_has_one_line(long_names, command):
    status, out, err = main(*command)
    assert status == 0, err
    for name in long_names:
        assert len([line for line in out.splitlines() if name in line]) == 1


@pytest.mark.parametrize(
    "command",
    ["doctor mc", "inspect mc", "inspect run", "merge mc -o o.weights.h5 --dry-run", "recipes"],
)
def test_on_a_terminal_lines_fit_and_names_differ(long_names, in_terminal, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    shown = in_terminal(f"ckptavg {command}")
    table = [STYLE.sub("", line) for line in shown.splitlines() if "\x1b[2K" not in line]
    assert max(map(len, table)) <= 80
    if "mc" in command:
        rows = [line for line in table if re.match(r"\S*\.\.\.", line)]
        assert len({line.split()[0] for line in rows}) == len(rows) >= len(long_names)


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (40, "efficie...0008-val_loss_0.128.weights.h5"),  # all from where the names differ
        (30, "...0008-val_loss_0.128.weig..."),  # what differs, and what there is room for
        (20, "...0008-va...s_0.128"),
    ],
)
def test_what_names_have_alike_goes_first(terminal, width, shown):
    names = [LONG.format(number, number) for number in (8, 9, 10)]
    rows = [(name, "9" * (80 - 2 - width)) for name in names]
    assert terminal(rows, (NAME, ["checkpoint"]), (NUMBER, ["size"]))[1].split()[0] == shown


def test_prose_is_folded_below_its_beginning(terminal):
    lines = terminal([("uniform", "word " * 20)], (NAME, ["recipe"]), (PROSE, ["what it does"]))
    assert lines[1].startswith("uniform  word word")
    assert lines[2].startswith("         word word")


def test_a_name_cannot_disturb_the_terminal(capsys):
    print_table([("a\n\x1b[2Jb", "1")], (NAME, ["tensor"]), (NUMBER, ["size"]))
    assert capsys.readouterr().out.splitlines() == [
        "tensor       size",
        r"a\n\x1b[2Jb     1",
    ]


def test_options_are_not_broken_at_their_hyphens(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for length in range(60, 80):
        print_prose(f"{'x' * length} on --eval-data")
    assert not [line for line in capsys.readouterr().out.splitlines() if line.endswith("-")]


def test_scores_beside_metrics_have_as_many_digits(capsys):
    lines = [({"checkpoint": "b.keras", "soup_with_it": 0.6953125}, {"accuracy": 0.77734375})]
    Leaderboard(lines, "accuracy").print("what the columns show")
    row, empty, explanation = capsys.readouterr().out.splitlines()[-3:]
    assert (empty, explanation) == ("", "what the columns show")
    assert row.split() == [
        "1",
        "b.keras",
        "0.69531",
        "0.77734",
    ]
