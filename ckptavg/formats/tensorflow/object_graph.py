"""TensorFlow's object graph: which tensors belong to the model, and a graph of those alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ckptavg.formats.tensorflow import optimizer
from ckptavg.formats.tensorflow.protobuf import (
    BYTES,
    VARINT,
    Field,
    Message,
    Refused,
    fields,
    text,
)

_NODES_LIMIT = 2**20
_NODE = 1
_CHILDREN, _ATTRIBUTES, _SLOTS = 1, 2, 3
_REFERENCE = {1: VARINT, 2: BYTES}
_ATTRIBUTE = {3: BYTES}
_SLOT = {1: VARINT, 3: VARINT}
"""Fields of `TrackableObjectGraph`, of its nodes and of what nodes consist of."""

_SAVE_COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"
"""Every `tf.train.Checkpoint` has it, even one without a model."""


@dataclass(frozen=True, slots=True)
class ModelPart:
    """The part of a checkpoint that is not optimizer state.

    Attributes:
        named: all keys in the graph.
        kept: the keys of the model.
        graph: the graph without the other keys, for a checkpoint without their tensors.
    """

    named: frozenset[str]
    kept: frozenset[str]
    graph: bytes


@lru_cache(maxsize=2)  # checkpoints of one program have the same graph
def model_part(graph: bytes) -> ModelPart:
    """Separates the model from the optimizer: what can be reached without passing one.

    Args:
        graph: a serialized `TrackableObjectGraph`.

    Raises:
        Refused: the graph is damaged, or it holds no model.
    """
    nodes = _nodes(graph)
    reached = _reached(nodes)
    named = frozenset(key for node in nodes for key in _keys(node))
    kept = frozenset(key for number in reached for key in _keys(nodes[number]))
    if not kept - {_SAVE_COUNTER}:
        raise Refused(
            "it holds no model: according to its object graph, all its tensors are optimizer state"
        )
    return ModelPart(named, kept, _pruned(graph, reached, kept))


def _nodes(graph: bytes) -> list[bytes]:
    nodes: list[bytes] = []
    for field in fields(graph):
        if field.number == _NODE:
            if field.wire_type != BYTES or len(nodes) == _NODES_LIMIT:
                raise Refused("its object graph is damaged or too large")
            nodes.append(field.content)
    if not nodes:
        raise Refused("its object graph is empty")
    return nodes


def _reached(nodes: list[bytes]) -> set[int]:
    """Numbers of the nodes that are reached from the root without passing an optimizer."""
    seen, reached, waiting = {0}, set(), [0]
    while waiting:
        number = waiting.pop()
        names = (name for _, name in _children(nodes[number]))
        if optimizer.is_optimizer(names, _has_slots(nodes[number])):
            continue
        reached.add(number)
        for child, name in _children(nodes[number]):
            if child >= len(nodes):
                raise Refused(f"its object graph refers to object {child}, which does not exist")
            if child not in seen and name not in optimizer.EDGES:
                seen.add(child)
                waiting.append(child)
    return reached


def _has_slots(node: bytes) -> bool:
    return next(_parts(node, _SLOTS), None) is not None


def _children(node: bytes) -> Iterator[tuple[int, bytes]]:
    for part in _parts(node, _CHILDREN):
        reference = Message(part.content, _REFERENCE)
        yield reference.integer(1), reference.content(2)


def _keys(node: bytes) -> Iterator[str]:
    return (_key(part) for part in _parts(node, _ATTRIBUTES))


def _key(attribute: Field) -> str:
    try:
        return Message(attribute.content, _ATTRIBUTE).content(3).decode()
    except UnicodeDecodeError as error:
        raise Refused("its object graph has a key that is not valid UTF-8") from error


def _parts(node: bytes, wanted: int) -> Iterator[Field]:
    for field in fields(node):
        if field.number == wanted:
            if field.wire_type != BYTES:
                raise Refused("its object graph is damaged")
            yield field


def _pruned(graph: bytes, reached: set[int], kept: frozenset[str]) -> bytes:
    """The graph without keys that are not kept."""
    # Nodes refer to each other by number, so even those that lose everything stay in their place.
    return b"".join(
        text(_NODE, _pruned_node(field.content, reached, kept))
        if field.number == _NODE
        else field.encoded
        for field in fields(graph)
    )


def _pruned_node(node: bytes, reached: set[int], kept: frozenset[str]) -> bytes:
    parts = []
    for field in fields(node):
        if field.number == _ATTRIBUTES and _key(field) not in kept:
            continue
        if field.number == _SLOTS and Message(field.content, _SLOT).integer(3) not in reached:
            continue
        parts.append(field.encoded)
    return b"".join(parts)
