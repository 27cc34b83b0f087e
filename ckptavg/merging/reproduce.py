"""The commands that make an average again, as text for a shell."""

import os
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path

from ckptavg.errors import CkptavgError, CkptavgWarning
from ckptavg.merging.plan import COPY
from ckptavg.merging.weighting import weigh
from ckptavg.recipes import UNIFORM, Recipe, all_parameters, check_coefficients, uniform
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import list_epochs
from ckptavg.runs.record import BatchNormRecord, Record
from ckptavg.runs.run import CHECKPOINT_FOLDER, Run, open_run

SPEC = "SPEC"
"""Stands where a command needs a model or data that no record names."""
_REFRESHED = (".weights.h5", ".keras")
"""Suffixes of files that `update-bn` and `merge --data` write."""


def reproduction(average: Checkpoint) -> tuple[str, ...]:
    """The commands that make an average again from its sources, and prove it.

    They name a run, its epochs and a recipe where these give the very coefficients in the record,
    otherwise files with their coefficients.

    Args:
        average: a file that `merge`, `convert`, `update-bn`, a sweep or a soup wrote.

    Returns:
        Commands, to be run one after the other in the folder that `average` is relative to; none
        if the record names no sources.
    """
    made = _making(average, frozenset())
    return (*made, _command(["verify", str(average.path)])) if made else ()


def averaging(run: Run) -> tuple[str, ...]:
    """The commands that average a run, for one that has no average yet."""
    first = run.checkpoints[0]
    output = Path("swa" + "".join(first.path.suffixes))
    words = ["merge", str(run.directory), "-o", str(output)]
    if first.record.batch_norm is not None and output.name.endswith(_REFRESHED):
        words += [*_model(first), "--data", SPEC]
    return _command(["doctor", str(run.directory)]), _command(words)


def refreshing(average: Checkpoint) -> str | None:
    """The command that re-estimates the BatchNorm statistics of an average; None if it cannot."""
    name = average.path.name
    for suffix in _REFRESHED:
        if name.endswith(suffix):
            target = average.path.with_name(name.removesuffix(suffix) + "-bn" + suffix)
            model = [] if suffix == ".keras" else _model(average)
            words = ["update-bn", str(average.path), "-o", str(target), *model]
            return _command([*words, "--data", SPEC])
    return None


def _making(average: Checkpoint, seen: frozenset[Path]) -> tuple[str, ...]:
    path, record = average.path, average.record
    # A record may name itself, or two each other: it is untrusted input.
    if record is None or not record.sources or path.resolve() in seen:
        return ()
    sources = [Path(os.path.normpath(path.parent / source.path)) for source in record.sources]
    model = _model(average) if path.suffix == ".keras" else []
    if record.recipe == COPY:
        command = _command(["convert", str(sources[-1]), str(path), *model, *_dtype(record)])
        if not Checkpoint.exists(sources[-1]):
            return (command,)
        return (*_making(Checkpoint.open(sources[-1]), seen | {path.resolve()}), command)
    words = _by_run(sources, record)
    if words is None:
        words = [*map(str, sources), *_by_number([s.coefficient for s in record.sources])]
    passed = _pass(record.batch_norm)
    model = _model(average) if passed else model
    return (_command(["merge", *words, "-o", str(path), *_dtype(record), *model, *passed]),)


def _by_run(sources: Sequence[Path], record: Record) -> list[str] | None:
    """A run, its epochs and the recipe, if these give the very coefficients in the record."""
    folder = sources[0].parent
    if folder.name != CHECKPOINT_FOLDER:
        return None
    paths = [path.resolve() for path in sources]
    try:
        run, recipe = open_run(folder.parent), _recipe_of(record)
        chosen = [c for c in run.checkpoints if c.path.resolve() in set(paths)]
        tracked = recipe.definition.over == "tracked averages"
        with warnings.catch_warnings():
            # A warning was given when the average was made.
            warnings.simplefilter("ignore", CkptavgWarning)
            found = weigh(run if tracked else chosen, recipe)
    except CkptavgError:
        return None  # the run is no longer what it was: files and numbers say it all
    wanted = list(zip(paths, (source.coefficient for source in record.sources), strict=True))
    places = (checkpoint.path.resolve() for checkpoint in found.checkpoints)
    if wanted != list(zip(places, found.coefficients, strict=True)):
        return None
    words = [str(run.directory)]
    if not tracked and chosen != [c for c in run.checkpoints if not c.non_finite]:
        epochs = [c.epoch for c in chosen]
        if len([c for c in run.checkpoints if c.epoch in epochs]) > len(chosen):
            return None  # of several checkpoints of one epoch, some were averaged
        words += ["--epochs", list_epochs(epochs).replace(" ", "")]
    return [*words, *_options(recipe)]


def _recipe_of(record: Record) -> Recipe:
    """The recipe as it was asked for; records of 0.1.0 hold only its text, with fewer digits."""
    name = record.choice.get("recipe")
    if not isinstance(name, str):
        return Recipe.parse(record.recipe or "")
    given = [(k, v) for k, v in record.choice.items() if isinstance(v, float | int)]
    return Recipe(name, parameters=[(k, v) for k, v in given if k in all_parameters()])


def _options(recipe: Recipe) -> list[str]:
    if recipe.name == UNIFORM:
        return []
    words = ["--recipe", recipe.name]
    for name, value in recipe.parameters:
        words += [all_parameters()[name].option, repr(value)]
    return words


def _by_number(coefficients: Sequence[float]) -> list[str]:
    if tuple(coefficients) == uniform(len(coefficients)):
        return []
    words = ["--coefficients", ",".join(map(repr, coefficients))]
    try:
        same = check_coefficients(coefficients, len(coefficients)) == tuple(coefficients)
    except CkptavgError:
        same = False
    return words if same else [*words, "--no-normalize"]


def _dtype(record: Record) -> list[str]:
    dtype = record.choice.get("dtype")
    return ["--dtype", dtype] if isinstance(dtype, str) else []


def _pass(state: BatchNormRecord | None) -> list[str]:
    if state is None or state.samples is None:
        return []
    mode = [] if state.mode in (None, "batch") else ["--bn-mode", state.mode]
    return ["--data", state.data or SPEC, *mode]


def _model(average: Checkpoint) -> list[str]:
    """The `--model` that a command needs: none where the record leads to a configuration."""
    return ["--model", SPEC] if average.model_file is None else []


def _command(words: Sequence[str]) -> str:
    return " ".join(["ckptavg", *map(shlex.quote, words)])
