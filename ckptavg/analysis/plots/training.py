"""A training over its epochs: metrics, learning rate, saved checkpoints."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ckptavg.analysis.plots import style
from ckptavg.runs.history import EpochLog
from ckptavg.runs.record import Record

_SAVED, _MARK = "saved checkpoints", "o"
_RATE = "#888888"
_WIDE = 50.0
"""Ratio of the largest to the smallest value above which a scale is logarithmic."""
_LARGEST = 1e200
"""Larger values are drawn as if they were infinite, because scales need room around them."""


def learning_curve(
    history: Sequence[EpochLog | Record],
    *,
    ax: Axes,
    metrics: Sequence[str] | None = None,
    saved_epochs: Collection[int] = (),
    averages: Mapping[str, float] | None = None,
    label: str | None = None,
    show_rate: bool = True,
) -> Axes:
    """Draws metrics and the learning rate over the epochs of a training.

    Args:
        history: `run.history`, or `run.records` of a run without one, in the order of training.
        ax: axes to draw into; the learning rate gets an axis on their right.
        metrics: names of metrics; by default the loss and its validation loss, or the first metric
            and its validation metric.
        saved_epochs: 1-based epochs of checkpoints to mark.
        averages: values of the metric for averages, by name, drawn as lines over the saved epochs.
        label: axis label of the metrics, with their unit; by default their name.
        show_rate: whether to draw the learning rate, if it is known.

    Returns:
        The axes.

    Example:
        >>> run = ckptavg.open_run("run")
        >>> saved = [record.epoch for record in run.records]
        >>> learning_curve(run.history, ax=ax, metrics=["val_accuracy"], saved_epochs=saved)
    """
    x, unit = _places(history)
    names = default_metrics(history) if metrics is None else list(metrics)
    saved = [n for n, entry in enumerate(history) if entry.epoch in set(saved_epochs)]
    rates = _values([entry.learning_rate for entry in history])
    has_rate = show_rate and np.isfinite(rates).any()
    # Without metrics the learning rate is the subject, and has the main axis.
    beside = ax.twinx() if has_rate and names else None
    if has_rate:
        color = _RATE if names else style.COLORS[0]
        _draw_rate(beside or ax, x, rates, [] if names else saved, color)
    drawn = []
    for number, name in enumerate(names):
        drawn.append(_values([entry.metrics.get(name) for entry in history]))
        # Circles on all lines: one mark for one thing. Colours and dashes tell the lines apart.
        look = style.line_style(number) | {"linewidth": 1.3, "label": style.plain(name)}
        look["marker"] = _MARK
        _draw_line(ax, x, drawn[-1], saved, marks_label=_SAVED if number == 0 else None, **look)
    if averages:
        _draw_averages(ax, x[saved] if saved else x, averages, len(names))
        drawn.append(_values(list(averages.values())))
    if names:
        style.log_if_wide(ax.yaxis, np.concatenate(drawn), _WIDE)
        ax.set_ylabel(style.plain(label or _common_name(names), 22))
    elif not has_rate:
        ax.text(0.5, 0.5, "no metrics or learning rates", ha="center", transform=ax.transAxes)
    ax.set_xlabel(unit)
    style.whole_numbers(ax.xaxis)
    style.frame(ax)
    if beside is not None:
        beside.spines["right"].set_visible(True)
        beside.spines[["top", "left"]].set_visible(False)
        ax.set_zorder(beside.get_zorder() + 1)  # the legend lies over all lines
        ax.patch.set_visible(False)
    style.legend(ax, beside, below=True)
    return ax


def default_metrics(history: Sequence[EpochLog | Record]) -> list[str]:
    """The loss, or else the first metric, with its validation twin; empty without metrics."""
    groups = metric_groups(history)
    return groups.get("loss") or next(iter(groups.values()), [])


def metric_groups(history: Sequence[EpochLog | Record]) -> dict[str, list[str]]:
    """Names of metrics, each with its validation twin, in the order of their first occurrence."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for entry in history for name in entry.metrics):
        groups.setdefault(name.removeprefix("val_"), []).append(name)
    return groups


def _places(history: Sequence[EpochLog | Record]) -> tuple[np.ndarray, str]:
    """Positions of entries: their epochs, or their steps if several belong to one epoch."""
    epochs = [entry.epoch for entry in history]
    steps = [entry.step for entry in history]
    if len(set(epochs)) < len(epochs) and None not in steps:
        return np.array(steps, float), "optimizer step"
    return np.array(epochs, float), "epoch"


def _values(found: Sequence[float | None]) -> np.ndarray:
    """Numbers, with NaN for missing and huge ones, where lines then have gaps."""
    values = np.array([np.nan if value is None else value for value in found], float)
    values[~(np.abs(values) < _LARGEST)] = np.nan
    return values


def _draw_line(
    ax: Axes,
    x: np.ndarray,
    values: np.ndarray,
    saved: Sequence[int],
    *,
    marker: str,
    marks_label: str | None = _SAVED,
    **look: Any,
) -> None:
    """A line with gaps where values are unknown, and marks at saved checkpoints."""
    ax.plot(x, values, **look)
    # A value between two gaps is on no line, so it gets a dot.
    known = np.concatenate([[False], np.isfinite(values), [False]])
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])
    ax.plot(x[alone], values[alone], ".", color=look["color"])
    if saved:
        marks = {"color": look["color"], "markersize": style.marker_size(len(saved))}
        ax.plot(x[saved], values[saved], marker, **marks, label=marks_label)


def _draw_rate(
    ax: Axes, x: np.ndarray, rates: np.ndarray, saved: Sequence[int], color: str
) -> None:
    look: dict[str, Any] = {"linestyle": ":", "color": color, "linewidth": 1.0}
    _draw_line(ax, x, rates, saved, marker=_MARK, label="learning rate", **look)
    ax.set_ylabel("learning rate")
    style.log_if_wide(ax.yaxis, rates, _WIDE)
    if ax.get_yscale() == "linear":
        ax.set_ylim(bottom=min(0.0, float(np.nanmin(rates))))


def _draw_averages(ax: Axes, x: np.ndarray, averages: Mapping[str, float], first: int) -> None:
    for number, (name, value) in enumerate(averages.items(), first + (first == 0)):
        look = style.line_style(number) | {"marker": None, "linewidth": 2.0}
        ax.plot([x[0], x[-1]], [value, value], **look, label=style.plain(name))


def _common_name(names: Sequence[str]) -> str:
    groups = {name.removeprefix("val_") for name in names}
    return names[0] if len(names) == 1 else groups.pop() if len(groups) == 1 else "metric"
