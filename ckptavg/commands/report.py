"""`report`: a page about a run and an average of it, with scores if there are data for them."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ckptavg.batch_norm.options import BatchNormOptions
from ckptavg.commands.defaults import check_evaluated, model_or_that_of
from ckptavg.commands.display import bar, import_keras
from ckptavg.errors import CkptavgError
from ckptavg.merging.worker import Advance
from ckptavg.runs.run import Run

if TYPE_CHECKING:
    import keras

    from ckptavg.analysis.average import Average
    from ckptavg.analysis.comparison.results import Comparison
    from ckptavg.analysis.loss_surface.results import LossLine
    from ckptavg.analysis.report.write import RunReport

_LINE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
"""Points on the line from the last checkpoint (0) to the average (1) at which the loss is shown."""


def report(
    run: Run | str | Path,
    output: str | Path = "report.html",
    *,
    merged: str | Path | None = None,
    eval_data: Any = None,
    model: "keras.Model | str | Path | None" = None,
    data: Any = None,
    steps: int | None = None,
    batch_size: int | None = None,
    preprocess: Callable[[Any], Any] | str | None = None,
    bn_mode: str = "batch",
    overwrite: bool = False,
    max_memory: int | None = None,
    progress: Advance | None = None,
) -> "RunReport":
    """Writes a page about a run: its training, its checkpoints, their geometry, and an average.

    The page needs only a browser: it contains its pictures and no scripts. It appears as a whole or
    not at all, and is the same for the same run. All checkpoints are read once, in fixed memory.
    With `eval_data`, the page says whether averaging helped, and draws the loss between the last
    checkpoint and the average. Without them, Keras is not imported.

    Args:
        run: a run or its directory.
        output: the `.html` file to write.
        merged: an average of the run, for its sources, its place among the checkpoints, and the
            commands that reproduce it.
        eval_data: held-out `(x, y)` on which the average, the last and the best checkpoint are
            evaluated, or their SPEC.
        model: the compiled model, or its SPEC; by default the one that the run comes with. A live
            model keeps the weights of the last evaluation.
        data: training data for BatchNorm passes, as in `update_batch_norm`, or their SPEC: what has
            had no pass is evaluated after one, too.
        steps: number of batches of `data` to use in each pass; all by default.
        batch_size: as in `update_batch_norm`.
        preprocess: as in `update_batch_norm`.
        bn_mode: as in `update_batch_norm`.
        overwrite: whether to replace an existing file.
        max_memory: as in `measure_geometry`.
        progress: called with the number of bytes read since the last call.

    Returns:
        What was written.

    Raises:
        SpecError: matplotlib is not installed, a SPEC leads nowhere, or a model or training data
            are given without `eval_data`.
        RunError: the directory is not a run, or `merged` has no record of its sources.
        RecordError: a record is damaged.
        OutputError: the file exists, or cannot be written there.
        MemoryLimitError: `max_memory` does not suffice.
        ModelError, DataError: the checkpoints or the data do not fit the model.

    Example:
        >>> ckptavg.report("run", "report.html", merged="swa.keras", eval_data=(x_test, y_test))
    """
    from ckptavg.analysis.report.write import write_report

    options = BatchNormOptions(steps, batch_size, preprocess, bn_mode)
    options.check(model, data, eval_data=eval_data)
    check_evaluated("scores", model, data, eval_data)
    scoring = partial(_evaluate, eval_data=eval_data, model=model, data=data, options=options)
    return write_report(
        run,
        output,
        merged=merged,
        overwrite=overwrite,
        max_memory=max_memory,
        progress=progress,
        evaluate=None if eval_data is None else scoring,
    )


def _evaluate(
    run: Run,
    average: "Average | None",
    *,
    eval_data: Any,
    model: "keras.Model | str | Path | None",
    data: Any,
    options: BatchNormOptions,
) -> "tuple[Comparison, LossLine | None]":
    """The scores of a report, and the loss along the line from the last checkpoint to the average.

    There is no line where it cannot be had: without data for the passes of a model with BatchNorm,
    or from sources that are gone.
    """
    from ckptavg.analysis.comparison.candidates import candidates_of_average, candidates_of_run

    last = run.checkpoints[-1]
    model = model_or_that_of(model, last.path)
    candidates = candidates_of_run(run) if average is None else candidates_of_average(average)
    import_keras()
    from ckptavg.analysis import loss_line
    from ckptavg.analysis.comparison.evaluate import compare
    from ckptavg.models.specs import as_data

    paths = [checkpoint.path for checkpoint in run.checkpoints]
    with options.opened(model, data, checkpoints=paths) as (network, inputs):
        held_out = as_data(eval_data, model=network)
        found = compare(
            candidates, model=network, held_out=held_out, inputs=inputs, options=options, bar=bar
        )
        if average is None:
            return found, None
        # Not in the run, which a report only reads.
        with TemporaryDirectory() as cache, suppress(CkptavgError):
            return found, loss_line(
                last,
                (average.open_sources(), average.coefficients),
                model=network,
                data=inputs,
                eval_data=held_out,
                points=_LINE,
                steps=options.steps,
                bn_mode=options.bn_mode,
                labels=("last", "average"),
                cache=cache,
                progress=bar("the line", len(_LINE)),
            )
    return found, None
