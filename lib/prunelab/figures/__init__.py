"""Drawings of records. They neither train nor change a number, and each returns the numbers it drew.

They draw into axes that the caller made and titles:

    fig, ax = plt.subplots(figsize=figures.SIZE, layout="constrained")
    data = figures.metric_vs_sparsity(frame, ax=ax)
    figures.save_figure(fig, "01_rigl", profile, "accuracy_vs_sparsity", data=data, alt="...")

A line joins means over seeds and a marker is one run. A hollow marker is a run that diverged; it counts in
its mean. Where a diverged run has no value its mean has none either, and its marker stands on the lower edge.
"""

from prunelab.figures.axes import one_legend
from prunelab.figures.boxes import scene_boxes
from prunelab.figures.categories import heat_map, strips
from prunelab.figures.forest import forest, settings
from prunelab.figures.fronts import fronts, kinds
from prunelab.figures.layers import kernel_patterns, layer_densities, mask_survival, measured_densities, pixel_map
from prunelab.figures.lines import (
    curves,
    loss_paths,
    metric_vs,
    metric_vs_cost,
    metric_vs_sparsity,
    published,
    speed_curves,
)
from prunelab.figures.save import SIZE, save_animation, save_figure
from prunelab.figures.style import (
    DESIGN_STYLE,
    DISTRIBUTION_STYLE,
    KIND_STYLE,
    METHOD_STYLE,
    PATH_STYLE,
    PRUNING_STYLE,
    SCORE_STYLE,
    START_STYLE,
    TRAINING_STYLE,
    UPSTREAM_STYLE,
    WAY_STYLE,
    name,
    percent,
    styles,
)
from prunelab.figures.transfers import dead_by_layer, error_trends, intervals, leads, scatter, turn
from prunelab.figures.widths import retained, retained_over_time, width_shares

__all__ = [
    "DESIGN_STYLE",
    "DISTRIBUTION_STYLE",
    "KIND_STYLE",
    "METHOD_STYLE",
    "PATH_STYLE",
    "PRUNING_STYLE",
    "SCORE_STYLE",
    "SIZE",
    "START_STYLE",
    "TRAINING_STYLE",
    "UPSTREAM_STYLE",
    "WAY_STYLE",
    "curves",
    "dead_by_layer",
    "error_trends",
    "forest",
    "fronts",
    "heat_map",
    "intervals",
    "kernel_patterns",
    "kinds",
    "layer_densities",
    "leads",
    "loss_paths",
    "mask_survival",
    "measured_densities",
    "metric_vs",
    "metric_vs_cost",
    "metric_vs_sparsity",
    "name",
    "one_legend",
    "percent",
    "pixel_map",
    "published",
    "retained",
    "retained_over_time",
    "save_animation",
    "save_figure",
    "scatter",
    "scene_boxes",
    "settings",
    "speed_curves",
    "strips",
    "styles",
    "turn",
    "width_shares",
]
