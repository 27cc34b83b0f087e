"""Writes a checkpoint in another format; every tensor stays the same."""

from pathlib import Path

from ckptavg.errors import RunError
from ckptavg.merging.merge import MergeReport, run_plan
from ckptavg.merging.plan import MergeOptions, plan_merge
from ckptavg.merging.worker import Advance
from ckptavg.runs.sources import resolve


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    dtype: str | None = None,
    model: str | Path | None = None,
    overwrite: bool = False,
    progress: Advance | None = None,
) -> MergeReport:
    """Copies the tensors of a checkpoint, to the bit, into the format of the output's suffix.

    Optimizer state is left out. The checkpoint is checked against its record meanwhile, and the
    output gets a record that continues it.

    Args:
        checkpoint: a checkpoint of any format that can be read.
        output: the file to write.
        dtype: `float32`, `float16` or `bfloat16` for all floating-point tensors, rounded once; by
            default each keeps its own, to the bit.
        model: for a `.keras` output, as in `merge`.
        overwrite: whether to replace an existing output.
        progress: called with the number of bytes read since the last call.

    Raises:
        CkptavgError: as for `merge`; or the output's format cannot hold the names of the tensors.
    """
    found = resolve(checkpoint)
    if len(found) != 1:
        raise RunError(f"{checkpoint} names {len(found)} checkpoints: convert them one by one")
    options = MergeOptions(copy=True, dtype=dtype, model=model, overwrite=overwrite)
    return run_plan(plan_merge(found, output, options), progress)
