"""The command line of ckptavg."""

import signal
import sys

import typer

from ckptavg.cli.convert import convert
from ckptavg.cli.demo import demo
from ckptavg.cli.evaluate import evaluate
from ckptavg.cli.inspect import inspect
from ckptavg.cli.merge import merge
from ckptavg.cli.update_bn import update_bn
from ckptavg.cli.verify import verify
from ckptavg.errors import CkptavgError
from ckptavg.version import __version__

app = typer.Typer(
    name="ckptavg",
    help="Average the checkpoints of a Keras training run, after the run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo)
app.command("merge")(merge)
app.command("update-bn")(update_bn)
app.command("evaluate")(evaluate)
app.command("inspect")(inspect)
app.command("verify")(verify)
app.command("convert")(convert)


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


def _fail(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(1)
