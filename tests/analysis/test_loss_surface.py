"""Loss surfaces: values and geometry of a known quadratic, the BatchNorm pass, what is kept."""

from functools import cache

import keras
import numpy as np
import pytest

import ckptavg
from ckptavg import Recipe, update_batch_norm
from ckptavg.analysis import loss_line, loss_plane
from ckptavg.analysis.loss_surface import points
from ckptavg.analysis.loss_surface.corners import edge_products, plan_corners
from ckptavg.errors import (
    CkptavgError,
    DataError,
    MismatchError,
    ModelError,
    NonFiniteError,
    RecipeError,
)
from ckptavg.search.weight_rows import WeightRows
from tests.helpers.files import leftovers, read_tensors, write_h5
from tests.helpers.models import compiled_model, evaluator, randomize, tiny_data, tiny_model

X, Y = tiny_data()
EVAL = (X[:40], Y[:40])

QUADRATIC_X = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
QUADRATIC_Y = np.random.default_rng(1).normal(size=(50, 3)).astype("float32")


@cache
def model_of_batch_norm() -> keras.Model:
    """One for all tests, because surfaces leave models as they were."""
    return tiny_model()


@cache
def quadratic_model() -> keras.Model:
    """One matrix, whose loss is the mean square of `x @ matrix - y`."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False)])
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def quadratic(kernel: np.ndarray) -> float:
    return float(np.mean(np.square(np.float64(QUADRATIC_X) @ kernel - QUADRATIC_Y)))


@pytest.fixture
def kernels(tmp_path):
    """Three files with a matrix each, and the matrices."""
    model, paths, found = quadratic_model(), [], []
    for number in range(3):
        randomize(model, number)
        paths.append(tmp_path / f"w{number}.weights.h5")
        model.save_weights(paths[-1])
        found.append(np.float64(model.get_weights()[0]))
    return paths, found


def quadratic_plane(paths, **options):
    given = {"model": quadratic_model(), "eval_data": (QUADRATIC_X, QUADRATIC_Y), "points": 5}
    return loss_plane(*paths, **{**given, **options})


def surface(surface_of, *corners, **options):
    """Of the model with BatchNorm layers."""
    given = {"model": model_of_batch_norm(), "data": X, "eval_data": EVAL}
    return surface_of(*corners, **{**given, **options})


def read_corners(plan, folder, max_memory):
    """A row for each corner."""
    rows = WeightRows(plan.mean, len(plan.vectors), folder=folder, max_memory=max_memory)
    for row, vector in enumerate(plan.vectors):
        rows.add({n: c for n, c in enumerate(vector) if c != 0.0}, into=row)
    return rows


@pytest.fixture
def counted(monkeypatch):
    """Names the evaluations that really happen."""
    seen = []
    measure = points.measure

    def measured(*arguments, **options):
        seen.append(1)
        return measure(*arguments, **options)

    monkeypatch.setattr(points, "measure", measured)
    return seen


def test_a_plane_of_a_quadratic_loss(kernels):
    paths, (origin, first, second) = kernels
    plane = quadratic_plane(paths, margin=0.3)
    # distances in the plane are those of the weights
    corners = np.array(list(plane.points.values()))
    assert list(plane.points) == ["w0", "w1", "w2"]
    for one in range(3):
        for two in range(one):
            expected = np.linalg.norm(kernels[1][one] - kernels[1][two])
            assert np.linalg.norm(corners[one] - corners[two]) == pytest.approx(expected, rel=1e-12)
    assert corners[0].tolist() == [0.0, 0.0]
    assert corners[1][1] == 0.0
    assert corners[1][0] > 0
    assert corners[2][1] > 0
    # the rectangle around them, with a margin of the longer side
    low, high = corners.min(0), corners.max(0)
    edge = 0.3 * (high - low).max()
    for axis, (start, stop) in zip((plane.x, plane.y), zip(low, high, strict=True), strict=True):
        np.testing.assert_allclose(axis, np.linspace(start - edge, stop + edge, 5), rtol=1e-12)
    # u and v from the weights themselves
    u = (first - origin) / np.linalg.norm(first - origin)
    v = second - origin - np.sum((second - origin) * u) * u
    v /= np.linalg.norm(v)
    assert repr(plane).startswith("LossPlane through w0, w1, w2, 5 x 5 points\n  eval loss: ")
    loss = plane.metrics["eval"]["loss"]
    assert loss.shape == plane.metrics["eval"]["mae"].shape == (5, 5)
    for row, y in enumerate(plane.y):
        for column, x in enumerate(plane.x):
            assert loss[row, column] == pytest.approx(quadratic(origin + x * u + y * v), rel=1e-5)


def test_a_line_of_a_quadratic_loss_is_a_parabola(kernels):
    paths, (start, end, _) = kernels
    line = loss_line(
        *paths[:2], model=quadratic_model(), eval_data={"fit": (QUADRATIC_X, QUADRATIC_Y)}
    )
    assert line.positions.tolist() == [n / 10 for n in range(-5, 16)]
    np.testing.assert_allclose(line.distances, line.positions * np.linalg.norm(end - start))
    loss = line.metrics["fit"]["loss"]
    assert loss == pytest.approx([quadratic(start + t * (end - start)) for t in line.positions])
    parabola = np.polynomial.Polynomial.fit(line.distances, loss, 2)
    np.testing.assert_allclose(parabola(line.distances), loss, rtol=1e-5)
    shown = repr(line).splitlines()
    assert shown[0].startswith("LossLine from w0 to w1 (length ")
    assert shown[1] == f"  fit loss: {min(loss):.4g} to {max(loss):.4g}"
    frame = line.to_frame()
    assert list(frame.columns) == ["position", "distance", "fit loss", "fit mae"]
    assert frame["fit loss"].tolist() == loss.tolist()
    assert frame.attrs["units"] == {"position": "1", "distance": "parameter units"}


def test_the_frame_of_a_plane_has_a_row_for_each_point(kernels):
    plane = quadratic_plane(kernels[0], points=3)
    frame = plane.to_frame()
    assert len(frame) == 9
    assert frame.attrs["units"] == {"x": "parameter units", "y": "parameter units"}
    for row, y in enumerate(plane.y):
        for column, x in enumerate(plane.x):
            found = frame[(frame.x == x) & (frame.y == y)]["eval loss"]
            assert found.tolist() == [plane.metrics["eval"]["loss"][row, column]]


def test_values_are_those_of_merge_pass_and_evaluation(trained_run, tmp_path):
    run = ckptavg.open_run(trained_run)
    one, two = run.checkpoints[0].path, run.checkpoints[-1].path
    line = surface(loss_line, one, two, points=[0.0, 1.0, 0.5, -0.5])
    assert line.labels == ("epoch 3", "epoch 6")
    model = evaluator()
    for number, share in enumerate(line.positions):
        out = tmp_path / "o.weights.h5"
        ckptavg.merge([one, two], out, coefficients=[1 - share, share], overwrite=True)
        model.load_weights(out)
        update_batch_norm(model, X)
        expected = model.evaluate(*EVAL, verbose=0, return_dict=True)
        found = {name: values[number] for name, values in line.metrics["eval"].items()}
        assert found == pytest.approx(expected, rel=1e-6)


def test_a_plane_point_is_one_vector_of_coefficients(trained_run, tmp_path):
    corners = ckptavg.open_run(trained_run).checkpoints[:3]
    plane = surface(loss_plane, *corners, points=2, margin=0.1)
    (_, first, second) = np.array(list(plane.points.values()))
    shares = np.linalg.solve(np.stack([first, second], 1), [plane.x[1], plane.y[0]])
    out = tmp_path / "o.weights.h5"
    ckptavg.merge(corners, out, coefficients=[1 - shares.sum(), *shares])
    model = evaluator()
    model.load_weights(out)
    update_batch_norm(model, X)
    found = {name: values[0, 1] for name, values in plane.metrics["eval"].items()}
    assert found == pytest.approx(model.evaluate(*EVAL, verbose=0, return_dict=True), rel=1e-6)


def test_distances_count_weights_only(trained_run):
    run = ckptavg.open_run(trained_run)
    weights = []
    for checkpoint in run.checkpoints[:2]:
        model = evaluator()
        model.load_weights(checkpoint.path)
        weights.append(np.concatenate([np.ravel(v.numpy()) for v in model.trainable_variables]))
    expected = np.linalg.norm(np.float64(weights[1]) - weights[0])
    line = surface(loss_line, *run.checkpoints[:2], points=[1.0])
    assert line.distances == pytest.approx([expected], rel=1e-6)
    # layers that are frozen are counted all the same
    model = tiny_model()
    model.trainable = False
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    frozen = surface(loss_line, *run.checkpoints[:2], points=[1.0], model=model)
    assert frozen.distances == pytest.approx([expected], rel=1e-6)


def test_corners_are_averages_of_any_kind(trained_run, tmp_path):
    run = ckptavg.open_run(trained_run)
    out = tmp_path / "swa.weights.h5"
    for corner, label, options in (
        (run, "mean of 4", {}),
        (run.select(last=2), "mean of 2", {}),
        ((run, Recipe("ema", decay=0.5)), "ema:0.5 of 4", {"recipe": "ema:0.5"}),
        ((run, (0.1, 0.2, 0.3, 0.4)), "average of 4", {"coefficients": (0.1, 0.2, 0.3, 0.4)}),
    ):
        line = surface(loss_line, run.checkpoints[-1], corner, points=[1.0], cache=tmp_path / "c")
        assert line.labels == ("epoch 6", label)
        ckptavg.merge(corner[0] if options else corner, out, overwrite=True, **options)
        merged = surface(loss_line, run.checkpoints[-1], out, points=[1.0], cache=tmp_path / "d")
        assert merged.labels == ("epoch 6", "swa")
        assert merged.distances == pytest.approx(line.distances)
        assert line.metrics["eval"]["loss"] == pytest.approx(merged.metrics["eval"]["loss"])
    named = surface(loss_line, run.checkpoints[0], run, points=[1.0], labels=("a", "b"))
    assert named.labels == ("a", "b")


def stop_after(count):
    def progress(number):
        progress.seen += number
        if progress.seen == count:
            raise KeyboardInterrupt

    progress.seen = 0
    return progress


def test_a_surface_that_was_stopped_goes_on(trained_run, counted):
    corners = ckptavg.open_run(trained_run).checkpoints[:3]
    plain = surface(loss_plane, *corners, points=3, cache=trained_run / "elsewhere")
    counted.clear()
    with pytest.raises(KeyboardInterrupt):
        surface(loss_plane, *corners, points=3, progress=stop_after(5))
    assert len(counted) == 5
    (cache,) = (trained_run / "search").iterdir()
    with cache.open("a") as file:
        file.write('{"key": "cut o')  # as a kill leaves it
    counted.clear()
    told = []
    plane = surface(loss_plane, *corners, points=3, progress=told.append)
    # one of the known points is evaluated again, to see whether it still has its score
    assert (len(counted), sum(told)) == (4 + 1, 9)
    for name, values in plain.metrics["eval"].items():
        np.testing.assert_allclose(plane.metrics["eval"][name], values, rtol=1e-6)
    # all points of a grid are among those of one twice as fine
    counted.clear()
    surface(loss_plane, *corners, points=5)
    assert len(counted) == 25 - 9 + 1


def test_what_differs_is_not_mixed_up(trained_run, counted):
    one, two, three, _ = ckptavg.open_run(trained_run).checkpoints

    def new(*corners, **options):
        counted.clear()
        surface(loss_line, *corners, points=[0.0, 0.5], **options)
        return len(counted)

    again = 1  # a known point, to see whether it still has its score
    assert new(one, two) == 2
    assert new(one, two) == 0 + again
    assert new(one, three) == 1 + again  # the start is known
    assert new(one, two, eval_data={"other name": EVAL}) == 0 + again
    assert new(one, two, eval_data=(X[40:], Y[40:])) == 2
    assert new(one, two, eval_data={"a": EVAL, "b": (X[50:], Y[50:])}) == 2 + again
    assert new(one, two, data=X[:64]) == 2
    assert new(one, two, data=X, steps=1) == 2
    assert new(one, two, data=[X[:48], X[48:]]) == 2
    assert new(one, two, bn_mode="population") == 2
    assert new(one, two, mixed_precision=True) == 2
    other = tiny_model()
    other.compile("sgd", keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    assert new(one, two, model=other) == 2
    # what is in a file counts, not its name
    two.path.write_bytes(three.path.read_bytes())
    record = three.record.path.read_text().replace(three.path.name, two.path.name)
    two.record.path.write_text(record)
    assert new(one, ckptavg.Checkpoint.open(two.path)) == 0 + again
    assert not leftovers(trained_run)


def test_files_of_no_run_keep_nothing_unless_asked(checkpoints, counted, tmp_path):
    for _ in range(2):
        counted.clear()
        surface(loss_line, *checkpoints[:2], points=[0.5])
        assert len(counted) == 1
    assert not list(tmp_path.rglob("scores.jsonl"))
    for expected in (2, 1):  # the second time, to see whether a point still has its score
        counted.clear()
        surface(loss_line, *checkpoints[:2], points=[0.5, 0.6], cache=tmp_path / "new" / "folder")
        assert len(counted) == expected
    assert (tmp_path / "new" / "folder" / "scores.jsonl").is_file()


@keras.saving.register_keras_serializable("surfaces")
def scaled_error(y, found):
    return scaled_error.factor * keras.losses.mean_squared_error(y, found)


def test_values_of_a_loss_whose_code_has_changed_are_not_used(kernels, tmp_path):
    def loss():
        model = quadratic_model()
        model.compile("sgd", scaled_error)
        plane = quadratic_plane(kernels[0], points=2, model=model, cache=tmp_path / "c")
        return plane.metrics["eval"]["loss"]

    scaled_error.factor = 1.0
    before = loss()
    np.testing.assert_array_equal(loss(), before)
    scaled_error.factor = 2.0
    with pytest.warns(ckptavg.CkptavgWarning, match="loss was .* now, so the code of the model"):
        np.testing.assert_allclose(loss(), 2 * before, rtol=1e-6)
    np.testing.assert_allclose(loss(), 2 * before, rtol=1e-6)


def test_a_dictionary_of_x_and_y_is_one_data_set(kernels):
    paths, _ = kernels
    pair = {"x": QUADRATIC_X, "y": QUADRATIC_Y}
    known = quadratic_plane(paths, points=2).metrics
    assert list(known) == ["eval"]
    for given, name in ((pair, "eval"), ({"fit": pair}, "fit")):
        found = quadratic_plane(paths, points=2, eval_data=given).metrics
        assert list(found) == [name]
        assert np.array_equal(found[name]["loss"], known["eval"]["loss"])


def test_several_data_sets_share_a_pass(trained_run, monkeypatch):
    one, two = ckptavg.open_run(trained_run).checkpoints[:2]
    passes = []
    run = ckptavg.batch_norm.BatchNormPass.run

    def counted(self, *arguments, **options):
        passes.append(1)
        return run(self, *arguments, **options)

    monkeypatch.setattr(ckptavg.batch_norm.BatchNormPass, "run", counted)
    both = {"train": (X, Y), "test": EVAL}
    line = surface(loss_line, one, two, points=[0.0, 0.5, 1.0], eval_data=both)
    assert len(passes) == 3
    assert list(line.metrics) == ["train", "test"]
    for name, data in both.items():
        alone = surface(loss_line, one, two, points=[0.0, 0.5, 1.0], eval_data=data)
        for metric, values in alone.metrics["eval"].items():
            np.testing.assert_allclose(line.metrics[name][metric], values, rtol=1e-6)
    assert len(passes) == 3 + 2  # both are known, and one point of each is evaluated again


def state(model):
    return [np.array(v) for v in (*model.variables, *model.optimizer.variables)]


def test_the_model_gets_back_what_it_had(trained_run):
    one, two = ckptavg.open_run(trained_run).checkpoints[:2]
    model = compiled_model()
    model.fit(X, Y, epochs=1, verbose=0)
    before = state(model)
    surface(loss_line, one, two, points=[0.5], model=model)
    with pytest.raises(KeyboardInterrupt):
        surface(loss_line, one, two, model=model, progress=stop_after(2))
    with pytest.raises(RecipeError):
        surface(loss_plane, one, two, one, model=model)
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(new, old)


def test_corners_in_one_line_span_no_plane(checkpoints):
    one, two, three = checkpoints[:3]
    for second in ((checkpoints[:2], (0.5, 0.5)), (checkpoints[:2], (3.0, -2.0)), one, two):
        with pytest.raises(RecipeError, match="lie in one line or coincide"):
            surface(loss_plane, one, two, second)
    with pytest.raises(RecipeError, match=r"ckpt-0 and .* have the same weights"):
        surface(loss_line, one, (checkpoints[:2], (1.0, 0.0)))
    nearly = (checkpoints[:3], (0.49, 0.5, 0.01))
    height = list(surface(loss_plane, one, two, nearly, points=2).points.values())[2][1]
    whole = list(surface(loss_plane, one, two, three, points=2).points.values())[2][1]
    assert height == pytest.approx(0.01 * whole, rel=1e-3)


def test_points_that_overflow_are_nan_and_remembered(checkpoints, counted, tmp_path):
    far = [0.0, 1e30, 1e39, -1e39]
    options = {"points": far, "cache": tmp_path / "c"}
    line = surface(loss_line, *checkpoints[:2], **options)
    loss = line.metrics["eval"]["loss"]
    assert np.isfinite(loss).tolist() == [True, False, False, False]
    assert np.isnan(loss[1:]).all()
    counted.clear()
    again = surface(loss_line, *checkpoints[:2], **options)
    np.testing.assert_array_equal(again.metrics["eval"]["loss"], loss)
    assert len(counted) == 1  # the finite one, to see whether it still has its score
    with pytest.raises(NonFiniteError, match="at every point"):
        surface(loss_line, *checkpoints[:2], points=[1e39])
    # without BatchNorm it is what the network gives
    model = tiny_model(batch_norm=False)
    paths = [tmp_path / f"plain-{seed}.weights.h5" for seed in range(2)]
    for seed, path in enumerate(paths):
        randomize(model, seed).save_weights(path)
    loss = loss_line(*paths, model=model, eval_data=EVAL, points=far).metrics["eval"]["loss"]
    assert np.isfinite(loss).tolist() == [True, False, False, False]


def test_other_errors_are_no_points(checkpoints, tmp_path):
    for options, error, message in (
        ({"data": None}, ModelError, "pass training data"),
        ({"data": X[:, :3]}, DataError, "rejects batch 0"),
        ({"eval_data": (X[:, :3], Y)}, DataError, "cannot be evaluated"),
        ({"eval_data": {}}, DataError, "eval_data is empty"),
        ({"eval_data": iter([EVAL])}, DataError, "can be read only once"),
        ({"model": tiny_model(width=9)}, ModelError, "do not fit"),
        ({"points": []}, RecipeError, "must be a sequence of finite numbers"),
        ({"points": [0.0, np.inf]}, RecipeError, "must be a sequence of finite numbers"),
        ({"labels": ("a",)}, RecipeError, "1 labels for 2 corners"),
        ({"labels": ("a", "a")}, RecipeError, "must be different"),
    ):
        with pytest.raises(error, match=message):
            surface(loss_line, *checkpoints[:2], **options)
    for options in ({"points": 1}, {"points": 2.5}, {"margin": -0.1}, {"margin": np.nan}):
        with pytest.raises(RecipeError, match="must be a"):
            surface(loss_plane, *checkpoints[:3], **options)
    other = tmp_path / "other.weights.h5"
    tiny_model(width=9).save_weights(other)
    with pytest.raises(MismatchError):
        surface(loss_line, checkpoints[0], other)
    with pytest.raises(CkptavgError, match="there is no checkpoint"):
        surface(loss_line, checkpoints[0], tmp_path / "none.weights.h5")


def test_corners_on_disk_are_the_same(trained_run, tmp_path):
    corners = ckptavg.open_run(trained_run).checkpoints[:3]
    found = [
        surface(loss_plane, *corners, points=2, cache=tmp_path / str(n), max_memory=n)
        for n in (0, 10**9)
    ]
    for name, values in found[0].metrics["eval"].items():
        np.testing.assert_allclose(found[1].metrics["eval"][name], values, rtol=1e-6)
    for folder in ("0", str(10**9)):
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["scores.jsonl"]


@pytest.mark.parametrize("max_memory", [0, 10**9])
def test_points_of_tensors_of_any_size_and_type(tmp_path, max_memory):
    import ml_dtypes

    rng = np.random.default_rng(4)
    paths = []
    for number in range(3):
        tensors = {
            "layers/a/vars/0": rng.normal(size=(300, 1001)).astype("float32"),  # several pieces
            "layers/a/vars/1": np.float32(rng.normal()),
            "layers/a/vars/2": np.zeros((0, 3), "float32"),
            "layers/a/vars/3": rng.normal(size=5),
            "layers/a/vars/4": rng.normal(size=(7, 2)).astype("float16"),
            "layers/a/vars/5": rng.normal(size=9).astype(ml_dtypes.bfloat16),
            "layers/n/vars/0": np.arange(3),
            "layers/dropout/seed_generator/vars/0": np.array([number, 7], "uint32"),
        }
        paths.append(write_h5(tmp_path / f"c{number}.weights.h5", tensors))
    plan = plan_corners(paths)
    corners = read_corners(plan, tmp_path, max_memory)
    for shares in ((1, 0, 0), (0, 0, 1), (0.2, 0.5, 0.3), (1.5, -0.75, 0.25)):
        out = tmp_path / "o.weights.h5"
        ckptavg.merge(paths, out, coefficients=shares, overwrite=True)
        expected = read_tensors(out)
        for name, values in corners.combine(dict(enumerate(shares))):
            if "seed" in name:
                assert values.tolist() == [0, 7]  # of the first corner, whatever the point
            elif 1 in shares:
                assert values.tobytes() == expected[name].tobytes()
            else:
                assert values.dtype == expected[name].dtype
                near = np.float64(values), np.float64(expected[name])
                np.testing.assert_allclose(*near, rtol=1e-2 if values.itemsize == 2 else 1e-6)
    weights = []
    for path in paths:
        parts = (values for name, values in read_tensors(path).items() if "/a/" in name)
        weights.append(np.concatenate([np.ravel(np.float64(values)) for values in parts]))
    ways = [values - weights[0] for values in weights[1:]]
    expected = [[one @ other for other in ways] for one in ways]
    np.testing.assert_allclose(edge_products(corners, 3, ()), expected, rtol=1e-9)
    corners.close()
    assert not leftovers(tmp_path)


def test_integers_of_corners_must_agree(tmp_path):
    paths = [
        write_h5(
            tmp_path / f"c{number}.weights.h5",
            {"layers/a/vars/0": np.ones(2), "layers/n/vars/0": np.array([number])},
        )
        for number in range(2)
    ]
    with pytest.raises(MismatchError, match=r"differs between .*c0.* and .*c1"):
        read_corners(plan_corners(paths), tmp_path, 10**9)


def test_random_layers_draw_the_same_at_every_point(tmp_path):
    layers = [keras.Input((6,)), keras.layers.Dropout(0.5), keras.layers.BatchNormalization()]
    model = keras.Sequential([*layers, keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    paths = [tmp_path / f"{seed}.weights.h5" for seed in range(2)]
    for seed, path in enumerate(paths):
        randomize(model, seed)
        model.layers[0].seed_generator.state.assign([seed, 5])
        model.save_weights(path)
    line = loss_line(*paths, model=model, data=X, eval_data=EVAL, points=[0.0, 0.3, 0.3, 0.0])
    loss = line.metrics["eval"]["loss"]
    assert loss[0] == loss[3]
    assert loss[1] == loss[2]
