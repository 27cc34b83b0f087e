"""Layers, and the statistics of BatchNorm layers, told by the stored names of tensors."""

import re
from collections import defaultdict
from collections.abc import Iterable

from ckptavg.formats.reader import Structure

_BATCH_NORM = re.compile(r"(^|/)batch_normalization(_\d+)?/vars/|.+(?=/moving_variance)")
_BATCH_NORM_LAYER = re.compile(r"(.*/)?batch_normalization(_\d+)?", re.DOTALL)
_MOVING = re.compile(r"((moving|running|renorm)_)(mean|variance|var|stddev)(:\d+)?")
_LAYER = re.compile(r"(.*[/.])?([^/.]*)", re.DOTALL)
_ATTRIBUTES = re.compile(r"/\.ATTRIBUTES/.*")


def split_name(name: str) -> tuple[str, str]:
    """The layer that a stored name tells of, "" if none, and the variable in it.

    Example:
        >>> split_name("layers/dense/vars/0"), split_name("dense/kernel:0"), split_name("h.0.bias")
        (('layers/dense', '0'), ('dense', 'kernel:0'), ('h.0', 'bias'))
    """
    layer, variable = _LAYER.fullmatch(_ATTRIBUTES.sub("", name)).groups()
    return (layer or "")[:-1].removesuffix("/vars"), variable


def layer_of(name: str) -> str:
    """The layer that a stored name tells of; a tensor outside any is a layer of its own."""
    return split_name(name)[0] or name


def moving_statistics(
    structure: Structure, known: Iterable[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Stored names of the statistics that BatchNorm layers keep, by layer: mean, variance, others.

    They are told by their names (`moving_mean`), by the names of their layers where Keras numbers
    the variables (`layers/batch_normalization_1/vars/2`, or a layer that is called so), where they
    are the last two, of five or more with renorm the last five, or by what a record says.

    Args:
        structure: of a checkpoint.
        known: names of statistics that records tell of.
    """
    known = frozenset(known)
    layers: dict[str, dict[str, str]] = defaultdict(dict)
    for name, tensor in structure.model_tensors.items():
        if tensor.is_float:
            layers[layer_of(name)][name] = split_name(name)[1]
    found = {}
    for layer, variables in layers.items():
        statistics = {n for n, variable in variables.items() if _MOVING.fullmatch(variable)}
        statistics.update(known & variables.keys())
        numbered = all(variable.isdecimal() for variable in variables.values())
        if numbered and len(variables) > 1 and _is_batch_norm(structure, layer):
            kept = 2 if len(variables) < 5 else 5
            statistics.update(sorted(variables, key=lambda n: int(variables[n]))[-kept:])
        if statistics:
            found[layer] = tuple(sorted(statistics, key=lambda n: _rank(variables[n])))
    return found


def _is_batch_norm(structure: Structure, layer: str) -> bool:
    """Whether a layer of Keras 3 is a BatchNormalization, by its class or its default name."""
    name = structure.groups.get(f"{layer}/vars", {}).get("name", "")
    return any(_BATCH_NORM_LAYER.fullmatch(n) for n in (layer, name) if isinstance(n, str))


def _rank(variable: str) -> tuple[int, str]:
    """Sorts the statistics of a layer: numbers by themselves, else mean, variance, others."""
    if variable.isdecimal():
        return int(variable), variable
    mean_or_variance = re.match("(?:moving|running)_(mean|var)", variable)
    return ("mean", "var").index(mean_or_variance[1]) if mean_or_variance else 2, variable


def count_batch_norm(names: Iterable[str]) -> int:
    """How many BatchNormalization layers the stored names of tensors tell of."""
    return len({m.string[: m.end()] for m in map(_BATCH_NORM.search, names) if m})
