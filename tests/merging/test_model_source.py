"""Where an average gets its configuration and its assets from."""

from pathlib import Path

import keras
import pytest

import ckptavg
from ckptavg.errors import FormatError, MismatchError
from tests.helpers.command_line import main
from tests.helpers.files import rewrite_zip
from tests.helpers.models import randomize, tiny_data, tiny_model


@pytest.fixture
def archives(tmp_path) -> list[Path]:
    """What ModelCheckpoint writes of a training whose learning rate falls."""
    paths = [tmp_path / f"{epoch}.keras" for epoch in (1, 2, 3)]
    model = tiny_model()
    for path in paths:
        model.optimizer.learning_rate = 0.01 / int(path.stem)
        randomize(model, int(path.stem)).save(path)
    return paths


def with_text(vocabulary: list[str], path: Path) -> Path:
    layers = [
        keras.Input((1,), dtype="string"),
        keras.layers.TextVectorization(output_sequence_length=3, vocabulary=None, name="text"),
        keras.layers.Embedding(9, 2),
    ]
    layers[1].adapt(vocabulary)
    keras.Sequential(layers, name="words").save(path)
    return path


def config_of(path: Path) -> dict:
    return keras.saving.load_model(path, compile=False).get_config()


def test_it_is_that_of_the_checkpoints_and_the_last_ones_where_training_differs(archives, tmp_path):
    out = tmp_path / "out.keras"
    status, text, err = main("merge", *archives, "-o", out)
    assert status == 0, err
    assert (
        "model       that of 3.keras; 1.keras differs in 'learning_rate' (0.01 and 0.00333" in text
    )
    model = keras.saving.load_model(out)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01 / 3)
    assert config_of(out) == config_of(archives[-1])
    x, y = tiny_data()
    model.evaluate(x, y, verbose=0)
    (found,) = ckptavg.verify(out)
    assert (found.average, found.unproven) == ("reproduced", ())
    ckptavg.convert(archives[0], tmp_path / "b.keras")
    assert config_of(tmp_path / "b.keras") == config_of(archives[0])


def test_without_a_difference_nothing_is_said(archives, tmp_path):
    assert ckptavg.plan_merge(archives[1:2], tmp_path / "o.keras").model_note == ""
    assert ckptavg.plan_merge(archives, tmp_path / "o.weights.h5").model_file == archives[-1]


def test_another_network_is_not_averaged_into_one(archives, tmp_path):
    with archives[0].open("rb") as file:
        config = file.read().partition(b'{"module"')[2].partition(b"PK")[0]
    changed = b'{"module"' + config.replace(b'"activation": "relu"', b'"activation": "tanh"')
    other = rewrite_zip(archives[0], tmp_path / "other.keras", {"config.json": changed})
    with pytest.raises(MismatchError, match=r"differ in 'activation' \('tanh' and 'relu'\)"):
        ckptavg.merge([other, archives[1]], tmp_path / "o.keras")
    ckptavg.merge([other, archives[1]], tmp_path / "o.weights.h5")
    ckptavg.merge([other, archives[1]], tmp_path / "o.keras", model=other)
    assert config_of(tmp_path / "o.keras") == config_of(other)


def test_assets_come_along(tmp_path):
    one = with_text(["a b", "c"], tmp_path / "1.keras")
    two = with_text(["a b", "c"], tmp_path / "2.keras")
    expected = keras.saving.load_model(two).layers[0].get_vocabulary()
    for number, options in enumerate(({}, {"model": one})):
        out = tmp_path / f"out{number}.keras"
        report = ckptavg.merge([one, two], out, **options)
        assert sum(name.startswith("assets/") for name in report.record.parts) >= 1
        model = keras.saving.load_model(out)
        assert model.layers[0].get_vocabulary() == expected
        assert [found.average for found in ckptavg.verify(out)] == ["reproduced"]
    other = with_text(["a x", "c"], tmp_path / "3.keras")
    with pytest.raises(MismatchError, match=r"'assets/.*' differs between .*1.keras and .*3.keras"):
        ckptavg.merge([one, other], tmp_path / "o.keras")
    ckptavg.merge([one, other], tmp_path / "o.keras", model=one)


def test_models_that_were_built_twice_are_the_same(tmp_path):
    def built(path: Path, *, is_swapped: bool = False) -> Path:
        given = keras.Input((3,))
        one = keras.layers.Dense(3)(given)
        two = keras.layers.Dense(3)(one)
        pair = (two, one) if is_swapped else (one, two)
        keras.Model(given, keras.layers.Subtract()(pair)).save(path)
        return path

    one, two = built(tmp_path / "1.keras"), built(tmp_path / "2.keras")
    assert config_of(one) != config_of(two)
    ckptavg.merge([one, two], tmp_path / "o.keras")
    assert config_of(tmp_path / "o.keras") == config_of(two)
    other = built(tmp_path / "3.keras", is_swapped=True)
    with pytest.raises(MismatchError, match=r"the models of .* and .* differ in"):
        ckptavg.merge([one, other], tmp_path / "p.keras")


_DEEP = b'{"class_name": "A", "config": %s1%s}' % (b'{"a":' * 600, b"}" * 600)


@pytest.mark.parametrize(
    "config", [b'["class_name"]', b'{"class_name": "A", "compile_config": 1}', _DEEP]
)
def test_a_configuration_of_another_form_is_damage(archives, tmp_path, config):
    odd = rewrite_zip(archives[0], tmp_path / "odd.keras", {"config.json": config})
    with pytest.raises(FormatError, match=r"configuration .*odd.keras is damaged"):
        ckptavg.plan_merge([odd, *archives], tmp_path / "o.weights.h5")
