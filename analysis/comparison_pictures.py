"""Pictures of a comparison: how trials learnt, and their errors in training and validation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, WIDTH, style

LOOKS = [
    (colour, dash) for dash in ("-", (0, (5, 2)), (0, (1, 1.2))) for colour in (BLUE, ORANGE, GREEN, RED, PINK, SKY)
]
_MARKERS = "osD^vP*X<>hp"


@style()
def plot_learning(
    labels: Sequence[str], curves: Sequence[Sequence[tuple[float, float, float]]], metric: str, mode: str | None
) -> Figure:
    """The metric on the validation images, by epoch and by seconds trained; a line for each trial."""
    shown = [_short(label) for label in labels]
    columns = min(len(labels), 3 if max(map(len, shown)) <= 22 else 2)
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(WIDTH, 3.5 + 0.2 * rows), layout="constrained")
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
    for i, (label, curve) in enumerate(zip(shown, curves, strict=True)):
        colour, dash = LOOKS[i % len(LOOKS)]
        for axes, at in ((by_epoch, 0), (by_time, 2)):
            axes.plot(
                [point[at] for point in curve],
                [point[1] for point in curve],
                color=colour,
                linestyle=dash,
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=3.5,
                linewidth=1.6,
                label=label if at == 0 else None,
            )
    by_epoch.set(xlabel="epoch", ylabel=_axis(metric, mode))
    by_time.set(xlabel="seconds of training and validation")
    _scale(by_epoch, "y", [point[1] for curve in curves for point in curve])
    for axes in (by_epoch, by_time):
        axes.set_xlim(left=0)
        axes.grid(axis="y")
    by_epoch.set_title("on the validation images")
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return figure


@style()
def plot_errors(labels: Sequence[str], pairs: Sequence[tuple[float, float]], metric: str, mode: str | None) -> Figure:
    """Each trial's metric on the training and on the validation images, and the gap between them in numbers."""
    figure = Figure(figsize=(WIDTH, 1.5 + 0.36 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(labels))[::-1]
    train, validation = np.array(pairs, dtype=np.float64).T
    axes.hlines(places, train, validation, color=GREY, linewidth=2, zorder=1)
    axes.scatter(train, places, marker="o", s=42, facecolors="white", edgecolors=BLUE, linewidths=1.6, label="training")
    axes.scatter(validation, places, marker="D", s=36, color=ORANGE, label="validation")
    for place, gap in zip(places, validation - train, strict=True):
        text = f"gap {gap:+.3g}"
        axes.text(1.01, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=BLACK)
    axes.set_yticks(places, [_short(label) for label in labels])
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.set_xlabel(_axis(metric, mode))
    axes.set_title("at the weights kept; gap = validation - training")
    _scale(axes, "x", [value for pair in pairs for value in pair])
    axes.grid(axis="x")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _short(label: str) -> str:
    """At most 32 characters; what tells trials apart stands at the ends."""
    return label if len(label) <= 32 else f"{label[:15]}…{label[-16:]}"


def _axis(metric: str, mode: str | None) -> str:
    better = {"min": " (lower is better)", "max": " (higher is better)"}
    return metric.replace("_", " ") + better.get(mode or "", "")


def _scale(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis where the values are positive and span more than a factor of 5."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) <= 0 or max(finite) <= 5 * min(finite):
        return
    getattr(axes, f"set_{which}scale")("log")
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
