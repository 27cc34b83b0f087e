"""The merge against a naive mean in memory, its invariances, and what it refuses."""

import itertools
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

import ckptavg
from ckptavg.commands.merge import plan_merge
from ckptavg.errors import (
    FormatError,
    IntegrityError,
    MismatchError,
    OutputError,
    RecipeError,
    ResourceError,
    RunError,
)
from ckptavg.formats import open_reader, tensors
from ckptavg.merging import work, worker
from ckptavg.merging.merge import run_plan
from ckptavg.runs.record import Record
from ckptavg.runs.record_files import record_path
from tests.helpers.files import flip_bit, leftovers, read_tensors, write_h5
from tests.helpers.merges import wide_mean
from tests.helpers.models import compiled_model, randomize, tiny_model


def naive_mean(paths):
    """What the plain mean of float32 tensors must be, to the bit."""
    return {name: wide.astype(np.float32) for name, wide in wide_mean(paths).items()}


def assert_same(path: Path, expected) -> None:
    found = read_tensors(path)
    assert set(found) == set(expected)
    for name in expected:
        assert found[name].tobytes() == expected[name].tobytes(), name


def test_merge_is_the_naive_mean(checkpoints, tmp_path):
    out = tmp_path / "out.weights.h5"
    ckptavg.merge(checkpoints, out)
    assert_same(out, naive_mean(checkpoints))


@pytest.mark.parametrize("coefficients", [[0.1, 0.2, 0.3, 0.15, 0.25], [1.5, -0.5, 0, 0, 0]])
def test_weighted_mean_is_within_half_an_ulp(checkpoints, tmp_path, coefficients):
    # Coefficients such as 0.1 bring sums next to ties: their last bit is float64's to decide.
    out = tmp_path / "out.weights.h5"
    ckptavg.merge(checkpoints, out, coefficients=coefficients)
    found = read_tensors(out)
    for name, wide in wide_mean(checkpoints, coefficients).items():
        half_ulp = np.spacing(np.abs(found[name])) / 2
        assert (np.abs(found[name] - wide) <= half_ulp * (1 + 1e-6)).all()


def test_keras_loads_the_result(checkpoints, tmp_path):
    ckptavg.merge(checkpoints, tmp_path / "out.weights.h5")
    model = tiny_model()
    model.load_weights(tmp_path / "out.weights.h5", objects_to_skip=[model.optimizer])
    kernels = []
    for path in checkpoints:
        other = tiny_model()
        other.load_weights(path)
        kernels.append(other.get_layer("stem").kernel.numpy().astype("float64"))
    assert np.array_equal(
        model.get_layer("stem").kernel.numpy(), np.mean(kernels, axis=0).astype("float32")
    )


def test_one_checkpoint_is_the_identity(checkpoints, tmp_path):
    out = tmp_path / "out.weights.h5"
    ckptavg.merge(checkpoints[:1], out)
    assert_same(out, naive_mean(checkpoints[:1]))


def test_order_does_not_matter(checkpoints, tmp_path):
    results = set()
    for number, order in enumerate(
        itertools.islice(itertools.permutations(checkpoints), 0, 120, 17)
    ):
        out = tmp_path / f"{number}.weights.h5"
        ckptavg.merge(order, out)
        results.add(out.read_bytes())
    assert len(results) == 1


def test_bytes_do_not_depend_on_jobs_memory_or_regions(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    paths = [
        write_h5(
            tmp_path / f"{k}.weights.h5",
            {
                f"layers/d{n}/vars/0": rng.normal(size=s).astype("float32")
                for n, s in enumerate([(3,), (700, 451), (1,), (2_500_001,)])
            },
        )
        for k in range(3)
    ]
    results = set()
    for number, (jobs, memory, block, piece) in enumerate(
        [
            (1, 2**26, 2**23, 2**16),
            (4, 2**26, 2**23, 2**16),
            (2, 2**26, 2**20, 2**16),
            (3, 2**24, 2**22, 999),
        ]
    ):
        monkeypatch.setattr(tensors, "BLOCK_SIZE", block)
        monkeypatch.setattr(work, "BLOCK_SIZE", block)
        monkeypatch.setattr(worker, "PIECE", piece)
        out = tmp_path / f"out{number}.weights.h5"
        ckptavg.merge(paths, out, jobs=jobs, max_memory=memory)
        results.add(out.read_bytes())
    assert len(results) == 1
    assert_same(out, naive_mean(paths))


def test_steps_of_opennmt_average_to_25(tmp_path):
    # OpenNMT-tf, opennmt/tests/checkpoint_test.py
    paths = [
        write_h5(tmp_path / f"{step}.weights.h5", {"layers/x/vars/0": np.full(3, step, "float32")})
        for step in (10, 20, 30, 40)
    ]
    ckptavg.merge(paths, tmp_path / "o.weights.h5")
    assert read_tensors(tmp_path / "o.weights.h5")["layers/x/vars/0"].tolist() == [25, 25, 25]


def test_optimizer_state_is_dropped(checkpoints, tmp_path):
    model = randomize(compiled_model(), 9)
    x = np.zeros((4, 6), "float32")
    model.fit(x, np.zeros(4), verbose=0)
    model.save_weights(tmp_path / "trained.weights.h5")
    assert any(n.startswith("optimizer/") for n in read_tensors(tmp_path / "trained.weights.h5"))
    ckptavg.merge([*checkpoints, tmp_path / "trained.weights.h5"], tmp_path / "o.weights.h5")
    with h5py.File(tmp_path / "o.weights.h5") as file:
        assert "optimizer" not in file


def test_integers_must_agree_and_random_state_is_of_the_last(tmp_path):
    def write(number, count, seed):
        return write_h5(
            tmp_path / f"{number}.weights.h5",
            {
                "layers/norm/vars/0": np.array(count, "int64"),
                "layers/flag/vars/0": np.array([True, False]),
                "layers/dropout/seed_generator/vars/0": np.array([seed, 1], "uint32"),
                "layers/dense/vars/0": np.full(2, number, "float32"),
            },
        )

    paths = [write(1, 5, 10), write(2, 5, 20)]
    report = ckptavg.merge(paths, tmp_path / "o.weights.h5")
    found = read_tensors(tmp_path / "o.weights.h5")
    assert found["layers/norm/vars/0"] == 5
    assert found["layers/flag/vars/0"].tolist() == [True, False]
    assert found["layers/dropout/seed_generator/vars/0"].tolist() == [20, 1]
    assert found["layers/dense/vars/0"].tolist() == [1.5, 1.5]
    actions = {item.tensor.name: item.action for item in report.plan.items}
    assert actions["layers/norm/vars/0"] == "equal"
    assert actions["layers/dropout/seed_generator/vars/0"] == "last"
    with pytest.raises(MismatchError, match=r"'layers/norm/vars/0' \(int64\) differs"):
        ckptavg.merge([*paths, write(3, 6, 30)], tmp_path / "p.weights.h5")
    assert not (tmp_path / "p.weights.h5").exists()


def test_report_and_record(trained_run, tmp_path):
    out = tmp_path / "sub" / "swa.weights.h5"
    out.parent.mkdir()
    report = ckptavg.merge(trained_run, out)
    record = Record.read(record_path(out))
    assert record == report.record
    assert record.size == out.stat().st_size
    assert [source.epoch for source in record.sources] == [3, 4, 5, 6]
    assert all(source.verified and source.coefficient == 0.25 for source in record.sources)
    assert (out.parent / record.sources[0].path).samefile(
        trained_run / "checkpoints" / "epoch-0003.weights.h5"
    )
    assert (out.parent / record.model).samefile(trained_run / "model.json")
    assert record.batch_norm.statistics == "stale"
    assert record.batch_norm.layers == 2
    [source, *_] = ckptavg.open_run(trained_run).records
    assert record.batch_norm.moving == source.batch_norm.moving != ()
    assert report.unverified == ()
    # The output's own record proves the output, so that averages can be averaged.
    ckptavg.merge([out], tmp_path / "again.weights.h5")
    assert_same(tmp_path / "again.weights.h5", read_tensors(out))


def test_checkpoints_without_record_are_reported(checkpoints, tmp_path):
    report = ckptavg.merge(checkpoints, tmp_path / "o.weights.h5")
    assert report.unverified == tuple(checkpoints)
    assert report.record.batch_norm.layers == 2  # told from the names of the tensors


def test_keras_archive_from_a_run(trained_run, tmp_path):
    ckptavg.merge(trained_run, tmp_path / "a.keras")
    ckptavg.merge(trained_run, tmp_path / "b.weights.h5")
    model = keras.saving.load_model(tmp_path / "a.keras")
    assert model.compiled
    other = tiny_model()
    other.load_weights(tmp_path / "b.weights.h5", objects_to_skip=[other.optimizer])
    for one, two in zip(model.weights, other.weights, strict=True):
        assert one.numpy().tobytes() == two.numpy().tobytes()
    assert_same(tmp_path / "a.keras", read_tensors(tmp_path / "b.weights.h5"))
    # and a .keras file can be averaged, and lend its configuration
    ckptavg.merge([tmp_path / "a.keras"], tmp_path / "c.keras", model=tmp_path / "a.keras")
    keras.saving.load_model(tmp_path / "c.keras")
    assert not leftovers(tmp_path)


def test_merging_twice_gives_the_same_bytes(trained_run, tmp_path):
    for name in ("a.keras", "b.keras"):
        ckptavg.merge(trained_run, tmp_path / name)
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()


def test_keras_archive_needs_a_configuration(checkpoints, tmp_path):
    with pytest.raises(FormatError, match=r"Pass a model \(--model\)"):
        ckptavg.merge(checkpoints, tmp_path / "a.keras")


@pytest.mark.parametrize("where", [0, 1, -1])
def test_a_flipped_bit_stops_the_merge(trained_run, tmp_path, where):
    victim = trained_run / "checkpoints" / "epoch-0004.weights.h5"
    with open_reader(victim) as reader:
        extents = [t.extent for t in reader.structure.tensors.values()]
        name = list(reader.structure.tensors)[where]
    flip_bit(victim, extents[where].offset)
    with pytest.raises(IntegrityError, match="epoch-0004") as caught:
        ckptavg.merge(trained_run, tmp_path / "o.weights.h5")
    assert f"'{name}'" in str(caught.value)
    assert "block 0" in str(caught.value)
    assert not (tmp_path / "o.weights.h5").exists()
    assert not leftovers(tmp_path)


def test_damage_that_looks_like_nan_is_called_damage(trained_run, tmp_path):
    victim = trained_run / "checkpoints" / "epoch-0004.weights.h5"
    with open_reader(victim) as reader:
        place = next(iter(reader.structure.tensors.values())).extent.offset
    with victim.open("r+b") as file:
        file.seek(place)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(IntegrityError, match=r"epoch-0004.* is damaged: block 0"):
        ckptavg.merge(trained_run, tmp_path / "o.weights.h5")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(checkpoints, tmp_path, value):
    model = randomize(tiny_model(), 1)
    kernel = model.get_layer("head").kernel.numpy()
    kernel[2, 1] = value
    model.get_layer("head").kernel.assign(kernel)
    bad = tmp_path / "bad.weights.h5"
    model.save_weights(bad)
    kind = "NaN" if np.isnan(value) else "infinity"
    with pytest.raises(IntegrityError, match=f"bad.weights.h5 holds {kind}") as caught:
        ckptavg.merge([*checkpoints, bad], tmp_path / "o.weights.h5")
    assert "'layers/dense_1/vars/0'" in str(caught.value)
    assert not (tmp_path / "o.weights.h5").exists()


def test_a_mean_that_overflows_is_refused(tmp_path):
    paths = [
        write_h5(tmp_path / f"{k}.weights.h5", {"layers/x/vars/0": np.array([v], "float16")})
        for k, v in enumerate((60000, -60000))
    ]
    with pytest.raises(IntegrityError, match="overflows float16"):
        ckptavg.merge(paths, tmp_path / "o.weights.h5", coefficients=[1.5, -0.5])


def test_large_float64_values_are_not_taken_for_infinite(tmp_path):
    paths = [
        write_h5(tmp_path / f"{k}.weights.h5", {"layers/x/vars/0": np.full(3, 8e307)})
        for k in range(2)
    ]
    ckptavg.merge(paths, tmp_path / "o.weights.h5")
    assert read_tensors(tmp_path / "o.weights.h5")["layers/x/vars/0"].tolist() == [8e307] * 3
    values = [1.797e308, 0.99 * 1.797e308]
    for path, value in zip(paths, values, strict=True):
        write_h5(path, {"layers/x/vars/0": np.full(3, value)})
    ckptavg.merge(paths, tmp_path / "p.weights.h5")
    expected = values[0] / 2 + values[1] / 2
    assert read_tensors(tmp_path / "p.weights.h5")["layers/x/vars/0"].tolist() == [expected] * 3


def test_different_models_are_told_apart_by_tensor(checkpoints, tmp_path):
    other = tmp_path / "other.weights.h5"
    tiny_model(width=7).save_weights(other)
    with pytest.raises(MismatchError) as caught:
        ckptavg.merge([*checkpoints, other], tmp_path / "o.weights.h5")
    message = str(caught.value)
    assert "'layers/dense_1/vars/0' has shape (4, 3) in" in message
    assert "but (7, 3) in" in message
    tiny_model(batch_norm=False).save_weights(other)
    with pytest.raises(MismatchError, match="but not in"):
        ckptavg.merge([*checkpoints, other], tmp_path / "o.weights.h5")
    assert not (tmp_path / "o.weights.h5").exists()


def test_existing_output_is_kept_unless_told(checkpoints, tmp_path):
    out = tmp_path / "o.weights.h5"
    out.write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        ckptavg.merge(checkpoints, out)
    assert out.read_text() == "precious"
    ckptavg.merge(checkpoints, out, overwrite=True)
    assert_same(out, naive_mean(checkpoints))


def test_a_failed_overwrite_leaves_the_old_output_and_its_record(checkpoints, tmp_path):
    out = tmp_path / "o.weights.h5"
    ckptavg.merge(checkpoints, out)
    before = out.read_bytes(), record_path(out).read_bytes()
    bad = tmp_path / "bad.weights.h5"
    model = tiny_model()
    model.get_layer("head").kernel.assign(np.full((4, 3), np.nan))
    model.save_weights(bad)
    with pytest.raises(IntegrityError):
        ckptavg.merge([*checkpoints, bad], out, overwrite=True)
    assert (out.read_bytes(), record_path(out).read_bytes()) == before


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("o.pt", FormatError, "ends in .weights.h5"),
        ("o.h5", FormatError, "ends in .weights.h5"),
        (".keras", FormatError, "ends in"),
        ("missing/o.weights.h5", OutputError, "does not exist"),
        ("ckpt-0.weights.h5", OutputError, "also one of the checkpoints"),
    ],
)
def test_outputs_that_cannot_be(checkpoints, tmp_path, output, error, message):
    before = checkpoints[0].read_bytes()
    with pytest.raises(error, match=message):
        ckptavg.merge(checkpoints, tmp_path / output, overwrite=True)
    assert checkpoints[0].read_bytes() == before


def test_sources_that_cannot_be(checkpoints, tmp_path):
    out = tmp_path / "o.weights.h5"
    (tmp_path / "empty").mkdir()
    for sources, error, message in (
        ([], RunError, "no checkpoint to average"),
        (tmp_path / "empty", RunError, "holds no checkpoints"),
        (tmp_path / "*.keras", RunError, "no checkpoint matches"),
        (tmp_path / "nowhere", RunError, "there is no checkpoint"),
        ([checkpoints[0], checkpoints[0]], MismatchError, "named twice"),
    ):
        with pytest.raises(error, match=message):
            ckptavg.merge(sources, out)


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ([0.5, 0.5], "2 coefficients for 5 checkpoints"),
        ([0.3] * 5, "sum to 1"),
        ([float("nan"), 1, 0, 0, 0], "finite"),
    ],
)
def test_coefficients_that_cannot_be(checkpoints, tmp_path, coefficients, message):
    with pytest.raises(RecipeError, match=message):
        ckptavg.merge(checkpoints, tmp_path / "o.weights.h5", coefficients=coefficients)


def test_memory_limits_lower_the_threads_and_are_refused_when_too_low(checkpoints, tmp_path):
    large = [
        write_h5(tmp_path / f"{k}.weights.h5", {"layers/x/vars/0": np.zeros(10**7, "float32")})
        for k in range(2)
    ]
    plan = plan_merge(large, tmp_path / "o.weights.h5", jobs=8, max_memory=3 * 10**7)
    assert plan.jobs == 2
    assert plan_merge(large, tmp_path / "o.weights.h5", jobs=1000).jobs == 4  # in 64 MiB
    assert plan.memory <= 3 * 10**7
    with pytest.raises(ResourceError, match="at least"):
        plan_merge(checkpoints, tmp_path / "o.weights.h5", max_memory=1000)
    with pytest.raises(ResourceError, match="jobs is 0"):
        plan_merge(checkpoints, tmp_path / "o.weights.h5", jobs=0)


def test_a_file_that_shrank_since_it_was_saved(trained_run, tmp_path):
    victim = trained_run / "checkpoints" / "epoch-0005.weights.h5"
    os.truncate(victim, victim.stat().st_size - 100)
    with pytest.raises(FormatError, match="not an intact"):
        ckptavg.merge(trained_run, tmp_path / "o.weights.h5")
    victim.unlink()
    with pytest.raises(IntegrityError, match="no file"):
        ckptavg.merge(trained_run, tmp_path / "o.weights.h5")


def test_a_file_of_another_size_than_recorded(trained_run, tmp_path):
    victim = trained_run / "checkpoints" / "epoch-0005.weights.h5"
    with victim.open("ab") as file:
        file.write(b"x")
    with pytest.raises(IntegrityError, match="its record says"):
        ckptavg.merge(trained_run, tmp_path / "o.weights.h5")


@pytest.mark.parametrize("how", ["replaced", "rewritten", "removed"])
def test_a_file_that_changes_during_the_merge(checkpoints, tmp_path, how):
    plan = plan_merge(checkpoints, tmp_path / "o.weights.h5")
    victim, done = checkpoints[2], threading.Event()

    def interfere(_: int) -> None:
        if done.is_set():
            return
        done.set()
        if how == "removed":
            victim.unlink()
        elif how == "rewritten":
            flip_bit(victim, victim.stat().st_size - 1)
        else:
            shutil.copy(checkpoints[0], tmp_path / "new")
            (tmp_path / "new").replace(victim)

    with pytest.raises(IntegrityError, match="was changed while it was read"):
        run_plan(plan, interfere)
    assert not (tmp_path / "o.weights.h5").exists()
    assert not leftovers(tmp_path)


def test_an_interrupt_leaves_nothing(checkpoints, tmp_path):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ckptavg.merge(checkpoints, tmp_path / "o.weights.h5", progress=interrupt)
    assert sorted(tmp_path.iterdir()) == sorted(checkpoints)


def test_progress_counts_every_byte(checkpoints, tmp_path):
    seen = []
    report = ckptavg.merge(checkpoints, tmp_path / "o.weights.h5", progress=seen.append, jobs=1)
    assert sum(seen) == report.plan.bytes_read


def test_a_plan_can_be_pickled_and_run(checkpoints, tmp_path):
    plan = plan_merge(checkpoints, tmp_path / "o.weights.h5")
    assert pickle.loads(pickle.dumps(plan)) == plan
    run_plan(pickle.loads(pickle.dumps(plan)))
    assert_same(tmp_path / "o.weights.h5", naive_mean(checkpoints))


def test_coefficients_that_sum_to_1_within_rounding_are_made_to(checkpoints, tmp_path):
    model, copies = randomize(tiny_model(), 3), []
    for number in range(4):
        copies.append(tmp_path / f"copy-{number}.weights.h5")
        model.save_weights(copies[-1])
    coefficients = [0.2500007, 0.25, 0.15, 0.35]
    report = ckptavg.merge(copies, tmp_path / "o.weights.h5", coefficients=coefficients)
    assert_same(tmp_path / "o.weights.h5", naive_mean(copies[:1]))
    assert sum(source.coefficient for source in report.record.sources) == pytest.approx(
        1, abs=1e-15
    )


def test_an_output_cannot_join_the_run_that_it_is_of(trained_run):
    folder = trained_run / "checkpoints"
    before = sorted(folder.iterdir())
    for name in ("swa.weights.h5", "epoch-0009.weights.h5", "epoch-0004.weights.h5"):
        with pytest.raises(OutputError, match="in the checkpoint folder of a run"):
            ckptavg.merge(trained_run, folder / name, overwrite=True)
    assert sorted(folder.iterdir()) == before
    (folder / "notes.json").write_text("{}")
    assert len(ckptavg.open_run(trained_run).checkpoints) == 4


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_not_replaced(checkpoints, tmp_path, overwrite):
    out = tmp_path / "o.weights.h5"
    record_path(out).write_text('{"mine": 1}')
    with pytest.raises(OutputError, match="is in the way"):
        ckptavg.merge(checkpoints, out, overwrite=overwrite)
    assert record_path(out).read_text() == '{"mine": 1}'
    link = tmp_path / "link.weights.h5"
    link.symlink_to(tmp_path / "elsewhere.weights.h5")
    with pytest.raises(OutputError, match="symbolic link"):
        ckptavg.merge(checkpoints, link, overwrite=overwrite)
    assert link.is_symlink()


def test_damage_to_an_integer_is_called_damage(tmp_path):
    from ckptavg.runs.proof import tensor_records
    from ckptavg.runs.record import now

    paths = []
    for number in range(2):
        path = write_h5(
            tmp_path / f"{number}.weights.h5",
            {"layers/n/vars/0": np.arange(4), "layers/n/vars/1": np.ones(4, "float32")},
        )
        record = Record(path.name, path.stat().st_size, now(), {})
        record.write(record_path(path), tensor_records(path))
        paths.append(path)
    with h5py.File(paths[1], "a") as file:
        file["layers/n/vars/0"][2] = 9
    with pytest.raises(IntegrityError, match=r"1.weights.h5 is damaged"):
        ckptavg.merge(paths, tmp_path / "o.weights.h5")


def test_more_checkpoints_than_files_may_be_open(tmp_path):
    first = write_h5(tmp_path / "0.weights.h5", {"layers/x/vars/0": np.ones(3, "float32")})
    paths = [first] + [
        Path(shutil.copy(first, tmp_path / f"{k}.weights.h5")) for k in range(1, 300)
    ]
    code = (
        "import resource, sys, ckptavg\n"
        "soft, hard = map(int, sys.argv[1:3])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "try: ckptavg.merge(sys.argv[4:], sys.argv[3])\n"
        "except ckptavg.CkptavgError as error: print(error)\n"
    )
    for soft, hard, said in ((128, 4096, ""), (128, 256, "300 files of checkpoints must be open")):
        out = tmp_path / "o.weights.h5"
        result = subprocess.run(
            [sys.executable, "-c", code, str(soft), str(hard), str(out), *map(str, paths)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert said in result.stdout
        assert out.exists() != bool(said)
        out.unlink(missing_ok=True)
        record_path(out).unlink(missing_ok=True)


def test_an_output_without_suffix_gets_that_of_the_checkpoints(checkpoints, tmp_path):
    report = ckptavg.merge(checkpoints, tmp_path / "swa")
    assert report.output == tmp_path / "swa.weights.h5"
    assert report.output.is_file()
    with pytest.raises(FormatError, match="name an output that ends in"):
        ckptavg.merge(checkpoints, tmp_path / "swa.bin")
