"""What a SPEC names, as far as the source of its file shows it: nothing of the user's is run."""

import ast
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ckptavg.errors import SpecError

FORMS = "file.py:name or package.module:name"

_UNKNOWN = frozenset({"exec", "globals", "locals", "vars", "__getattr__", "modules"})
"""Names used by code that may bind names which its source does not show."""

_MAIN_TESTS = ("__name__ == '__main__'", "'__main__' == __name__")

_FILES = {
    "model": ((".keras", ".json"), ", or a .keras file"),
    "data": ((".npz",), ", a folder, or an .npz file"),
    "preprocess": ((), ""),
}
"""For each kind of SPEC the suffixes of files, and how messages name them."""


def check_specs(model: Any = None, preprocess: Any = None, **data: Any) -> None:
    """Refuses SPECs that lead nowhere, before Keras is imported and a file of the user's is run.

    Args:
        model: a model, or its SPEC.
        preprocess: a function, or its SPEC.
        **data: data, or their SPECs.

    Raises:
        SpecError: there is no such file, or its source shows that it has no such name, or that the
            name is a number or a text. Where the source cannot tell, nothing is raised.
    """
    named = [
        ("model", model),
        ("preprocess", preprocess),
        *(("data", one) for one in data.values()),
    ]
    for what, spec in named:
        if is_spec(spec):
            _check(os.fspath(spec), what)


def is_spec(value: object) -> bool:
    """Whether a model or data are named by a SPEC, rather than given as a live object."""
    return isinstance(value, str | os.PathLike)


def data_named(data: object, name: str | None) -> str | None:
    """What a record calls data: the name that was given, else their SPEC, if they have one."""
    return str(data) if name is None and is_spec(data) else name


def split(spec: str, what: str) -> tuple[str, str]:
    """The file or module of a SPEC, and the name in it.

    Raises:
        SpecError: it has another form.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise SpecError(f"the {what} SPEC '{spec}' must have the form {FORMS}{_FILES[what][1]}")
    return place, name


def check_source(spec: str, place: str, name: str) -> None:
    """Looks a name up in the source of a file or module.

    Raises:
        SpecError: importing it would not bind the name, or bind it to a number or a text; or the
            source is not Python.
    """
    path = _source_file(spec, place)
    if path is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the import gives them
            tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise SpecError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
    except OSError as error:
        raise SpecError(f"{place} cannot be read: {error.strerror or error}") from error
    scope = _Scope()
    scope.look_around(tree)
    scope.visit(tree)
    if name in scope.bound:
        values = scope.bound[name]
        if len(values) == 1 and isinstance(value := values[0], ast.Constant):
            raise wrong_kind(spec, name, value.value)
    elif not scope.is_open:
        raise not_found(spec, name, scope.own, is_in_main=name in scope.main)


def not_found(spec: str, name: str, known: Iterable[str], *, is_in_main: bool = False) -> SpecError:
    """The error for a name that a file or module lacks."""
    if is_in_main:
        return SpecError(
            f"in the SPEC '{spec}': '{name}' stands under `if __name__ == \"__main__\"`, which "
            "only runs when the file is a program: move it out of there"
        )
    listed = ", ".join(sorted(known)) or "nothing"
    return SpecError(f"in the SPEC '{spec}': there is no '{name}' in the file, it has: {listed}")


def wrong_kind(spec: str, name: str, value: object) -> SpecError:
    """The error for a name that is bound to something of no use."""
    shown = repr(value) if isinstance(value, int | float | str | None) else ""
    kind = type(value).__name__
    what = shown if 0 < len(shown) <= 60 else f"a {kind}"
    return SpecError(
        f"in the SPEC '{spec}': '{name}' is {what}, but must be the model or data, or a function "
        "without arguments that returns them"
    )


def _check(spec: str, what: str) -> None:
    path = Path(spec)
    if path.suffix in _FILES[what][0]:
        if not path.is_file():
            raise SpecError(f"there is no {what} file {path}")
    elif what != "data" or not path.is_dir():
        check_source(spec, *split(spec, what))


def _source_file(spec: str, place: str) -> Path | None:
    """The source of a file or module; None where none is found, or it has been imported already."""
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise SpecError(f"in the SPEC '{spec}': there is no file {place}")
        return path
    if place in sys.modules:
        return None
    # importlib.util.find_spec would import the packages around the module.
    folders: list[str] | None = [str(Path.cwd()), *sys.path]
    module, found = "", None
    for part in place.split("."):
        module = f"{module}.{part}" if module else part
        found = PathFinder.find_spec(module, folders)
        if found is None:
            return None
        folders = found.submodule_search_locations or []
    if found is None or not found.has_location or not str(found.origin).endswith(".py"):
        return None
    return Path(str(found.origin))


class _Scope(ast.NodeVisitor):
    """The names that importing a module binds.

    Attributes:
        bound: for each name the values that are assigned to it; None where that is not one value.
        own: those of them that are no imports and not private.
        main: names bound under `if __name__ == "__main__"` only.
        is_open: whether there may be other names.
    """

    def __init__(self) -> None:
        self.bound: dict[str, list[ast.expr | None]] = {}
        self.own: set[str] = set()
        self.main: Mapping[str, object] = {}
        self.is_open = False

    def visit(self, node: ast.AST) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self._bind(node.name)
            case ast.Lambda():
                pass  # what it binds is its own
            case ast.alias():
                bound = (node.asname or node.name).partition(".")[0]
                self.bound.setdefault(bound, []).append(None)
            case ast.Assign():
                self._assign(node)
            case ast.If(test=test) if ast.unparse(test) in _MAIN_TESTS:
                self._visit_main(node)
            case _:
                self._visit_other(node)

    def look_around(self, tree: ast.Module) -> None:
        """Notes what may bind names of the module from within functions."""
        for node in ast.walk(tree):
            for name in node.names if isinstance(node, ast.Global) else ():
                self._bind(name)
            used = getattr(node, "id", None) or getattr(node, "attr", None)
            self.is_open |= used in _UNKNOWN or getattr(node, "name", None) in ("*", "__getattr__")

    def _visit_main(self, node: ast.If) -> None:
        main = _Scope()
        for statement in node.body:
            main.visit(statement)
        self.main = main.bound
        for statement in node.orelse:
            self.visit(statement)

    def _assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._bind(target.id, node.value)
            else:
                self.visit(target)

    def _visit_other(self, node: ast.AST) -> None:
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                self._bind(name)
            case (
                ast.MatchAs(name=str(name))
                | ast.MatchStar(name=str(name))
                | ast.MatchMapping(rest=str(name))
            ):
                self._bind(name)
        self.generic_visit(node)

    def _bind(self, name: str, value: ast.expr | None = None) -> None:
        self.bound.setdefault(name, []).append(value)
        if not name.startswith("_"):
            self.own.add(name)
