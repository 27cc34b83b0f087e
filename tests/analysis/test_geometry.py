"""The geometry of checkpoints against plain numpy over stacked weights, and what it refuses."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest

import ckptavg
from ckptavg import analysis
from ckptavg.analysis import batch_norm_shift, measure_geometry
from ckptavg.analysis.geometry import measure as measuring
from ckptavg.errors import (
    CkptavgError,
    FormatError,
    IntegrityError,
    MemoryLimitError,
    MismatchError,
    RecipeError,
    RunError,
    SpecError,
)
from ckptavg.formats import Structure, open_reader
from ckptavg.formats.layers import layer_of, moving_statistics
from ckptavg.formats.tensors import TensorInfo
from ckptavg.merging import memory
from ckptavg.recipes import Recipe
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.record import BatchNormRecord
from tests.helpers.files import MiB, flip_bit, read_tensors, sparse_checkpoints, write_h5
from tests.helpers.models import evaluator, randomize, tiny_data, tiny_model
from tests.helpers.processes import run_blocked

STATISTICS = tuple(
    f"layers/{layer}batch_normalization/vars/{number}"
    for layer in ("", "sequential/layers/")
    for number in (2, 3)
)
"""Of the tiny model."""


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def walked(request, tmp_path_factory) -> Path:
    """A folder with six checkpoints of a tiny Keras model that walk away from a point.

    Some are therefore near to each other.
    """
    folder = tmp_path_factory.mktemp("walk") / "checkpoints"
    folder.mkdir()
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    try:
        model = randomize(tiny_model(), 0)
    finally:
        keras.config.set_dtype_policy(former)
    rng = np.random.default_rng(1)
    for number in range(6):
        keras.saving.save_weights(model, folder / f"epoch-{number + 1}.weights.h5")
        for variable in model.weights:
            if "float" in variable.dtype:
                value = keras.ops.convert_to_numpy(variable.value).astype("float64")
                variable.assign(value + 0.05 * np.abs(rng.normal(size=value.shape)))
    return folder


@pytest.fixture
def walk(walked, tmp_path) -> list[Path]:
    """Copies of them, in their order."""
    return [Path(shutil.copy(path, tmp_path)) for path in sorted(walked.iterdir())]


def stacked(paths: list[Path], layer: str | None = None) -> np.ndarray:
    """(checkpoints, weights) float64."""
    rows = []
    for path in paths:
        tensors = read_tensors(path)
        chosen = [
            tensors[name].astype("f8").ravel()
            for name in sorted(tensors)
            if name not in STATISTICS
            and not name.startswith("optimizer")
            and "seed" not in name
            and layer in (None, layer_of(name))
        ]
        rows.append(np.concatenate(chosen))
    return np.array(rows)


def norms(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows, axis=-1)


def test_every_measure_is_that_of_numpy(walk):
    geometry = measure_geometry(walk)
    assert geometry.left_out == STATISTICS
    for layer in (None, *geometry.layers):
        x = stacked(walk, layer)
        if layer is not None:
            assert geometry.parameters[geometry.layers.index(layer)] == x.shape[1]
        distances = norms(x[:, None] - x)
        found = geometry.distances(layer).values
        np.testing.assert_allclose(found, distances, rtol=1e-9, atol=1e-12)
        cosines = x @ x.T / np.outer(norms(x), norms(x))
        np.testing.assert_allclose(geometry.cosines(layer).values, cosines, rtol=1e-12)
        to_mean = norms(x - x.mean(axis=0))
        np.testing.assert_allclose(geometry.to_mean(layer).values, to_mean, rtol=1e-9)
        np.testing.assert_allclose(geometry.norms(layer).values, norms(x), rtol=1e-12)
        steps = norms(np.diff(x, axis=0))
        np.testing.assert_allclose(geometry.step_sizes(layer).values, [np.nan, *steps], rtol=1e-9)
        straight = norms(x[-1] - x[0]) / steps.sum()
        assert geometry.straightness(layer) == pytest.approx(straight, rel=1e-9)
        if layer is not None:
            number = geometry.layers.index(layer)
            found = geometry.drift().values[number]
            np.testing.assert_allclose(found, norms(x - x[0]) / norms(x[0]), atol=1e-12)
            centre = x.mean(axis=0)
            found = geometry.drift("mean").values[number]
            np.testing.assert_allclose(found, norms(x - centre) / norms(centre), rtol=1e-9)
    assert sum(geometry.parameters) == stacked(walk).shape[1]


def test_the_trajectory_is_the_singular_vectors_of_numpy(walk):
    x = stacked(walk)
    u, s, axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    found = measure_geometry(walk).trajectory({"some": [0.5, 0.25, 0.25, 0, 0, 0]})
    signs = np.sign(u[-1, :2])
    np.testing.assert_allclose(found.coordinates, signs * u[:, :2] * s[:2], rtol=1e-7, atol=1e-9)
    assert (found.coordinates[-1] > 0).all()
    np.testing.assert_allclose(found.explained, s[:5] ** 2 / (s**2).sum(), rtol=1e-8)
    assert found.explained.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(found.off_plane, norms((u * s)[:, 2:]), rtol=1e-6, atol=1e-9)
    point = np.array([0.5, 0.25, 0.25]) @ x[:3] - x.mean(axis=0)
    on_plane = signs * (axes[:2] @ point)
    np.testing.assert_allclose(found.averages["some"], on_plane, rtol=1e-7, atol=1e-9)
    off = np.sqrt(point @ point - on_plane @ on_plane)
    assert found.averages_off_plane["some"] == pytest.approx(off, rel=1e-6)


@pytest.mark.parametrize("change", ["pieces of 7", "one thread", "a tight limit"])
def test_neither_pieces_nor_threads_nor_memory_matter(walk, monkeypatch, change):
    expected = measure_geometry(walk)
    limit = None
    if change == "pieces of 7":
        monkeypatch.setattr(measuring, "_PIECES", 0)
        monkeypatch.setattr(measuring, "_FEWEST", 7)
    elif change == "one thread":
        monkeypatch.setattr(memory, "_DEFAULT_JOBS", 1)
    else:
        with pytest.raises(MemoryLimitError, match="at least") as caught:
            measure_geometry(walk, max_memory=1)
        limit = caught.value.least
        with pytest.raises(MemoryLimitError):
            measure_geometry(walk, max_memory=limit - 1)
    found = measure_geometry(walk, max_memory=limit)
    for name in ("gram", "along", "mean_squares"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-11)


def test_the_order_of_checkpoints_is_that_of_rows(walk):
    order = [3, 0, 5, 1, 4, 2]
    expected, found = measure_geometry(walk), measure_geometry([walk[n] for n in order])
    assert (
        found.labels == tuple(expected.labels[n] for n in order) == ("4", "1", "6", "2", "5", "3")
    )
    np.testing.assert_allclose(found.gram, expected.gram[:, order][:, :, order], atol=1e-12)
    np.testing.assert_allclose(found.along, expected.along[:, order], atol=1e-12)


def test_many_regions_in_threads_are_those_of_numpy(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5_000_000)).astype("float32")  # three blocks each
    paths = [
        write_h5(tmp_path / f"{n}.weights.h5", {"layers/dense/vars/0": row})
        for n, row in enumerate(x)
    ]
    seen = []
    geometry = measure_geometry(paths, progress=seen.append)
    assert sum(seen) == x.nbytes
    deviations = x.astype("f8") - x.astype("f8").mean(axis=0)
    np.testing.assert_allclose(geometry.gram[0], deviations @ deviations.T, rtol=1e-10, atol=1e-6)


def triangle(folder: Path) -> list[Path]:
    """Three checkpoints whose distances are 3, 4 and 5, around a point far away."""
    origin = np.array([1000.0, -2000.0, 500.0])
    corners = [(0, 0, 0), (3, 0, 0), (3, 4, 0)]
    return [
        write_h5(folder / f"{name}.weights.h5", {"layers/dense/vars/0": origin + corner})
        for name, corner in zip("abc", corners, strict=True)
    ]


def test_a_right_triangle(tmp_path):
    geometry = measure_geometry(triangle(tmp_path), averages={"middle": [0.5, 0.0, 0.5]})
    distances = geometry.distances().to_frame()
    assert distances.loc["a", "b"] == pytest.approx(3, rel=1e-12)
    assert distances.loc["b", "c"] == pytest.approx(4, rel=1e-12)
    assert distances.loc["a", "c"] == pytest.approx(5, rel=1e-12)
    # Thales: the middle of the hypotenuse is as far from all corners.
    assert distances.loc["middle"].tolist() == pytest.approx([2.5, 2.5, 2.5, 0.0], rel=1e-12)
    assert geometry.straightness() == pytest.approx(5 / 7, rel=1e-12)
    found = geometry.trajectory()
    assert found.explained.tolist() == pytest.approx([found.explained[0], 1 - found.explained[0]])
    np.testing.assert_allclose(found.off_plane, 0.0, atol=1e-12)
    assert found.averages_off_plane["middle"] == pytest.approx(0.0, abs=1e-12)
    sides = norms(np.roll(found.coordinates, -1, axis=0) - found.coordinates)
    np.testing.assert_allclose(sides, [3, 4, 5], rtol=1e-12)
    middle = (found.coordinates[0] + found.coordinates[2]) / 2
    np.testing.assert_allclose(found.averages["middle"], middle, atol=1e-12)


def test_an_average_is_where_its_merged_file_lies(walk, tmp_path):
    coefficients = [0.4, 0.3, 0.0, 0.1, 0.0, 0.2]
    merged = tmp_path / "average" / "some.weights.h5"
    merged.parent.mkdir()
    ckptavg.merge(walk, merged, coefficients=coefficients)
    ema = tmp_path / "average" / "ema.weights.h5"
    ckptavg.merge(walk, ema, recipe="ema:0.5")
    wanted = {"some": merged, "ema": ema}
    geometry = measure_geometry(walk, averages=wanted)
    np.testing.assert_allclose(geometry.averages["some"], coefficients)
    by_numbers = {"some": coefficients, "ema": Recipe("ema", decay=0.5)}
    for name, found in measure_geometry(walk, averages=by_numbers).averages.items():
        np.testing.assert_allclose(found, geometry.averages[name])
    beside = measure_geometry([*walk, merged, ema])
    # The files were rounded to their dtype, in which their own weights are so far apart.
    coarse = "bfloat16" in {t.dtype for t in structure_of(walk[0]).tensors.values()}
    close = {"atol": 0.3} if coarse else {"rtol": 1e-6, "atol": 1e-6}
    for layer in (None, *geometry.layers):
        for name in ("distances", "cosines"):
            found = getattr(geometry, name)(layer).values
            expected = getattr(beside, name)(layer).values
            np.testing.assert_allclose(found, expected, **close)
    x = stacked([*walk, merged])
    expected = norms(x[:6] - x[6])
    found = geometry.distances().to_frame().loc["some", list(geometry.labels)]
    np.testing.assert_allclose(found, expected, **close)


def structure_of(path: Path) -> Structure:
    with open_reader(path) as reader:
        return reader.structure


def test_files_that_are_no_average_of_these_checkpoints(walk, tmp_path):
    out = tmp_path / "average.weights.h5"
    ckptavg.merge(walk[:3], out)
    for average, others, error, message in (
        (out, walk[1:], RunError, "epoch-1.weights.h5, which is not among the checkpoints"),
        (walk[0], walk, RunError, "has no record of its sources"),
        ([0.5, 0.5], walk, RecipeError, "6 checkpoints"),
        ([1, 1, 0, 0, 0, 0], walk, RecipeError, "must sum to 1"),
    ):
        with pytest.raises(error, match=message):
            measure_geometry(others, averages={"a": average})
    geometry = measure_geometry(walk)
    with pytest.raises(SpecError, match="'3' is the name of an average and of a checkpoint"):
        geometry.distances(averages={"3": [1, 0, 0, 0, 0, 0]})
    with pytest.raises(RecipeError, match="must sum to 1"):
        geometry.trajectory({"a": [1, 1, 0, 0, 0, 0]})


def test_equal_points_are_no_distance_apart_and_zero_has_no_direction(tmp_path):
    rng = np.random.default_rng(0)
    row, other = rng.normal(size=(2, 999)).astype("float32")
    paths = [
        write_h5(
            tmp_path / f"{n}.weights.h5",
            {"layers/dense/vars/0": value, "layers/dense_1/vars/0": np.float32([bias, bias])},
        )
        for n, (value, bias) in enumerate(((row, 0), (other, 1), (row, 0), (0 * row, 2)))
    ]
    geometry = measure_geometry(paths)
    distances = geometry.distances().values
    assert distances[0, 2] == distances[2, 0] == 0.0
    assert (np.diag(distances) == 0).all()
    assert geometry.norms("layers/dense").values[3] == 0.0
    cosines = geometry.cosines("layers/dense").values
    assert np.isnan(cosines[3]).all()
    assert cosines[0, 2] == pytest.approx(1.0)
    assert np.isnan(geometry.drift().values[1]).all()  # its first checkpoint is at 0
    assert geometry.drift("mean").values[1] == pytest.approx([1.0, 1 / 3, 1.0, 5 / 3])


def test_a_path_on_its_way_is_told_from_a_random_walk_and_from_rest(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(12, 400))
    line = np.linspace(0, 12, 12)[:, None] * rng.normal(size=400)
    for name, rows, expected in (
        ("straight", 50 + line + 0.3 * noise, True),
        ("walk", 50 + np.cumsum(noise, axis=0), False),
        ("rest", 50 + noise, False),
        ("two", 50 + line[:2], False),  # two points are always on a line
        ("one", line[1:2], False),
        ("equal", np.ones((3, 400)), False),
    ):
        paths = [
            write_h5(tmp_path / f"{name}-{n}.weights.h5", {"layers/dense/vars/0": row})
            for n, row in enumerate(rows)
        ]
        assert measure_geometry(paths).on_its_way == expected, name


def test_trajectories_of_few_points(tmp_path):
    a, b, _ = triangle(tmp_path)
    found = measure_geometry([a, b], averages={"middle": [0.5, 0.5]}).trajectory()
    np.testing.assert_allclose(found.coordinates, [[-1.5, 0], [1.5, 0]], atol=1e-12)
    assert found.averages["middle"] == pytest.approx((0.0, 0.0))
    assert found.explained.tolist() == [1.0, 0.0]
    assert measure_geometry([a, b]).straightness() == 1.0
    assert np.isnan(measure_geometry([a]).straightness())
    found = measure_geometry([a]).trajectory()
    assert found.coordinates.tolist() == [[0.0, 0.0]]
    assert found.explained.tolist() == [0.0, 0.0]


def test_names_and_places_of_checkpoints(trained_run, tmp_path):
    geometry = measure_geometry(trained_run)
    assert geometry.labels == ("3", "4", "5", "6")
    assert geometry.position_unit == "step"
    assert geometry.positions == tuple(c.record.step for c in geometry.checkpoints)
    paths = triangle(tmp_path)
    assert measure_geometry(paths).labels == ("a", "b", "c")
    assert measure_geometry(paths).position_unit == "checkpoint"
    (tmp_path / "more").mkdir()
    twins = [*paths[:1], paths[1].rename(tmp_path / "more" / "a.weights.h5")]
    assert measure_geometry(twins).labels == tuple(map(str, twins))
    numbered = [p.rename(tmp_path / f"m-{n}.weights.h5") for n, p in enumerate(twins, 7)]
    assert measure_geometry(numbered).labels == ("7", "8")
    assert measure_geometry(numbered).position_unit == "epoch"


class Wrapped(keras.Model):
    """A subclassed model: its files call layers by their attributes."""

    def __init__(self):
        super().__init__()
        self.a_named = keras.layers.BatchNormalization(name="mine")
        self.default = keras.layers.BatchNormalization(scale=False)
        self.extra = keras.layers.BatchNormalization(renorm=True)
        self.bare = keras.layers.BatchNormalization(center=False, scale=False)
        self.out = keras.layers.Dense(2)

    def call(self, x, training=False):
        for layer in (self.a_named, self.default, self.extra, self.bare):
            x = layer(x, training=training)
        return self.out(x)


def test_statistics_are_told_by_records_where_names_do_not(tmp_path, monkeypatch):
    model = Wrapped()
    model(np.zeros((2, 3), "float32"))
    paths = []
    for seed in range(2):
        paths.append(tmp_path / f"{seed}.weights.h5")
        randomize(model, seed).save_weights(paths[-1])
    told = {
        "default": ("default/vars/1", "default/vars/2"),
        "extra": tuple(f"extra/vars/{n}" for n in range(2, 7)),
        "bare": ("bare/vars/0", "bare/vars/1"),
    }
    mine = ("a_named/vars/2", "a_named/vars/3")
    assert moving_statistics(structure_of(paths[0])) == told
    for layer, names in {**told, "a_named": mine}.items():
        kept = getattr(model, layer)
        expected = [kept.moving_mean, kept.moving_variance]
        tensors = read_tensors(paths[1])
        for name, variable in zip(names, expected, strict=False):
            np.testing.assert_array_equal(tensors[name], variable)
    known = {n for names in told.values() for n in names}
    assert {*measure_geometry(paths).left_out} == known
    by_pattern = measure_geometry(paths, leave_out=["a_named/vars/[23]"])
    assert {*by_pattern.left_out} == known | {*mine}
    with pytest.raises(SpecError, match="no tensor matches the pattern 'nmaed/"):
        measure_geometry(paths, leave_out=["nmaed/*"])
    with pytest.raises(FormatError, match="holds no weights except those left out"):
        measure_geometry(paths, leave_out=["*"])

    ckptavg.merge(paths, tmp_path / "mean.weights.h5")
    mean = Checkpoint.open(tmp_path / "mean.weights.h5")
    told_by_record = replace(
        mean, record=replace(mean.record, batch_norm=BatchNormRecord(4, "fresh", tensors=mine))
    )
    geometry = measure_geometry([paths[0], told_by_record])
    assert {*geometry.left_out} == known | {*mine}
    assert batch_norm_shift(paths[0], mean).layers == tuple(sorted(told))
    assert batch_norm_shift(paths[0], told_by_record).layers == tuple(
        sorted({**told, "a_named": ()})
    )


def test_statistics_by_names_of_other_formats():
    def found(*names: str) -> dict[str, tuple[str, ...]]:
        tensors = {n: TensorInfo(n, (3,), "float32", None) for n in names}
        return moving_statistics(Structure(tensors, {}))

    assert found("bn/bn/gamma:0", "bn/bn/moving_variance:0", "bn/bn/moving_mean:0") == {
        "bn/bn": ("bn/bn/moving_mean:0", "bn/bn/moving_variance:0")
    }
    value = "/.ATTRIBUTES/VARIABLE_VALUE"
    names = [f"model/bn/{n}{value}" for n in ("moving_mean", "moving_stddev", "moving_variance")]
    assert found(*names, f"model/bn/beta{value}") == {"model/bn": (names[0], names[2], names[1])}
    assert found("layer.1.running_var", "layer.1.running_mean", "layer.1.weight") == {
        "layer.1": ("layer.1.running_mean", "layer.1.running_var")
    }
    assert found("layers/dense/vars/0", "moving_mean_head/kernel") == {}


def test_neither_integers_nor_texts_nor_optimizers_count(tmp_path):
    paths = [
        write_h5(
            tmp_path / f"{n}.weights.h5",
            {
                "layers/dense/vars/0": np.float32([n, 2, 3]),
                "layers/dropout/seed_generator/vars/0": np.uint32([n, n]),
                "optimizer/vars/1": np.float32([n, 100]),
            },
        )
        for n in (1, 5)
    ]
    geometry = measure_geometry(paths)
    assert geometry.layers == ("layers/dense",)
    assert geometry.parameters == (3,)
    assert geometry.left_out == ("layers/dropout/seed_generator/vars/0",)
    assert geometry.distances().values[0, 1] == 4.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(walk, value):
    with h5py.File(walk[2], "r+") as file:
        data = file["layers/dense/vars/0"]
        coarse = data.attrs.get("dtype") == "bfloat16"
        bad = np.full(1, value, ml_dtypes.bfloat16).view(data.dtype)[0] if coarse else value
        data[1, 2] = bad
    kind = "NaN" if np.isnan(value) else "infinity"
    with pytest.raises(IntegrityError, match=rf"'layers/dense/vars/0' in .*epoch-3.* holds {kind}"):
        measure_geometry(walk)
    assert measure_geometry(walk, leave_out=["layers/dense/*"]).norms().values.all()


def test_numbers_whose_squares_are_infinite(tmp_path):
    paths = [
        write_h5(tmp_path / f"{n}.weights.h5", {"layers/dense/vars/0": np.array([n * 1e200])})
        for n in (1, 2)
    ]
    with pytest.raises(IntegrityError, match="squares exceed float64"):
        measure_geometry(paths)


def test_damage_is_named_and_nan_by_the_record(trained_run, walk):
    run = ckptavg.open_run(trained_run)
    first = run.checkpoints[0]
    marked = replace(first, record=replace(first.record, non_finite=("layers/dense/vars/0",)))
    with pytest.raises(IntegrityError, match="holds NaN or infinity, as its record says: leave"):
        measure_geometry([marked, *run.checkpoints[1:]])
    of_optimizer = replace(first, record=replace(first.record, non_finite=("optimizer/vars/3",)))
    assert measure_geometry([of_optimizer]).labels == ("3",)
    victim = run.checkpoints[1].path
    with open_reader(victim) as reader:
        offset = reader.structure.tensors["layers/dense/vars/0"].extent.offset
    flip_bit(victim, offset)
    with pytest.raises(IntegrityError, match=r"epoch-0004.weights.h5 is damaged: block 0 of"):
        measure_geometry(trained_run)
    with pytest.raises(MismatchError, match="must come from the same model"):
        measure_geometry([run.checkpoints[0], *triangle(walk[0].parent)])


def test_limits_that_are_none(walk):
    with pytest.raises(CkptavgError, match="must be a number of bytes"):
        measure_geometry(walk, max_memory="1 GiB")
    geometry = measure_geometry(walk)
    with pytest.raises(SpecError, match="there is no layer 'dense', the layers are layers/"):
        geometry.distances("dense")
    with pytest.raises(SpecError, match="must be 'first' or 'mean'"):
        geometry.drift("last")


def test_results_show_what_they_hold(walk):
    geometry = measure_geometry(walk, averages={"SWA": [1 / 6] * 6})
    count = f"{sum(geometry.parameters):,} weights in {len(geometry.layers)} layers"
    assert repr(geometry).startswith(f"Geometry of 6 checkpoints of epochs 1-6, {count}\n")
    assert repr(geometry).endswith("averages: SWA")
    lines = repr(geometry.distances()).splitlines()
    assert lines[0] == "PairTable: distance (parameter units), 7 x 7"
    assert lines[1].split() == ["1", "2", "3", "4", "5", "6", "..."]
    assert lines[2].split()[:3] == ["1", "0", f"{geometry.distances().values[0, 1]:.4g}"]
    assert lines[-1].split() == ["..."] * 8
    lines = repr(geometry.norms("layers/dense")).splitlines()
    assert lines[0] == "Series: norm (parameter units) of layers/dense, 6 checkpoints"
    assert lines[2].split()[1] == f"{geometry.norms('layers/dense').values[0]:.4g}"
    lines = repr(geometry.drift()).splitlines()
    assert lines[0].startswith("LayerTable: drift from the first, ")
    assert lines[2].split()[0] == geometry.layers[0]
    lines = repr(geometry.trajectory()).splitlines()
    assert lines[0].startswith("Trajectory of 6 checkpoints (parameter units), ")
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3", "4", "5", "6", "SWA"]


def test_tables_carry_their_units(walk):
    geometry = measure_geometry(walk, averages={"SWA": [1 / 6] * 6})
    table = geometry.distances("layers/dense").to_frame()
    assert list(table.index) == list(table.columns) == [*geometry.labels, "SWA"]
    expected = {"quantity": "distance", "unit": "parameter units", "layer": "layers/dense"}
    assert table.attrs == expected
    assert geometry.cosines().to_frame().attrs["unit"] == "1"
    table = geometry.step_sizes().to_frame()
    assert list(table.columns) == ["position", "distance to the one before"]
    assert table.attrs["units"] == {
        "position": "epoch",
        "distance to the one before": "parameter units",
    }
    assert np.isnan(table.iloc[0, 1])
    assert table.iloc[1, 1] == geometry.distances().values[0, 1]
    table = geometry.drift().to_frame()
    assert tuple(table.index) == geometry.layers
    assert table.attrs == {"quantity": "drift from the first", "unit": "1"}
    found = geometry.trajectory()
    table = found.to_frame()
    assert list(table.loc["SWA", ["kind", "pc1", "pc2"]]) == ["average", *found.averages["SWA"]]
    assert table.loc["6", "pc2"] == found.coordinates[5, 1]
    assert table.attrs["units"]["pc1"] == "parameter units"
    assert table.attrs["explained"] == tuple(found.explained)
    table["pc1"] = 0.0  # a copy: the frozen result stays
    assert found.coordinates[:, 0].any()


def test_shifts_of_batch_norm_statistics(trained_run, tmp_path):
    merged, refreshed = tmp_path / "swa.weights.h5", tmp_path / "fresh.weights.h5"
    ckptavg.merge(trained_run, merged)
    ckptavg.refresh_batch_norm(merged, refreshed, model=evaluator(), data=tiny_data()[0])
    found = batch_norm_shift(merged, refreshed)
    before, after = read_tensors(merged), read_tensors(refreshed)
    layers = ("layers/batch_normalization", "layers/sequential/layers/batch_normalization")
    assert found.layers == layers
    table = found.to_frame()
    assert len(table) == 5 + 4
    for layer, means, variances in zip(layers, found.means, found.variances, strict=True):
        old_mean, old, new_mean, new = (
            tensors[f"{layer}/vars/{number}"].astype("f8")
            for tensors in (before, after)
            for number in (2, 3)
        )
        np.testing.assert_allclose(means, (new_mean - old_mean) / np.sqrt(new + 1e-3))
        np.testing.assert_allclose(variances, np.log((new + 1e-3) / (old + 1e-3)))
        rows = table[table["layer"] == layer]
        np.testing.assert_array_equal(rows["mean_shift"], means)
        np.testing.assert_array_equal(rows["channel"], range(len(means)))
        row = found.by_layer().loc[layer]
        assert row["mean_shift"] == pytest.approx(np.sqrt((means**2).mean()))
        assert row["worst_variance_log_ratio"] == np.abs(variances).max()
    assert repr(found).splitlines()[0] == (
        "BatchNormShift from swa.weights.h5 to fresh.weights.h5, 2 layers"
    )
    assert table.attrs["before"] == "swa.weights.h5"
    assert table.attrs["units"]["mean_shift"] == "standard deviations"
    assert abs(table["mean_shift"]).max() > 0.01  # the pass did something
    # Weights are the same, so that as points they are one.
    distance = measure_geometry([merged, refreshed]).distances().values[0, 1]
    assert distance == 0.0


def test_statistics_that_there_are_not(checkpoints, tmp_path):
    with pytest.raises(FormatError, match="no moving statistics of BatchNorm layers"):
        batch_norm_shift(*triangle(tmp_path)[:2])
    for value, message in ((-1.0, "has values below 0"), (np.nan, "holds NaN")):
        with h5py.File(checkpoints[1], "r+") as file:
            file["layers/batch_normalization/vars/3"][0] = value
        with pytest.raises(IntegrityError, match=rf"{message}"):
            batch_norm_shift(checkpoints[0], checkpoints[1])


def test_a_damaged_statistic_is_named(trained_run):
    one, other = (c.path for c in ckptavg.open_run(trained_run).checkpoints[:2])
    with open_reader(other) as reader:
        flip_bit(other, reader.structure.tensors[STATISTICS[0]].extent.offset)
    with pytest.raises(IntegrityError, match="is damaged"):
        batch_norm_shift(one, other)


def test_the_public_names():
    assert analysis.__all__ == [
        "BatchNormShift",
        "Comparison",
        "Geometry",
        "LayerTable",
        "LossLine",
        "LossPlane",
        "PairTable",
        "RunReport",
        "Series",
        "Trajectory",
        "batch_norm_shift",
        "doctor_frame",
        "loss_line",
        "loss_plane",
        "measure_geometry",
        "run_frame",
        "soup_frame",
        "sweep_frame",
        "write_report",
    ]
    assert dir(analysis) == sorted(analysis.__all__)
    for name in analysis.__all__:
        found = getattr(analysis, name)
        assert not isinstance(found, type(sys)), f"{name} is a module"
        assert found.__doc__, name
    with pytest.raises(AttributeError, match=r"No ckptavg\.analysis attribute measure"):
        analysis.measure  # noqa: B018


def test_measuring_needs_neither_keras_nor_pandas(trained_run):
    code = (
        "import ckptavg\n"
        "geometry = ckptavg.analysis.measure_geometry(sys.argv[1])\n"
        "assert geometry.trajectory().coordinates.shape == (4, 2)\n"
    )
    result = run_blocked(code, str(trained_run))
    assert result.returncode == 0, result.stderr


_PEAK = """
import re, sys
from pathlib import Path
import ckptavg.analysis.geometry.measure as measuring
from ckptavg.formats import open_reader

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

with open_reader(Path(sys.argv[2])):  # imports what files are read by
    before = peak()
measuring.measure_geometry(sys.argv[2:], max_memory=int(sys.argv[1]) or None)
print(peak() - before)
"""


def peak_of_measuring(paths: list[Path], max_memory: int = 0) -> int:
    """Bytes by which the peak of a fresh process grows while it measures."""
    result = subprocess.run(
        [sys.executable, "-c", _PEAK, str(max_memory), *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


def test_memory_is_that_of_the_limit_for_larger_and_more_checkpoints(tmp_path):
    large = sparse_checkpoints(tmp_path / "large", 4, 50 * MiB)
    many = sparse_checkpoints(tmp_path / "many", 40, 5 * MiB)
    assert peak_of_measuring(large) <= 64 * MiB
    assert peak_of_measuring(many) <= 64 * MiB
    for paths in (large, many):
        with pytest.raises(MemoryLimitError) as caught:
            measure_geometry(paths, max_memory=1)
        assert caught.value.least <= 16 * MiB
        assert peak_of_measuring(paths, caught.value.least) <= caught.value.least


@pytest.mark.slow
def test_memory_is_the_same_for_2_gb(tmp_path):
    small = peak_of_measuring(sparse_checkpoints(tmp_path / "small", 6, 10**8))
    large = peak_of_measuring(sparse_checkpoints(tmp_path / "large", 6, 2 * 10**9))
    assert max(small, large) <= 64 * MiB
    assert abs(large - small) <= 8 * MiB


def test_the_doctor_and_the_geometry_agree(tmp_path):
    paths = triangle(tmp_path)
    geometry, diagnoses = measure_geometry(paths), ckptavg.doctor(paths).diagnoses
    for name, found in (
        ("to_mean", geometry.to_mean()),
        ("norm", geometry.norms()),
        ("step", geometry.step_sizes()),
    ):
        expected = [np.nan if d is None else d for d in (getattr(d, name) for d in diagnoses)]
        np.testing.assert_allclose(found.values, expected, rtol=1e-12)


def test_variables_that_are_called_by_a_digit_of_another_kind_are_weights(tmp_path):
    tensors = {f"layers/batch_normalization/vars/{n}": np.ones(3, "float32") for n in ("0", "²")}
    path = write_h5(tmp_path / "w.weights.h5", tensors)
    assert measure_geometry([path]).parameters == (6,)
