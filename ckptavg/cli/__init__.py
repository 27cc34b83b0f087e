"""The command line of ckptavg."""

import importlib
import signal
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from ckptavg.errors import CkptavgError, CkptavgWarning
from ckptavg.version import __version__

_COMMANDS = (
    "demo",
    "merge",
    "recipes",
    "sweep",
    "soup",
    "doctor",
    "update-bn",
    "evaluate",
    "inspect",
    "report",
    "verify",
    "convert",
)
_usual_warning = warnings.showwarning
_STYLE = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "add_completion": False}


class _Commands(TyperGroup):
    """The commands, each imported when it is asked for: `merge` waits for none of the others."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = dict.fromkeys(_COMMANDS)

    def get_command(self, ctx: typer.Context, name: str) -> Any:  # noqa: ARG002
        if name in self.commands and self.commands[name] is None:
            home = name.replace("-", "_")
            function = getattr(importlib.import_module(f"{__name__}.{home}"), home)
            single = typer.Typer(**_STYLE, context_settings=app.info.context_settings)
            single.command(name)(function)
            self.commands[name] = typer.main.get_command(single)
        return self.commands.get(name)


app = typer.Typer(
    name="ckptavg",
    cls=_Commands,
    help="Average the checkpoints of a Keras training run, after the run.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    **_STYLE,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ckptavg {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(
        False,
        "--version",
        help="Print the version and exit.",
        callback=_print_version,
        is_eager=True,
    ),
) -> None:
    pass


def main() -> None:
    """Runs the command line: exit status 0, 1 for what the user can mend, 2 for wrong usage."""
    warnings.showwarning = _show_warning
    # A scheduler that stops the process finds it cleaned up, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app(prog_name="ckptavg")
    except CkptavgError as error:
        _fail(str(error))
    except OSError as error:
        # Of the system, such as a full disk or a folder without permission.
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}")


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any) -> None:
    """Tells of our own warnings as of errors; others go their usual way."""
    if issubclass(category, CkptavgWarning):
        typer.echo(f"warning: {message}", err=True)
    else:
        _usual_warning(message, category, *rest)


def _fail(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(1)
