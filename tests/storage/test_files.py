"""Files that appear whole or not at all."""

import os

import pytest

from ckptavg.storage.files import commit, partial, staged_text, temporary_sibling, write_text


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_text_replaces_its_former_content_whole(tmp_path):
    path = tmp_path / "a.json"
    for text in ("one", "two, and longer", "ü"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
        assert names(tmp_path) == ["a.json"]


def test_a_staged_text_appears_when_it_is_placed_and_not_before(tmp_path):
    path = tmp_path / "a.json"
    with staged_text(path, "new") as place:
        assert not path.exists()
        place()
        assert path.read_text() == "new"
    with staged_text(path, "newer"):
        pass
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_error_leaves_the_former_content_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.json"
    write_text(path, "former")

    def fail(*_, **__):
        raise OSError("no")

    monkeypatch.setattr(os, failing, fail)
    if failing == "replace":
        monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="no"):
        write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "former"
    assert names(tmp_path) == ["a.json"]


def test_a_commit_gives_a_finished_file_its_name(tmp_path):
    path = tmp_path / "x.weights.h5"
    temporary = partial(path)
    temporary.write_bytes(b"whole")
    commit(temporary, path)
    assert path.read_bytes() == b"whole"
    assert names(tmp_path) == ["x.weights.h5"]


def test_temporary_names_are_hidden_fresh_and_keep_the_format(tmp_path):
    path = tmp_path / "x.weights.h5"
    first, second = temporary_sibling(path), temporary_sibling(path)
    assert first != second
    for name in (first.name, second.name, partial(path).name):
        assert name.startswith(".tmp-")
        assert name.endswith(".weights.h5")
    assert partial(path) == partial(path)
