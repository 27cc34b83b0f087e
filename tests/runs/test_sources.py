"""What can be averaged: patterns, folders and the epochs that file names tell of."""

import shutil
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


@pytest.fixture(scope="module")
def _filled_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "ckpt"
    x, y = tiny_data(16)
    callback = keras.callbacks.ModelCheckpoint(
        folder / "weights.{epoch}-{loss:.2f}.weights.h5", save_weights_only=True
    )
    compiled_model().fit(x, y, epochs=10, callbacks=[callback], verbose=0)
    return folder


@pytest.fixture
def filled(_filled_once, tmp_path) -> Path:
    """A folder that Keras' ModelCheckpoint filled, over ten epochs."""
    return Path(shutil.copytree(_filled_once, tmp_path / "ckpt"))


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


DATES = ["m-2024-9-30", "m-2024-10-1", "m-2024-10-02"]


@pytest.fixture
def dated(checkpoints, tmp_path) -> list[Path]:
    """Checkpoints with dates in their names, in the order of the dates."""
    names = [tmp_path / "dated" / f"{date}.weights.h5" for date in DATES]
    names[0].parent.mkdir()
    return [path.rename(name) for path, name in zip(checkpoints, names, strict=False)]


def test_folders_and_files_have_one_order(dated, tmp_path):
    for sources in (dated[0].parent, str(dated[0].parent / "*.h5"), dated):
        assert [c.path for c in select(resolve(sources), last=1)] == dated[2:]
        assert [c.path for c in resolve(sources)] == dated
    # the order of a shell, which a merge of all may have but `last` and recipes of time may not
    shell = sorted(dated)
    assert shell != dated
    message = r"not in training order \(m-2024-10-02.weights.h5 before m-2024-10-1.weights.h5\)"
    with pytest.raises(RunError, match=message):
        select(resolve(shell), last=1)
    with pytest.raises(RunError, match=f"`ema` is ambiguous: .*{message}"):
        ckptavg.merge(shell, tmp_path / "o.weights.h5", recipe="ema:0.5")
    ckptavg.merge(shell, tmp_path / "o.weights.h5")
    plan = ckptavg.plan_merge(dated, tmp_path / "p.weights.h5", recipe="ema:0.5")
    assert list(plan.coefficients) == sorted(plan.coefficients)


def test_names_without_numbers_have_no_order(checkpoints, tmp_path):
    (tmp_path / "abc").mkdir()
    names = [tmp_path / "abc" / f"{letter}.weights.h5" for letter in "cab"]
    paths = [path.rename(name) for path, name in zip(checkpoints, names, strict=False)]
    for sources in (tmp_path / "abc", paths):
        with pytest.raises(RunError, match="neither records nor numbers in the names say in which"):
            select(resolve(sources), last=1)
    # files that are named one by one are in the order in which they are named
    plan = ckptavg.plan_merge(paths, tmp_path / "o.weights.h5", recipe="ema:0.5")
    assert [source.path for source in plan.sources] == paths
    assert list(plan.coefficients) == sorted(plan.coefficients)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_has_no_order(checkpoints, tmp_path, kind):
    with pytest.raises(RunError, match="checkpoints in a set have no order: pass a list"):
        ckptavg.merge(kind(checkpoints), tmp_path / "o.weights.h5")


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
