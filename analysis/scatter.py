"""Points on a plane with their classes: told apart by colour, by marker, and by their names written among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from analysis.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, WIDTH, style

HEIGHT = 6.0
SHOWN = 20
"""Most classes with a look of their own; the images of all but the most frequent ones share one."""

COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK, "#CBB800", "#7A4A21", "#5E3C99")
MARKERS = ("o", "s", "^", "D", "v")
"""Okabe and Ito's, their yellow darker, and a brown and a violet: as many as classes usually are. Markers help."""

LONGEST_NAME = 16

_LAYERS = 8
"""Parts that each class is drawn in, in turn, so that the last class does not cover the others."""


@style()
def plot_scatter(
    places: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    class_names: Sequence[str],
    axes_labels: tuple[str, str],
    title: str,
) -> Figure:
    """A mark a point, and each class's name where its points are densest.

    Args:
        places: float64 (N, 2), finite.
        labels: int64 (N,), indices into ``class_names``.
        axes_labels: of x and y, with their units.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    shown = np.sort(np.argsort(-counts, kind="stable")[:SHOWN])
    shown = shown[counts[shown] > 0]
    others = np.flatnonzero(~np.isin(labels, shown))
    groups = {label: np.flatnonzero(labels == label) for label in shown}
    size = float(np.clip(3e4 / len(labels), 6, 40))
    alpha = 0.55 if len(labels) > 1000 else 0.8

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    # Thousands of marks would make a heavy SVG.
    look: dict[str, Any] = {"s": size, "alpha": alpha, "linewidths": 0, "rasterized": True}
    if len(others):
        axes.scatter(places[others, 0], places[others, 1], color=GREY, marker=".", zorder=1, **look)
        axes.scatter([], [], color=GREY, marker=".", s=30, label=f"{(counts > 0).sum() - len(shown)} other classes")
    for layer in range(_LAYERS):
        for i, label in enumerate(shown):
            mine = places[groups[label][layer::_LAYERS]]
            axes.scatter(mine[:, 0], mine[:, 1], zorder=2, **_look(i), **look)
    for i, label in enumerate(shown):
        name = _short(class_names[label])
        axes.scatter([], [], s=30, label=name, **_look(i))
    axes.set(xlabel=axes_labels[0], ylabel=axes_labels[1])
    axes.margins(0.04)
    axes.set_title(title)
    if len(class_names) > 1:
        figure.legend(loc="outside right upper", frameon=False, handletextpad=0.3)
        figure.draw_without_rendering()  # so that the axes have their place
        _write_names(figure, axes, {_short(class_names[label]): places[groups[label]] for label in shown})
    return figure


def _look(i: int) -> dict[str, Any]:
    """Of the class shown as number ``i``; no two of 50 have the same."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]}


def _write_names(figure: Figure, axes: Axes, groups: dict[str, npt.NDArray[np.float64]]) -> None:
    """Each name at the densest place of its points, moved as far as needed not to cover another."""
    texts: list[Annotation] = []
    for name, places in groups.items():
        text = axes.annotate(
            name,
            _densest(places),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            zorder=5,
            arrowprops={"arrowstyle": "-", "color": BLACK, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0},
        )
        text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])
        texts.append(text)
    figure.draw_without_rendering()
    boxes = np.array([_box(text) for text in texts])  # (n, 4): centre and half sizes in pixels
    frame = axes.get_window_extent()
    moved = _apart(boxes, (frame.x0, frame.y0, frame.x1, frame.y1)) - boxes[:, :2]
    moved *= 72 / figure.dpi  # in points, so that it holds at every resolution
    for text, offset in zip(texts, moved, strict=True):
        text.set_position((float(offset[0]), float(offset[1])))
        if text.arrow_patch is not None:
            text.arrow_patch.set_visible(bool(np.hypot(*offset) > 12))


def _box(text: Annotation) -> tuple[float, float, float, float]:
    box = Text.get_window_extent(text)  # an annotation's own takes its line in
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2, box.width / 2 + 3, box.height / 2 + 1


def _apart(boxes: npt.NDArray[np.float64], frame: tuple[float, float, float, float]) -> npt.NDArray[np.float64]:
    """Centres (n, 2) of boxes (n, 4) pushed apart, in the direction that takes least, and kept inside the frame."""
    centres, halves = boxes[:, :2].copy(), boxes[:, 2:]
    low, high = np.array(frame[:2]) + halves, np.array(frame[2:]) - halves
    for _ in range(300):
        centres = np.clip(centres, low, np.maximum(low, high))
        overlaps = False
        for i in range(len(centres)):
            for j in range(i):
                between = centres[i] - centres[j]
                overlap = halves[i] + halves[j] - np.abs(between)
                if (overlap > 0.01).all():
                    overlaps = True
                    axis = int(overlap.argmin())
                    push = np.zeros(2)
                    push[axis] = (overlap[axis] / 2 + 0.1) * (1 if between[axis] >= 0 else -1)
                    centres[i] += push
                    centres[j] -= push
        if not overlaps:
            break
    return centres


def _densest(places: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Of (n, 2) the point with most others around: a mean or median may lie where there is none of the class."""
    some = places[:: max(1, len(places) // 400)]
    scale = some.std(0).mean() / 4 or 1.0
    squares = np.square(some[:, None] - some[None]).sum(2)
    x, y = some[np.exp(-squares / (2 * scale**2)).sum(1).argmax()]
    return float(x), float(y)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
