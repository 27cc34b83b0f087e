"""Pictures of runs and averages: data and axes in, axes out. The only file that uses matplotlib."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

_LINE, _AVERAGE, _REFERENCE = "#0072b2", "#d55e00", "#555555"  # told apart by colour-blind readers


def metric_curve(
    values: Sequence[float],
    *,
    ax: Axes,
    saved_epochs: Sequence[int] = (),
    averages: Mapping[str, float] | None = None,
    label: str = "metric",
) -> Axes:
    """Draws a metric over the epochs of a run, with its checkpoints and averages of them.

    Args:
        values: the metric at the end of each epoch, the first of epoch 1.
        ax: axes to draw into.
        saved_epochs: 1-based epochs whose checkpoints are marked.
        averages: values of the metric for averages, drawn as lines over the epochs averaged.
        label: what the metric is, with its unit.

    Returns:
        The axes.
    """
    epochs = range(1, len(values) + 1)
    ax.plot(epochs, values, color=_LINE, linewidth=1.2, label="each epoch")
    if saved_epochs:
        marked = [values[epoch - 1] for epoch in saved_epochs]
        ax.plot(saved_epochs, marked, "o", color=_LINE, markersize=4, label="saved checkpoints")
    styles = (("-", _AVERAGE), ("--", _REFERENCE))
    for number, (name, value) in enumerate((averages or {}).items()):
        style, color = styles[number % len(styles)]
        start, end = (saved_epochs[0], saved_epochs[-1]) if saved_epochs else (1, len(values))
        ax.plot([start, end], [value, value], style, color=color, linewidth=1.8, label=name)
    ax.set_xlabel("epoch")
    ax.set_ylabel(label)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.legend(frameon=False, loc="best")
    return ax
