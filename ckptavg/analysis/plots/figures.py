"""Figures of one pair of axes, as files or as SVG text."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Draw = Callable[[Axes], Axes]
"""What draws into axes."""


def save_figure(draw: Draw, path: Path, *, size: tuple[float, float] = (7, 4)) -> None:
    """Makes a figure of one pair of axes, has it drawn, and saves it.

    Args:
        draw: draws into axes.
        path: the file to write; its suffix says the format.
        size: width and height in inches; what stays empty around the drawing is cut off.

    Raises:
        ValueError: matplotlib knows no such format.
    """
    with _drawn(draw, size) as figure:
        figure.savefig(path, dpi=120, bbox_inches="tight")


def figure_svg(draw: Draw, *, size: tuple[float, float] = (5, 3.4)) -> str:
    """A figure of one pair of axes as SVG, the same text for the same data, letters as outlines.

    Args:
        draw: draws into axes.
        size: width and height in inches.
    """
    file = io.StringIO()
    with _drawn(draw, size) as figure:
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


@contextmanager
def _drawn(draw: Draw, size: tuple[float, float]) -> Iterator[Figure]:
    settings = {"font.size": 9, "svg.hashsalt": "ckptavg", "svg.fonttype": "path"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Names may be in any script; a font that lacks it draws boxes.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing", UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        yield figure
