"""What a run's `model.json` says of the model that was trained, beside the model of a SPEC."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from ckptavg.errors import CkptavgError, summary, warn
from ckptavg.formats.model_config import parse_config, without_training
from ckptavg.models.model import model_config
from ckptavg.runs.checkpoint import Checkpoint

_log = logging.getLogger("ckptavg")


def resemble_trained(model: keras.Model, spec: str, checkpoint: Path) -> None:
    """Compiles the model of a SPEC as the one that was trained; warns where it differs from that.

    Nothing happens for a checkpoint whose record names no `model.json`.

    Args:
        model: what the SPEC gave; it is compiled if it is not.
        spec: the SPEC.
        checkpoint: a checkpoint that the model is for.

    Warns:
        CkptavgWarning: the model cannot be compiled so, or has another loss or dtype policy.
    """
    found = Checkpoint.open(checkpoint).model_file
    if found is None or found.resolve() == Path(spec).resolve():
        return
    file = Path(os.path.relpath(found))
    try:
        trained = parse_config(file)
        given = json.loads(model_config(model).config)
    except CkptavgError:  # a model that cannot be serialized tells nothing
        return
    compilation = trained.get("compile_config")
    if compilation is not None and not model.compiled:
        _compile(model, spec, file, compilation)
    elif compilation is not None:
        _compare_losses(spec, file, given.get("compile_config"), compilation)
    own, former = (", ".join(sorted(set(_policies(config)))) for config in (given, trained))
    if own != former:
        warn(
            f"{spec} gave a model with the dtype policy {own}, but {file} says that {former} was "
            "trained: set the policy where the model is built, or omit --model (in Python model=) "
            "to take that of the run",
            3,
        )


def _compile(model: keras.Model, spec: str, file: Path, compilation: Any) -> None:
    try:
        model.compile_from_config(compilation)
    except Exception as error:  # classes of the user's, which Keras does not know here
        warn(
            f"{spec} gave a model that is not compiled, and it cannot be compiled as {file} says "
            f"({summary(error)}): compile it in the function that builds it",
            3,
        )
    else:
        _log.info("%s is not compiled: compiled it as %s says", spec, file)


def _compare_losses(spec: str, file: Path, own: Any, former: Any) -> None:
    losses = [_named((config or {}).get("loss")) for config in (own, former)]
    if own is not None and losses[0] != losses[1]:
        warn(
            f"{spec} gave a model with the loss {losses[0]}, but {file} says that it was trained "
            f"with {losses[1]}: scores are those of the first",
            3,
        )


def _named(loss: Any) -> str:
    """A loss as a configuration has it, short: its class or name, and its options."""
    if not isinstance(loss, dict) or "class_name" not in loss:
        return str(loss)
    options = loss.get("config")
    if not isinstance(options, dict):  # a function
        return str(options)
    listed = (f"{name}={value}" for name, value in options.items() if name not in ("name", "dtype"))
    return f"{loss['class_name']}({', '.join(listed)})"


def _policies(config: Any) -> Iterator[str]:
    """The dtype policies of all layers in a configuration."""
    if isinstance(config, list):
        for entry in config:
            yield from _policies(entry)
    elif isinstance(config, dict):
        inner = config.get("config")
        if config.get("class_name") == "DTypePolicy" and isinstance(inner, dict):
            yield str(inner.get("name"))
        for entry in without_training(config).values():
            yield from _policies(entry)
