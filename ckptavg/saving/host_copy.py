"""Host copies of a model's variables, in memory that is used again."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class Snapshot:
    """Values of variables at one moment; taking another overwrites them.

    Memory that was used before is not asked of the system again, page by page, which makes a
    copy take half the time.
    """

    def __init__(self) -> None:
        self._copies: dict[int, np.ndarray] = {}
        self._names: dict[str, int] = {}

    def take(self, view: Callable[[Any], np.ndarray], variables: Mapping[str, Any]) -> None:
        """Copies every variable once, however many tensors it fills.

        Args:
            view: the values of a variable on the host.
            variables: what each tensor holds, by its stored name.
        """
        copied = set()
        for name, variable in variables.items():
            key = id(variable)
            self._names[name] = key
            if key in copied:
                continue
            copied.add(key)
            values = view(variable)
            copy = self._copies.get(key)
            if copy is None or copy.shape != values.shape or copy.dtype != values.dtype:
                self._copies[key] = np.array(values, order="C")
            else:
                np.copyto(copy, values)

    @property
    def values(self) -> Mapping[str, np.ndarray]:
        """By stored name of the tensors."""
        return {name: self._copies[key] for name, key in self._names.items()}
