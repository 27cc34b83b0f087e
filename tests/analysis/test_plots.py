"""Plots: what they draw of the data they are given, with units, whatever the names."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from ckptavg import open_run
from ckptavg.analysis import (
    BatchNormShift,
    LayerTable,
    LossLine,
    LossPlane,
    PairTable,
    Series,
    Trajectory,
    measure_geometry,
    plots,
)
from ckptavg.analysis.plots import style
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.history import EpochLog

NASTY = "_" + "$x_{$" + "é\n<b>" * 20


@pytest.fixture
def ax():
    return Figure(layout="constrained").add_subplot()


def drawn(ax) -> str:
    """Renders the figure, so that whatever cannot be drawn fails here; gives all its texts."""
    ax.figure.savefig("/dev/null", format="svg")
    return "\n".join(text.get_text() for text in ax.figure.findobj(Text))


def logs(losses, **more) -> list[EpochLog]:
    return [
        EpochLog(n, 10 * n, 0.1, {"loss": loss, **{k: v[n - 1] for k, v in more.items()}}, "")
        for n, loss in enumerate(losses, 1)
    ]


def lines(ax) -> dict[str, np.ndarray]:
    """Points of each labelled line."""
    return {line.get_label().strip(): line.get_xydata() for line in ax.lines}


def geometry_of(run: Path):
    return measure_geometry(run, averages={"SWA": [0.25] * 4})


def test_a_learning_curve_marks_the_saved_epochs_of_a_run(trained_run, ax):
    run = open_run(trained_run)
    saved = [record.epoch for record in run.records]
    assert plots.learning_curve(run.history, ax=ax, saved_epochs=saved) is ax
    found = lines(ax)
    losses = [epoch.metrics["loss"] for epoch in run.history]
    assert next(iter(found)) == "loss"
    np.testing.assert_array_equal(found["loss"], [*enumerate(losses, 1)])
    marked = found["saved checkpoints"]
    np.testing.assert_array_equal(marked[:, 0], [3, 4, 5, 6])
    np.testing.assert_array_equal(marked[:, 1], losses[2:])
    assert "val_loss" in found
    (rate,) = (other for other in ax.figure.axes if other is not ax)
    assert rate.get_ylabel() == "learning rate"
    np.testing.assert_allclose(
        rate.lines[0].get_ydata(), [epoch.learning_rate for epoch in run.history]
    )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["loss", "saved checkpoints", "val_loss", "learning rate"]
    # one mark for one thing: those of the validation loss are saved checkpoints as well
    marks = [line.get_marker() for line in ax.lines if len(line.get_xdata()) == len(saved)]
    assert marks == ["o", "o"]
    drawn(ax)


def test_averages_are_lines_over_the_saved_epochs(ax):
    plots.learning_curve(logs([3, 2, 1, 1]), ax=ax, saved_epochs=[2, 4], averages={"SWA": 0.5})
    np.testing.assert_array_equal(lines(ax)["SWA"], [[2, 0.5], [4, 0.5]])


def test_a_curve_has_gaps_where_values_are_none_and_a_point_between_two_gaps(ax):
    found = logs([1.0, math.nan, 2.0, math.inf, 3.0])
    plots.learning_curve(found, ax=ax, show_rate=False)
    line, alone = ax.lines
    np.testing.assert_array_equal(np.isnan(line.get_ydata()), [False, True, False, True, False])
    np.testing.assert_array_equal(alone.get_xydata(), [[1, 1], [3, 2], [5, 3]])


def test_checkpoints_by_step_stand_at_their_steps(ax):
    found = [EpochLog(1 + n // 3, 100 * n, None, {"loss": 1.0 / (n + 1)}, "") for n in range(6)]
    plots.learning_curve(found, ax=ax)
    assert ax.get_xlabel() == "optimizer step"
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 100, 200, 300, 400, 500])


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([EpochLog(1, None, 0.1, {}, "")], "learning rate"),
        ([EpochLog(1, None, None, {}, "")], "no metrics or learning rates"),
        ([EpochLog(1, None, None, {"auc": 0.5}, "")], "auc"),
        ([], "no metrics or learning rates"),
    ],
)
def test_what_is_not_known_is_not_drawn(ax, entries, expected):
    plots.learning_curve(entries, ax=ax, saved_epochs=[1])
    assert expected in drawn(ax)


def test_values_over_decades_get_a_logarithmic_scale(ax):
    plots.learning_curve(logs([2.3, 0.5, 0.02]), ax=ax)
    assert ax.get_yscale() == "log"
    other = Figure().add_subplot()
    plots.learning_curve(logs([2.3, 0.5, -0.02]), ax=other)
    assert other.get_yscale() == "linear"


@pytest.mark.parametrize("losses", [[1.7e308, -1.7e308, 1.0, 2.0], [5e-324, 1.7e308, 1.0, 2.0]])
def test_values_that_are_all_but_infinite_are_gaps(ax, losses):
    plots.learning_curve(logs(losses), ax=ax)
    drawn(ax)
    assert np.nanmax(np.abs(lines(ax)["loss"][:, 1])) == 2.0


def test_maps_of_pairs_hold_the_table(trained_run, ax):
    geometry = geometry_of(trained_run)
    for draw, table in (
        (plots.cosine_map, geometry.cosines()),
        (plots.distance_map, geometry.distances(geometry.layers[0])),
    ):
        ax = Figure(layout="constrained").add_subplot()
        assert draw(table, ax=ax) is ax
        np.testing.assert_array_equal(ax.images[0].get_array(), table.values)
        assert [label.get_text() for label in ax.get_xticklabels()] == ["3", "4", "5", "6", "SWA"]
    text = drawn(ax)
    assert f"distance (parameter units) of {geometry.layers[0]}" in text
    assert len(ax.texts) == 25  # small tables are written out


def test_large_maps_name_as_many_as_fit(ax):
    labels = tuple(map(str, range(1, 201)))
    table = PairTable(labels, np.ones((200, 200)), "cosine", "1")
    plots.cosine_map(table, ax=ax)
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names[0] == "1"
    assert 5 < len(names) < 40
    assert all(labels[int(n)] == name for n, name in zip(ax.get_xticks(), names, strict=True))
    assert not ax.texts
    drawn(ax)


@pytest.mark.parametrize("value", [1.0, 0.0, math.nan])
def test_a_map_of_one_checkpoint_and_of_nothing_known(ax, value):
    for draw in (plots.cosine_map, plots.distance_map):
        ax = Figure(layout="constrained").add_subplot()
        draw(PairTable(("1",), np.array([[value]]), "cosine", "1"), ax=ax)
        low, high = ax.images[0].get_clim()
        assert low < high
        drawn(ax)


def test_the_trajectory_has_equal_axes_and_marks_the_average(trained_run, ax):
    trajectory = geometry_of(trained_run).trajectory()
    assert plots.trajectory_plane(trajectory, ax=ax) is ax
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), trajectory.coordinates)
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[0, 0]], atol=1e-6)  # the mean of all
    text = drawn(ax)
    assert ax.get_aspect() == 1.0
    shares = [f"component {n + 1}, {trajectory.explained[n]:.0%} of variance" for n in range(2)]
    assert [ax.get_xlabel(), ax.get_ylabel()] == [f"{s}\n(parameter units)" for s in shares]
    assert {"epoch 3", "epoch 6", "SWA"} <= set(text.splitlines())


def test_a_trajectory_of_one_point(ax):
    one = Trajectory(("ckpt",), (1.0,), np.zeros((1, 2)), np.zeros(2), {}, np.zeros(1), {})
    plots.trajectory_plane(one, ax=ax)
    assert "ckpt" in drawn(ax)


def test_layers_and_series(trained_run):
    geometry = geometry_of(trained_run)
    ax = plots.layer_drift(geometry.drift(), ax=Figure(layout="constrained").add_subplot())
    assert ax.images[0].get_array().shape == (len(geometry.layers), 4)
    assert "drift from the first" in drawn(ax)
    ax = plots.series_plot(geometry.norms(), ax=Figure(layout="constrained").add_subplot())
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [3, 4, 5, 6])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "norm (parameter units)")
    series = Series(("a", "b"), (10.0, 30.0), np.ones(2), "norm", "parameter units", "step")
    ax = plots.series_plot(series, ax=Figure(layout="constrained").add_subplot())
    assert ax.get_xlabel() == "step"
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [10, 30])


def test_a_loss_line_names_its_ends(ax):
    positions = np.linspace(-0.5, 1.5, 9)
    found = {"train": {"loss": positions**2}, "test": {"loss": (positions - 0.2) ** 2}}
    line = LossLine(positions, 7.5 * positions, found, ("last", "average"))
    assert plots.loss_line_plot(line, ax=ax) is ax
    np.testing.assert_array_equal(lines(ax)["test"][:, 1], (positions - 0.2) ** 2)
    text = drawn(ax)
    assert {"last", "average", "train", "test"} <= set(text.splitlines())
    assert ax.get_xlabel() == "fraction of the line (length 7.5)"


def bowl(sign: int = 1, **changes) -> LossPlane:
    x, y = np.linspace(-2, 2, 21), np.linspace(-1, 3, 17)
    values = sign * (0.1 + (x[None, :] - 0.4) ** 2 + 3 * (y[:, None] - 1.0) ** 2)
    fields = {
        "x": x,
        "y": y,
        "metrics": {"test": {"loss": values, "accuracy": values}},
        "points": {"origin": (0.0, 0.0), "first": (1.5, 0.0), "second": (0.5, 2.0)},
    }
    return LossPlane(**{**fields, **changes})


def test_contours_crowd_at_the_minimum_and_name_the_points(ax):
    plane = bowl()
    assert plots.loss_contours(plane, ax=ax, metric="loss", levels=8) is ax
    levels = ax.collections[0].levels
    values = plane.metrics["test"]["loss"]
    assert (len(levels), levels[0], levels[-1]) == (9, values.min(), values.max())
    heights = levels[1:] - levels[0]
    np.testing.assert_allclose(heights[1:] / heights[:-1], heights[1] / heights[0])
    assert heights[1] > 1.2 * heights[0]
    assert [tuple(line.get_xydata()[0]) for line in ax.lines] == list(plane.points.values())
    text = drawn(ax)
    assert {"origin", "first", "second", "distance (parameter units)"} <= set(text.splitlines())
    assert ax.get_aspect() == 1.0


def test_contours_of_what_is_better_large_crowd_at_the_maximum(ax):
    plots.loss_contours(bowl(sign=-1), ax=ax, metric="accuracy")
    distances = ax.collections[0].levels[-1] - ax.collections[0].levels[:-1]
    assert distances[-2] < 2 * distances[-1] < distances[0]
    assert ax.collections[0].get_cmap().name == "cividis"  # better is lighter


@pytest.mark.parametrize("fill", [0.5, math.nan])
def test_contours_of_flat_and_of_unknown_planes(ax, fill):
    values = np.full((17, 21), fill)
    plots.loss_contours(bowl(metrics={"test": {"loss": values}}), ax=ax, metric="loss")
    assert "origin" in drawn(ax)


def test_contours_leave_out_what_is_not_known(ax):
    plane = bowl()
    values = plane.metrics["test"]["loss"]
    values[-3:, -3:], values[0, 0] = math.nan, math.inf
    plots.loss_contours(plane, ax=ax, metric="loss")
    drawn(ax)
    assert np.isfinite(ax.collections[0].levels).all()


def entry(start, stop, **metrics):
    from ckptavg.search.sweep import Entry

    found = tuple(Checkpoint(Path(f"e{n}.h5"), named_epoch=n) for n in range(start, stop))
    return Entry(found, "uniform", (1 / len(found),) * len(found), metrics)


def test_the_leaderboard_is_over_start_and_length_with_the_best_framed(ax):
    scores = {(1, 5): 0.3, (2, 5): 0.2, (3, 5): 0.1, (4, 5): 0.4, (1, 3): 0.5, (2, 4): math.nan}
    entries = [entry(*window, val_loss=score) for window, score in scores.items()]
    assert plots.leaderboard_map(entries, ax=ax, metric="val_loss") is ax
    table = np.asarray(ax.images[0].get_array().filled(math.nan))
    nan = math.nan
    expected = [
        [0.3, nan, nan, nan],
        [nan, 0.2, nan, nan],
        [0.5, nan, 0.1, nan],
        [nan, nan, nan, 0.4],
    ]
    np.testing.assert_array_equal(table, expected)
    (marked,) = ax.patches
    assert marked.get_xy() == (1.5, 1.5)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["4", "3", "2", "1"]
    drawn(ax)


def test_what_is_far_off_does_not_take_the_colours_from_the_best(ax):
    entries = [entry(n, 40, val_loss=100.0 if n < 3 else 0.1 + n / 100) for n in range(1, 39)]
    plots.leaderboard_map(entries, ax=ax, metric="val_loss")
    low, high = ax.images[0].get_clim()
    assert low == pytest.approx(0.13)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[2, 2]])  # a star
    assert high < 1.0
    drawn(ax)


def test_batch_norm_shift_marks_the_medians(ax):
    means = (np.array([-1.0, 0.5, 2.0]), np.array([0.1, 0.2, 0.3, 0.4]))
    shift = BatchNormShift(("a/bn", NASTY), means, (means[0], means[1]), "SWA", "SWA-bn", 1e-3)
    assert plots.batch_norm_shift(shift, ax=ax) is ax
    found = {label.partition(" ")[0]: points for label, points in lines(ax).items()}
    np.testing.assert_allclose(found["mean"][:, 0], [0.5, 0.25])
    text = drawn(ax)
    assert "mean (standard deviations)" in text
    assert "variance (log ratio)" in text
    assert ax.get_xlabel() == "shift from SWA\nto SWA-bn"


def test_many_recipes_differ_in_colour_dashes_or_marker_and_have_their_legend_outside(ax):
    recipes = {f"ema:0.{n}": [n / 10, 1 - n / 10] for n in range(1, 10)}
    assert plots.recipe_curves([2.0, 1.0], recipes, ax=ax, unit="step") is ax
    styles = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines}
    assert len(styles) == 9
    np.testing.assert_array_equal(lines(ax)["ema:0.3"], [[1, 0.7], [2, 0.3]])
    assert ax.get_xlabel() == "position in training (step)"
    drawn(ax)
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1


def test_lines_differ_also_where_colours_are_not_seen():
    looks = [style.line_style(number) for number in range(280)]
    assert len({str(look) for look in looks}) == 280
    in_grey = {str({**look, "color": None}) for look in looks[:40]}
    assert len(in_grey) == 40
    grey = [np.dot(to_rgb(color), (0.299, 0.587, 0.114)) for color in style.COLORS]
    assert max(grey) < 0.75  # dark enough for white paper


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("val_accuracy", "val_accuracy"),
        ("_hidden", " _hidden"),
        ("cost in $", r"cost in \$"),
        ("a\nb\x00", "a b\ufffd"),
        ("x" * 99, "x" * 14 + "…" + "x" * 13),
    ],
)
def test_names_are_plain_text(name, shown):
    assert style.plain(name) == shown


def test_any_name_can_be_drawn():
    axes = Figure(figsize=(18, 15), layout="constrained").subplots(3, 3).ravel()
    plots.learning_curve(logs([1, 2], **{NASTY: [1, 2]}), ax=axes[0], metrics=["loss", NASTY])
    table = PairTable((NASTY, "b"), np.eye(2), "cosine", "1", NASTY)
    plots.cosine_map(table, ax=axes[1])
    layers = LayerTable((NASTY,), (NASTY, "b"), np.zeros((1, 2)), "drift", "1")
    plots.layer_drift(layers, ax=axes[2])
    points = np.array([[0.0, 0.0], [1.0, 1.0]])
    trajectory = Trajectory(
        (NASTY, "b"), (1, 2), points, np.array([1.0, 0.0]), {NASTY: (0, 0)}, np.zeros(2), {}
    )
    plots.trajectory_plane(trajectory, ax=axes[3])
    values = {NASTY: {NASTY: np.arange(3.0)}}
    line = LossLine(np.array([0.0, 0.5, 1.0]), np.zeros(3), values, (NASTY, NASTY))
    plots.loss_line_plot(line, ax=axes[4], metric=NASTY)
    plane = bowl(
        metrics={NASTY: {"loss": np.arange(17 * 21.0).reshape(17, 21)}}, points={NASTY: (0, 0)}
    )
    plots.loss_contours(plane, ax=axes[5])
    plots.recipe_curves([1, 2], {NASTY: [0, 1], "b": [1, 0]}, ax=axes[6])
    plots.series_plot(Series((NASTY,), (1.0,), np.ones(1), "norm", "1", "step"), ax=axes[7])
    plots.leaderboard_map([entry(1, 3, **{"val_loss": 1.0})], ax=axes[8], metric="val_loss")
    drawn(axes[0])


def test_figures_are_the_same_text_each_time(tmp_path):
    def draw(ax):
        return plots.learning_curve(logs([3, 2, 1]), ax=ax, saved_epochs=[2])

    first = plots.figure_svg(draw)
    assert first == plots.figure_svg(draw)
    assert first.lstrip().startswith("<?xml")
    assert "matplotlib.org" not in first
    plots.save_figure(draw, tmp_path / "a.png", size=(4, 3))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="what"):
        plots.save_figure(draw, tmp_path / "a.what")
