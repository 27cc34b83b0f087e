"""Which parts of a TensorFlow checkpoint are optimizer state.

Only this file recognizes it: by the names of variables in checkpoints of TensorFlow 1, which hold
no object graph, and by the objects of the graph in all others.

`TensorFlowReader` notes the names in `Structure.optimizer`. They are dropped in two places:
`merging/tensor_rules.py` gives these tensors the action DROP, so that `MergePlan.structure` lacks
them, and `object_graph.py`, which finds the slots of an object graph, removes them from the graph
that an output holds.
"""

import re
from collections.abc import Collection, Iterable

_SLOT = re.compile(
    r"(Adam|AdamW|LazyAdam|Nadam|AdaMax|Adamax|AdamAsync|LAMB|Momentum|RMSProp|Adagrad|AdagradDA"
    r"|ProximalAdagrad|Adadelta|Adafactor|Ftrl|LARSOptimizer|adam_[mv])(_\d+)?"
)
"""Slots of a variable X are called `X/Adam`, `X/Adam_1`: the optimizer's name, and a number."""

_POWER = re.compile(r"beta[12]_power(_\d+)?")
"""Variables that optimizers of Adam's family have once."""

_SCOPE_LIMIT = 32

_CHILDREN = ({b"_iterations", b"_variables"}, {b"iter", b"decay"})
"""Children by which an optimizer is recognized under any name: since Keras 2.11, and before."""


def optimizer_variables(names: Collection[str]) -> frozenset[str]:
    """The names of the variables of a TensorFlow 1 checkpoint that are optimizer state."""
    return frozenset(name for name in names if _is_state(name, names))


def is_optimizer(children: Iterable[bytes], has_slots: bool) -> bool:
    """Whether an object of an object graph is an optimizer.

    Args:
        children: the names of its children.
        has_slots: whether it has slot variables, which only optimizers have.
    """
    # Names do not tell: Keras 3 may store trainable variables below `optimizer/`, and a layer may
    # be called so.
    # See docs/decisions/0019-the-object-graph-finds-optimizer-state.md.
    names = set(children)
    return has_slots or any(known <= names for known in _CHILDREN)


def _is_state(name: str, names: Collection[str]) -> bool:
    owner, _, last = name.rpartition("/")
    if not _SLOT.fullmatch(last):
        return _POWER.fullmatch(last) is not None
    # The owner may be preceded by the scope in which its slot was made.
    parts = owner.split("/", _SCOPE_LIMIT)
    return any("/".join(parts[depth:]) in names for depth in range(len(parts)))
