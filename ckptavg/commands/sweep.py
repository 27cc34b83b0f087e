"""`sweep`: many averages of a run compared, with models and data by SPEC."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptavg.batch_norm.options import BatchNormOptions
from ckptavg.commands.display import bar
from ckptavg.commands.judging import judging
from ckptavg.formats import check_keras_output
from ckptavg.merging.tensor_rules import EQUAL, check_non_float
from ckptavg.merging.worker import Advance
from ckptavg.models.spec_source import data_named
from ckptavg.recipes import UNIFORM, Recipe
from ckptavg.runs.run import Run, open_run
from ckptavg.runs.selection import leave_out_non_finite
from ckptavg.search.windows import list_candidates

if TYPE_CHECKING:
    import keras

    from ckptavg.search.sweep import SweepReport


def sweep(
    run: Run | str | Path,
    output: str | Path | None = None,
    *,
    eval_data: Any,
    model: "keras.Model | str | Path | None" = None,
    data: Any = None,
    test_data: Any = None,
    allow_same_data: bool = False,
    monitor: str = "val_loss",
    mode: str = "auto",
    windows: str = "last",
    stride: int = 1,
    recipes: Sequence[Recipe | str] = (UNIFORM,),
    budget: int | None = None,
    non_float: str = EQUAL,
    steps: int | None = None,
    batch_size: int | None = None,
    preprocess: Callable[[Any], Any] | str | None = None,
    bn_mode: str = "batch",
    mixed_precision: bool = False,
    device: str = "auto",
    distribute: str | None = None,
    data_name: str | None = None,
    max_memory: int | None = None,
    overwrite: bool = False,
    progress: Advance | None = None,
) -> "SweepReport":
    """Evaluates averages over windows of a run, and writes the best one.

    Every checkpoint is read once, into float64 sums; a plain mean is the difference of two of
    them, and is the same as that of a merge. Other recipes are averaged as `merge` does.
    Evaluations are kept in the run's folder `search`, by coefficients, model and data, so that a
    sweep that was stopped continues where it was.

    Args:
        run: a run or its directory.
        output: a `.weights.h5` or `.keras` file for the best average; none by default.
        eval_data: held-out `(x, y)` used for selection, or their SPEC; read for every candidate.
        model: a compiled model, or its SPEC; by default the one that the run comes with. A live
            model keeps the weights of the best average if that is written or tested, else those of
            the last one evaluated.
        data: training data for the BatchNorm passes, as in `update_batch_norm`, or their SPEC.
        test_data: `(x, y)` not used for selection, or their SPEC, for an unbiased score of the best
            average.
        allow_same_data: whether `test_data` may share samples with `eval_data`.
        monitor: metric used for selection, such as `val_accuracy`.
        mode: direction of the metric: `min`, `max`, or `auto` to infer it from the name.
        windows: `last`: those that end with the last checkpoint; `all`: all of them.
        stride: try every Nth window end and length.
        recipes: how to weight each window: `Recipe`s, or texts such as `ema:0.9`.
        budget: try at most this many candidates, evenly spread over all.
        non_float: what to do with integer and string tensors: `equal` (all must agree) or `last`.
        steps: number of batches of `data` to use in each pass; all by default.
        batch_size: as in `update_batch_norm`.
        preprocess: as in `update_batch_norm`.
        bn_mode: as in `update_batch_norm`.
        mixed_precision: as in `update_batch_norm`; evaluations are not affected.
        device: `auto`, `cpu`, `gpu` or `gpu:N`.
        distribute: `mirrored` divides batches among all GPUs (TensorFlow).
        data_name: what the record calls `data`; by default their SPEC, if they have one.
        max_memory: bytes for sums in memory, 1 GiB by default; larger ones go to a file in the run.
        overwrite: whether to replace an existing output.
        progress: called with 1 for each candidate.

    Returns:
        The candidates, the best one first.

    Raises:
        CkptavgError: as `merge`, `update_batch_norm` and `evaluate` do; or `test_data` share
            samples with `eval_data`.

    Example:
        >>> report = ckptavg.sweep(
        ...     "run", "best.keras", model=model, data=x, eval_data=(x_val, y_val),
        ...     monitor="val_accuracy",
        ... )
        >>> report.best.coefficients
    """
    options = BatchNormOptions(
        steps, batch_size, preprocess, bn_mode, mixed_precision, device, distribute
    )
    options.check(model, data, eval_data=eval_data, test_data=test_data)
    check_non_float(non_float)
    run = run if isinstance(run, Run) else open_run(run)
    run = replace(run, checkpoints=leave_out_non_finite(run.checkpoints)[0])
    output = None if output is None else Path(output)
    if output is not None:  # refused before hours are spent on what goes into it
        check_keras_output(output)
    candidates = list_candidates(
        run, windows=windows, stride=stride, recipes=recipes, budget=budget
    )
    with judging(
        run.checkpoints,
        options,
        model=model,
        data=data,
        output=output,
        overwrite=overwrite,
        eval_data=eval_data,
        monitor=monitor,
        mode=mode,
        test_data=test_data,
        allow_same_data=allow_same_data,
    ) as judge:
        from ckptavg.search.sweep import search_windows

        return search_windows(
            run,
            candidates,
            judge,
            output,
            non_float=non_float,
            data_name=data_named(data, data_name),
            max_memory=max_memory,
            overwrite=overwrite,
            progress=progress or bar("candidates", len(candidates)),
        )
