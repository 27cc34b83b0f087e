"""TensorFlow's object graph: which tensors belong to the model, and a graph of those alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ckptavg.formats.tensorflow.protobuf import BYTES, VARINT, Refused, fields, message, text

_NODES_LIMIT = 2**20
_NODE = 1
_CHILDREN, _ATTRIBUTES, _SLOTS = 1, 2, 3
_REFERENCE = {1: VARINT, 2: BYTES}
_ATTRIBUTE = {3: BYTES}
_SLOT = {1: VARINT, 3: VARINT}

_SAVE_COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"
_OPTIMIZER_NAMES = {b"optimizer", b"_optimizer"}
_OPTIMIZER_CHILDREN = ({b"_iterations", b"_variables"}, {b"iter", b"decay"})
"""What optimizers hold whatever they are called: of Keras 3 and Keras 2.11, and of older ones."""


@dataclass(frozen=True, slots=True)
class ModelPart:
    """The part of a checkpoint that is not optimizer state.

    Attributes:
        named: all keys that the graph names.
        kept: those of the model.
        graph: the graph without the others, for a checkpoint that lacks them.
    """

    named: frozenset[str]
    kept: frozenset[str]
    graph: bytes


@lru_cache(maxsize=2)  # checkpoints of one program have the same graph
def model_part(graph: bytes) -> ModelPart:
    """Tells the model from the optimizer, by the way that leads to each object.

    The keys do not tell: with Keras 3 those of all trainable variables may begin with `optimizer/`.

    Args:
        graph: a serialized `TrackableObjectGraph`.

    Raises:
        Refused: it is no such graph, or holds no model.
    """
    nodes = _nodes(graph)
    reached = _reached(nodes)
    named = frozenset(key for node in nodes for key in _keys(node))
    kept = frozenset(key for number in reached for key in _keys(nodes[number]))
    if not kept - {_SAVE_COUNTER}:
        raise Refused(
            "it holds no model: by its object graph all of its tensors are state of an optimizer"
        )
    return ModelPart(named, kept, _pruned(graph, reached, kept))


def _nodes(graph: bytes) -> list[bytes]:
    nodes = []
    for field, kind, value, _ in fields(graph):
        if field == _NODE:
            if kind != BYTES or len(nodes) == _NODES_LIMIT:
                raise Refused("its object graph is damaged or too large")
            nodes.append(value)
    if not nodes:
        raise Refused("its object graph is empty")
    return nodes


def _reached(nodes: list[bytes]) -> set[int]:
    """Numbers of the nodes that ways from the root lead to, none of them through an optimizer."""
    seen, reached, waiting = {0}, set(), [0]
    while waiting:
        number = waiting.pop()
        if _is_optimizer(nodes[number]):
            continue
        reached.add(number)
        for child, name in _children(nodes[number]):
            if child >= len(nodes):
                raise Refused(f"its object graph names the object {child}, which it lacks")
            if child not in seen and name not in _OPTIMIZER_NAMES:
                seen.add(child)
                waiting.append(child)
    return reached


def _is_optimizer(node: bytes) -> bool:
    if next(_parts(node, _SLOTS), None) is not None:
        return True
    names = {name for _, name in _children(node)}
    return any(names >= telling for telling in _OPTIMIZER_CHILDREN)


def _children(node: bytes) -> Iterator[tuple[int, bytes]]:
    for value in _parts(node, _CHILDREN):
        found = message(value, _REFERENCE)
        yield found.get(1, [0])[-1], found.get(2, [b""])[-1]


def _keys(node: bytes) -> Iterator[str]:
    return (_key(value) for value in _parts(node, _ATTRIBUTES))


def _key(attribute: bytes) -> str:
    try:
        return message(attribute, _ATTRIBUTE).get(3, [b""])[-1].decode()
    except UnicodeDecodeError as error:
        raise Refused("its object graph names a key that is no text") from error


def _parts(node: bytes, wanted: int) -> Iterator[bytes]:
    for field, kind, value, _ in fields(node):
        if field == wanted:
            if kind != BYTES:
                raise Refused("its object graph is damaged")
            yield value


def _pruned(graph: bytes, reached: set[int], kept: frozenset[str]) -> bytes:
    """The graph without mention of what is not kept; all else, and all numbers, stay."""
    parts = []
    for field, _, value, whole in fields(graph):
        if field == _NODE:
            parts.append(text(_NODE, _pruned_node(value, reached, kept)))
        else:
            parts.append(whole)
    return b"".join(parts)


def _pruned_node(node: bytes, reached: set[int], kept: frozenset[str]) -> bytes:
    parts = []
    for field, _, value, whole in fields(node):
        if field == _ATTRIBUTES and _key(value) not in kept:
            continue
        if field == _SLOTS and message(value, _SLOT).get(3, [0])[-1] not in reached:
            continue
        parts.append(whole)
    return b"".join(parts)
