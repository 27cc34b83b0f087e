"""Where the variables of a live model go in its checkpoints."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ckptavg.formats import Structure

_MOVING = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
"""Attributes of BatchNormalization layers; the last three are there with renorm alone."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the variables of a model go in its checkpoints.

    Attributes:
        structure: of the checkpoints; its tensors have the shapes and dtypes of the variables.
        variables: what each tensor holds, by its stored name.
    """

    structure: Structure
    variables: Mapping[str, Any]


def moving_statistics(layers: Iterable[Any], placement: Placement) -> tuple[str, ...]:
    """Stored names of what BatchNormalization layers, of Keras 3 or Keras 2, keep of the data."""
    moving = {id(getattr(layer, name, None)) for layer in layers for name in _MOVING}
    return tuple(name for name, v in placement.variables.items() if id(v) in moving)
