"""Ways in which averaging could go wrong in silence, each held shut."""

import json
import os
import shutil
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import safetensors.numpy

import ckptavg
from ckptavg.errors import (
    FormatError,
    IntegrityError,
    MismatchError,
    OutputError,
    RecipeError,
    RunError,
)
from ckptavg.runs.proof import tensor_records
from ckptavg.runs.record import Record, now, versions
from ckptavg.runs.record_files import record_path
from ckptavg.runs.selection import select
from ckptavg.runs.sources import resolve
from ckptavg.storage.files import partial
from tests.helpers.files import flip_bit, leftovers, read_tensors, write_h5
from tests.helpers.merges import interrupted
from tests.helpers.models import evaluator, randomize, tiny_data, tiny_model


def sharded(folder: Path, name: str, value: float, shards: int = 2) -> Path:
    """A sharded safetensors checkpoint with one tensor in each shard."""
    weight_map = {}
    for number in range(1, shards + 1):
        file = f"{name}-{number:05}-of-{shards:05}.safetensors"
        tensors = {f"t{number}": np.full(4, value, "float32")}
        safetensors.numpy.save_file(tensors, folder / file)
        weight_map[f"t{number}"] = file
    index = folder / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_an_index_that_names_files_of_others_does_not_cost_them(tmp_path):
    one, two = sharded(tmp_path, "A", 1.0), sharded(tmp_path, "C", 2.0)
    output = tmp_path / "B.safetensors.index.json"
    shutil.copy(one, output)  # it names the shards of A
    ckptavg.merge([one, two], output, overwrite=True)
    assert read_tensors(one)["t1"].tolist() == [1.0] * 4
    assert read_tensors(output)["t1"].tolist() == [1.5] * 4


def test_former_shards_that_would_be_taken_for_new_ones_are_refused(tmp_path):
    model = tiny_model()
    keras.saving.save_weights(model, tmp_path / "a.weights.json", max_shard_size=3e-7)
    ckptavg.convert(tmp_path / "a.weights.json", tmp_path / "o.weights.json")
    model.save_weights(tmp_path / "w.weights.h5")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(FormatError, match=r"o_00001.weights.h5 beside it would be taken"):
        ckptavg.convert(tmp_path / "w.weights.h5", tmp_path / "o.weights.json", overwrite=True)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_pattern_over_folders_finds_files_of_the_same_name(tmp_path):
    for number in range(3):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        write_h5(folder / "last.weights.h5", {"x/vars/0": np.float32([number])})
    out = tmp_path / "o.weights.h5"
    report = ckptavg.merge(str(tmp_path / "run*" / "last.weights.h5"), out)
    assert len(report.plan.sources) == 3
    assert read_tensors(out)["x/vars/0"] == 1.0


def test_a_pattern_that_matches_an_average_too_is_refused(checkpoints, tmp_path):
    ckptavg.merge(checkpoints, tmp_path / "ckpt-swa.weights.h5")
    with pytest.raises(RunError, match="which is an average"):
        ckptavg.merge(str(tmp_path / "ckpt-*.weights.h5"), tmp_path / "o.weights.h5")


def test_records_that_come_later_are_held_against_what_was_read_before(tmp_path):
    rng = np.random.default_rng(0)
    paths = [
        write_h5(tmp_path / f"{k}.weights.h5", {"x/vars/0": rng.normal(size=10**7)})
        for k in range(3)
    ]
    good = tensor_records(paths[1])
    with h5py.File(paths[1], "r") as file:
        flip_bit(paths[1], file["x/vars/0"].id.get_offset())
    out = tmp_path / "o.weights.h5"
    interrupted(paths, out)
    for path in paths:
        tensors = good if path == paths[1] else tensor_records(path)
        record = Record(path.name, path.stat().st_size, now(), versions())
        record.write(record_path(path), tensors)
    with pytest.raises(IntegrityError, match=r"1.weights.h5 is damaged: block 0"):
        ckptavg.merge(paths, out, resume=True)


def test_only_statistics_may_differ_from_the_average(checkpoints, tmp_path):
    from ckptavg.batch_norm.refresh import merge_into_model
    from ckptavg.commands.merge import plan_merge

    out = tmp_path / "swa.weights.h5"
    plan = plan_merge(checkpoints, out, live_model=True)
    merge_into_model(plan, model=evaluator(), data=tiny_data()[0])
    record = Record.read(record_path(out))
    assert len(record.batch_norm.tensors) == 4
    assert all("batch_normalization/vars/" in name for name in record.batch_norm.tensors)
    with h5py.File(out, "r+") as file:
        file["layers/dense/vars/0"][0, 0] += 1  # and a record that fits the file again
    record.write(record_path(out), tensor_records(out))
    with pytest.raises(IntegrityError, match="'layers/dense/vars/0' differs"):
        ckptavg.verify(out)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_of_several_files_is_all_or_nothing(tmp_path, overwrite):
    one, two = sharded(tmp_path, "A", 1.0), sharded(tmp_path, "C", 2.0)
    folder = tmp_path / "out"
    folder.mkdir()
    output = folder / "B.safetensors.index.json"
    if overwrite:
        ckptavg.merge(one, output)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    real, calls = os.fsync, []

    def fail_late(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:  # the first shard has its name, the second has not
            raise OSError(5, "Input/output error")
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ckptavg.storage.files.os.fsync", fail_late)
        with pytest.raises(OSError, match="Input/output"):
            ckptavg.merge([one, two], output, overwrite=overwrite)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    ckptavg.merge([one, two], output, overwrite=overwrite)
    assert not leftovers(folder)


def test_a_folder_in_the_way_of_a_shard(tmp_path):
    one, two = sharded(tmp_path, "A", 1.0), sharded(tmp_path, "C", 2.0)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "B-00001-of-00002.safetensors").mkdir()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"exists already|in the way"):
            ckptavg.merge([one, two], folder / "B.safetensors.index.json", overwrite=overwrite)
    assert [file.name for file in folder.iterdir()] == ["B-00001-of-00002.safetensors"]


def test_a_link_where_the_journal_goes_is_not_followed(checkpoints, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    out = tmp_path / "o.weights.h5"
    journal = partial(out.with_name(f"{out.name}.journal"))
    for make in (journal.symlink_to, journal.hardlink_to):
        make(victim)
        with pytest.raises(OutputError, match="emove it"):
            ckptavg.merge(checkpoints, out)
        assert victim.read_text() == "precious"
        journal.unlink()


def test_sources_behind_links_can_be_verified(checkpoints, tmp_path):
    (tmp_path / "blobs").mkdir()
    links = []
    for number, path in enumerate(checkpoints):
        path.rename(tmp_path / "blobs" / f"{number:x}")
        links.append(tmp_path / f"link-{number}.weights.h5")
        links[-1].symlink_to(tmp_path / "blobs" / f"{number:x}")
    ckptavg.merge(links, tmp_path / "o.weights.h5")
    assert ckptavg.verify(tmp_path / "o.weights.h5")[0].average == "reproduced"


def test_one_file_by_two_names_counts_once(checkpoints, tmp_path):
    other = tmp_path / "other.weights.h5"
    for make in (other.symlink_to, other.hardlink_to):
        make(checkpoints[0])
        with pytest.raises(MismatchError, match="named twice, or is a link"):
            ckptavg.merge([checkpoints[0], other], tmp_path / "o.weights.h5")
        other.unlink()


def test_a_file_whose_time_was_set_back_has_changed(tmp_path):
    paths = [
        write_h5(tmp_path / f"{k}.weights.h5", {"x/vars/0": np.full(10**7, k, "float32")})
        for k in range(3)
    ]
    out = tmp_path / "o.weights.h5"
    interrupted(paths, out, after=3)
    status = paths[0].stat()
    with h5py.File(paths[0], "r+") as file:
        file["x/vars/0"][...] = 9
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ckptavg.merge(paths, out, resume=True).resumed == 0
    assert set(read_tensors(out)["x/vars/0"].tolist()) == {4.0}


def test_an_average_of_itself_is_no_proof(checkpoints, tmp_path):
    out = tmp_path / "o.weights.h5"
    ckptavg.convert(checkpoints[0], out)
    content = json.loads(record_path(out).read_text())
    content["sources"][0]["path"] = out.name
    record_path(out).write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match="names itself"):
        ckptavg.verify(out)


def test_a_renamed_average_keeps_its_record(checkpoints, tmp_path):
    out = tmp_path / "o.weights.h5"
    ckptavg.merge(checkpoints, out)
    moved = tmp_path / "best.weights.h5"
    out.rename(moved)
    record_path(out).rename(record_path(moved))
    assert ckptavg.verify(moved)[0].average == "reproduced"


def test_equal_float64_values_are_their_mean_for_any_coefficients(tmp_path):
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(size=5000), [1e-320, -0.0, 0.0, 5e-324]])
    paths = [write_h5(tmp_path / f"{k}.weights.h5", {"x/vars/0": values}) for k in range(20)]
    out = tmp_path / "o.weights.h5"
    for coefficients in ([0.05] * 19 + [0.05000001], [-1, 1, 1] + [0] * 17):
        ckptavg.merge(paths, out, coefficients=coefficients, overwrite=True)
        assert read_tensors(out)["x/vars/0"].tobytes() == values.tobytes()


def test_coefficients_that_overflow(checkpoints, tmp_path):
    with pytest.raises(RecipeError, match="overflow"):
        ckptavg.merge(
            checkpoints, tmp_path / "o.weights.h5", coefficients=[1e308] * 5, normalize=False
        )


def test_texts_in_chunks_that_do_not_fit_into_blocks(tmp_path):
    values = np.array([b"abc", b"de", b"f"] * 10**6)
    path = tmp_path / "t.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x/vars/0", data=values, chunks=(10**4,))
        file["x/vars/1"] = np.float32([1])
    ckptavg.merge(path, tmp_path / "o.weights.h5")
    assert np.array_equal(read_tensors(tmp_path / "o.weights.h5")["x/vars/0"], values)


def test_brackets_in_names(tmp_path, capsys):
    path = tmp_path / "b.safetensors"
    safetensors.numpy.save_file({"x[/foo]": np.ones(2, "float32")}, path)
    from tests.helpers.command_line import main

    for arguments in (("inspect", path), ("merge", path, "-o", tmp_path / "o", "--dry-run")):
        status, out, err = main(*arguments)
        assert status == 0, err
        assert "x[/foo]" in out


def test_a_full_disk_keeps_what_is_done_only_on_request(tmp_path):
    paths = [
        write_h5(tmp_path / f"{k}.weights.h5", {"x/vars/0": np.full(10**7, k, "float32")})
        for k in range(3)
    ]
    out = tmp_path / "o.weights.h5"

    def full(written=[0]):  # noqa: B006 (a counter)
        def progress(nbytes):
            written[0] += nbytes
            if written[0] > 6 * 10**7:
                raise OSError(28, "No space left on device")

        return progress

    with pytest.raises(OSError, match="is full"):
        ckptavg.merge(paths, out, jobs=1, progress=full([0]))
    assert not leftovers(tmp_path)
    with pytest.raises(OSError, match="is full"):
        ckptavg.merge(paths, out, jobs=1, resume=True, progress=full([0]))
    assert leftovers(tmp_path)
    assert ckptavg.merge(paths, out, resume=True).resumed > 0
    assert not leftovers(tmp_path)


def test_dates_and_losses_are_no_epochs(tmp_path):
    names = ("m-2024-01-31", "m-2024-02-01", "m-2024-02-02")
    for number, name in enumerate(names):
        randomize(tiny_model(), number).save_weights(tmp_path / f"{name}.weights.h5")
    last = select(resolve(tmp_path), last=1)
    assert [c.path.name for c in last] == ["m-2024-02-02.weights.h5"]
    assert last[0].epoch is None
