"""`doctor`: which checkpoints should be left out of an average, with models and data by SPEC."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptavg.batch_norm.options import BatchNormOptions
from ckptavg.commands.defaults import check_evaluated
from ckptavg.commands.display import bar
from ckptavg.commands.judging import judging
from ckptavg.merging.tensor_rules import EQUAL, check_non_float
from ckptavg.merging.worker import Advance
from ckptavg.runs.sources import Sources, resolve

if TYPE_CHECKING:
    import keras

    from ckptavg.analysis.doctor import DoctorReport


def doctor(
    sources: Sources,
    *,
    model: "keras.Model | str | Path | None" = None,
    data: Any = None,
    eval_data: Any = None,
    non_float: str = EQUAL,
    steps: int | None = None,
    batch_size: int | None = None,
    preprocess: Callable[[Any], Any] | str | None = None,
    bn_mode: str = "batch",
    mixed_precision: bool = False,
    device: str = "auto",
    distribute: str | None = None,
    progress: Advance | None = None,
) -> "DoctorReport":
    """Finds checkpoints that should be left out of an average, and says why.

    One pass reads all of them side by side and finds: files that cannot be read, are damaged or
    belong to another model; NaN and infinity; duplicates; norms and distances to the mean unlike
    those of the others (beyond 6 robust standard deviations: 1.4826 times the median deviation from
    the median, at least 5 % of it for norms, 20 % for distances; with 4 checkpoints or more). With
    `eval_data`, the loss halfway between neighbours tells whether they lie in one basin: a midpoint
    worse than both by 10 % is a barrier (linear mode connectivity, Frankle et al., arXiv
    1912.05671), and only the longest sequence without one is kept. A path of those to keep that is
    nearly one line, or whose norm changes by more than a quarter, is warned of, with the window at
    its end that stays about one place.

    Args:
        sources: checkpoints, as in `merge`, in the order of training.
        model: the compiled model, or its SPEC; by default the one that the checkpoints come with.
            A live model keeps the weights of the last midpoint.
        data: training data for the BatchNorm passes, as in `update_batch_norm`, or their SPEC.
        eval_data: held-out `(x, y)` on which midpoints are evaluated, or their SPEC.
        non_float: as in `merge`: what midpoints do with integer and string tensors. With `equal`,
            those that differ are warned of, because a merge refuses them.
        steps: number of batches of `data` to use in each pass; all by default.
        batch_size: as in `update_batch_norm`.
        preprocess: as in `update_batch_norm`.
        bn_mode: as in `update_batch_norm`.
        mixed_precision: as in `update_batch_norm`; evaluations are not affected.
        device: `auto`, `cpu`, `gpu` or `gpu:N`.
        distribute: `mirrored` divides batches among all GPUs (TensorFlow).
        progress: called with the number of bytes read since the last call, from any thread.

    Returns:
        A diagnosis for each checkpoint, and which of them to keep.

    Raises:
        RunError: there are no checkpoints, or none that can be read.
        SpecError: a model or training data are given without `eval_data`, or a SPEC leads nowhere.

    Example:
        >>> report = ckptavg.doctor("run")
        >>> ckptavg.merge(report.keep, "swa.weights.h5")
    """
    from ckptavg.analysis.doctor import diagnose

    options = BatchNormOptions(
        steps, batch_size, preprocess, bn_mode, mixed_precision, device, distribute
    )
    options.check(model, data, eval_data=eval_data)
    check_non_float(non_float)
    check_evaluated("midpoints", model, data, eval_data)
    checkpoints = resolve(sources)
    size = sum(c.record.size for c in checkpoints if c.record is not None) or None
    progress = progress or bar("reading", size)
    if eval_data is None:
        return diagnose(checkpoints, non_float=non_float, progress=progress)
    with judging(
        checkpoints, options, model=model, data=data, eval_data=eval_data, monitor="loss"
    ) as judge:
        return diagnose(checkpoints, judge=judge, non_float=non_float, progress=progress)
