"""Sheets of images: rows and columns of small pictures with labels, drawn the same way everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath

from analysis.figures import GREY, WIDTH, style

LARGEST_CELL = 1.2
"""Inches; more does not show more of 28 pixels."""

_LINE = 0.22
"""Inches of a line of captions."""

_SMALL: dict[str, Any] = {"va": "center", "fontsize": 9}


@style()
def plot_sheet(
    images: npt.NDArray[np.float32],
    columns: int,
    title: str,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    captions: Sequence[str] = (),
    gap: float = 0.05,
    signed: bool = False,
    largest_cell: float = LARGEST_CELL,
) -> Figure:
    """Images in reading order, ``columns`` a row.

    Args:
        images: float32 (N, C, H, W), cut off to [0, 1] when shown; of three channels in colour, of others the mean.
            One that is not finite leaves its place empty.
        row_labels: one a row, to its left.
        column_labels: one a column, above the first row; of several lines each.
        captions: one an image, below it; ``""`` for none. A row without any takes no space for them.
        gap: inches between images.
        signed: grey is 0, white the largest and black minus the largest absolute value of each image, instead of
            [0, 1]; for weights.
        largest_cell: inches of an image's width at most, for few columns.
    """
    count, _, height, width = images.shape
    rows = -(-count // columns)
    longest = max((len(line) for label in row_labels for line in label.split("\n")), default=0)
    left = 0.1 if not row_labels else 0.2 + 0.085 * longest
    above = _LINE * max((label.count("\n") + 1 for label in column_labels), default=0)
    below = [_LINE if any(captions[row * columns : (row + 1) * columns]) else 0.0 for row in range(rows)]
    cell = min((WIDTH - left - 0.1) / columns - gap, largest_cell)
    cell_height = cell * height / width
    tops = 0.36 + above + np.cumsum([0.0, *(cell_height + gap + space for space in below)])
    total = tops[-1] + 0.05
    figure = Figure(figsize=(WIDTH, total))
    figure.text(left / WIDTH, 1 - 0.2 / total, title, fontsize=11, va="center")
    # One axes in inches from the upper left corner, since one for each of hundreds of images takes many seconds.
    axes = figure.add_axes((0, 0, 1, 1))
    figure.suppressComposite = True  # each image with its own pixels in an SVG
    room = 72 * (cell + gap - 0.04)  # points for a caption
    widest = max((TextPath((0, 0), caption, size=9).get_extents().width for caption in captions if caption), default=0)
    caption_size = 9 * min(1.0, room / max(widest, 1))
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        x, y = left + column * (cell + gap), tops[row]
        if row == 0 and column < len(column_labels):
            axes.text(x + cell / 2, y - above / 2, column_labels[column], ha="center", **_SMALL)
        if column == 0 and row < len(row_labels):
            axes.text(left - 0.1, y + cell_height / 2, row_labels[row], ha="right", **_SMALL)
        if not np.isfinite(image).all():
            continue
        pixels = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
        reach = float(np.abs(pixels).max()) or 1.0
        low, high = (-reach, reach) if signed else (0.0, 1.0)
        shown = np.clip((pixels - low) / (high - low), 0, 1)
        place = (x, x + cell, y + cell_height, y)
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=place, interpolation="nearest")
        axes.add_patch(Rectangle((x, y), cell, cell_height, fill=False, edgecolor=GREY, linewidth=0.4))
        if i < len(captions) and captions[i]:
            at = y + cell_height + gap + below[row] / 2 - 0.03
            axes.text(x + cell / 2, at, captions[i], ha="center", va="center", fontsize=caption_size)
    axes.set(xlim=(0, WIDTH), ylim=(total, 0), aspect="auto")
    axes.set_axis_off()
    return figure
