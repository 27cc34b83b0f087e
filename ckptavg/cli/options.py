"""Options of commands that run a BatchNorm pass, and how they print what it did."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptavg.cli.printing import Bar, keras_session, progress_bars
from ckptavg.errors import SpecError

if TYPE_CHECKING:
    from ckptavg.batch_norm import BatchNormReport

DATA_HELP = (
    "file.py:callable or package.module:callable that returns a tf.data.Dataset, arrays, "
    "a PyDataset or batches; an .npz file with x; a folder of images, by class or not, or one "
    "that tf.data.Dataset.save wrote. Targets are not needed."
)

Training = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help=f"Training data for BatchNorm passes: {DATA_HELP}",
        show_default=False,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", help="Batches of --data to see; all if left out.", metavar="N"),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        help="Samples in a batch of arrays, images or a tf.data.Dataset; 32 for the first two.",
        metavar="N",
        show_default=False,
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        help="file.py:callable that makes of the inputs of a batch what the model takes.",
        metavar="SPEC",
        show_default=False,
    ),
]
BatchNormMode = Annotated[
    str,
    typer.Option(
        "--bn-mode",
        help="Statistics that a layer meets in training (batch) or in the deployed network "
        "(population); PyTorch's mean of batches (cumulative).",
        metavar="MODE",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, gpu or gpu:N.", metavar="DEVICE")]
Distribute = Annotated[
    str | None,
    typer.Option(
        "--distribute",
        help="mirrored: divide batches among all GPUs (TensorFlow).",
        metavar="STRATEGY",
        show_default=False,
    ),
]
MixedPrecision = Annotated[
    bool,
    typer.Option("--mixed-precision", help="Compute in float16, for speed on a GPU."),
]


@dataclass(frozen=True, slots=True)
class PassOptions:
    """The options above, as a command was given them."""

    steps: int | None
    batch_size: int | None
    preprocess: str | None
    mode: str
    device: str
    distribute: str | None
    mixed_precision: bool

    @property
    def of_the_pass(self) -> dict[str, Any]:
        """Those that `update_batch_norm` knows."""
        return {
            "steps": self.steps,
            "mode": self.mode,
            "mixed_precision": self.mixed_precision,
        }

    @property
    def of_each_pass(self) -> dict[str, Any]:
        """The same for a search of many passes, where `mode` is that of a metric."""
        options = self.of_the_pass
        return {"bn_mode": options.pop("mode"), **options}

    @contextmanager
    def session(self, model: str, data: str | None) -> Iterator[tuple[Any, Any, Bar]]:
        """A Keras session with the model and the data of two SPECs, and bars for progress."""
        with keras_session(), progress_bars() as bar:
            from ckptavg.models.devices import computing_on
            from ckptavg.models.specs import as_inputs, load_model

            with computing_on(self.device, self.distribute):
                live = load_model(model)
                loaded = data and as_inputs(
                    data, model=live, batch_size=self.batch_size, preprocess=self.preprocess
                )
                yield live, loaded, bar

    def check(self, data: str | None) -> None:
        """Refuses options of data that are not given.

        Raises:
            SpecError: there is one.
        """
        for option, value in (
            ("--steps", self.steps),
            ("--batch-size", self.batch_size),
            ("--preprocess", self.preprocess),
        ):
            if value is not None and data is None:
                raise SpecError(f"{option} is about --data, which is missing")

    def batches(self, data: Any) -> int | None:
        """How many batches of data a pass will see, if that is known."""
        from ckptavg.models.batches import count_batches

        return None if self.mode == "population" else count_batches(data, self.steps)


def print_pass(done: "BatchNormReport") -> None:
    """What a pass did, as lines below what was written."""
    if not done.layers:
        typer.echo("  BatchNorm   the model has no statistics to re-estimate: nothing changed")
    else:
        counted = f"{len(done.layers)} layer" + ("s" if len(done.layers) != 1 else "")
        typer.echo(
            f"  BatchNorm   {counted} re-estimated from {done.samples:,} samples "
            f"in {done.batches:,} batches" + (f", {done.mode}" if done.mode != "batch" else "")
        )
    if done.shifts:
        worst = max(done.shifts, key=lambda shift: shift.mean)
        typer.echo(
            f"  moved       by up to {worst.mean:.2g} standard deviations in the mean, "
            f"{max(shift.deviation for shift in done.shifts):.2g} in the\n"
            f"              deviation; the mean most in {worst.layer}"
        )
    for what, paths in (
        ("not trainable", done.frozen),
        ("not called in training mode", done.unused),
    ):
        if paths:
            typer.echo(f"  left alone  {', '.join(paths)} ({what})")
    for warning in done.warnings:
        lines = textwrap.wrap(warning, 66)
        typer.echo("  doubtful    " + "\n              ".join(lines))
