"""Sheets of images: rows and columns of small pictures with labels, drawn the same way everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from analysis.figures import GREY, WIDTH, style

LARGEST_CELL = 1.2
"""Inches; more does not show more of 28 pixels."""

_LINE = 0.22
"""Inches of a line of captions."""


@style()
def plot_sheet(
    images: npt.NDArray[np.float32],
    columns: int,
    title: str,
    *,
    row_labels: Sequence[str] = (),
    captions: Sequence[str] = (),
    gap: float = 0.05,
    signed: bool = False,
) -> Figure:
    """Images in reading order, ``columns`` a row.

    Args:
        images: float32 (N, C, H, W), cut off to [0, 1] when shown; of three channels in colour, of others the mean.
        row_labels: one a row, to its left.
        captions: one an image, below it; ``""`` for none.
        gap: inches between images.
        signed: grey is 0, white the largest and black minus the largest absolute value of each image, instead of
            [0, 1]; for weights.
    """
    count, _, height, width = images.shape
    rows = -(-count // columns)
    longest = max((len(label) for label in row_labels), default=0)
    left = 0.1 if not row_labels else 0.2 + 0.085 * longest
    top, below = 0.36, (_LINE if any(captions) else 0.0)
    cell = min((WIDTH - left - 0.1) / columns - gap, LARGEST_CELL)
    cell_height = cell * height / width
    total = top + rows * (cell_height + gap + below) + 0.05
    figure = Figure(figsize=(WIDTH, total))
    figure.text(left / WIDTH, 1 - 0.2 / total, title, fontsize=11, va="center")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        x, y = left + column * (cell + gap), top + row * (cell_height + gap + below)
        axes = figure.add_axes((x / WIDTH, 1 - (y + cell_height) / total, cell / WIDTH, cell_height / total))
        pixels = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
        reach = float(np.abs(pixels).max()) or 1.0
        low, high = (-reach, reach) if signed else (0.0, 1.0)
        shown = np.clip((pixels - low) / (high - low), 0, 1)
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=GREY, linewidth=0.4)
        if i < len(captions) and captions[i]:
            at = 1 - (y + cell_height + gap + below / 2 - 0.03) / total
            figure.text((x + cell / 2) / WIDTH, at, captions[i], ha="center", va="center", fontsize=9)
        if column == 0 and row < len(row_labels):
            at = 1 - (y + cell_height / 2) / total
            figure.text((left - 0.1) / WIDTH, at, row_labels[row], ha="right", va="center", fontsize=9)
    return figure
