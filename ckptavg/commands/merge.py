"""`merge`: which checkpoints, which average, and what happens to the result in a live model."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ckptavg.batch_norm.options import BatchNormOptions
from ckptavg.commands.display import bar, import_keras
from ckptavg.errors import RecipeError, ResourceError, SpecError, check_type
from ckptavg.formats import check_keras_output
from ckptavg.merging.merge import MergeReport, owning_output, run_owned, run_plan
from ckptavg.merging.plan import MergeOptions, MergePlan
from ckptavg.merging.plan import plan_merge as plan_weighted
from ckptavg.merging.tensor_rules import EQUAL
from ckptavg.merging.worker import Advance
from ckptavg.models.spec_source import data_named
from ckptavg.recipes import COEFFICIENTS, UNIFORM, Recipe, all_parameters
from ckptavg.recipes.swad import Swad
from ckptavg.runs.describe import list_epochs, list_metrics
from ckptavg.runs.json_values import Scalar
from ckptavg.runs.selection import Epochs, all_epochs, paired, select
from ckptavg.runs.sources import Sources, resolve

_SWAD = "swad"

if TYPE_CHECKING:
    import keras

    from ckptavg.analysis.comparison.results import Comparison
    from ckptavg.batch_norm.refresh import RefreshReport
    from ckptavg.batch_norm.report import BatchNormReport


@dataclass(frozen=True, slots=True, repr=False)
class MergeResult(MergeReport):
    """What `merge` did.

    Attributes:
        batch_norm: what the BatchNorm pass did; None without `data`.
        metrics: loss and metrics of the output on `eval_data`; None without.
        comparison: the output beside the last and the best checkpoint, on `eval_data`; None
            without.
    """

    batch_norm: "BatchNormReport | None" = None
    metrics: Mapping[str, float] | None = None
    comparison: "Comparison | None" = None

    def __repr__(self) -> str:
        # super() without arguments does not find the class that `slots=True` makes of this one.
        lines = [MergeReport.__repr__(self)]
        if self.batch_norm is not None:
            lines.append(f"  {self.batch_norm.facts}")
        if self.metrics is not None:
            lines.append(f"  {list_metrics(self.metrics)}")
        if self.comparison is not None:
            lines += [f"  {line}" for line in self.comparison.verdict]
        return "\n".join(lines)

    @classmethod
    def of(cls, report: MergeReport) -> Self:
        """The result of a merge of files."""
        return cls(**{field.name: getattr(report, field.name) for field in fields(MergeReport)})

    @classmethod
    def of_model(cls, plan: MergePlan, done: "RefreshReport") -> Self:
        """The result of a merge through a live model, which saved the output of the plan."""
        assert done.merged is not None, "a merge into a model reports its merge"
        return replace(
            cls.of(done.merged),
            output=done.output,
            record=done.record,
            plan=plan,
            batch_norm=done.batch_norm,
        )


def merge(
    sources: Sources,
    output: str | Path,
    *,
    epochs: Epochs | None = None,
    last: int | None = None,
    best: int | None = None,
    monitor: str = "val_loss",
    mode: str = "auto",
    window: Swad | str | None = None,
    n_converge: int = 3,
    n_tolerance: int = 6,
    tolerance_ratio: float = 0.3,
    recipe: Recipe | str = UNIFORM,
    coefficients: Sequence[float] | None = None,
    normalize: bool = True,
    non_float: str = EQUAL,
    dtype: str | None = None,
    model: "keras.Model | str | Path | None" = None,
    data: Any = None,
    eval_data: Any = None,
    steps: int | None = None,
    batch_size: int | None = None,
    preprocess: Callable[[Any], Any] | str | None = None,
    bn_mode: str = "batch",
    mixed_precision: bool = False,
    device: str = "auto",
    distribute: str | None = None,
    data_name: str | None = None,
    max_memory: int | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Advance | None = None,
    **parameters: float | None,
) -> MergeResult:
    """Averages checkpoints into one file, streaming, in fixed memory.

    Floating-point tensors become the mean sum(c_k x_k), computed in float64 (float64 ones with
    compensated summation) and rounded once. Integers, booleans and strings must agree in all
    checkpoints; the state of random generators and step counters are taken from the last one.
    Optimizer state is dropped. The output appears whole or not at all, with a record
    `<output>.json` beside it.

    With `data`, the mean is loaded into the model and its BatchNorm statistics are re-estimated
    before it is saved. With `eval_data`, the result is evaluated beside the last and the best
    checkpoint, and the verdict says whether averaging helped. Without both, neither Keras nor a
    backend is imported.

    Args:
        sources: a `Run` or its directory, a checkpoint file, a pattern such as
            `ckpt/*.weights.h5`, a folder of checkpoints, or a sequence of these and of
            `Checkpoint`s, as `Run.select` returns them.
        output: the file to write, or the prefix of a TensorFlow checkpoint. The suffix chooses the
            format, which must be able to hold the names of the tensors; without one, that of the
            checkpoints.
        epochs: 1-based epochs to average; by default all. Of a `range`, also of one among them,
            those that are there. Coefficients are paired with epochs as both are listed.
        last: average only the last N checkpoints.
        best: average only the N checkpoints with the best `monitor`.
        monitor: metric in the records for `best` and `window`; also what decides the comparison,
            if the model has it, or else the loss.
        mode: direction of the metric: `min`, `max`, or `auto` to infer it from the name.
        window: `swad` keeps the checkpoints from where the validation loss `monitor` settles until
            it starts to rise (Cha et al., arXiv 2102.08604); or a `Swad`.
        n_converge: for `swad`, checkpoints without a new best loss until it has settled.
        n_tolerance: for `swad`, consecutive losses above the tolerance that end the window.
        tolerance_ratio: for `swad`, the tolerance, as a share of the loss where it has settled.
        recipe: `uniform`, the plain mean, or another of `ckptavg.recipes`: a `Recipe`, its name, or
            its name with its parameter, such as `ema:0.9`. It goes by the steps in the records,
            else by the epochs, else by the order of the checkpoints.
        coefficients: one per checkpoint, with sum 1, in place of a recipe.
        normalize: whether the coefficients must sum to 1.
        non_float: what to do with integer and string tensors: `equal` (all must agree) or `last`.
        dtype: `float32`, `float16` or `bfloat16` for all floating-point tensors of the output; by
            default each keeps its own. Not with a live model, which has its own.
        model: the Keras model, or its SPEC; for a `.keras` output without `data`, the `model.json`
            of a run or a `.keras` file. By default that of the run. A live model keeps the new
            weights.
        data: training data for the BatchNorm pass, as in `update_batch_norm`, or their SPEC.
        eval_data: held-out `(x, y)` on which the result is evaluated, or their SPEC.
        steps: number of batches of `data` to use; all by default.
        batch_size: as in `update_batch_norm`.
        preprocess: as in `update_batch_norm`.
        bn_mode: as in `update_batch_norm`.
        mixed_precision: as in `update_batch_norm`.
        device: `auto`, `cpu`, `gpu` or `gpu:N`.
        distribute: `mirrored` divides batches among all GPUs (TensorFlow).
        data_name: what the record calls the data; by default their SPEC, if they have one.
        max_memory: bytes that the merge may use in addition to the interpreter and its libraries;
            by default 64 MiB, or more where many tensors need it. Not with `data` or `eval_data`.
        jobs: threads; by default one per core, up to 4, fewer if memory does not allow them.
        overwrite: whether to replace an existing output.
        resume: whether to continue an interrupted merge of the same plan, and to keep partial work
            if this one is interrupted.
        progress: called with the number of bytes read since the last call, from any thread.
        **parameters: of the recipe, if its name alone is given: `decay` of `ema`, `sigma_rel` of
            `power-ema` and `posthoc-ema`, `at_step` of `posthoc-ema`.

    Returns:
        What was done.

    Raises:
        RunError: there are no checkpoints where `sources` points, or not those that were chosen.
        FormatError: a file is not a checkpoint, or the output's format cannot be written.
        MismatchError: checkpoints are of different models.
        RecipeError: the recipe or the coefficients do not fit the checkpoints.
        IntegrityError: a file differs from its record, holds NaN or infinity, or changed meanwhile.
        OutputError: the output exists, or cannot be written there.
        ResourceError: memory or disk do not suffice.
        SpecError: a model or data are missing, or their SPEC leads nowhere.
        TypeError: an argument has a type that is not listed here.
        ModelError, DataError: the checkpoints or the data do not fit the model.

    Example:
        >>> report = ckptavg.merge("run", "swa.weights.h5", last=10)
        >>> report = ckptavg.merge("run", "swa.keras", data=x, eval_data=(x_test, y_test))
        >>> report.metrics["accuracy"], report.comparison.verdict
    """
    options = BatchNormOptions(
        steps, batch_size, preprocess, bn_mode, mixed_precision, device, distribute
    )
    plan, live = plan_with_model(
        sources,
        output,
        options,
        model=model,
        data=data,
        eval_data=eval_data,
        epochs=epochs,
        last=last,
        best=best,
        monitor=monitor,
        mode=mode,
        window=window,
        n_converge=n_converge,
        n_tolerance=n_tolerance,
        tolerance_ratio=tolerance_ratio,
        recipe=recipe,
        coefficients=coefficients,
        normalize=normalize,
        non_float=non_float,
        dtype=dtype,
        max_memory=max_memory,
        jobs=jobs,
        overwrite=overwrite,
        **parameters,
    )
    progress = progress or bar("merging", plan.bytes_read)
    if not live and eval_data is None:
        return MergeResult.of(run_plan(plan, progress, resume=resume))
    model = plan.model_file if model is None else model
    if model is None:
        raise SpecError(
            "the checkpoints come with no model configuration: pass --model SPEC (in Python model=)"
        )
    with owning_output(plan):
        import_keras()
        from ckptavg.analysis.average import Average
        from ckptavg.analysis.comparison.candidates import candidates_of_average
        from ckptavg.analysis.comparison.evaluate import compare
        from ckptavg.batch_norm.refresh import merge_live
        from ckptavg.models.specs import as_data

        paths = (source.path for source in plan.sources)
        with options.opened(model, data, checkpoints=paths) as (network, inputs):
            # Held-out data that lead nowhere are found before hours of merging, not after.
            held_out = None if eval_data is None else as_data(eval_data, model=network)
            if live:
                done = merge_live(
                    plan,
                    network,
                    inputs,
                    options,
                    data_name=data_named(data, data_name),
                    resume=resume,
                    bytes_progress=progress,
                    batch_progress=bar(
                        "BatchNorm pass", None if data is None else options.count_batches(inputs)
                    ),
                )
                result = MergeResult.of_model(plan, done)
            else:
                result = MergeResult.of(run_owned(plan, progress, resume=resume))
            if held_out is None:
                return result
            found = compare(
                candidates_of_average(Average.find(result.output), monitor=monitor, mode=mode),
                model=network,
                held_out=held_out,
                inputs=inputs,
                options=options,
                monitor=monitor,
                mode=mode,
                bar=bar,
            )
    return replace(result, metrics=found.rows[-1].metrics, comparison=found)


def plan_merge(
    sources: Sources,
    output: str | Path,
    *,
    epochs: Epochs | None = None,
    last: int | None = None,
    best: int | None = None,
    monitor: str = "val_loss",
    mode: str = "auto",
    window: Swad | str | None = None,
    n_converge: int = 3,
    n_tolerance: int = 6,
    tolerance_ratio: float = 0.3,
    recipe: Recipe | str = UNIFORM,
    coefficients: Sequence[float] | None = None,
    normalize: bool = True,
    non_float: str = EQUAL,
    dtype: str | None = None,
    model: str | Path | None = None,
    max_memory: int | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    live_model: bool = False,
    copy: bool = False,
    **parameters: float | None,
) -> MergePlan:
    """Plans a merge from metadata alone; arguments and errors are those of `merge`.

    Args:
        live_model: whether `merge_into_model` will run the plan: a `.keras` output then takes its
            configuration from the model that it is given, not from a file.
        copy: whether every tensor is that of the last checkpoint, to the bit, as for `convert`.

    Example:
        >>> plan = ckptavg.plan_merge("run", "swa.weights.h5", last=10)
        >>> plan.coefficients, plan.memory
        >>> report = ckptavg.run_plan(plan)
    """
    check_type("output", output, (str, os.PathLike), "the file to write, such as 'swa.keras'")
    if coefficients is not None and recipe == UNIFORM:
        recipe = COEFFICIENTS
    chosen_recipe = _with_parameters(recipe, parameters)
    check_type("window", window, (Swad, str), f"'{_SWAD}' or a ckptavg.Swad", optional=True)
    if isinstance(window, str):
        if window != _SWAD:
            raise RecipeError(f"window is {window!r:.40}, but must be '{_SWAD}' (--window)")
        window = Swad(n_converge, n_tolerance, tolerance_ratio)
    if isinstance(epochs, Iterator):
        epochs = tuple(epochs)  # an iterator could be read only once
    if any(condition is not None for condition in (epochs, last, best, window)):
        if chosen_recipe.definition.over == "tracked averages":
            raise RecipeError(
                f"{chosen_recipe.name} takes all averages that a run has tracked: omit --epochs, "
                "--last, --best and --window"
            )
        sources = select(
            resolve(sources),
            epochs=epochs,
            last=last,
            best=best,
            monitor=monitor,
            mode=mode,
            window=window,
        )
        if coefficients is not None and epochs is not None:
            coefficients = paired(coefficients, epochs, sources)
    options = MergeOptions(
        recipe=chosen_recipe,
        coefficients=coefficients,
        normalize=normalize,
        non_float=non_float,
        dtype=dtype,
        model=model,
        max_memory=max_memory,
        jobs=jobs,
        overwrite=overwrite,
        live_model=live_model,
        copy=copy,
        choice=_noted(epochs, last, best, window, {"monitor": monitor, "mode": mode}),
    )
    return plan_weighted(sources, output, options)


def _noted(
    epochs: Epochs | None,
    last: int | None,
    best: int | None,
    window: Swad | None,
    metric: Mapping[str, Scalar],
) -> Mapping[str, Scalar]:
    """How the checkpoints were chosen, for the record, each condition under its keyword."""
    listed = None if epochs is None else list_epochs(all_epochs(epochs)).replace(" ", "")
    conditions = {"epochs": listed, "last": last, "best": best}
    noted: dict[str, Scalar] = {name: c for name, c in conditions.items() if c is not None}
    if best is not None or window is not None:
        noted |= metric
    return noted if window is None else {**noted, "window": _SWAD, **asdict(window)}


def plan_with_model(
    sources: Sources,
    output: str | Path,
    options: BatchNormOptions,
    *,
    model: "keras.Model | str | Path | None",
    data: Any,
    eval_data: Any,
    max_memory: int | None,
    **planning: Any,
) -> tuple[MergePlan, bool]:
    """Plans what `merge` will do, before Keras is imported.

    Returns:
        The plan, and whether a live model saves the output.

    Raises:
        CkptavgError: as `merge` does.
    """
    options.check(model, data, eval_data=eval_data)
    if data is not None or eval_data is not None:
        if max_memory is not None:
            raise ResourceError(
                "--max-memory (in Python max_memory=) limits a merge without --data and "
                "--eval-data: Keras needs what it needs"
            )
        check_keras_output(Path(output))
    # The configuration of a model can be read from a file, but a callable must be called.
    spec = model if isinstance(model, str | Path) else None
    file = spec if str(spec).endswith((".keras", ".json")) else None
    called = model is not None and file is None
    live = data is not None or (called and (spec is None or Path(output).suffix == ".keras"))
    if live and planning.get("dtype") is not None:
        raise SpecError(
            "--dtype (in Python dtype=) is for merges of files: with --data, or a model that is "
            "called, the variables of the model decide"
        )
    plan = plan_merge(
        sources, output, model=file, max_memory=max_memory, live_model=live, **planning
    )
    return plan, live


def _with_parameters(recipe: Recipe | str, parameters: Mapping[str, float | None]) -> Recipe:
    """The recipe, with the parameters that were given as keywords."""
    check_type("recipe", recipe, (Recipe, str), "a Recipe or its name, such as 'ema:0.9'")
    known = all_parameters()
    for name in parameters:
        if name not in known:
            from difflib import get_close_matches

            near = "".join(get_close_matches(name, (*(merge.__kwdefaults__ or ()), *known), n=1))
            raise TypeError(
                f"merge() got an unexpected keyword argument '{name}'"
                + (f": did you mean '{near}'?" if near else "")
            )
    given = {name: value for name, value in parameters.items() if value is not None}
    if not given:
        return Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(recipe, str) or ":" in recipe:
        raise RecipeError(
            f"the recipe {recipe} has its parameters already: omit {known[min(given)].option} (in "
            f"Python {min(given)}=)"
        )
    return Recipe(recipe, parameters=given.items())
