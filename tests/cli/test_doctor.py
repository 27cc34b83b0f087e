"""The command that `ckptavg doctor` ends with, run."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import ckptavg
from tests.helpers.command_line import main
from tests.helpers.models import evaluator, randomize
from tests.helpers.tensorflow_checkpoints import save


def made(suffix: str, seed: int) -> Path:
    """A checkpoint in the working folder."""
    path, model = Path(f"ckpt-{seed}{suffix}"), randomize(evaluator(), seed)
    if suffix == "":
        return save(path.absolute(), {"a": tf.constant(np.float32([seed, 1]))})
    if suffix in (".h5", ".hdf5"):
        model.save(f"{seed}.h5")
        return Path(f"{seed}.h5").rename(path)
    if suffix == ".keras":
        model.save(path)
        return path
    model.save_weights(f"{seed}.weights.h5")
    if suffix == ".weights.h5":
        return Path(f"{seed}.weights.h5").rename(path)
    ckptavg.convert(f"{seed}.weights.h5", path)
    Path(f"{seed}.weights.h5").unlink()
    return path


def command_of(*sources: object) -> str:
    status, text, err = main("doctor", *sources)
    assert status == 0, err
    *_, command = text.splitlines()
    return command.strip()


@pytest.mark.parametrize(
    ("suffix", "output"),
    [
        ("", "swa"),
        (".weights.h5", "swa.weights.h5"),
        (".weights.json", "swa.weights.json"),
        (".h5", "swa.h5"),
        (".hdf5", "swa.hdf5"),
        (".keras", "swa.keras"),
        (".safetensors", "swa.safetensors"),
        (".safetensors.index.json", "swa.safetensors.index.json"),
    ],
)
def test_it_works_for_every_format(tmp_path, monkeypatch, suffix, output):
    monkeypatch.chdir(tmp_path)
    paths = [made(suffix, seed) for seed in (1, 2)]
    for name in (output, output.replace("swa", "swa-2", 1)):  # a second time as well
        command = command_of(*paths)
        assert command.endswith(f" -o {name}")
        status, _, err = main(*shlex.split(command)[1:])
        assert status == 0, err
        assert [found.average for found in ckptavg.verify(name)] == ["reproduced"]


def test_it_works_where_the_format_of_the_checkpoints_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = [made(".h5", seed).rename(f"{seed}.keras") for seed in (1, 2)]
    mixed = [made(".keras", 3), made(".weights.h5", 4)]
    for paths, name in ((old, "swa.h5"), (mixed, "swa.weights.h5")):
        command = command_of(*paths)
        assert command.endswith(f" -o {name}")
        status, _, err = main(*shlex.split(command)[1:])
        assert status == 0, err
