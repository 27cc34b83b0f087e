"""What plots share: colours, lines, markers, labels and legends."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from ckptavg.analysis.geometry.trajectory import Trajectory
from ckptavg.analysis.tables import Series

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette without its yellow, which is too light for lines."""
GREY = "#555555"
COLOR_MAP = "cividis"
UNKNOWN = {"facecolor": "white", "edgecolor": "#bbbbbb", "hatch": "////", "linewidth": 0}
"""Look of the background, which shows where no value is known."""

_DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (6, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vPX*"
_SHORT = 28
_COLUMN, _ROW, _LINE = 16, 24, 30
"""The most characters of a name below a column, of one beside a row, and of an axis label."""
_MANY = 4
"""The most lines of a legend that lies inside the axes."""
_BELOW = 15.0
"""Height of a line of text below the axes, in points."""
_NAME_SIZE = 8.0
"""Font size of the names of points, in points."""
_SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1.2), (0, -1.2), (1, 2), (-1, 2))
"""Where a name may stand beside its point, right and up, in order of preference."""
_HALO = (withStroke(linewidth=2.5, foreground="white"),)
_CHARACTER = 0.6
"""Mean width of a character, as a fraction of the font size."""


def line_style(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line with this number; 280 of them differ."""
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": marker(number),
    }


def marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]


def marker_size(count: int) -> float:
    """Size of the markers of `count` points, in points."""
    return float(np.clip(150 / max(count, 1), 1.5, 4.5))


def plain(text: object, limit: int = _SHORT) -> str:
    """A name from a file, shortened to one line and drawn literally.

    matplotlib takes dollar signs for formulas and omits labels that begin with an underscore from
    legends.
    """
    line = " ".join(str(text).split())
    # Control characters would be drawn as boxes, or break the SVG.
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    if len(line) > limit:
        end = (limit - 1) // 2
        line = f"{line[: limit - 1 - end]}…{line[-end:]}"
    line = line.replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def with_unit(quantity: str, unit: str) -> str:
    """An axis label, such as `norm (parameter units)`, in two lines if it is long."""
    if unit in ("", "1"):
        return quantity
    gap = " " if len(quantity) + len(unit) < _LINE else "\n"
    return f"{quantity}{gap}({unit})"


def three_digits(value: float) -> str:
    """A number with three digits, such as `0.990`, `12.0` or `345`."""
    return f"{value:#.3g}".rstrip(".")


def frame(ax: Axes) -> None:
    """Draws a light grid, and only the two axes that have numbers."""
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def whole_numbers(axis: Any) -> None:
    """Puts the ticks of an axis at whole numbers only."""
    axis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))


def lighter_if_better(sign: int) -> Colormap:
    """The colour map in which better values are lighter; lower ones are better if `sign` is +1."""
    return colormaps[COLOR_MAP + ("_r" if sign > 0 else "")]


def legend(ax: Axes, beside: Axes | None = None, *, below: bool = False) -> None:
    """Draws a legend of all labelled lines inside the axes, beside them if it is long, or below.

    Axes that share their place, such as those of the learning rate, share one legend.
    """
    handles, labels = [], []
    for each in filter(None, (ax, beside)):
        found = each.get_legend_handles_labels()
        handles += found[0]
        labels += found[1]
    if not handles:
        return
    look: dict[str, Any] = {"loc": "best"}
    if below:
        # The width is estimated: texts have none before the figure is drawn.
        width = 2 * (max(map(len, labels)) + 6) * _CHARACTER * 0.8 * _font_pixels(ax)
        columns = 2 if width < ax.get_window_extent().width else 1
        lines = 2 + ax.get_xlabel().count("\n")  # of ticks and label, which stand between
        down = ScaledTranslation(0, -lines * _BELOW / 72, ax.figure.dpi_scale_trans)
        look = {"loc": "upper left", "bbox_to_anchor": (0.0, 0.0), "ncols": columns}
        look["bbox_transform"] = ax.transAxes + down
    elif len(handles) > _MANY:
        look = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0)}
    look |= {"frameon": False, "fontsize": "small", "handlelength": 2.6, "borderaxespad": 0.3}
    ax.legend(handles, labels, **look)


def bar_beside(ax: Axes) -> Axes:
    """Axes for a colour bar as high as axes whose shape depends on their data."""
    return ax.inset_axes((1.03, 0.0, 0.05, 1.0))


def log_if_wide(axis: Any, values: np.ndarray, ratio: float) -> None:
    """Sets a logarithmic scale for positive values that span at least the given ratio."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() >= ratio * finite.min():
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})


def places(found: Series | Trajectory) -> tuple[np.ndarray, str]:
    """Positions of checkpoints on an axis, and its label: their epochs if all are known."""
    if all(label.isdecimal() for label in found.labels):
        return np.array([float(label) for label in found.labels]), "epoch"
    return np.asarray(found.positions, float), found.position_unit


def label_columns(ax: Axes, labels: Sequence[str], taken: float = 0.0) -> None:
    """Names the columns 0, 1, ... of axes, as many as fit; long names are turned.

    Args:
        ax: the axes.
        labels: the names.
        taken: pixels of the width that the names of rows will take.
    """
    texts = [plain(label, _COLUMN) for label in labels]
    widest = max(map(len, texts))
    turned = widest > 4
    needed = 1.3 if turned else widest * _CHARACTER + 0.9
    chosen = _spread(len(texts), ax.get_window_extent().width - taken, needed, ax)
    ax.set_xticks(chosen, [texts[n] for n in chosen])
    if turned:
        ax.tick_params(axis="x", labelrotation=90)


def label_rows(ax: Axes, labels: Sequence[str]) -> float:
    """Names the rows 0, 1, ... of axes, as many as fit; returns the width of names in pixels."""
    chosen = _spread(len(labels), ax.get_window_extent().height, 1.3, ax)
    texts = [plain(labels[n], _ROW) for n in chosen]
    ax.set_yticks(chosen, texts)
    return max(map(len, texts)) * _CHARACTER * _font_pixels(ax)


def _spread(count: int, pixels: float, needed: float, ax: Axes) -> list[int]:
    """Indices of evenly spaced labels that fit, always with the first and the last one.

    Args:
        count: number of all labels.
        pixels: width or height that there is.
        needed: what each label needs, in font sizes.
        ax: the axes.
    """
    step = max(1, int(-(-count * needed * _font_pixels(ax) // max(pixels, 1.0))))
    return [*range(0, count - step, step), count - 1]


def _font_pixels(ax: Axes) -> float:
    return float(rcParams["font.size"]) * ax.figure.dpi / 72


def layer_names(layers: Sequence[str]) -> list[str]:
    """Names of layers without the folders `layers` that Keras puts between them."""
    return ["/".join(part for part in n.split("/") if part != "layers") or n for n in layers]


def name_points(
    ax: Axes,
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    others: np.ndarray | Sequence[tuple[float, float]] = (),
) -> None:
    """Writes names beside points, each where it hides the least of points and other names."""
    # An equal aspect moves the axes when they are drawn; places must be known now.
    ax.apply_aspect()
    to_points = 72 / ax.figure.dpi
    everything = np.asarray([*points, *others], float).reshape(-1, 2)
    anchors = ax.transData.transform(everything) * to_points
    marks = np.hstack([anchors - 4, anchors + 4])
    taken = list(marks[: len(names)])
    inside = np.array(ax.get_window_extent().extents) * to_points
    sides = np.array(_SIDES)
    for name, point, (x, y) in zip(names, points, anchors, strict=False):
        text = plain(name)
        width, height = len(text) * _NAME_SIZE * _CHARACTER, _NAME_SIZE * 1.3
        left = x + 7 * sides[:, 0] - width * (1 - sides[:, 0]) / 2
        low = y + 9 * sides[:, 1] - height / 2
        boxes = np.column_stack([left, low, left + width, low + height])
        # A name over another name, or outside, cannot be read; one over a point only hides it.
        costs = 4 * (_overlap(boxes, taken) - _overlap(boxes, [inside])) + _overlap(boxes, marks)
        best = int(np.argmin(costs.round(6)))  # rounding errors must not break ties
        right, up = _SIDES[best]
        taken.append(boxes[best])
        ax.annotate(
            text,
            point,
            xytext=(7 * right, 9 * up),
            textcoords="offset points",
            ha={1: "left", 0: "center", -1: "right"}[right],
            va="center",
            fontsize=_NAME_SIZE,
            path_effects=_HALO,
            zorder=6,
        )


def _overlap(boxes: np.ndarray, others: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """How much of each box the others cover, added up; boxes are (left, low, right, high)."""
    one, other = boxes[:, None, :], np.asarray(others)
    sizes = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    return np.asarray(sizes.clip(0).prod(axis=-1).sum(axis=-1))
