"""What searches have in common: an output with one owner, and a judge of averages."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptavg.batch_norm.options import BatchNormOptions
from ckptavg.commands.defaults import model_or_that_of
from ckptavg.commands.display import import_keras
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.outputs import owning

if TYPE_CHECKING:
    import keras

    from ckptavg.search.judge import Judge


@contextmanager
def judging(
    checkpoints: Sequence[Checkpoint],
    options: BatchNormOptions,
    *,
    model: "keras.Model | str | Path | None",
    data: Any,
    output: Path | None = None,
    overwrite: bool = False,
    **scoring: Any,
) -> Iterator["Judge"]:
    """Yields a judge of averages, in the model that is given or that the checkpoints come with.

    Args:
        checkpoints: what is averaged; no training replaces them meanwhile.
        options: how BatchNorm passes run.
        model: the model, or its SPEC; None for that of the last checkpoint.
        data: training data for the passes, or their SPEC.
        output: the file to write, if any, which nobody else writes meanwhile.
        overwrite: whether to replace it.
        **scoring: the other arguments of `Judge`.

    Raises:
        CkptavgError: as `model_or_that_of`, `owning`, `opened` and `Judge` do.
    """
    model = model_or_that_of(model, checkpoints[-1].path)
    with nullcontext() if output is None else owning(output, overwrite):
        import_keras()
        from ckptavg.search.judge import Judge

        paths = [checkpoint.path for checkpoint in checkpoints]
        with options.opened(model, data, checkpoints=paths) as (network, inputs):
            yield Judge(network, data=inputs, options=options, **scoring)
