"""Which layer a tensor belongs to, and which tensors are BatchNorm statistics, by their names."""

import re
from collections import defaultdict
from collections.abc import Iterable

from ckptavg.formats.reader import Structure

_SEPARATOR = re.compile(r"[/.]")
_TENSORFLOW_SUFFIX = re.compile(r"/\.ATTRIBUTES/.*")
_STATISTIC = re.compile(r"(moving|running|renorm)_(mean|variance|var|stddev)(:\d+)?")
_BATCH_NORM = re.compile(r"(.*/)?batch_normalization(_\d+)?", re.DOTALL)


def split_name(name: str) -> tuple[str, str]:
    """The layer in a stored name, "" if there is none, and the variable.

    Example:
        >>> split_name("layers/dense/vars/0"), split_name("dense/kernel:0"), split_name("h.0.bias")
        (('layers/dense', '0'), ('dense', 'kernel:0'), ('h.0', 'bias'))
    """
    name = _TENSORFLOW_SUFFIX.sub("", name)
    variable = _SEPARATOR.split(name)[-1]
    return name[: -len(variable) - 1].removesuffix("/vars"), variable


def layer_of(name: str) -> str:
    """The layer in a stored name; a tensor outside all layers is a layer of its own."""
    return split_name(name)[0] or name


def moving_statistics(
    structure: Structure, known: Iterable[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Finds the statistics of BatchNorm layers in a checkpoint.

    They are recognized by their own names (`moving_mean`), or by the name of their layer where
    Keras 3 numbers the variables: `layers/batch_normalization_1/vars/2`, or the name that the
    folder of the layer has as an attribute.

    Args:
        structure: of the checkpoint.
        known: names of statistics in records, which hold whatever the layers are called.

    Returns:
        For each layer the stored names of its mean, its variance and others, in this order.
    """
    # See docs/decisions/0064-moving-statistics-are-found-by-records-and-names.md.
    known = frozenset(known)
    layers: dict[str, dict[str, str]] = defaultdict(dict)
    for name, tensor in structure.model_tensors.items():
        if tensor.is_float:
            layers[layer_of(name)][name] = split_name(name)[1]
    found = {}
    for layer, variables in layers.items():
        statistics = {n for n, variable in variables.items() if _STATISTIC.fullmatch(variable)}
        statistics.update(known & variables.keys())
        numbered = all(variable.isdecimal() for variable in variables.values())
        if numbered and len(variables) > 1 and _is_batch_norm(structure, layer):
            # Statistics come last, after gamma and beta: two, or five with renorm.
            kept = 2 if len(variables) < 5 else 5
            statistics.update(sorted(variables, key=lambda n: int(variables[n]))[-kept:])
        if statistics:
            found[layer] = tuple(sorted(statistics, key=lambda n: _rank(variables[n])))
    return found


def _is_batch_norm(structure: Structure, layer: str) -> bool:
    """Whether a layer of Keras 3 is a BatchNormalization, by its class or its default name."""
    name = structure.groups.get(f"{layer}/vars", {}).get("name", "")
    return any(_BATCH_NORM.fullmatch(n) for n in (layer, name) if isinstance(n, str))


def _rank(variable: str) -> tuple[int, str]:
    """Sorts the statistics of a layer: by number, or else mean, variance, others."""
    if variable.isdecimal():
        return int(variable), variable
    mean_or_variance = re.match("(?:moving|running)_(mean|var)", variable)
    return ("mean", "var").index(mean_or_variance[1]) if mean_or_variance else 2, variable
