"""TensorFlow's object graph: which tensors belong to the model, and a graph of those alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from ckptavg.formats.tensorflow import optimizer, protobuf
from ckptavg.formats.tensorflow.protobuf import BYTES, VARINT, Field, Refused

_NODES_LIMIT = 2**20
_NODE = 1
_CHILDREN, _ATTRIBUTES, _SLOTS = 1, 2, 3
_REFERENCE = {1: VARINT, 2: BYTES}
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
    nodes = [field.content for field in islice(protobuf.repeated(graph, _NODE), _NODES_LIMIT + 1)]
    if not nodes:
        raise Refused("its object graph is empty")
    if len(nodes) > _NODES_LIMIT:
        raise Refused(f"its object graph is too large: it has more than {_NODES_LIMIT:,} objects")
    reached = _reached(nodes)
    named = frozenset(key for node in nodes for key in _keys(node))
    kept = frozenset(key for number in reached for key in _keys(nodes[number]))
    if not named - {_SAVE_COUNTER}:
        raise Refused(
            "it holds no tensors, only objects without variables, as a SavedModel of a plain "
            "function does: there is nothing to average"
        )
    if not kept - {_SAVE_COUNTER}:
        raise Refused(
            "it holds no model: according to its object graph, all its tensors are optimizer state"
        )
    # Nodes refer to each other by number, so even those that lose everything stay in their place.
    pruned = (
        protobuf.text(_NODE, b"".join(_pruned(field.content, reached, kept)))
        if field.number == _NODE
        else field.encoded
        for field in protobuf.fields(graph)
    )
    return ModelPart(named, kept, b"".join(pruned))


def _reached(nodes: list[bytes]) -> set[int]:
    """Numbers of the nodes that are reached from the root without passing an optimizer."""
    seen, reached, waiting = {0}, set(), [0]
    while waiting:
        number = waiting.pop()
        names = (name for _, name in _children(nodes[number]))
        if optimizer.is_optimizer(names, has_slots=any(protobuf.repeated(nodes[number], _SLOTS))):
            continue
        reached.add(number)
        for child, _ in _children(nodes[number]):
            if child >= len(nodes):
                raise Refused(f"its object graph refers to object {child}, which does not exist")
            if child not in seen:
                seen.add(child)
                waiting.append(child)
    return reached


def _children(node: bytes) -> Iterator[tuple[int, bytes]]:
    for part in protobuf.repeated(node, _CHILDREN):
        reference = protobuf.last_fields(part.content, _REFERENCE)
        yield reference[1].integer, reference[2].content


def _keys(node: bytes) -> Iterator[str]:
    return map(_key, protobuf.repeated(node, _ATTRIBUTES))


def _key(attribute: Field) -> str:
    try:
        return protobuf.last_fields(attribute.content, {3: BYTES})[3].content.decode()
    except UnicodeDecodeError as error:
        raise Refused("its object graph has a key that is not valid UTF-8") from error


def _pruned(node: bytes, reached: set[int], kept: frozenset[str]) -> Iterator[bytes]:
    """The fields of a node without keys that are not kept, and without slots of optimizers."""
    for field in protobuf.fields(node):
        if field.number == _ATTRIBUTES and _key(field) not in kept:
            continue
        if (
            field.number == _SLOTS
            and protobuf.last_fields(field.content, _SLOT)[3].integer not in reached
        ):
            continue
        yield field.encoded
