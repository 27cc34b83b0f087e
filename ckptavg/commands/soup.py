"""`soup`: the checkpoints whose average scores best, with models and data by SPEC."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptavg.batch_norm.options import BatchNormOptions
from ckptavg.commands.display import bar
from ckptavg.commands.judging import judging
from ckptavg.errors import RecipeError
from ckptavg.formats import check_keras_output
from ckptavg.merging.tensor_rules import EQUAL, check_non_float
from ckptavg.merging.worker import Advance
from ckptavg.models.spec_source import data_named
from ckptavg.runs.selection import leave_out_non_finite
from ckptavg.runs.sources import Sources, resolve

if TYPE_CHECKING:
    import keras

    from ckptavg.search.soup import SoupReport

GREEDY, UNIFORM = "greedy", "uniform"


def soup(
    sources: Sources,
    output: str | Path,
    *,
    eval_data: Any,
    method: str = GREEDY,
    model: "keras.Model | str | Path | None" = None,
    data: Any = None,
    test_data: Any = None,
    allow_same_data: bool = False,
    monitor: str = "val_loss",
    mode: str = "auto",
    non_float: str = EQUAL,
    steps: int | None = None,
    batch_size: int | None = None,
    preprocess: Callable[[Any], Any] | str | None = None,
    bn_mode: str = "batch",
    mixed_precision: bool = False,
    device: str = "auto",
    distribute: str | None = None,
    data_name: str | None = None,
    overwrite: bool = False,
    progress: Advance | None = None,
) -> "SoupReport":
    """Averages the subset of checkpoints that scores best (Wortsman et al., arXiv 2203.05482).

    A greedy soup begins with the best checkpoint, tries the others in the order of their metrics,
    and keeps each with which the soup is not worse (algorithm 1 of the paper): on `eval_data`, it
    is never worse than its best ingredient. A uniform soup is the mean of all. The checkpoints may
    be of different runs of one model. Memory does not grow with their number.

    Args:
        sources: checkpoints, as in `merge`.
        output: a `.weights.h5` or `.keras` file.
        eval_data: held-out `(x, y)` used for selection, or their SPEC.
        method: `greedy` or `uniform`.
        model: a compiled model, or its SPEC; by default the one that the checkpoints come with. A
            live model keeps the weights of the soup.
        data: training data for the BatchNorm passes of soups, as in `update_batch_norm`, or their
            SPEC. Single checkpoints are evaluated with the statistics that they were saved with.
        test_data: `(x, y)` not used for selection, or their SPEC, for an unbiased score of the
            soup.
        allow_same_data: whether `test_data` may share samples with `eval_data`.
        monitor: metric used for selection, such as `val_accuracy`.
        mode: direction of the metric: `min`, `max`, or `auto` to infer it from the name.
        non_float: what to do with integer and string tensors: `equal` (all must agree) or `last`.
        steps: number of batches of `data` to use in each pass; all by default.
        batch_size: as in `update_batch_norm`.
        preprocess: as in `update_batch_norm`.
        bn_mode: as in `update_batch_norm`.
        mixed_precision: as in `update_batch_norm`; evaluations are not affected.
        device: `auto`, `cpu`, `gpu` or `gpu:N`.
        distribute: `mirrored` divides batches among all GPUs (TensorFlow).
        data_name: what the record calls `data`; by default their SPEC, if they have one.
        overwrite: whether to replace an existing output.
        progress: called with 1 for each evaluation.

    Returns:
        The checkpoints that were tried, which of them are in the soup, and its metrics.

    Raises:
        CkptavgError: as `merge`, `update_batch_norm` and `evaluate` do; or `test_data` share
            samples with `eval_data`.

    Example:
        >>> report = ckptavg.soup("run", "soup.keras", data=x, eval_data=(x_val, y_val))
        >>> [found.checkpoint.epoch for found in report.ingredients if found.kept]
    """
    options = BatchNormOptions(
        steps, batch_size, preprocess, bn_mode, mixed_precision, device, distribute
    )
    options.check(model, data, eval_data=eval_data, test_data=test_data)
    check_non_float(non_float)
    if method not in (GREEDY, UNIFORM):
        raise RecipeError(f"method is {method!r:.40}, but must be '{GREEDY}' or '{UNIFORM}'")
    checkpoints, output = leave_out_non_finite(resolve(sources))[0], Path(output)
    check_keras_output(output)  # refused before hours are spent on what goes into it
    with judging(
        checkpoints,
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
        from ckptavg.search.soup import make_soup

        # A greedy soup evaluates each checkpoint alone, and all but the best with the soup.
        evaluations = 2 * len(checkpoints) - 1 if method == GREEDY else 1
        return make_soup(
            checkpoints,
            judge,
            output,
            method=method,
            non_float=non_float,
            data_name=data_named(data, data_name),
            overwrite=overwrite,
            progress=progress or bar("evaluations", evaluations),
        )
