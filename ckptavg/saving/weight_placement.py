"""Where a model's variables go in its checkpoints, found out once and whenever they change."""

from typing import Any

from ckptavg.errors import SaverError
from ckptavg.formats import Structure
from ckptavg.models.placement import Placement, moving_statistics
from ckptavg.runs.record import BatchNormRecord
from ckptavg.saving.checkpoint_files import stored_as
from ckptavg.saving.framework import Framework
from ckptavg.saving.options import Options


class Layout:
    """The layout of the checkpoints of one training.

    Attributes:
        placement: where variables go; None if the framework alone can write the files.
        structure: of the files, as the options ask for it; None as `placement`.
        batch_norm: what records say of the statistics that training left; None without BatchNorm.
    """

    def __init__(self, framework: Framework, options: Options, model: Any) -> None:
        self._framework = framework
        self._options = options
        self._model = model
        self._variables: list[Any] | None = None
        self.placement: Placement | None = None
        self.structure: Structure | None = None
        self.batch_norm: BatchNormRecord | None = None

    def find(self) -> None:
        """Asks the framework, unless nothing changed: layers may build themselves late.

        Raises:
            SaverError: only the framework can write the files, but not as the options ask for it.
        """
        include, dtype = self._options.include_optimizer, self._options.save_dtype
        size = self._options.max_shard_size
        variables = self._framework.variables(self._model, include)
        if self._variables is not None and [*map(id, variables)] == [*map(id, self._variables)]:
            return
        self.placement = self._framework.place(self._model, include)
        if self.placement is not None:
            self.structure = stored_as(self.placement.structure, dtype, size)
        elif dtype is not None or size is not None:
            raise SaverError(
                "a layer of the model saves more than its variables, so that its checkpoints can "
                "only be written as Keras does: leave save_dtype and max_shard_size alone"
            )
        self.batch_norm = self._find_batch_norm()
        self._variables = variables

    def _find_batch_norm(self) -> BatchNormRecord | None:
        layers = self._framework.batch_norm_layers(self._model)
        if not layers:
            return None
        moving = ()
        if self.placement is not None:
            moving = moving_statistics(layers, self.placement)
        return BatchNormRecord(len(layers), "running", moving=moving)
