"""The README: it matches the help texts, and its claims hold where a test can check them."""

import os
import re
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import ckptavg
from ckptavg.cli import app
from ckptavg.storage.files import TEMPORARY_PREFIX
from tests.helpers.command_line import known_commands
from tests.helpers.models import tiny_data, tiny_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_every_command_is_in_the_readme():
    for name in known_commands():
        assert f"ckptavg {name}" in README or f"make {name}" in README, name


def test_no_summary_of_a_command_is_cut_at_80_columns():
    found = CliRunner().invoke(app, ["--help"], terminal_width=80)
    listed = found.output.partition("Commands:")[2]
    assert all(f"  {name} " in listed for name in known_commands())
    assert "..." not in listed


def test_every_target_that_is_shown_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = set(re.findall(r"(?:^    |`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= shown <= targets


def test_it_is_short_and_in_order():
    assert len(README.splitlines()) <= 130
    parts = [
        "```python",
        "notebooks/images/curves.png",
        "notebooks/images/loss_plane.png",
        "## When to use what",
        "## Install",
        "make demo",
        "make test",
        "## Command line",
        "## Speed",
        "## Formats",
        "## What averaging does not do",
        "## Read on",
    ]
    places = [README.index(part, README.index("## Install") * ("make" in part)) for part in parts]
    assert places == sorted(places)
    assert "@FIGURES@" not in README


def test_its_example_runs(tmp_path, monkeypatch):
    example = re.search(r"```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[1]
    assert len(example.splitlines()) <= 8
    monkeypatch.chdir(tmp_path)
    model, (x, y) = tiny_model(), tiny_data(32)
    exec(example, {"model": model, "x": x, "y": y})
    saved = keras.models.load_model("swa.keras")
    for ours, theirs in zip(model.weights, saved.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_its_example_of_resuming_runs(tmp_path, monkeypatch):
    example = re.findall(r"```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    model, (x, y) = tiny_model(), tiny_data(32)
    names = {"ckptavg": ckptavg, "model": model, "x": x, "y": y}
    model.run_eagerly = True
    exec(example.replace("16", "1").replace("30", "2"), names)
    assert names["first"] == 0
    exec(example.replace("16", "1").replace("30", "3"), names)
    assert names["first"] == 2
    assert [record.epoch for record in ckptavg.open_run("run").records] == [1, 2, 3]


# When to use what: what the table says of Keras' own means, against Keras itself.


def row(of: str) -> list[str]:
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {of}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def compiled(**options) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = tiny_model()
    model.compile(
        keras.optimizers.SGD(0.05, **options),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def moving_statistics(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.non_trainable_variables]


@pytest.fixture(scope="module")
def trained() -> dict[bool, keras.Model]:
    """Two trainings that differ only in `use_ema`."""
    models = {ema: compiled(use_ema=ema, ema_momentum=0.9) for ema in (False, True)}
    for model in models.values():
        model.fit(*tiny_data(), epochs=2, shuffle=False, verbose=0)
    return models


def size(variables) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


def test_use_ema_keeps_one_copy_of_the_trainable_variables(trained):
    assert "one copy of the trainable variables" in row("`optimizer(use_ema=True)`")[2]
    more = size(trained[True].optimizer.variables) - size(trained[False].optimizer.variables)
    assert more == size(trained[True].trainable_variables)


def test_after_fit_use_ema_has_replaced_the_weights_by_their_average(trained):
    assert "`fit` ends with this one average" in row("`optimizer(use_ema=True)`")[4]
    averages = trained[True].optimizer._model_variables_moving_average
    plain = trained[False].trainable_variables
    for variable, average, other in zip(
        trained[True].trainable_variables, averages, plain, strict=True
    ):
        np.testing.assert_array_equal(variable.numpy(), average.numpy())
        assert not np.array_equal(variable.numpy(), other.numpy())


def test_use_ema_does_not_re_estimate_batch_norm_statistics(trained):
    assert "not re-estimated" in row("`optimizer(use_ema=True)`")[3]
    # The same as without averaging: they belong to the weights that were replaced.
    for ours, plain in zip(*map(moving_statistics, trained.values()), strict=True):
        np.testing.assert_array_equal(ours, plain)


def test_swap_ema_weights_needs_use_ema():
    assert "`use_ema=True`" in row("`keras.callbacks.SwapEMAWeights`")[1]
    callback = keras.callbacks.SwapEMAWeights()
    with pytest.raises(ValueError, match="use_ema=True"):
        compiled().fit(*tiny_data(), validation_data=tiny_data(), callbacks=[callback], verbose=0)


def test_with_swap_ema_weights_model_checkpoint_saves_averages_and_old_statistics(tmp_path):
    assert "`swap_on_epoch=True`" in row("`keras.callbacks.SwapEMAWeights`")[4]
    assert "not re-estimated" in row("`keras.callbacks.SwapEMAWeights`")[3]
    model = compiled(use_ema=True, ema_momentum=0.9)
    live = []
    callbacks = [
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: live.append([v.numpy() for v in model.weights])
        ),
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True),
    ]
    model.fit(*tiny_data(), epochs=2, callbacks=callbacks, verbose=0)
    saved = compiled(use_ema=True, ema_momentum=0.9)
    saved.load_weights(tmp_path / "1.weights.h5")
    for variable, trained in zip(saved.weights, live[0], strict=True):
        # BatchNorm statistics are saved as training left them, weights are not.
        assert np.array_equal(variable.numpy(), trained) == (not variable.trainable)


def test_model_checkpoint_keeps_only_the_best(tmp_path):
    assert row("`ModelCheckpoint(save_best_only=True)`")[1] == "the metric to monitor"
    path = tmp_path / "best.weights.h5"
    saver = keras.callbacks.ModelCheckpoint(
        path, monitor="loss", save_best_only=True, save_weights_only=True
    )
    compiled().fit(*tiny_data(), epochs=3, callbacks=[saver], verbose=0)
    assert [*tmp_path.iterdir()] == [path]


def test_what_keras_swa_calls_is_not_in_keras_3():
    assert "does not run on Keras 3" in row("keras-swa")[0]
    assert not hasattr(keras.backend, "eval")
    assert not hasattr(keras.optimizers.SGD(), "lr")


def test_ckptavg_writes_checkpoints_in_another_thread(tmp_path, monkeypatch):
    assert "written by another thread" in row("**ckptavg**")[2]
    put_in_place = {}

    def renaming(original):
        def rename(source, target, **places):
            name = Path(target).name
            if name.endswith(".weights.h5") and not name.startswith(TEMPORARY_PREFIX):
                put_in_place[name] = threading.current_thread()
            return original(source, target, **places)

        return rename

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, renaming(getattr(os, name)))
    saver = ckptavg.CheckpointSaver(tmp_path / "run", start_epoch=1)
    compiled().fit(*tiny_data(), epochs=2, callbacks=[saver], verbose=0)
    assert set(put_in_place) == {"epoch-0001.weights.h5", "epoch-0002.weights.h5"}
    assert threading.main_thread() not in put_in_place.values()
