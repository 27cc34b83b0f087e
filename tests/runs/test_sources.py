"""What can be averaged: patterns, folders and the epochs that file names tell of."""

from pathlib import Path

import keras
import pytest

import ckptavg
from ckptavg.errors import RunError
from ckptavg.runs.numbering import epochs_in, natural_key
from ckptavg.runs.selection import select
from ckptavg.runs.sources import resolve
from tests.helpers.files import read_tensors
from tests.helpers.models import compiled_model, randomize, tiny_data, tiny_model


@pytest.mark.parametrize(
    ("names", "epochs"),
    [
        (["weights.05-0.32", "weights.10-0.31"], [5, 10]),  # Keras' own example of ModelCheckpoint
        (["model-9", "model-10"], [9, 10]),
        (["acc-0.5-epoch-10", "acc-0.6-epoch_9"], [10, 9]),
        (["cp-0001", "cp-0002"], [1, 2]),
        (["5.0.33", "6.0.33"], [5, 6]),
        (["v2-01", "v2-02"], [1, 2]),
        (["resnet50-Ep3", "resnet50-Ep4"], [3, 4]),
        (["a", "b"], None),
        (["a-1", "b-1"], None),
        (["loss-0.5", "loss-0.6"], None),
        (["epoch-1", "epoch-1-copy"], None),
        (["step1", "2"], [1, 2]),
        ([], None),
    ],
)
def test_epochs_in_names(names, epochs):
    assert epochs_in(names) == epochs


def test_natural_order():
    names = ["w.10.h5", "w.9.h5", "w.100.h5", "a.11.h5", "w.h5"]
    assert sorted(names, key=natural_key) == ["a.11.h5", "w.9.h5", "w.10.h5", "w.100.h5", "w.h5"]


@pytest.fixture
def filled(tmp_path) -> Path:
    """A folder that Keras' ModelCheckpoint filled, over ten epochs."""
    folder = tmp_path / "ckpt"
    x, y = tiny_data(16)
    callback = keras.callbacks.ModelCheckpoint(
        folder / "weights.{epoch}-{loss:.2f}.weights.h5", save_weights_only=True
    )
    compiled_model().fit(x, y, epochs=10, callbacks=[callback], verbose=0)
    return folder


def test_a_folder_of_model_checkpoint_is_read_in_the_order_of_epochs(filled, tmp_path):
    found = resolve(filled)
    assert [checkpoint.epoch for checkpoint in found] == list(range(1, 11))
    assert found[9].path.name.startswith("weights.10-")
    assert [c.epoch for c in resolve(f"{filled}/weights.*.weights.h5")] == list(range(1, 11))
    last = [c.path for c in select(found, last=3)]
    out = tmp_path / "o.weights.h5"
    report = ckptavg.merge(select(found, last=3), out)
    assert [source.epoch for source in report.record.sources] == [8, 9, 10]
    ckptavg.merge(last, tmp_path / "p.weights.h5")
    assert out.read_bytes() == (tmp_path / "p.weights.h5").read_bytes()


def test_averages_in_the_folder_are_not_averaged_again(filled):
    ckptavg.merge(filled, filled / "swa.weights.h5")
    assert len(resolve(filled)) == 10


def test_files_in_the_order_of_a_shell_are_not_taken_for_the_last_ones(filled):
    shell = sorted(filled.iterdir())
    assert [c.epoch for c in resolve(shell)][:2] == [1, 10]
    with pytest.raises(RunError, match="not in training order"):
        select(resolve(shell), last=3)


def test_what_a_folder_may_not_hold(filled):
    randomize(tiny_model(), 1).save_weights(filled / "best.weights.h5")
    with pytest.raises(RunError, match=r"holds best.weights.h5 besides numbered checkpoints"):
        resolve(filled)
    (filled / "best.weights.h5").unlink()
    tiny_model().save(filled / "model.keras")
    with pytest.raises(RunError, match=r"of several formats .*: name them by a pattern"):
        resolve(filled)
    (filled / "model.keras").unlink()
    (filled / "notes.txt").write_text("not a checkpoint")
    (filled / ".tmp-x.weights.h5").write_text("not complete")
    (filled / "folder.weights.h5").mkdir()
    assert len(resolve(filled)) == 10


def test_a_file_whose_name_looks_like_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    randomize(tiny_model(), 1).save_weights("a[1].weights.h5")
    assert [str(c.path) for c in resolve("a[1].weights.h5")] == ["a[1].weights.h5"]


def test_shards_are_no_checkpoints_of_their_own(tmp_path):
    for seed in (1, 2):
        path = tmp_path / f"m-{seed}.weights.json"
        model = randomize(tiny_model(), seed)
        keras.saving.save_weights(model, path, max_shard_size=3e-7)
    assert len(list(tmp_path.glob("*.weights.h5"))) >= 4
    assert [c.path.name for c in resolve(tmp_path)] == ["m-1.weights.json", "m-2.weights.json"]
    out = tmp_path / "out"
    out.mkdir()
    ckptavg.merge(tmp_path, out / "mean.weights.json")
    assert len(read_tensors(out / "mean.weights.json")) == len(tiny_model().weights)
