"""How one training went: every loss and metric that it reported, by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.axes import scale_values
from analysis.figures import BLUE, GREEN, ORANGE, PINK, WIDTH, style

COLOURS = (BLUE, ORANGE, GREEN, PINK)

TOGETHER = (("train_loss", "val_mse"), ("train_loss", "val_cross_entropy"), ("train_elbo", "val_elbo"))
"""The same measure, in training and validation. Besides them whatever is called ``train_X`` and ``val_X``."""


@style()
def plot_records(records: Sequence[tuple[float, Mapping[str, float]]], title: str) -> Figure:
    """A panel for each measure, its training and validation curves in one; both losses of a GAN are in one, too.

    Args:
        records: (epoch, metrics by name), as a trial reported them.
    """
    panels = _panels(list(dict.fromkeys(name for _, metrics in records for name in metrics)))
    rows = -(-len(panels) // 2) or 1
    figure = Figure(figsize=(WIDTH, 0.5 + 2.6 * rows), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    for i, names in enumerate(panels):
        axes = figure.add_subplot(rows, min(2, len(panels)), i + 1)
        for name, colour in zip(names, COLOURS, strict=False):
            points = [(epoch, metrics[name]) for epoch, metrics in records if name in metrics]
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, linewidth=1.6, label=name)
        values = [metrics[name] for name in names for _, metrics in records if name in metrics]
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            scale_values(axes, min(finite), max(finite))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.legend(frameon=False)
        axes.grid(axis="y")
    return figure


def _panels(names: Sequence[str]) -> list[tuple[str, ...]]:
    left = list(names)
    panels: list[tuple[str, ...]] = []
    pairs = [(name, f"val_{name.removeprefix('train_')}") for name in names if name.startswith("train_")]
    for group in (("train_d_loss", "train_g_loss"), *TOGETHER, *pairs):
        if set(group) <= set(left):
            panels.append(group)
            left = [name for name in left if name not in group]
    return panels + [(name,) for name in left]
