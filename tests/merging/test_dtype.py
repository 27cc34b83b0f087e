"""`--dtype`: averages and copies in another precision than that of the checkpoints."""

import json

import keras
import ml_dtypes
import numpy as np
import pytest

import ckptavg
from ckptavg.errors import IntegrityError, RecipeError, SpecError
from ckptavg.formats import open_reader
from ckptavg.merging.reproduce import reproduction
from ckptavg.runs.record_files import record_path
from tests.helpers.command_line import main
from tests.helpers.files import flip_bit, read_tensors, write_h5
from tests.helpers.models import randomize, tiny_data, tiny_model

BLOCK = 8 * 1024 * 1024
X, Y = tiny_data()


def half(tmp_path, dtype="bfloat16", sizes=(3 * BLOCK // 4 + 5, 7, 0, 33), count=3):
    """Checkpoints in half precision, with a tensor of several blocks and small ones beside it."""
    rng = np.random.default_rng(0)
    paths, values = [], []
    for number in range(count):
        tensors = {
            f"layers/l{n}/vars/0": rng.normal(size=size).astype(dtype)
            for n, size in enumerate(sizes)
        }
        tensors["layers/seen/vars/0"] = np.array(5)
        values.append(tensors)
        paths.append(write_h5(tmp_path / f"c-{number}.weights.h5", tensors))
    return paths, values


def mean(values, name):
    """The mean in float64."""
    return sum(tensors[name].astype(np.float64) for tensors in values) / len(values)


@pytest.mark.parametrize("suffix", [".weights.h5", ".safetensors"])
@pytest.mark.parametrize(
    ("stored", "written"),
    [
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("float32", "float16"),
        ("float64", "float32"),
    ],
)
def test_means_are_rounded_once_to_the_dtype(tmp_path, stored, written, suffix):
    small = suffix == ".safetensors"
    paths, values = half(tmp_path, stored, (5, 7, 0, 33) if small else (BLOCK // 4 + 5, 7, 0, 33))
    out = tmp_path / f"o{suffix}"
    report = ckptavg.merge(paths, out, dtype=written)
    found = read_tensors(out)
    for name, tensors in found.items():
        if name.startswith("layers/l"):
            assert tensors.dtype == np.dtype(written)
            expected = mean(values, name).astype(np.float32 if written == "bfloat16" else written)
            np.testing.assert_allclose(
                tensors.astype(float), expected.astype(float), rtol=2.0**-8, atol=1e-7
            )
            if written == "float32":
                assert np.array_equal(tensors, expected)
    assert found["layers/seen/vars/0"] == 5
    assert found["layers/seen/vars/0"].dtype == np.int64
    assert report.record.choice == {"dtype": written}
    with open_reader(out) as reader:
        nbytes = sum(t.nbytes for t in reader.structure.tensors.values())
    assert report.plan.bytes_written == nbytes
    (proven,) = ckptavg.verify(out)
    assert (proven.proof, proven.average) == ("intact", "reproduced")


def test_the_gain_of_averaging_is_kept(tmp_path):
    # 1 and the next bfloat16: their mean is none
    values = [np.array([v], "bfloat16") for v in (1.0, 1.0 + 2.0**-7)]
    paths = [write_h5(tmp_path / f"{n}.h5", {"x/vars/0": v}) for n, v in enumerate(values)]
    paths = [p.rename(tmp_path / f"{p.stem}.weights.h5") for p in paths]
    ckptavg.merge(paths, tmp_path / "same.weights.h5")
    ckptavg.merge(paths, tmp_path / "wide.weights.h5", dtype="float32")
    assert read_tensors(tmp_path / "same.weights.h5")["x/vars/0"] in values
    assert read_tensors(tmp_path / "wide.weights.h5")["x/vars/0"] == 1.0 + 2.0**-8
    rounded = np.array([1.0 + 2.0**-8 + 2.0**-40], "float64")
    paths = [write_h5(tmp_path / "d.weights.h5", {"x/vars/0": rounded})]
    ckptavg.convert(paths[0], tmp_path / "b.weights.h5", dtype="bfloat16")
    found = read_tensors(tmp_path / "b.weights.h5")["x/vars/0"]
    assert found == ml_dtypes.bfloat16(1.0 + 2.0**-7)  # by way of float32 it would be 1


def test_bytes_do_not_depend_on_threads_and_memory(tmp_path):
    paths, _ = half(tmp_path)
    one, other = tmp_path / "one.weights.h5", tmp_path / "other.weights.h5"
    ckptavg.merge(paths, one, dtype="float32", jobs=1)
    ckptavg.merge(paths, other, dtype="float32", jobs=4, coefficients=[1 / 3] * 3)
    assert one.read_bytes() == other.read_bytes()


def test_an_interrupted_merge_is_continued(tmp_path):
    paths, _ = half(tmp_path)
    whole, out = tmp_path / "whole.weights.h5", tmp_path / "out.weights.h5"
    ckptavg.merge(paths, whole, dtype="float32")
    seen = []

    def stop(nbytes):
        seen.append(nbytes)
        if sum(seen) > 3.5 * BLOCK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ckptavg.merge(paths, out, dtype="float32", jobs=1, resume=True, progress=stop)
    report = ckptavg.merge(paths, out, dtype="float32", resume=True)
    assert 0 < report.resumed < 1
    assert out.read_bytes() == whole.read_bytes()
    # another dtype is another merge
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        ckptavg.merge(
            paths, out, dtype="float32", jobs=1, resume=True, progress=stop, overwrite=True
        )
    assert ckptavg.merge(paths, out, dtype="float16", resume=True, overwrite=True).resumed == 0


def test_a_forged_average_is_found_out(tmp_path):
    paths, _ = half(tmp_path, sizes=(40, 7))
    out = tmp_path / "o.weights.h5"
    ckptavg.merge(paths, out, dtype="float32")
    other = tmp_path / "p.weights.h5"
    ckptavg.merge(paths[:2], other, dtype="float32")
    # the bytes of another average, with its digests, under the sources of this one
    made = json.loads(record_path(out).read_text())
    forged = json.loads(record_path(other).read_text())
    out.write_bytes(other.read_bytes())
    record_path(out).write_text(json.dumps({**made, "tensors": forged["tensors"]}))
    with pytest.raises(IntegrityError, match="is not the average of its sources"):
        ckptavg.verify(out)
    # and in a dtype that the record does not name
    ckptavg.merge(paths, out, dtype="float32", overwrite=True)
    made = json.loads(record_path(out).read_text())
    record_path(out).write_text(json.dumps({**made, "choice": {}}))
    with pytest.raises(IntegrityError, match="is not the average of its sources"):
        ckptavg.verify(out)


def test_copies_in_another_dtype(tmp_path):
    (path, *_), (values, *_) = half(tmp_path, sizes=(40, 7))
    out = tmp_path / "o.safetensors"
    report = ckptavg.convert(path, out, dtype="float32")
    for name, tensor in read_tensors(out).items():
        assert np.array_equal(tensor.astype(float), values[name].astype(float))
    assert ckptavg.verify(out)[0].average == "reproduced"
    assert reproduction(ckptavg.Checkpoint.open(out))[0].endswith("--dtype float32")
    assert report.record.choice == {"dtype": "float32"}
    # a conversion is no judge of values, but makes no infinity
    special = {"x/vars/0": np.array([np.nan, 1.0, np.inf], "float32")}
    ckptavg.convert(
        write_h5(tmp_path / "n.weights.h5", special), tmp_path / "m.weights.h5", dtype="float16"
    )
    found = read_tensors(tmp_path / "m.weights.h5")["x/vars/0"]
    np.testing.assert_array_equal(found.astype("float32"), special["x/vars/0"])
    large = {"x/vars/0": np.array([np.nan, 1e30], "float32")}
    with pytest.raises(IntegrityError, match="'x/vars/0' overflows float16"):
        ckptavg.convert(
            write_h5(tmp_path / "l.weights.h5", large), tmp_path / "k.weights.h5", dtype="float16"
        )


def test_damage_is_found(trained_run, tmp_path):
    path = ckptavg.open_run(trained_run).checkpoints[1].path
    with open_reader(path) as reader:
        tensor = next(iter(reader.structure.model_tensors.values()))
    flip_bit(path, tensor.extent.offset)
    with pytest.raises(IntegrityError, match=r"epoch-0004.* is damaged"):
        ckptavg.merge(trained_run, tmp_path / "o.weights.h5", dtype="float16")


def model_of(dtype):
    kept = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dense(3)])
    finally:
        keras.config.set_dtype_policy(kept)
    return model


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_keras_loads_what_was_written(trained_run, tmp_path, dtype):
    model = tiny_model()
    plain = ckptavg.merge(trained_run, tmp_path / "plain.weights.h5").output
    expected = {n: t.astype(float) for n, t in read_tensors(plain).items()}
    for name in ("o.weights.h5", "o.keras"):
        out = ckptavg.merge(trained_run, tmp_path / name, dtype=dtype).output
        found = keras.saving.load_model(out) if name == "o.keras" else randomize(model, 3)
        if name != "o.keras":
            found.load_weights(out)
        found.save_weights(tmp_path / "back.weights.h5")
        for key, values in read_tensors(tmp_path / "back.weights.h5").items():
            if key in expected:
                np.testing.assert_allclose(
                    values.astype(float), expected[key], rtol=2.0**-8, atol=1e-7
                )
        found.predict(X[:4], verbose=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensorflow_restores_what_was_written(tmp_path, dtype):
    import tensorflow as tf

    prefixes, rows = [], []
    for seed in range(2):
        model = randomize(model_of("float32"), seed)
        rows.append([v.numpy() for v in model.weights])
        prefixes.append(tf.train.Checkpoint(model=model).write(str(tmp_path / f"c-{seed}")))
    ckptavg.merge(prefixes, tmp_path / "o", dtype=dtype)
    model = model_of(dtype)
    tf.train.Checkpoint(model=model).read(str(tmp_path / "o")).assert_existing_objects_matched()
    for variable, one, other in zip(model.weights, *rows, strict=True):
        assert variable.dtype == dtype
        found = keras.ops.convert_to_numpy(variable).astype(float)
        np.testing.assert_allclose(found, (one + other) / 2.0, rtol=2.0**-7)


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths, _ = half(tmp_path, sizes=(40, 7))
    advice = "means are rounded to bfloat16: --dtype float32 keeps what averaging gains"
    for dtype, advised in (
        ((), True),
        (("--dtype", "float32"), False),
        (("--dtype", "bfloat16"), False),
    ):
        for more in (("--dry-run", "--overwrite"), ("--overwrite",)):
            status, out, err = main("merge", *paths, "-o", "o.weights.h5", *dtype, *more)
            assert status == 0, err
            assert (advice in out) == advised
    assert (
        "mean of 3, as float32"
        in main("merge", *paths, "-o", "p.weights.h5", "--dtype", "float32", "--dry-run")[1]
    )
    status, out, err = main("convert", paths[0], "c.safetensors", "--dtype", "float16")
    assert status == 0, err
    ckptavg.merge(paths, "r.weights.h5", dtype="float32")
    made = reproduction(ckptavg.Checkpoint.open("r.weights.h5"))
    assert "--dtype float32" in made[0]
    status, _, err = main(*made[0].split()[1:], "--overwrite")
    assert status == 0, err
    for options, error in (
        ({"dtype": "float64"}, RecipeError),
        ({"dtype": "float32", "data": X, "model": tiny_model()}, SpecError),
    ):
        with pytest.raises(error, match="dtype"):
            ckptavg.merge(paths, "x.weights.h5", **options)
