"""Mutants of a module: copies that differ in one small way, which its tests must notice."""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.MatMult: ast.Mult,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_SKIPPED_CALLS = {"debug", "info", "warning"}
"""Calls of a logger, whose removal changes nothing that a test should hold."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed copy of a module.

    Attributes:
        name: says where and what: stays the same while the line around it does.
        line: first line of what was changed, in the module as it stands.
        source: of the changed module.
    """

    name: str
    line: int
    source: str


def mutants_of(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    tree = ast.parse(source)
    found, seen = [], Counter[str]()
    for function, node, change in _changes(tree):
        before = ast.unparse(node)
        mutated = copy.deepcopy(node)
        replaced = change(mutated)
        after = ast.unparse(replaced) if isinstance(replaced, ast.AST) else str(replaced)
        label = f"{function}: {_short(before)} -> {_short(after)}"
        seen[label] += 1
        name = label if seen[label] == 1 else f"{label} ({seen[label]})"
        source = ast.unparse(copy.deepcopy(tree, {id(node): replaced}))
        found.append(Mutant(name, node.lineno, source))
    return sorted(found, key=lambda mutant: mutant.line)


def _short(text: str) -> str:
    return " ".join(text.split())[:70]


def _changes(tree: ast.Module) -> Iterator[tuple]:
    yield from _of_body(tree, "module")


def _of_body(node: ast.AST, function: str) -> Iterator[tuple]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            inside = child.name if function == "module" else f"{function}.{child.name}"
            if child.name == "__repr__":
                continue
            for statement in child.body:
                yield from _of_node(statement, inside)
            if isinstance(child, ast.FunctionDef):
                for default in [*child.args.defaults, *filter(None, child.args.kw_defaults)]:
                    yield from _of_node(default, inside)
        else:
            yield from _of_node(child, function)


def _of_node(node: ast.AST, function: str) -> Iterator[tuple]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        yield from _of_body(ast.Module([node], []), function)
        return
    if _is_not_code(node):
        return
    yield from ((function, node, change) for change in _changes_of(node))
    if isinstance(node, ast.Raise):
        return  # what an error says is held by the tests of messages
    if isinstance(node, ast.AnnAssign):
        if node.value is not None:
            yield from _of_node(node.value, function)
        return
    for child in ast.iter_child_nodes(node):
        yield from _of_node(child, function)


def _is_not_code(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.JoinedStr)


def _changes_of(node: ast.AST) -> Iterator:
    match node:
        case ast.Compare():
            for place, operator in enumerate(node.ops):
                yield lambda n, place=place, operator=operator: _with_comparison(
                    n, place, _COMPARISONS[type(operator)]
                )
        case ast.BinOp() if type(node.op) in _OPERATORS and not _is_text(node):
            yield lambda n: _set(n, op=_OPERATORS[type(n.op)]())
        case ast.AugAssign():
            yield lambda n: _set(n, op=_OPERATORS[type(n.op)]())
            yield lambda _: ast.Pass()
        case ast.BoolOp():
            yield lambda n: _set(n, op=ast.Or() if isinstance(n.op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield lambda n: n.operand
        case ast.If() | ast.IfExp():
            yield lambda n: _set(n, test=ast.UnaryOp(ast.Not(), n.test))
        case ast.Constant(value=bool()):
            yield lambda n: ast.Constant(not n.value)
        case ast.Constant(value=int() | float()):
            yield lambda n: ast.Constant(n.value + 1)
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield lambda _: ast.Return(ast.Constant(None))
        case ast.Raise():
            yield lambda _: ast.Pass()
        case ast.Expr(value=ast.Call() as call) if not _is_log(call):
            yield lambda _: ast.Pass()
        case ast.Break():
            yield lambda _: ast.Continue()
        case ast.Continue():
            yield lambda _: ast.Break()


def _set(node: ast.AST, **values: object) -> ast.AST:
    for key, value in values.items():
        setattr(node, key, value)
    return node


def _with_comparison(node: ast.Compare, place: int, operator: type[ast.cmpop]) -> ast.Compare:
    node.ops[place] = operator()
    return node


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )


def _is_log(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in _SKIPPED_CALLS
