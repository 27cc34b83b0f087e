"""The trainings that checkpoints come from, and in what they differ, as far as it is recorded."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptavg.errors import CkptavgError
from ckptavg.formats.model_config import parse_config
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.run import CHECKPOINT_FOLDER


@dataclass(frozen=True, slots=True)
class Trainings:
    """Several trainings whose checkpoints are taken together.

    Attributes:
        runs: their directories, in the order in which they were named.
        differences: in what they differ, such as `learning rate (0.01, 0.05)`, with a value for
            each run. Not recorded are the data, and the weights that each began with.
    """

    runs: tuple[Path, ...]
    differences: tuple[str, ...]

    @property
    def summary(self) -> str:
        """How many there are, and in what they differ."""
        text = f"{len(self.runs)} trainings: {', '.join(map(str, self.runs))}"
        if not self.differences:
            return f"{text}. Their records show no difference"
        return f"{text}. They differ in {', '.join(self.differences)}"


def find_trainings(checkpoints: Sequence[Checkpoint]) -> Trainings | None:
    """The runs of checkpoints; None if they are not of several.

    Checkpoints outside the folder of a run are of a training that is not known, and do not count.
    """
    runs: dict[Path, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        folder = checkpoint.path.parent
        if folder.name == CHECKPOINT_FOLDER and checkpoint.record is not None:
            runs.setdefault(folder.parent, []).append(checkpoint)
    # One run may be named by several paths.
    runs = {directory: found for directory, found in runs.items() if _is_first(directory, runs)}
    if len(runs) < 2:
        return None
    facts = [dict(_facts(found)) for found in runs.values()]
    names = dict.fromkeys(name for each in facts for name in each)
    differences = [
        f"{name} ({', '.join(values)})"
        for name in names
        for values in [[each.get(name, "unknown") for each in facts]]
        if len({*values} - {"unknown"}) > 1
    ]
    return Trainings(tuple(runs), tuple(differences))


def _is_first(directory: Path, runs: dict[Path, list[Checkpoint]]) -> bool:
    real = os.path.realpath(directory)
    return directory == next(other for other in runs if os.path.realpath(other) == real)


def _facts(checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[str, str]]:
    """What is known of a training, by what it is called."""
    records = [c.record for c in checkpoints if c.record is not None]
    rates = [r.learning_rate for r in records if r.learning_rate is not None]
    if rates:
        low, high = f"{min(rates):.4g}", f"{max(rates):.4g}"
        yield "learning rate", low if low == high else f"{low} to {high}"
    started = next((r.initial_learning_rate for r in records if r.initial_learning_rate), None)
    if started is not None:
        yield "learning rate at the start", f"{started:.4g}"
    last = records[-1]
    # Other data or batches take other numbers of steps.
    if last.epoch and last.step:
        yield "steps per epoch", f"{last.step / last.epoch:.4g}"
    for package in ("keras", "tensorflow", "jax", "torch"):
        if package in last.versions:
            yield f"version of {package}", last.versions[package]
    file = checkpoints[-1].model_file
    if file is not None:
        with suppress(CkptavgError):  # it is damaged, of which others tell
            yield from _of_model(parse_config(file))


def _of_model(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the configuration of a model says of its training."""
    compiled = config.get("compile_config") or {}
    own = config.get("config")
    if isinstance(own, dict):
        yield "dtype policy", _name(own.get("dtype"))
    optimizer = compiled.get("optimizer")
    yield "optimizer", _name(optimizer, "class_name")
    yield "loss", _name(compiled.get("loss"), "class_name")
    settings = optimizer.get("config") if isinstance(optimizer, dict) else None
    if isinstance(settings, dict):
        for key in ("momentum", "weight_decay", "use_ema"):
            if key in settings:
                yield key, str(settings[key])


def _name(value: Any, key: str = "name") -> str:
    """What Keras serialized, in a word: a name, or that in its configuration."""
    if isinstance(value, dict):
        inner = value.get("config")
        found = value.get(key) or (inner.get(key) if isinstance(inner, dict) else None)
        return str(found or "unknown")
    return str(value or "unknown")
