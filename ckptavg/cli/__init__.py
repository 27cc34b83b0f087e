"""The command line of ckptavg."""

import gc
import importlib
import logging
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from ckptavg.cli.values import read_by
from ckptavg.errors import CkptavgError, CkptavgWarning
from ckptavg.version import __version__

_SUMMARIES = {
    "demo": "Train, merge, compare and draw, on handwritten digits.",
    "merge": "Average checkpoints into one file.",
    "recipes": "List the recipes and their coefficients.",
    "sweep": "Evaluate averages over windows of a run.",
    "soup": "Average the subset of checkpoints that scores best.",
    "doctor": "Find checkpoints to leave out of an average.",
    "update-bn": "Re-estimate the BatchNorm statistics of a checkpoint.",
    "evaluate": "Print loss and metrics of a checkpoint.",
    "inspect": "Show what a run or a checkpoint holds.",
    "report": "Write an HTML page about a run.",
    "verify": "Check files against their digests.",
    "convert": "Write a checkpoint in another format.",
}
"""Every command with its summary, so that the list of them imports none of them."""

_WORKFLOW = """
A training in three commands, in the folder of train.py:
  ckptavg doctor run
  ckptavg merge run -o swa.weights.h5
  ckptavg update-bn swa.weights.h5 -o swa-bn.weights.h5 --data train.py:bn_data
"""

_usual_warning = warnings.showwarning


class _Commands(TyperGroup):
    """The commands, each imported when it is called: `merge` waits for none of the others.

    Arguments of its methods are Any because Typer keeps their types, those of Click, to itself.
    """

    def get_help_option(self, ctx: Any) -> Any:
        return read_by(str, super().get_help_option(ctx))

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(_SUMMARIES)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand:
        if cmd_name not in _SUMMARIES:
            from difflib import get_close_matches

            near = "".join(get_close_matches(cmd_name, _SUMMARIES, n=1))
            hint = f" Did you mean '{near}'?" if near else ""
            ctx.fail(f"No such command '{cmd_name}'.{hint}")
        home = cmd_name.replace("-", "_")
        # What modules define stays: looking for garbage among it costs a tenth of the start.
        gc.disable()
        try:
            build: Callable[[], TyperCommand]
            build = getattr(importlib.import_module(f"{__name__}.{home}"), home)
        finally:
            gc.freeze()
            gc.enable()
        return build()

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_SUMMARIES.items()))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        formatter.write(_WORKFLOW)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode=None,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ckptavg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Average the checkpoints of a Keras training run, after the run."""


def main() -> None:
    """Runs the command line: exit status 0, 1 for what the user can mend, 2 for wrong usage."""
    warnings.showwarning = _show_warning
    # A scheduler that stops the process finds it cleaned up, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        typer.main.get_command(app)(prog_name="ckptavg")
    except CkptavgError as error:
        _fail(str(error))
    except OSError as error:
        # From the system, such as a full disk or a folder without permission.
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Prints our own warnings like errors; those of libraries only if Python was told to (-W)."""
    if issubclass(category, CkptavgWarning):
        typer.echo(f"warning: {message}", err=True)
    elif sys.warnoptions:
        _usual_warning(message, category, filename, lineno, file, line)
    else:
        logging.getLogger("ckptavg").info("%s: %s", category.__name__, message)


def _fail(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(1)
