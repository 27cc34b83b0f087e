"""Which folders of a Keras 3 file hold the state of an optimizer."""

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile

from ckptavg.formats.reader import Attribute
from ckptavg.formats.tensors import TensorInfo

Groups = Mapping[str, Mapping[str, Attribute | None]]
Shape = tuple[int, ...]

_COMPILED = "optimizer"
"""Where Keras keeps the optimizer that a model was compiled with, and nothing else: it saves the
layers of a model below `layers` before it comes to this attribute."""

_VARIABLES = "/vars/"
_FIRST = "/vars/0"
_COUNTERS = ("int32", "int64")
_WORD = re.compile(r"[a-z]+")
_WORDS = re.compile(
    r"opt[a-z]*|[a-z]*optimizer|adam[a-z]*|adadelta|adafactor|adagrad|ftrl|lamb|lion|muon|nadam"
    r"|rm|rmsprop|sgd"
)
"""Words in the names that Keras or its users give optimizers: `adam_w_1`, `rm_sprop`, `d_opt`."""


def optimizer_folders(tensors: Mapping[str, TensorInfo], groups: Groups) -> frozenset[str]:
    """Finds the outermost folders that hold the state of an optimizer, wherever it hangs.

    An optimizer is known by what it stores: first the number of its iterations, a single integer,
    then single numbers and variables that are shaped like those of the model. Its name must be that
    of an optimizer, too, because a layer that keeps a count and a copy of the weights stores the
    same; a name alone proves nothing, because a layer may have any.

    Args:
        tensors: of the file, by stored name.
        groups: the attributes of its folders, None where they are damaged.
    """
    # See docs/decisions/0077-optimizers-are-known-by-what-they-store.md.
    found = {_COMPILED}
    # Most files end here: few layers begin with an integer.
    counting = [
        name.removesuffix(_FIRST)
        for name, tensor in tensors.items()
        if name.endswith(_FIRST) and _counts(tensor)
    ]
    candidates = [folder for folder in counting if _is_named_like_one(folder, groups)]
    if candidates:
        shapes = _shapes_of_slots(tensors, candidates)
        found.update(
            folder
            for folder in candidates
            if all(t.shape in shapes for t in tensors_of(folder, tensors))
        )
    return frozenset(f for f in found if not any(f.startswith(f"{outer}/") for outer in found))


def tensors_of(folder: str, tensors: Mapping[str, TensorInfo]) -> Iterator[TensorInfo]:
    """The variables of one object, without those of the objects in it."""
    numbered = (f"{folder}{_VARIABLES}{number}" for number in range(len(tensors)))
    return map(tensors.__getitem__, takewhile(tensors.__contains__, numbered))


def _counts(tensor: TensorInfo) -> bool:
    return not tensor.shape and tensor.dtype in _COUNTERS


def _is_named_like_one(folder: str, groups: Groups) -> bool:
    """Whether the attribute of the model, or the name of the object in it, is an optimizer's."""
    own = groups.get(f"{folder}/vars", {}).get("name")
    names = (folder.rpartition("/")[2], own if isinstance(own, str) else "")
    return any(_WORDS.fullmatch(word) for name in names for word in _WORD.findall(name.lower()))


def _shapes_of_slots(tensors: Mapping[str, TensorInfo], candidates: list[str]) -> set[Shape]:
    """The shapes that variables of optimizers of the model may have."""
    outside = tuple(f"{folder}/" for folder in (_COMPILED, *candidates))
    shapes: set[Shape] = {t.shape for n, t in tensors.items() if not n.startswith(outside)}
    # Adafactor keeps sums over the last axis, and over the one before it.
    reduced = {s[:axis] + s[axis:][1:] for s in shapes if len(s) > 1 for axis in (-1, -2)}
    return {(), *shapes, *reduced}
