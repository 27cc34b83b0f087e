"""`verify` and `convert`: proofs after the fact, and the same tensors in another format."""

import json
import re
import shutil
import zipfile
from dataclasses import replace
from zipfile import BadZipFile

import keras
import numpy as np
import pytest

import ckptavg
from ckptavg.errors import FormatError, IntegrityError, RecordError, RunError
from ckptavg.formats import open_reader
from ckptavg.runs.digest import digest
from ckptavg.runs.record import Record
from ckptavg.runs.record_files import record_path
from tests.helpers.files import flip_bit, read_tensors, rewrite_zip, write_h5
from tests.helpers.models import evaluator, randomize, tiny_model


def test_a_run_is_intact_and_its_average_is_reproduced(trained_run, tmp_path):
    out = tmp_path / "swa.weights.h5"
    ckptavg.merge(trained_run, out, coefficients=[0.1, 0.2, 0.3, 0.4])
    found = ckptavg.verify([trained_run, out])
    assert [v.proof for v in found] == ["intact"] * 5
    assert [v.average for v in found] == [None] * 4 + ["reproduced"]


@pytest.mark.parametrize("name", ["x" * 300, "../" * 2000, "/", ""])
def test_names_in_a_record_that_no_file_can_have(checkpoints, tmp_path, name):
    out = tmp_path / "swa.weights.h5"
    ckptavg.merge(checkpoints, out)
    record = json.loads(record_path(out).read_text())
    record["model"] = record["sources"][0]["path"] = name
    record_path(out).write_text(json.dumps(record))
    ckptavg.merge(out, tmp_path / "again.weights.h5")
    assert [found.average for found in ckptavg.verify(out)] == ["not recomputed"]


def test_files_without_record_prove_nothing(checkpoints):
    assert {v.proof for v in ckptavg.verify(checkpoints)} == {"unverified"}


def test_a_record_with_a_damaged_mark_is_not_taken_for_none(trained_run, tmp_path):
    out = tmp_path / "swa.weights.h5"
    ckptavg.merge(trained_run, out)
    epoch = trained_run / "checkpoints" / "epoch-0004.weights.h5"
    for path, record in ((out, record_path(out)), (epoch, epoch.with_name("epoch-0004.json"))):
        flip_bit(record, record.read_bytes().index(b"ckptavg-record"))
        with pytest.raises(RecordError, match=r"\.json is not a record of ckptavg, or is damaged"):
            ckptavg.verify(path)
        with pytest.raises(RecordError, match="is damaged"):
            ckptavg.merge([path], tmp_path / "o.weights.h5")
    with pytest.raises(RecordError, match=r"epoch-0004\.json is not a record"):
        ckptavg.merge(trained_run, tmp_path / "o.weights.h5")


def test_a_flipped_bit_is_named(trained_run):
    victim = trained_run / "checkpoints" / "epoch-0004.weights.h5"
    with open_reader(victim) as reader:
        flip_bit(victim, reader.structure.tensors["layers/dense/vars/0"].extent.offset)
    with pytest.raises(IntegrityError, match=r"epoch-0004.weights.h5 is damaged: block 0 of"):
        ckptavg.verify(trained_run)


def test_an_average_of_other_sources_is_found_out(checkpoints, tmp_path):
    out = tmp_path / "swa.weights.h5"
    ckptavg.merge(checkpoints, out)
    randomize(tiny_model(), 77).save_weights(checkpoints[2])
    with pytest.raises(IntegrityError, match=r"ckpt-2.weights.h5 is not what was averaged"):
        ckptavg.verify(out)
    checkpoints[2].unlink()
    (found,) = ckptavg.verify(out)
    assert found.average == "not recomputed"
    assert "1 of 5 sources are gone" in found.reason


def test_a_forged_average_is_found_out(checkpoints, tmp_path):
    # The record fits the file, but the file is not the mean of its sources.
    out, other = tmp_path / "swa.weights.h5", tmp_path / "other.weights.h5"
    ckptavg.merge(checkpoints, out)
    ckptavg.merge(checkpoints[:2], other)
    record, tensors = Record.read(record_path(out)), Record.read(record_path(other)).read_tensors()
    shutil.copy(other, out)
    record.write(record_path(out), tensors)
    with pytest.raises(IntegrityError, match="is not the average of its sources"):
        ckptavg.verify(out)


def test_an_average_with_fresh_statistics_is_told_apart(checkpoints, tmp_path):
    from ckptavg.batch_norm.refresh import merge_into_model
    from ckptavg.commands.merge import plan_merge
    from tests.helpers.models import tiny_data

    out = tmp_path / "swa.keras"
    plan = plan_merge(checkpoints, out, live_model=True)
    merge_into_model(plan, model=evaluator(), data=tiny_data()[0])
    (found,) = ckptavg.verify(out)
    assert found.average == "reproduced"
    assert "but for 4 BatchNorm statistics that were re-estimated" in found.reason


def excuse(out, name, value):
    """Changes a tensor of an average, and lets its record say that a pass has changed it."""
    with open_reader(out) as reader:
        tensor = reader.structure.tensors[name]
    with out.open("r+b") as file:
        file.seek(tensor.extent.offset)
        file.write(np.full(tensor.shape, value, "float32").tobytes())
    record = Record.read(record_path(out))
    tensors, state = dict(record.read_tensors()), record.batch_norm
    data = np.full(tensor.shape, value, "float32").tobytes()
    tensors[name] = replace(tensors[name], digests=(digest(data).hex(),))
    state = replace(state, statistics="fresh", samples=8, tensors=(*state.tensors, name))
    replace(record, batch_norm=state).write(record_path(out), tensors)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_record_excuses_statistics_only(trained_run, checkpoints, tmp_path, recorded):
    out = tmp_path / "swa.weights.h5"
    ckptavg.merge(trained_run if recorded else checkpoints, out)
    excuse(out, "layers/batch_normalization/vars/3", 2.0)
    assert "but for 1 BatchNorm statistics" in ckptavg.verify(out)[0].reason
    for name in ("layers/dense/vars/1", "layers/batch_normalization/vars/1"):
        ckptavg.merge(trained_run if recorded else checkpoints, out, overwrite=True)
        excuse(out, name, 2.0)
        with pytest.raises(IntegrityError, match=f"not the average of its sources: '{name}'"):
            ckptavg.verify(out)


class Named(keras.Model):
    """A model whose files call its layers by attributes, not by their classes."""

    def __init__(self):
        super().__init__()
        self.first, self.scale = keras.layers.Dense(4), keras.layers.BatchNormalization(name="n")

    def call(self, inputs, training=False):
        return self.scale(self.first(inputs), training=training)


def test_statistics_of_layers_with_other_names_are_known_by_their_shapes(tmp_path):
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    model, paths = Named(), []
    model(x)
    for seed in range(2):
        paths.append(tmp_path / f"c-{seed}.weights.h5")
        randomize(model, seed).save_weights(paths[-1])
    out = tmp_path / "swa.weights.h5"
    ckptavg.merge(paths, out, model=model, data=x)
    assert "but for 2 BatchNorm statistics" in ckptavg.verify(out)[0].reason
    excuse(out, "first/vars/1", 2.0)
    with pytest.raises(IntegrityError, match="not the average of its sources: 'first/vars/1'"):
        ckptavg.verify(out)


@pytest.mark.parametrize("is_mended", [False, True])
def test_another_configuration_in_an_average_is_found_out(trained_run, tmp_path, is_mended):
    out = tmp_path / "swa.keras"
    ckptavg.merge(trained_run, out)
    data = out.read_bytes()
    assert data.count(b'"activation": "relu"') == 1
    out.write_bytes(data.replace(b'"activation": "relu"', b'"activation": "tanh"'))
    if is_mended:
        with zipfile.ZipFile(tmp_path / "swa.keras") as archive, pytest.raises(BadZipFile):
            archive.read("config.json")
        config = data[data.index(b'{"module"') :].partition(b"PK")[0]
        changed = config.replace(b'"activation": "relu"', b'"activation": "tanh"')
        out.write_bytes(data)
        rewrite_zip(out, tmp_path / "new", {"config.json": changed}).rename(out)
        assert len(data) == out.stat().st_size
    for command in (
        lambda: ckptavg.verify(out),
        lambda: ckptavg.merge(out, tmp_path / "o.keras"),
        lambda: ckptavg.convert(out, tmp_path / "o.weights.h5"),
    ):
        with pytest.raises(IntegrityError, match=r"swa.keras is damaged: its '?config.json"):
            command()


def test_another_configuration_in_a_whole_model_of_keras_2_is_found_out(tmp_path):
    paths = [tmp_path / f"{seed}.h5" for seed in range(2)]
    for seed, path in enumerate(paths):
        randomize(evaluator(), seed).save(path)
    out = tmp_path / "swa.h5"
    assert set(ckptavg.merge(paths, out).record.parts) > {"model_config", "keras_version"}
    assert [found.average for found in ckptavg.verify(out)] == ["reproduced"]
    data = out.read_bytes()
    out.write_bytes(data.replace(b'"activation": "relu"', b'"activation": "tanh"'))
    with pytest.raises(IntegrityError, match="its 'model_config' is not what was saved"):
        ckptavg.verify(out)


def test_another_configuration_beside_a_run_is_found_out(trained_run, tmp_path):
    config, out = trained_run / "model.json", tmp_path / "swa.weights.h5"
    ckptavg.merge(trained_run, out)
    config.write_text(config.read_text().replace('"relu"', '"tanh"'))
    for command in (
        lambda: ckptavg.verify(trained_run),
        lambda: ckptavg.verify(out),
        lambda: ckptavg.merge(trained_run, tmp_path / "o.keras"),
    ):
        with pytest.raises(IntegrityError, match=rf"^{re.escape(str(config))} is not the model"):
            command()
    # Whoever names it wants it; and weights need none.
    ckptavg.merge(trained_run, tmp_path / "o.keras", model=config)
    ckptavg.merge(trained_run, tmp_path / "o.weights.h5")
    config.unlink()
    assert [found.proof for found in ckptavg.verify(out)] == ["intact"]


def test_integers_that_agreed_are_no_obstacle(tmp_path):
    paths = [
        write_h5(
            tmp_path / f"{k}.weights.h5",
            {"x/vars/0": np.float32([k, 1]), "x/vars/1": np.int32([7])},
        )
        for k in range(3)
    ]
    out = tmp_path / "o.weights.h5"
    ckptavg.merge(paths, out)
    assert ckptavg.verify(out)[0].average == "reproduced"


def test_a_conversion_keeps_every_bit_and_what_is_known(trained_run, tmp_path):
    source = trained_run / "checkpoints" / "epoch-0005.weights.h5"
    there, back = tmp_path / "a.keras", tmp_path / "b.weights.h5"
    ckptavg.convert(source, there)
    report = ckptavg.convert(there, back)
    one, two = read_tensors(source), read_tensors(back)
    assert list(one) == list(two)
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    former, record = Record.read(source.with_name("epoch-0005.json")), report.record
    for fact in ("epoch", "step", "learning_rate", "metrics", "batch_norm"):
        assert getattr(record, fact) == getattr(former, fact)
    assert (record.recipe, report.unverified) == ("copy", ())
    assert [v.average for v in ckptavg.verify([there, back])] == ["reproduced"] * 2
    tiny_model().load_weights(back)


def test_a_conversion_is_no_judge_of_values(tmp_path):
    values = np.float32([np.nan, np.inf, -0.0, 1e-45])
    path = write_h5(tmp_path / "a.weights.h5", {"x/vars/0": values, "x/vars/1": np.int8([1])})
    ckptavg.convert(path, tmp_path / "b.weights.h5")
    assert read_tensors(tmp_path / "b.weights.h5")["x/vars/0"].tobytes() == values.tobytes()


def test_conversions_that_cannot_be(trained_run, checkpoints, tmp_path):
    with pytest.raises(RunError, match="convert them one by one"):
        ckptavg.convert(trained_run, tmp_path / "o.weights.h5")
    with pytest.raises(FormatError, match="needs the configuration of the model"):
        ckptavg.convert(checkpoints[0], tmp_path / "o.keras")
