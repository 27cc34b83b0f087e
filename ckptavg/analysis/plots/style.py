"""What plots share: colours, lines and markers that stay apart in print, plain labels, legends."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from ckptavg.analysis.tables import Series
    from ckptavg.analysis.trajectory import Trajectory

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of Okabe and Ito's palette, without the yellow that is too light for lines."""
GREY = "#555555"
COLOR_MAP = "cividis"

_DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (6, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vPX*"
_SHORT = 28
_MANY = 4
"""Lines from which on a legend stands beside the axes."""
_HALO = (withStroke(linewidth=2.5, foreground="white"),)
_CHARACTER = 0.6
"""Mean width of a character, in font sizes."""


def line_style(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line of this number; 280 differ."""
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": marker(number),
    }


def marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]


def marker_size(count: int) -> float:
    """Of the markers of that many points, in points."""
    return float(np.clip(150 / max(count, 1), 1.5, 4.5))


def plain(text: object, limit: int = _SHORT) -> str:
    """A name from a file, to be drawn as it stands: short, in one line, never as a formula.

    matplotlib reads dollar signs as formulas, and leaves what begins with an underscore out of
    legends.
    """
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    if len(line) > limit:
        end = (limit - 1) // 2
        line = f"{line[: limit - 1 - end]}…{line[-end:]}"
    line = line.replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def with_unit(quantity: str, unit: str) -> str:
    """An axis label, such as `distance (parameter units)`."""
    return quantity if unit in ("", "1") else f"{quantity} ({unit})"


def frame(ax: Axes) -> None:
    """A light grid, and only the two axes that carry numbers."""
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def whole_numbers(axis: Any) -> None:
    """Ticks of an axis at whole numbers only."""
    axis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))


def legend(ax: Axes, *others: Axes) -> None:
    """A legend of all labelled lines; beside the axes where they are many."""
    handles, labels = [], []
    for each in (ax, *others):
        found = each.get_legend_handles_labels()
        handles += found[0]
        labels += found[1]
    if not handles:
        return
    place = {"loc": "best"}
    if len(handles) > _MANY:
        place = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0.0}
        if others:  # whose axis stands there
            place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.02), "ncols": 3}
    ax.legend(handles, labels, frameon=False, fontsize="small", handlelength=2.6, **place)


def log_if_wide(axis: Any, values: np.ndarray, ratio: float) -> None:
    """A logarithmic scale for positive values whose largest is that many times the smallest."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() >= ratio * finite.min():
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})


def places(found: "Series | Trajectory") -> tuple[np.ndarray, str]:
    """Where checkpoints stand on an axis, and its label: their epochs, where all are known."""
    if all(label.isdecimal() for label in found.labels):
        return np.array([float(label) for label in found.labels]), "epoch"
    return np.asarray(found.positions, float), found.position_unit


def label_columns(ax: Axes, labels: Sequence[str], limit: int = 16) -> None:
    """Names the columns 0, 1, ... of axes, as many as fit, turned where they are long."""
    texts = [plain(label, limit) for label in labels]
    widest = max(map(len, texts))
    turned = widest > 4
    needed = 1.3 if turned else widest * _CHARACTER + 0.9
    chosen = _spread(len(texts), ax.get_window_extent().width, needed, ax)
    ax.set_xticks(chosen, [texts[n] for n in chosen])
    if turned:
        ax.tick_params(axis="x", labelrotation=90)


def label_rows(ax: Axes, labels: Sequence[str], limit: int = 24) -> None:
    """Names the rows 0, 1, ... of axes, as many as fit."""
    chosen = _spread(len(labels), ax.get_window_extent().height, 1.3, ax)
    ax.set_yticks(chosen, [plain(labels[n], limit) for n in chosen])


def _spread(count: int, pixels: float, needed: float, ax: Axes) -> list[int]:
    """Numbers of evenly spaced labels, the first among them, that have room in `pixels`."""
    size = rcParams["font.size"] * ax.figure.dpi / 72
    step = max(1, -(-count * needed * size // pixels))
    return list(range(0, count, int(step)))


def name_points(ax: Axes, names: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Writes names beside points, each where it hides neither another name nor a named point."""
    size = 8.0
    to_points = 72 / ax.figure.dpi
    anchors = ax.transData.transform(np.asarray(points, float).reshape(-1, 2)) * to_points
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in anchors]
    frame_box = ax.get_window_extent()
    inside = np.array(frame_box.extents) * to_points
    for name, point, (x, y) in zip(names, points, anchors, strict=True):
        text = plain(name)
        width, height = len(text) * size * _CHARACTER, size * 1.3
        sides = [(s, v) for v in (1, -1, 0) for s in (1, -1)]
        boxes = [
            (
                x + 7 if side > 0 else x - 7 - width,
                y + vertical * 8 - height / 2,
                x + 7 + width if side > 0 else x - 7,
                y + vertical * 8 + height / 2,
            )
            for side, vertical in sides
        ]
        costs = [
            sum(_overlap(box, other) for other in taken) + 2 * _outside(box, inside)
            for box in boxes
        ]
        best = int(np.argmin(costs))
        side, vertical = sides[best]
        taken.append(boxes[best])
        ax.annotate(
            text,
            point,
            xytext=(7 * side, 8 * vertical),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=size,
            path_effects=_HALO,
            zorder=6,
        )


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Sequence[float], frame_box: Sequence[float]) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return area - _overlap(box, frame_box)
