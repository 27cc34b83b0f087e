"""Plots of runs and averages, each from data and axes. The only package that uses matplotlib.

Lines differ in colour (Okabe and Ito's palette), marker and dashes, and colour maps are even in
lightness, so every plot can be read in grey and by colour-blind readers. Names that come from files
are drawn as plain text. See docs/decisions/0059-plots-can-be-read-in-grey.md
"""

from ckptavg.analysis.plots.figures import figure_svg, save_figure
from ckptavg.analysis.plots.heat_maps import cosine_map, distance_map, layer_drift, leaderboard_map
from ckptavg.analysis.plots.planes import loss_contours, loss_line_plot, trajectory_plane
from ckptavg.analysis.plots.series import batch_norm_shift, recipe_curves, series_plot
from ckptavg.analysis.plots.training import learning_curve

__all__ = [
    "batch_norm_shift",
    "cosine_map",
    "distance_map",
    "figure_svg",
    "layer_drift",
    "leaderboard_map",
    "learning_curve",
    "loss_contours",
    "loss_line_plot",
    "recipe_curves",
    "save_figure",
    "series_plot",
    "trajectory_plane",
]
