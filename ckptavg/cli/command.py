"""Commands made from the functions that they call: what a function takes, its command takes.

The keywords of a function, with their defaults, are the options of its command; the table in
`options` says how each is written and explained. A keyword that is added to a function appears in
its command, and has to be explained there.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ckptavg.cli.options import GROUPS, Argument, Option, option_table, recipe_options

_PYTHON_ONLY = ("progress", "data_name", "live_model", "copy")
"""Keywords without an option: what the command line decides itself."""


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic only since Click 8.4


class Command(click.Command):
    """A command whose help lists options in groups and ends with an example."""

    def __init__(self, *args: Any, example: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.example = example

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        required = [p for p in self.params if isinstance(p, _Option) and p.required]
        arguments = [p for p in self.params if isinstance(p, _Argument)]
        return [
            *(piece for argument in arguments for piece in argument.get_usage_pieces(ctx)),
            *(f"{min(option.opts, key=len)} {option.metavar}" for option in required),
            "[OPTIONS]",
        ]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                rows[getattr(parameter, "group", GROUPS[-1])].append(record)
        # One column for all groups, so that the eye finds the explanations at one edge.
        width = max(len(name) for records in rows.values() for name, _ in records)
        for group, records in rows.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl([(name.ljust(width), text) for name, text in records])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        lines = "".join(f"  {line}\n" for line in self.example.splitlines())
        formatter.write(f"\nExample:\n{lines}")


class _Argument(click.Argument):
    def __init__(self, name: str, row: Argument, *, required: bool) -> None:
        nargs = -1 if row.several else 1
        super().__init__([name], metavar=row.metavar, required=required, nargs=nargs, type=str)
        self.group = row.group
        self._help = row.help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:  # noqa: ARG002
        required = "  [required]" if self.required else ""
        return self.metavar or "", f"{self._help}{required}"

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        shown = (self.metavar or "") + ("..." if self.nargs == -1 else "")
        return [shown if self.required else f"[{shown}]"]


class _Option(click.Option):
    def __init__(self, name: str, row: Option, default: Any) -> None:
        spelled = name.replace("_", "-")
        required = default is inspect.Parameter.empty
        names = [name, f"--{spelled}", *([row.short] if row.short else [])]
        if row.metavar is None:
            names = [name, f"--{spelled}/--no-{spelled}" if default else f"--{spelled}"]
        super().__init__(
            names,
            help=row.help,
            metavar=row.metavar,
            type=None if row.metavar is None else _Parsed(row.parse),
            is_flag=row.metavar is None,
            required=required,
            # Click takes a default for a value, even None: a required option has none.
            **({} if required else {"default": default}),
        )
        self.group = row.group
        self._shown = row.default if row.default is not None else _written(default)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None or self.required:
            return record
        if self.secondary_opts:  # --normalize / --no-normalize
            record = (f"--[no-]{self.opts[0].removeprefix('--')}", record[1])
        return (record[0], f"{record[1]}  [default: {self._shown}]") if self._shown else record


class _Parsed(_ParamType):
    """A value read by a function, whose ValueError is shown as wrong usage."""

    name = "value"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):  # a default
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def command(
    function: Callable[..., Any] | None,
    *,
    example: str,
    only: Mapping[str, Argument | Option] | None = None,
    more: Mapping[str, Any] | None = None,
    examples_of_recipes: bool = False,
) -> Callable[[Callable[..., None]], Callable[[], Command]]:
    """Makes a command of a function that prints, with the options of the function that computes.

    What it gives builds the command when that is called: by then every recipe is registered.

    Args:
        function: computes; its keywords are the options. None if importing it needs Keras.
        example: how the command is used, for the end of its help.
        only: rows that differ from those of the table in this command only.
        more: options besides, with their defaults; all commands have `--json`.
        examples_of_recipes: whether parameters of recipes have examples as defaults.
    """

    def made(printing: Callable[..., None]) -> Callable[[], Command]:
        def build() -> Command:
            return Command(
                printing.__name__.replace("_", "-"),
                params=list(_parameters(function, only or {}, more or {}, examples_of_recipes)),
                help=inspect.getdoc(printing),
                callback=printing,
                example=example,
                context_settings={"help_option_names": ["-h", "--help"]},
            )

        return build

    return made


def _parameters(
    function: Callable[..., Any] | None,
    only: Mapping[str, Argument | Option],
    more: Mapping[str, Any],
    examples_of_recipes: bool,
) -> Iterator[click.Parameter]:
    rows = {**option_table(), **only}
    keywords = inspect.signature(function).parameters if function is not None else {}
    for keyword, parameter in keywords.items():
        if parameter.kind is not parameter.VAR_KEYWORD and keyword not in _PYTHON_ONLY:
            yield _parameter(keyword, rows[keyword], parameter.default)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in keywords.values()):
        for name, row in recipe_options(examples=examples_of_recipes).items():
            yield _Option(name, row, None)
    for keyword, default in {**more, "json": False}.items():
        yield _parameter(keyword, rows[keyword], default)


def _parameter(keyword: str, row: Argument | Option, default: Any) -> click.Parameter:
    if isinstance(row, Argument):
        return _Argument(keyword, row, required=default is inspect.Parameter.empty)
    return _Option(keyword, row, default)


def _written(default: Any) -> str:
    """A default as a user would write it; nothing for one that is not given."""
    if isinstance(default, bool) or default is None or default is inspect.Parameter.empty:
        return ""
    return ",".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
