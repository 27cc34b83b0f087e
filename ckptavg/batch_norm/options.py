"""`BatchNormOptions`: how a BatchNorm pass reads its data, and how and where it runs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptavg.errors import DataError, ModelError, SpecError, check_count
from ckptavg.models.devices import check_device
from ckptavg.models.spec_source import check_specs, is_spec
from ckptavg.runs.reading import reading

if TYPE_CHECKING:
    import keras

BATCH, POPULATION, CUMULATIVE = "batch", "population", "cumulative"
BN_MODES = (BATCH, POPULATION, CUMULATIVE)


@dataclass(frozen=True, slots=True)
class BatchNormOptions:
    """How a BatchNorm pass reads its data, and how and where it runs.

    Making one imports neither Keras nor a backend, so a command can refuse a bad value at once.

    Attributes:
        steps: number of batches to use; None for all.
        batch_size: samples per batch of arrays, images or a `tf.data.Dataset`; None keeps the
            batches of a data set and cuts arrays and images into batches of 32.
        preprocess: function applied to the inputs of each batch, or the SPEC of one.
        bn_mode: `batch`, `population` or `cumulative`; see `update_batch_norm`.
        mixed_precision: whether float32 layers compute in float16 during the pass.
        device: `auto` (the backend's default), `cpu`, `gpu` or `gpu:N`.
        distribute: `mirrored` divides batches among all GPUs (TensorFlow); None uses one device.

    Raises:
        DataError: `steps` or `batch_size` is not an integer >= 1.
        ModelError: `bn_mode` is unknown.
        SpecError: `device` or `distribute` is malformed, or they contradict each other.
    """

    steps: int | None = None
    batch_size: int | None = None
    preprocess: Callable[[Any], Any] | str | None = None
    bn_mode: str = BATCH
    mixed_precision: bool = False
    device: str = "auto"
    distribute: str | None = None

    def __post_init__(self) -> None:
        check_count("steps", self.steps, DataError)
        check_count("batch_size", self.batch_size, DataError)
        if self.bn_mode not in BN_MODES:
            raise ModelError(
                f"bn_mode is {self.bn_mode!r:.40}, but must be 'batch', 'population' or "
                "'cumulative'"
            )
        check_device(self.device, self.distribute)

    def check_data(self, data: Any, named: str = "data") -> None:
        """Refuses options that say how to read data when no data are given.

        Args:
            data: of the pass, or their SPEC.
            named: the keyword that takes them, for the message.

        Raises:
            SpecError: `steps`, `batch_size` or `preprocess` is set, but `data` is None.
        """
        for name in ("steps", "batch_size", "preprocess"):
            if data is None and getattr(self, name) is not None:
                raise SpecError(
                    f"{name} has no effect without {named}: pass {named} (--"
                    f"{named.replace('_', '-')}), or omit {name} (--{name.replace('_', '-')})"
                )

    def check(self, model: Any, inputs: Any, /, named: str = "data", **held_out: Any) -> None:
        """Refuses what can be refused before Keras is imported and a file of the user's is run.

        Args:
            model: a model, or its SPEC.
            inputs: data of the pass, or their SPEC.
            named: the keyword that takes them, for the message.
            **held_out: other data, or their SPECs.

        Raises:
            SpecError: as `check_data` does, or a SPEC leads nowhere.
        """
        self.check_data(inputs, named)
        check_specs(model, self.preprocess, inputs=inputs, **held_out)

    @contextmanager
    def opened(
        self, model: Any, data: Any = None, *, checkpoints: Iterable[Path] = ()
    ) -> Iterator[tuple["keras.Model", Any]]:
        """Yields the live model and its inputs, on the device that the options name.

        Args:
            model: a live model, or its SPEC; see `models.specs.as_model`.
            data: live data, or their SPEC, prepared as the options say; see
                `models.specs.as_inputs`.
            checkpoints: files that are read meanwhile: no training may replace them.

        Raises:
            RunError: a training is removing the checkpoints.
            SpecError: a SPEC or a device cannot be found, or `distribute` is set for a live model.
        """
        from ckptavg.models.devices import computing_on
        from ckptavg.models.specs import as_inputs, open_model

        if self.distribute is not None and not is_spec(model):
            raise SpecError(
                "distribute needs a SPEC as model: a live model already has the strategy under "
                "which it was made, and keeps it"
            )
        paths = list(checkpoints)
        with reading(paths), computing_on(self.device, self.distribute):
            live = open_model(model, paths)
            yield (
                live,
                as_inputs(data, model=live, batch_size=self.batch_size, preprocess=self.preprocess),
            )

    def count_batches(self, data: Any) -> int | None:
        """Number of batches that a pass over `data` will use; None if it cannot be known."""
        from ckptavg.models.batches import count_batches

        # A population pass reads the data until nothing moves any more.
        return None if self.bn_mode == POPULATION else count_batches(data, self.steps)
