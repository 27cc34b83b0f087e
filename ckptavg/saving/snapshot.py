"""Host copies of a model's variables, in memory that is used again."""

from collections.abc import Mapping

import numpy as np

from ckptavg.saving.framework import Framework, Placement


class Snapshot:
    """Values of variables at one moment; taking another overwrites them.

    Memory that was used before is not asked of the system again, page by page, which makes a
    copy take half the time.
    """

    def __init__(self) -> None:
        self._copies: dict[int, np.ndarray] = {}
        self._names: dict[str, int] = {}

    def take(self, framework: Framework, placement: Placement) -> None:
        """Copies every variable once, however many tensors it fills."""
        copied = set()
        for name, variable in placement.variables.items():
            key = id(variable)
            self._names[name] = key
            if key in copied:
                continue
            copied.add(key)
            view = framework.host_view(variable)
            copy = self._copies.get(key)
            if copy is None or copy.shape != view.shape or copy.dtype != view.dtype:
                self._copies[key] = np.array(view, order="C")
            else:
                np.copyto(copy, view)

    @property
    def values(self) -> Mapping[str, np.ndarray]:
        """By stored name of the tensors."""
        return {name: self._copies[key] for name, key in self._names.items()}
