"""Commands made from the functions that they call: what a function takes, its command takes.

The keywords of a function, with their defaults, are the options of its command; the table in
`options` says how each is written and explained. A keyword that is added to a function appears in
its command, and has to be explained there. See
docs/decisions/0071-options-are-the-keywords-of-functions.md.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ckptavg.cli.options import GROUPS, Argument, Option, option_table, recipe_options
from ckptavg.cli.session import verbosely
from ckptavg.cli.values import read_by

_PYTHON_ONLY = ("progress", "data_name")
"""Keywords without an option: what the command line decides itself."""

Row = Argument | Option
_REQUIRED = inspect.Parameter.empty


class _Command(TyperCommand):
    """A command whose help lists options in groups and ends with an example.

    Arguments of its methods are Any because Typer keeps their types, those of Click, to itself.
    """

    def get_help_option(self, ctx: Any) -> Any:
        return read_by(str, super().get_help_option(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        pieces = []
        for parameter in self.params:
            if parameter.param_type_name == "argument":
                several = "..." if parameter.nargs == -1 else ""
                piece = f"{parameter.metavar}{several}"
                pieces.append(piece if parameter.required else f"[{piece}]")
            elif parameter.required:
                pieces.append(f"{min(parameter.opts, key=len)} {parameter.metavar}")
        return [*pieces, "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for parameter in self.get_params(ctx):
            group = getattr(parameter, "rich_help_panel", None) or GROUPS[-1]  # none for --help
            rows[group].append(_explained(parameter))
        # One column for all groups, so that the eye finds the explanations at one edge.
        width = max(len(name) for explained in rows.values() for name, _ in explained)
        for group, explained in rows.items():
            if explained:
                with formatter.section(group):
                    formatter.write_dl([(name.ljust(width), text) for name, text in explained])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        lines = "".join(f"  {line}\n" for line in (self.epilog or "").splitlines())
        formatter.write(f"\nExample:\n{lines}")


def command(
    function: Callable[..., Any] | None,
    *,
    example: str,
    only: Mapping[str, Row] | None = None,
    more: Mapping[str, Any] | None = None,
    examples_of_recipes: bool = False,
) -> Callable[[Callable[..., None]], Callable[[], TyperCommand]]:
    """Makes a command of a function that prints, with the options of the function that computes.

    What it gives builds the command when that is called: by then every recipe is registered.

    Args:
        function: computes; its keywords are the options. None if importing it needs Keras.
        example: how the command is used, for the end of its help.
        only: rows that differ from those of the table in this command only.
        more: options besides, with their defaults; all commands have `--json`, and those that
            import Keras `--verbose`.
        examples_of_recipes: whether parameters of recipes have examples as defaults.
    """

    def made(printing: Callable[..., None]) -> Callable[[], TyperCommand]:
        def build() -> TyperCommand:
            taken = list(_taken(function, only or {}, more or {}, examples_of_recipes))
            # Typer reads the options from the signature of what it calls.
            signature = inspect.Signature([_parameter(*one) for one in taken])
            vars(printing)["__signature__"] = signature
            app = typer.Typer(rich_markup_mode=None, add_completion=False)
            name = printing.__name__.replace("_", "-")
            app.command(name, cls=_Command, epilog=example)(_running(printing))
            built = typer.main.get_command(app)
            assert isinstance(built, _Command)
            for (_, row, _), parameter in zip(taken, built.params, strict=True):
                read_by(row.parse if isinstance(row, Option) else str, parameter)
            return built

        return build

    return made


def _taken(
    function: Callable[..., Any] | None,
    only: Mapping[str, Row],
    more: Mapping[str, Any],
    examples_of_recipes: bool,
) -> Iterator[tuple[str, Row, Any]]:
    """What a command takes: keywords with their rows and defaults."""
    rows = {**option_table(), **only}
    keywords = inspect.signature(function).parameters if function is not None else {}
    importing = function is None or "data" in keywords
    for keyword, parameter in keywords.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            for name, row in recipe_options(examples=examples_of_recipes).items():
                yield name, row, None
        elif keyword not in _PYTHON_ONLY:
            yield keyword, rows[keyword], parameter.default
    common = {"verbose": False, "json": False} if importing else {"json": False}
    for keyword, default in {**more, **common}.items():
        yield keyword, rows[keyword], default


def _running(printing: Callable[..., None]) -> Callable[..., None]:
    """What prints, with the option that concerns all of it."""

    @functools.wraps(printing)
    def running(*, verbose: bool = False, **options: Any) -> None:
        with verbosely(verbose):
            printing(**options)

    return running


def _parameter(keyword: str, row: Row, default: Any) -> inspect.Parameter:
    """What Typer makes an argument or an option of."""
    shown = "  [required]" if default is _REQUIRED else ""
    look: dict[str, Any] = {"metavar": row.metavar, "rich_help_panel": row.group}
    if isinstance(row, Argument):
        kind: Any = list[str] if row.several else str
        info = typer.Argument(help=row.help + shown, **look)
    else:
        kind = bool if row.metavar is None else str
        option = f"--{keyword.replace('_', '-')}"
        names = [f"{option}/--no-{option[2:]}" if default is True else option, row.short]
        if worded := row.default or _written(default):
            shown = f"  [default: {worded}]"
        info = typer.Option(*filter(None, names), help=row.help + shown, **look)
    return inspect.Parameter(
        keyword, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _explained(parameter: Any) -> tuple[str, str]:
    """An option with its short form and its value, and what the help says of it."""
    if parameter.param_type_name == "argument":
        names = ""
    elif parameter.secondary_opts:  # --normalize / --no-normalize
        names = f"--[no-]{parameter.opts[0][2:]}"
    else:
        names = ", ".join(sorted(parameter.opts, key=len))
    return " ".join(filter(None, (names, parameter.metavar))), parameter.help


def _written(default: Any) -> str:
    """A default as a user would write it; nothing for one that is not given."""
    if isinstance(default, bool) or default is None or default is _REQUIRED:
        return ""
    return ",".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
