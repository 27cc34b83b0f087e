"""Where a model's variables go in its checkpoints, found again whenever they change."""

from dataclasses import dataclass, replace
from typing import Any

from ckptavg.models.placement import Placement, moving_statistics
from ckptavg.runs.record import BatchNormRecord
from ckptavg.saving.checkpoint_files import stored_as
from ckptavg.saving.framework import Training
from ckptavg.saving.options import Options


@dataclass(frozen=True, slots=True)
class WeightPlacement:
    """What checkpoints hold of the model as it is built now.

    Attributes:
        files: the structure of the files, as the options ask for it, and what fills it; None if
            only the framework itself can write files of this model.
        batch_norm: what records say of the statistics that training left; None without BatchNorm.
    """

    files: Placement | None
    batch_norm: BatchNormRecord | None


class PlacementFinder:
    """Finds the placement of a model, and finds it again when layers were built meanwhile."""

    def __init__(self, training: Training, options: Options) -> None:
        self._training = training
        self._options = options
        # They are kept with the placement, so that no other variable can get their identity.
        self._variables: list[Any] = []
        self._found: WeightPlacement | None = None

    def current(self) -> WeightPlacement:
        """The placement of the variables that the model has now."""
        framework, model = self._training.framework, self._training.model
        include = self._options.include_optimizer
        variables = framework.variables(model, include)
        # Asked at every save (1.5 ms for 700 variables): layers may build themselves late.
        # See docs/decisions/0045-marks-tell-where-variables-are-stored.md.
        if self._found is None or [*map(id, variables)] != [*map(id, self._variables)]:
            self._found = self._find(framework.place(model, include))
            self._variables = variables
        return self._found

    def _find(self, placement: Placement | None) -> WeightPlacement:
        options = self._options
        layers = self._training.framework.batch_norm_layers(self._training.model)
        moving = () if placement is None else moving_statistics(layers, placement)
        if placement is not None:
            structure = stored_as(placement.structure, options.save_dtype, options.shard_bytes)
            placement = replace(placement, structure=structure)
        batch_norm = BatchNormRecord(len(layers), "running", moving=moving) if layers else None
        return WeightPlacement(placement, batch_norm)
