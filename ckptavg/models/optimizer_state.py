"""The state of a model's optimizers: where it is in files of Keras 3, and how it is loaded."""

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras

from ckptavg.errors import ModelError
from ckptavg.formats import open_reader
from ckptavg.models.model import check_all_used, load_unchecked, without_optimizer
from ckptavg.runs.proof import check_intact

_COMPILED = "optimizer"
"""The folder of the optimizer of `compile()`."""


def placed_optimizers(owner: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The optimizers of a model, or inside an optimizer, with their folders in Keras' files."""
    seen = set()
    # Keras visits attributes in this order.
    for name, value in sorted(
        vars(owner).items(), key=lambda item: (item[0].startswith("_"), item[0])
    ):
        if isinstance(value, keras.optimizers.Optimizer) and id(value) not in seen:
            seen.add(id(value))
            yield f"{prefix}{name}", value
            yield from placed_optimizers(value, f"{prefix}{name}/")


def load_with_optimizers(model: keras.Model, path: Path) -> None:
    """Loads a checkpoint into a model that is built, with the optimizer state that it holds.

    Raises:
        FormatError: the file is not a checkpoint, or is damaged.
        IntegrityError: the file differs from its record, if it has one.
        ModelError: the checkpoint does not fit the model, or its optimizers.
    """
    check_intact(path)
    check_all_used(model, path)
    with open_reader(path) as reader:
        tensors = reader.structure.tensors.keys() & reader.structure.optimizer
    stored = Counter(name.rpartition("/vars/")[0] for name in tensors)
    _build_compiled(model, stored)
    for folder, optimizer in placed_optimizers(model):
        # Keras would warn and train on with a new optimizer.
        if stored[folder] not in (0, len(optimizer.variables)):
            raise ModelError(
                f"{path} holds {stored[folder]} variables of the optimizer 'model.{folder}', which "
                f"has {len(optimizer.variables)}: compile the model as it was, and build an "
                "optimizer of its own with the variables that it trains"
            )
    with nullcontext() if stored[_COMPILED] else without_optimizer(model):
        load_unchecked(model, path)


def _build_compiled(model: keras.Model, stored: Counter[str]) -> None:
    """Builds the optimizer of `compile()`, if it has trained: Keras loads no state before."""
    optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, keras.optimizers.Optimizer) or optimizer.built:
        return
    if stored[_COMPILED] > len(optimizer.variables):
        optimizer.build(model.trainable_variables)
