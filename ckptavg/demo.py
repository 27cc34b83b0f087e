"""The main job on real data: train on handwritten digits, merge, BatchNorm pass, compare.

Its functions are also what the commands that it prints name as SPECs, such as
`--model ckptavg.demo:build_model`.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from ckptavg.commands.merge import merge
from ckptavg.commands.update_bn import refresh_batch_norm
from ckptavg.errors import OutputError
from ckptavg.models.evaluation import evaluate
from ckptavg.runs.record_files import record_path
from ckptavg.runs.run import Run, open_run
from ckptavg.saving.checkpoint_saver import CheckpointSaver

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EPOCHS = 30
START_EPOCH = 16
LEARNING_RATE = 0.1
SWA_LR = 0.08
"""High, so that the weights keep moving about a good region and averaging has an effect."""

SHIFT = 0.125
"""How far training images are shifted at random: one pixel of eight, as a fraction of the side."""

HELD_OUT = 597
"""Number of held-out images among 1,797; the model is trained on the other 1,200."""

PLANE_POINTS = 11
"""Points along each axis of the loss plane."""

_MARK = "demo.json"
_LAST, _BEST = "last epoch", "best single checkpoint"
_WITHOUT, _WITH = "average without BatchNorm pass", "average with BatchNorm pass"


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo measured, and what it wrote.

    Attributes:
        seed: seed of the initial weights and of the order of the training data.
        scores: held-out `loss` and `accuracy` of each row of the table, by the row's name.
        files: the written files, by what they hold.
    """

    seed: int
    scores: dict[str, dict[str, float]]
    files: dict[str, Path]


def build_model() -> keras.Model:
    """A compiled model: three Conv-BatchNorm-ReLU blocks over randomly shifted 8x8 images."""
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.RandomTranslation(SHIFT, SHIFT, fill_mode="constant"),
    ]
    for filters, strides in ((16, 1), (32, 2), (32, 1)):
        layers += [
            keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    model = keras.Sequential(layers, name="digits")
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train_data() -> tuple[np.ndarray, np.ndarray]:
    """1,200 training images of shape (8, 8, 1), float32 in [0, 1], and their digits."""
    x, y = _digits()
    return x[:-HELD_OUT], y[:-HELD_OUT]


def bn_data() -> np.ndarray:
    """The training images without their digits, because a BatchNorm pass needs no targets."""
    return train_data()[0]


def test_data() -> tuple[np.ndarray, np.ndarray]:
    """The 597 held-out images and their digits."""
    x, y = _digits()
    return x[-HELD_OUT:], y[-HELD_OUT:]


def run_demo(
    directory: str | Path = "ckptavg-demo",
    *,
    seed: int = 0,
    pictures: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> DemoReport:
    """Trains, merges, runs the BatchNorm pass, compares the results, and draws them.

    Args:
        directory: folder for all files; replaced if an earlier demo made it.
        seed: seed of the initial weights and of the order of the training data.
        pictures: whether to draw the training, the path of the weights, and the loss around it.
        say: called with what is being done, and with the progress of training.

    Returns:
        The scores and the written files.

    Raises:
        OutputError: the directory holds something else.
    """
    directory = Path(directory)
    _prepare(directory, seed)
    run, mean = directory / "run", directory / "swa.weights.h5"
    refreshed = directory / "swa-bn.weights.h5"
    say(f"training {EPOCHS} epochs on {len(bn_data()):,} images of digits")
    model = train(run, seed=seed, say=say)
    say("merging")
    merge(run, mean)
    say("re-estimating BatchNorm statistics")
    refresh_batch_norm(
        mean, refreshed, model=model, data=bn_data(), data_name="ckptavg.demo:bn_data"
    )
    opened = open_run(run)
    candidates = {
        _LAST: opened.checkpoints[-1].path,
        _BEST: opened.select(best=1)[0].path,
        _WITHOUT: mean,
        _WITH: refreshed,
    }
    held_out = test_data()
    scores = {name: evaluate(path, model=model, data=held_out) for name, path in candidates.items()}
    files = {
        "run": run,
        "average": mean,
        "its record": record_path(mean),
        "with statistics": refreshed,
        "its record too": record_path(refreshed),
    }
    if pictures:
        say(f"drawing, with the loss at {PLANE_POINTS**2} points of a plane")
        files |= _draw_all(directory, opened, mean, model, scores[_WITH])
    return DemoReport(seed, scores, files)


def train(
    run: str | Path,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    start_epoch: int = START_EPOCH,
    say: Callable[[str], None] = lambda _: None,
) -> keras.Model:
    """Trains on the digits at a learning rate that stays high, and saves the last epochs.

    Args:
        run: the directory for the checkpoints.
        seed: seed of the initial weights and of the order of the training data.
        epochs: number of epochs.
        start_epoch: the first epoch that is saved; the learning rate falls to `SWA_LR` before it.
        say: called with the loss and the accuracy on the held-out images after each epoch.

    Returns:
        The model, as it is after the last epoch.
    """
    keras.utils.set_random_seed(seed)
    model = build_model()
    x, y = train_data()
    saver = CheckpointSaver(
        run, start_epoch=start_epoch, swa_freq=1, lr_schedule="constant", swa_lr=SWA_LR
    )
    telling = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: say(
            f"  epoch {epoch + 1:2d}/{epochs}  held-out loss {logs['val_loss']:.4f}  "
            f"accuracy {logs['val_accuracy']:.4f}"
        )
    )
    model.fit(
        x,
        y,
        batch_size=32,
        epochs=epochs,
        validation_data=test_data(),
        callbacks=[saver, telling],
        verbose=0,
    )
    return model


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images / 16.0).astype("float32")[..., None]
    # The images are sorted by writer: the held-out ones should not be of the last few alone.
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], digits.target[order]


def _prepare(directory: Path, seed: int) -> None:
    mark = directory / _MARK
    if mark.is_file():
        shutil.rmtree(directory)
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise OutputError(f"{directory} exists, but no demo made it: name another directory")
    directory.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps({"seed": seed}) + "\n", encoding="utf-8")


def _draw_all(
    directory: Path, run: Run, mean: Path, model: keras.Model, scores: Mapping[str, float]
) -> dict[str, Path]:
    """Draws the pictures; returns their files, by what they show."""
    from ckptavg.analysis import loss_plane, measure_geometry
    from ckptavg.analysis.plots import loss_contours, save_figure, trajectory_plane

    plane = loss_plane(
        run.checkpoints[0],
        run.checkpoints[-1],
        run.checkpoints,
        model=model,
        data=bn_data(),
        eval_data={"held-out": test_data()},
        points=PLANE_POINTS,
        margin=0.4,
        labels=("first saved", "last", "average"),
    )
    trajectory = measure_geometry(run, averages={"average": mean}).trajectory()
    names = ("curves", "trajectory", "loss plane")
    curves, path, surface = files = [directory / f"{n.replace(' ', '_')}.png" for n in names]
    save_figure(partial(_draw_curves, run, scores["accuracy"]), curves)
    save_figure(lambda ax: trajectory_plane(trajectory, ax=ax), path, size=(5, 4))
    save_figure(lambda ax: loss_contours(plane, ax=ax), surface, size=(5, 3.2))
    return dict(zip(names, files, strict=True))


def _draw_curves(run: Run, average: float, ax: "Axes") -> "Axes":
    from ckptavg.analysis.plots import learning_curve

    accuracies = [epoch.metrics["val_accuracy"] for epoch in run.history]
    learning_curve(
        run.history,
        ax=ax,
        metrics=["val_accuracy"],
        saved_epochs=[checkpoint.epoch for checkpoint in run.checkpoints],
        averages={"average of the checkpoints": average},
        label="held-out accuracy",
    )
    ax.set_ylim(bottom=max(0.0, min(accuracies[2:]) - 0.01), top=1.002)
    return ax
