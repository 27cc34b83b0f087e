"""TensorFlow's list of its checkpoints, held against TensorFlow."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ckptavg.errors import FormatError
from ckptavg.formats.tensorflow.state_file import read_state


def managed(folder: Path, count: int = 4, keep: int = 3) -> tf.train.CheckpointManager:
    checkpoint = tf.train.Checkpoint(x=tf.Variable(1.0))
    manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=keep)
    for _ in range(count):
        manager.save()
    return manager


def listing(folder: Path, *lines: str) -> None:
    (folder / "checkpoint").write_text("\n".join(lines))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.index").touch()


@pytest.mark.parametrize("name", ["run", "with 'quotes' \"and\" \\ and ü\t\1"])
def test_checkpoints_are_those_of_the_manager(tmp_path, name):
    folder = tmp_path / name
    manager = managed(folder)
    found = read_state(folder)
    assert [str(path) for path in found] == manager.checkpoints
    assert str(found[-1]) == manager.latest_checkpoint


def test_a_folder_that_was_moved_or_copied_is_read_where_it_is(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    touch(old, "ckpt-1", "ckpt-2")
    listing(old, *(f'all_model_checkpoint_paths: "{old / f"ckpt-{n}"}"' for n in (1, 2)))
    shutil.copytree(old, new)
    assert read_state(new) == [new / "ckpt-1", new / "ckpt-2"]
    shutil.rmtree(old)
    assert read_state(new) == [new / "ckpt-1", new / "ckpt-2"]
    (new / "ckpt-1.index").unlink()
    assert read_state(new) == [new / "ckpt-2"]
    monkeypatch.chdir(new)
    assert read_state(Path()) == [Path("ckpt-2")]


def test_what_the_saver_of_tensorflow_1_lists(tmp_path):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.get_variable("x", initializer=1.0)
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver(max_to_keep=2)
        for step in (5, 10, 15):
            saver.save(session, str(tmp_path / "model"), step, write_meta_graph=False)
    assert read_state(tmp_path) == [tmp_path / "model-10", tmp_path / "model-15"]


def test_the_latest_comes_last_and_all_come_once(tmp_path):
    touch(tmp_path, "a", "b", "sub/c")
    listing(
        tmp_path,
        'model_checkpoint_path: "a"',
        'all_model_checkpoint_paths: "a"',
        "all_model_checkpoint_paths: 'b'",
        'all_model_checkpoint_paths: "sub/../b"',
        'all_model_checkpoint_paths: "sub/c"',
        'all_model_checkpoint_paths: "gone"',
        "all_model_checkpoint_timestamps: 1.5e+09",
        "last_preserved_timestamp: 1700000000.25",
    )
    assert read_state(tmp_path) == [tmp_path / "b", tmp_path / "sub" / "c", tmp_path / "a"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('model_checkpoint_path: "../outside"', "not in its folder"),
        ('model_checkpoint_path: "a/../../outside"', "not in its folder"),
        ('model_checkpoint_path: "FOLDER/../outside"', "not in its folder"),
        ('model_checkpoint_path: "\\056\\x2e/outside"', "not in its folder"),
        ('model_checkpoint_path: "."', "not in its folder"),
        ('model_checkpoint_path: "/"', "none of them exists"),
        ('model_checkpoint_path: "gone"', "lists 1 checkpoints, but none of them exists"),
        (f'model_checkpoint_path: "{"x" * 5000}"', "none of them exists"),
        ('model_checkpoint_path: "a\\000b"', "none of them exists"),
        ("", "lists 0 checkpoints"),
        ('model_checkpoint_path: ""', "see line 1"),
        ("model_checkpoint_path: 5", "see line 1"),
        ('model_checkpoint_path: "a', "see line 1"),
        ("<html>", "see line 1"),
        ("x" * 5_000_000, "at most 4,194,304 are expected"),
    ],
)
def test_lists_that_are_damaged_or_lead_elsewhere_are_refused(tmp_path, line, reason):
    folder = tmp_path / "run"
    folder.mkdir()
    touch(tmp_path, "outside")
    listing(folder, line.replace("FOLDER", str(folder)))
    with pytest.raises(FormatError, match=reason):
        read_state(folder)


def test_a_folder_without_a_list_is_refused(tmp_path):
    with pytest.raises(FormatError, match="cannot read the list"):
        read_state(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(FormatError, match="cannot read the list"):
        read_state(tmp_path)


def test_any_bytes_give_a_list_or_an_error(tmp_path):
    touch(tmp_path, "a", "b")
    listing(tmp_path, 'model_checkpoint_path: "a"', 'all_model_checkpoint_paths: "b"')
    content, rng = (tmp_path / "checkpoint").read_bytes(), np.random.default_rng(1)
    outcomes = set()
    for _ in range(300):
        changed = bytearray(content)
        changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
        (tmp_path / "checkpoint").write_bytes(changed)
        try:
            found = read_state(tmp_path)
            assert set(found) <= {tmp_path / "a", tmp_path / "b"}
            outcomes.add("read")
        except FormatError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
