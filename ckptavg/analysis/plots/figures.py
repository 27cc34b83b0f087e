"""Figures with one pair of axes, as files or as SVG text."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Draw = Callable[[Axes], Axes]
"""Draws into axes and returns them."""


def save_figure(draw: Draw, path: Path, *, size: tuple[float, float] = (7, 4)) -> None:
    """Saves a figure with one pair of axes.

    Args:
        draw: draws into the axes.
        path: the file to write; its suffix chooses the format.
        size: width and height in inches; empty margins are cut off.

    Raises:
        ValueError: matplotlib cannot write the format.
    """
    _save(draw, size, path, dpi=120, bbox_inches="tight")


def figure_svg(draw: Draw, *, size: tuple[float, float] = (5, 3.4)) -> str:
    """A figure with one pair of axes as SVG, whose text is the same for the same data.

    Letters are drawn as outlines, so that the picture needs no fonts.

    Args:
        draw: draws into the axes.
        size: width and height in inches.
    """
    file = io.StringIO()
    # Without them, matplotlib notes the date and its own version.
    _save(draw, size, file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _save(
    draw: Draw, size: tuple[float, float], target: Path | io.StringIO, **options: Any
) -> None:
    with (
        # The salt makes the ids of elements the same in every process.
        matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "ckptavg", "svg.fonttype": "path"}),
        warnings.catch_warnings(),
    ):
        # Names may be in any script; a font that lacks it draws boxes.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing", UserWarning)
        # Not pyplot, which would keep the figure and might need a display.
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        figure.savefig(target, **options)
