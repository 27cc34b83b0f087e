"""Where the variables of a live model go in its checkpoints."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptavg.formats import Structure
from ckptavg.formats.tensors import Extent, TensorInfo

_MOVING = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
"""Attributes of BatchNormalization layers; the last three exist only with renorm."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the variables of a model go in its checkpoints.

    Attributes:
        structure: that of the checkpoints; its tensors have the shapes and dtypes of the variables.
        variables: the variable that each tensor holds, by its stored name.
    """

    structure: Structure
    variables: Mapping[str, Any]


def tensor_in_file(name: str, shape: Iterable[int], dtype: str) -> TensorInfo:
    """The tensor that a variable becomes, without a place in the file yet."""
    tensor = TensorInfo(name, tuple(shape), dtype, None)
    return replace(tensor, extent=Extent(0, tensor.nbytes))


def moving_variables(layer: Any) -> list[Any]:
    """The variables in which a BatchNormalization layer, of Keras 3 or 2, keeps its statistics."""
    # A layer that is not built has none yet; only one with renorm has more than two.
    found = (getattr(layer, name, None) for name in _MOVING)
    return [variable for variable in found if variable is not None]


def moving_statistics(layers: Iterable[Any], placement: Placement) -> tuple[str, ...]:
    """Stored names of the statistics of BatchNormalization layers."""
    moving = {id(variable) for layer in layers for variable in moving_variables(layer)}
    return tuple(name for name, v in placement.variables.items() if id(v) in moving)
