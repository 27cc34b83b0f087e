"""Moving averages on torch, updated by its operations on lists of tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ckptavg.saving.framework import DeviceAverages


class TorchAverages(DeviceAverages):
    """See `DeviceAverages`."""

    def __init__(self, variables: Sequence[Any], count: int) -> None:
        """Makes `count` averages of Keras variables, all zero."""
        self._variables = list(variables)
        self._averages = [
            [torch.zeros_like(value) for value in self._values()] for _ in range(count)
        ]

    def update(self, rates: Sequence[float]) -> None:
        values = self._values()
        for averages, rate in zip(self._averages, rates, strict=True):
            torch._foreach_lerp_(averages, values, float(rate))

    def host_view(self, number: int, place: int) -> np.ndarray:
        values: np.ndarray = self._averages[number][place].cpu().numpy()
        return values

    def set(self, number: int, values: Sequence[np.ndarray]) -> None:
        for average, value in zip(self._averages[number], values, strict=True):
            average.copy_(torch.from_numpy(np.array(value)))

    def _values(self) -> list[torch.Tensor]:
        return [variable.value.detach().to(torch.float32) for variable in self._variables]
