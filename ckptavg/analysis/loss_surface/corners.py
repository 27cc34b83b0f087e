"""The corners of a line or plane in the space of weights, and the points that they span."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, cast

import numpy as np

from ckptavg.errors import RecipeError
from ckptavg.merging.plan import MergePlan, plan_mean
from ckptavg.merging.weighting import Weighted, weigh
from ckptavg.recipes import COEFFICIENTS, UNIFORM, Recipe
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.digest import digest
from ckptavg.runs.run import CHECKPOINT_FOLDER
from ckptavg.runs.sources import Sources, stem
from ckptavg.search.score_cache import SEARCH_FOLDER
from ckptavg.search.weight_rows import WeightRows

Corner = Sources | tuple[Sources, Sequence[float] | Recipe]
"""A checkpoint, several for their plain mean, or checkpoints with coefficients or a recipe."""

Vector = Sequence[float]
"""Coefficients, with sum 1; they may be negative."""


@dataclass(frozen=True, slots=True)
class CornerPlan:
    """The checkpoints that corners are averages of.

    Attributes:
        labels: names of the corners, all different.
        vectors: coefficients of each corner over all checkpoints.
        mean: the plan of the plain mean of the checkpoints.
    """

    labels: tuple[str, ...]
    vectors: tuple[Vector, ...]
    mean: MergePlan

    @property
    def search_folder(self) -> Path | None:
        """Folder for scores in the first run that a checkpoint belongs to; None if none does."""
        folders = (source.path.parent for source in self.mean.sources if source.record)
        runs = (folder.parent for folder in folders if folder.name == CHECKPOINT_FOLDER)
        return next((run / SEARCH_FOLDER for run in runs), None)


def plan_corners(corners: Sequence[Corner], labels: Sequence[str] | None = None) -> CornerPlan:
    """Opens the checkpoints of all corners, and checks that they belong to one model.

    Args:
        corners: averages or single checkpoints.
        labels: names of the corners; by default their epochs or files, or what they are means of.

    Raises:
        RecipeError: there are not as many labels as corners, or two are equal.
        CkptavgError: as `merge` does.
    """
    weighted = [_weighted(corner) for corner in corners]
    numbers: dict[str, int] = {}
    checkpoints: list[Checkpoint] = []
    shares: list[dict[int, float]] = []
    for found in weighted:
        shares.append({})
        for checkpoint, share in zip(found.checkpoints, found.coefficients, strict=True):
            # A file that is reached through a link is the same checkpoint, and is read once.
            number = numbers.setdefault(os.path.realpath(checkpoint.path), len(numbers))
            if number == len(checkpoints):
                checkpoints.append(checkpoint)
            shares[-1][number] = shares[-1].get(number, 0.0) + share
    count = len(checkpoints)
    return CornerPlan(
        _labels(weighted, labels),
        tuple(tuple(share.get(n, 0.0) for n in range(count)) for share in shares),
        plan_mean(checkpoints),
    )


def edge_products(rows: WeightRows, count: int, left_out: Collection[str]) -> np.ndarray:
    """Inner products of the edges from the first corner to the others.

    Args:
        rows: a row for each corner.
        count: number of corners.
        left_out: stored names of tensors that do not count.

    Returns:
        (corners - 1, corners - 1) float64.
    """
    found = np.zeros((count - 1, count - 1))
    for name in rows.names:
        if name not in left_out:
            for _, (first, *others) in rows.pieces(name, range(count)):
                edges = np.stack(others) - first
                found += edges @ edges.T
    return found


def corner_digests(rows: WeightRows, count: int) -> tuple[list[str], str]:
    """Digests by which the scores of points are kept, whatever files the corners came from.

    Returns:
        Of each corner, all that has a mean; of the first one, what has none, which is the same at
        every point.
    """
    contents, rest = [], ""
    for row in range(count):
        tensors = rows.combine({row: 1.0})
        digests = {name: digest(values.tobytes()).hex() for name, values in tensors}
        averaged = {name: digests.pop(name) for name in rows.names}
        contents.append(_digest_of_all(averaged))
        rest = rest or _digest_of_all(digests)
    return contents, rest


def _digest_of_all(digests: Mapping[str, str]) -> str:
    """One digest of all tensors, independent of the order in which they were stored."""
    return digest(json.dumps(sorted(digests.items())).encode()).hex()


def _weighted(corner: Corner) -> Weighted:
    if isinstance(corner, tuple) and len(corner) == 2:
        sources, share = corner
        if isinstance(share, Recipe):
            return weigh(sources, share)
        if _are_coefficients(share):
            return weigh(sources, coefficients=share)
    # What is left may be a tuple of two sources, which types cannot tell from the above.
    return weigh(cast(Sources, corner))


def _are_coefficients(found: object) -> TypeGuard[Sequence[float]]:
    return isinstance(found, Sequence | np.ndarray) and all(
        isinstance(entry, int | float | np.number) for entry in found
    )


def _labels(weighted: Sequence[Weighted], labels: Sequence[str] | None) -> tuple[str, ...]:
    found = tuple(map(_label, weighted)) if labels is None else tuple(labels)
    if len(found) != len(weighted):
        raise RecipeError(f"there are {len(found)} labels for {len(weighted)} corners")
    # Labels are keys of the result, so equal ones are numbered.
    if len(set(found)) == len(found):
        return found
    if labels is not None:
        raise RecipeError(f"labels must be different, but are {', '.join(found)}")
    return tuple(f"{label} ({number})" for number, label in enumerate(found, 1))


def _label(weighted: Weighted) -> str:
    if len(weighted.checkpoints) > 1:
        recipe = {UNIFORM: "mean", COEFFICIENTS: "average"}.get(weighted.recipe, weighted.recipe)
        return f"{recipe} of {len(weighted.checkpoints)}"
    (checkpoint,) = weighted.checkpoints
    return stem(checkpoint.path) if checkpoint.epoch is None else f"epoch {checkpoint.epoch}"
