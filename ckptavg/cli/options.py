"""The options of all commands: one row says how an option is written, read and explained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptavg.cli.values import parse_count, parse_epochs, parse_numbers, parse_size, parse_texts
from ckptavg.recipes import RECIPES, all_parameters, owners

WHICH, AVERAGE, PASS, SELECTION, OUTPUT, RESOURCES, OTHER = GROUPS = (
    "Which checkpoints",
    "Which average",
    "BatchNorm pass",
    "Evaluation and selection",
    "Output",
    "Resources",
    "Other",
)
"""Groups in the order in which a help text lists them."""


@dataclass(frozen=True, slots=True)
class Argument:
    """A positional argument of a command.

    Attributes:
        metavar: what stands for it in the usage.
        help: what it is.
        several: whether there may be more than one.
        group: the heading under which the help lists it.
    """

    metavar: str
    help: str
    several: bool = False
    group: str = WHICH


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a command.

    Attributes:
        group: the heading under which the help lists it.
        help: what it does.
        metavar: what stands for its value in the help; None for a flag.
        parse: reads its value, and raises a ValueError with what is wrong.
        short: its short form.
        default: how the help words the default; None for the default itself.
    """

    group: str
    help: str
    metavar: str | None = None
    parse: Callable[[str], Any] = str
    short: str = ""
    default: str | None = None


CALLABLE = "file.py:name or package.module:name"
_RETURNS = f"{CALLABLE}: a tf.data.Dataset, arrays, a PyDataset or batches, or a function for them"
_DATA = (
    f"Training data: {_RETURNS}; an .npz file with x; a folder of images, by class or not; or a "
    "folder written by tf.data.Dataset.save. Targets are not needed."
)
HELD_OUT = f"Held-out data: {_RETURNS}; or an .npz file with x and y."
SOURCE = "A run, checkpoint files, a quoted pattern, or a folder of checkpoints."

OPTIONS: dict[str, Argument | Option] = {
    "sources": Argument("SOURCE", SOURCE, several=True),
    "source": Argument("SOURCE", SOURCE),
    "paths": Argument(
        "PATH", "Runs, checkpoint files, quoted patterns, or folders of checkpoints.", several=True
    ),
    "checkpoint": Argument("FILE", "A .weights.h5 or .keras file."),
    "run": Argument("RUN", "A directory that CheckpointSaver wrote."),
    "epochs": Option(
        WHICH,
        "Only these epochs: 16,20,24, or those that there are in 16-30.",
        "LIST",
        parse_epochs,
    ),
    "last": Option(WHICH, "Only the last N checkpoints.", "N", int),
    "best": Option(WHICH, "Only the N checkpoints with the best --monitor.", "N", int),
    "monitor": Option(WHICH, "Metric in the records for --best and --window.", "NAME"),
    "mode": Option(WHICH, "Direction of the metric; auto infers it from the name.", "min|max|auto"),
    "window": Option(
        WHICH,
        "Keep the checkpoints from where the validation loss settles until it starts to rise "
        "(SWAD).",
        "swad",
    ),
    "n_converge": Option(
        WHICH, "SWAD: the loss settles after N checkpoints without a new best.", "N", int
    ),
    "n_tolerance": Option(
        WHICH, "SWAD: stop after N consecutive losses above the tolerance.", "N", int
    ),
    "tolerance_ratio": Option(
        WHICH, "SWAD: tolerance, as a fraction of the settled loss.", "R", float
    ),
    "windows": Option(
        WHICH, "Windows that end with the last checkpoint, or all of them.", "last|all"
    ),
    "stride": Option(WHICH, "Try every Nth window end and length.", "N", int),
    "budget": Option(WHICH, "Try at most N candidates, evenly spread.", "N", int, default="all"),
    "method": Option(
        WHICH, "Keep checkpoints that improve the soup, or all of them.", "greedy|uniform"
    ),
    "count": Option(WHICH, "Number of evenly spaced checkpoints.", "N", parse_count),
    "coefficients": Option(
        AVERAGE,
        "One coefficient per checkpoint, such as 0.2,0.3,0.5, instead of a recipe; in the order "
        "of --epochs, if these are given.",
        "LIST",
        parse_numbers,
    ),
    "normalize": Option(AVERAGE, "Whether --coefficients must sum to 1."),
    "non_float": Option(
        AVERAGE,
        "What to do with integer and string tensors: all must be equal, or take the last.",
        "equal|last",
    ),
    "dtype": Option(
        OUTPUT,
        "Floating-point tensors of the output: float32, float16 or bfloat16; by default each keeps "
        "its own.",
        "DTYPE",
    ),
    "model": Option(
        PASS,
        f"Keras model: {CALLABLE}, or a .keras file. Not needed if the checkpoints come with one.",
        "SPEC",
    ),
    "data": Option(PASS, _DATA, "SPEC"),
    "bn_data": Option(
        PASS, "Training data: evaluate also after a BatchNorm pass over them.", "SPEC"
    ),
    "steps": Option(PASS, "Number of batches of training data to use.", "N", int, default="all"),
    "batch_size": Option(
        PASS,
        "Samples per batch of arrays, images or a tf.data.Dataset.",
        "N",
        int,
        default="32, or that of the Dataset",
    ),
    "preprocess": Option(PASS, "Function applied to each batch of inputs.", "SPEC"),
    "bn_mode": Option(
        PASS,
        "Statistics as a layer meets them in training (batch) or in the deployed network "
        "(population), or PyTorch's mean of batches (cumulative).",
        "MODE",
    ),
    "mixed_precision": Option(PASS, "Compute in float16, for speed on a GPU."),
    "device": Option(PASS, "auto, cpu, gpu or gpu:N.", "DEVICE"),
    "distribute": Option(PASS, "mirrored: divide batches among all GPUs (TensorFlow).", "STRATEGY"),
    "eval_data": Option(
        SELECTION,
        "Held-out (x, y) on which the result is compared with the last and the best checkpoint: a "
        "name in a file or an .npz file.",
        "SPEC",
    ),
    "test_data": Option(
        SELECTION, "(x, y) not used for selection, for an unbiased score of the result.", "SPEC"
    ),
    "allow_same_data": Option(SELECTION, "Let --test-data share samples with --eval-data."),
    "output": Option(
        OUTPUT, "File to write, .weights.h5 or .keras.", "FILE", parse=Path, short="-o"
    ),
    "merged": Option(OUTPUT, "An average of the run, to report on as well.", "FILE"),
    "plot": Option(
        OUTPUT, "Draw the coefficients into a picture (needs matplotlib).", "FILE", Path
    ),
    "overwrite": Option(OUTPUT, "Replace an existing output."),
    "resume": Option(OUTPUT, "Continue an interrupted merge; also keep partial work on Ctrl-C."),
    "dry_run": Option(OUTPUT, "Print what would be done, and write nothing."),
    "verbose": Option(OTHER, "Show what TensorFlow writes while it starts, and what is logged."),
    "json": Option(OUTPUT, "Print the result as JSON."),
    "jobs": Option(RESOURCES, "Number of threads.", "N", int, default="one per core, up to 4"),
    "max_memory": Option(
        RESOURCES,
        "Memory limit of the whole process while it merges, such as 160MiB.",
        "SIZE",
        parse_size,
    ),
    "directory": Option(OUTPUT, "Folder for everything that is written.", "DIR", Path, short="-d"),
    "seed": Option(OTHER, "Seed of the initial weights and the order of the data.", "N", int),
    "pictures": Option(OTHER, "Draw the training, the path of the weights and the loss around it."),
}
"""Every keyword of the functions behind the commands, but for the recipes."""

FOR_SELECTION: dict[str, Argument | Option] = {
    "eval_data": Option(
        SELECTION, "Held-out (x, y) used for selection: a name in a file or an .npz file.", "SPEC"
    ),
    "monitor": Option(SELECTION, "Metric used for selection.", "NAME"),
    "mode": Option(
        SELECTION, "Direction of the metric; auto infers it from the name.", "min|max|auto"
    ),
}
"""Rows of commands that choose by evaluating, which the records of a run have no part in."""


def option_table() -> dict[str, Argument | Option]:
    """All rows, with the recipes that are registered now."""
    names = ", ".join(RECIPES)
    tried = ", ".join(name for name, known in RECIPES.items() if known.over == "positions")
    return OPTIONS | {
        "recipe": Option(
            AVERAGE,
            f"How to weight the checkpoints: {names}. `ckptavg recipes` says what they do.",
            "NAME",
        ),
        "recipes": Option(
            AVERAGE, f"Recipes to try, such as uniform,ema:0.9; of {tried}.", "LIST", parse_texts
        ),
    }


def recipe_options(*, examples: bool = False) -> dict[str, Option]:
    """The options of the parameters of all recipes, those registered from outside included.

    With `examples`, only those that have an example to fall back on, which the help then names.
    """
    found = {}
    for name, parameter in all_parameters().items():
        if examples and parameter.example is None:
            continue
        parse = int if parameter.value_type is int else float
        default = f"{parameter.example:g}" if examples else None
        help_text = f"{' and '.join(owners(name))}: {parameter.help}"
        found[name] = Option(AVERAGE, help_text, parameter.metavar, parse, default=default)
    return found
