"""Optimizer state among the variables of TensorFlow 1, which only their names tell."""

import re
from collections.abc import Collection

_SLOT = re.compile(
    r"(Adam|AdamW|LazyAdam|Nadam|AdaMax|Adamax|AdamAsync|LAMB|Momentum|RMSProp|Adagrad|AdagradDA"
    r"|ProximalAdagrad|Adadelta|Adafactor|Ftrl|LARSOptimizer|adam_[mv])(_\d+)?"
)
"""Of a variable X an optimizer keeps `X/Adam`, `X/Adam_1`: its own name, and a number."""

_POWER = re.compile(r"beta[12]_power(_\d+)?")
"""What optimizers of Adam's family keep once."""

_SCOPE_LIMIT = 32


def optimizer_names(names: Collection[str]) -> frozenset[str]:
    """Those of the names of variables that are an optimizer's."""
    return frozenset(name for name in names if _is_optimizer(name, names))


def _is_optimizer(name: str, names: Collection[str]) -> bool:
    owner, _, last = name.rpartition("/")
    if _POWER.fullmatch(last):
        return True
    return _SLOT.fullmatch(last) is not None and _is_variable(owner, names)


def _is_variable(owner: str, names: Collection[str]) -> bool:
    """Whether this is a variable, perhaps with the scope in front where its slot was made."""
    for _ in range(_SCOPE_LIMIT):
        if owner in names:
            return True
        _, _, owner = owner.partition("/")
        if not owner:
            break
    return False
