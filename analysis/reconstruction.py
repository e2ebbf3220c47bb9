"""What a model makes of images that it did not learn from: originals and reconstructions side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import nn

from analysis.figures import GREY, WIDTH, style
from analysis.subject import evaluating
from models.errors import UserError
from models.family import CAPABILITIES

COLUMNS = 10
"""Most images side by side; more of them go on below."""


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Some images and what the network made of them.

    Args:
        originals: float32 (n, C, H, W) in [0, 1].
        reconstructions: the same shape, cut off to [0, 1].
        squared_errors: float32 (n,), mean over the pixels of each image, of the network's own output before it was
            cut off; the mean over a whole validation set is what ``val_mse`` is.
    """

    originals: npt.NDArray[np.float32]
    reconstructions: npt.NDArray[np.float32]
    squared_errors: npt.NDArray[np.float32]


def compute(network: nn.Module, images: npt.NDArray[np.uint8], count: int = 10) -> Reconstructions:
    """Encode and decode ``count`` images, spread evenly over ``images``.

    Args:
        network: on any device; evaluated without dropout and the like, and left in the modes that it was in.
        images: uint8 (N, C, H, W).
        count: at least 1; if there are fewer images, all of them are used.

    Raises:
        UserError: the network cannot encode and decode, its output has another shape, or there is no image.
    """
    if not all(hasattr(network, name) for name in ("encode", "decode")):
        able = [name for name in CAPABILITIES if hasattr(network, name)]
        raise UserError.of(
            "network",
            type(network).__name__,
            f"cannot reconstruct, which takes encode and decode; it can {', '.join(able) or 'do none of these'}",
        )
    if len(images) < 1 or count < 1:
        raise UserError.of("count", min(count, len(images)), "must be at least 1 image")
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(np.int64)
    parameter = next(network.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    originals_BCHW = torch.from_numpy(images[chosen]).to(device).float().div_(255)
    able_network = cast(Any, network)  # nn.Module does not know of encode and decode
    with evaluating(network), torch.inference_mode():
        output_BCHW = able_network.decode(able_network.encode(originals_BCHW)).float()
    if output_BCHW.shape != originals_BCHW.shape:
        shapes = f"{tuple(output_BCHW.shape)}: must be {tuple(originals_BCHW.shape)}, as the images"
        raise UserError.of("network", type(network).__name__, f"decodes images of shape {shapes}")
    squared_errors_B = torch.square(output_BCHW - originals_BCHW).flatten(1).mean(1)
    return Reconstructions(
        originals_BCHW.cpu().numpy(), output_BCHW.clamp(0, 1).cpu().numpy(), squared_errors_B.cpu().numpy()
    )


@style()
def plot(result: Reconstructions, title: str) -> Figure:
    """Originals above, reconstructions below, and under each pair its mean squared error per pixel.

    Images of three channels are shown in colour, others by the mean over their channels in grey.
    """
    count, _, height, width = result.originals.shape
    bands = -(-count // COLUMNS)  # rows of pairs
    # All in inches, from the top: title, then in each band two rows of images and the line of errors.
    left, right, top, gap, line, bottom = 1.2, 0.1, 0.42, 0.06, 0.32, 0.02
    cell = min((WIDTH - left - right) / min(count, COLUMNS) - gap, 1.2)
    cell_height = cell * height / width
    band = 2 * cell_height + gap + line
    total = top + bands * band + bottom
    figure = Figure(figsize=(WIDTH, total))
    figure.text(0.1 / WIDTH, 1 - 0.12 / total, title, fontsize=11, va="top")

    def show(image_CHW: npt.NDArray[np.float32], x: float, y: float) -> None:
        """Draw an image with its upper left corner at (x, y)."""
        axes = figure.add_axes((x / WIDTH, 1 - (y + cell_height) / total, cell / WIDTH, cell_height / total))
        pixels = image_CHW.transpose(1, 2, 0) if len(image_CHW) == 3 else image_CHW.mean(0)
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=GREY, linewidth=0.4)

    def write(text: str, x: float, y: float, align: Literal["center", "right"], size: float) -> None:
        figure.text(x / WIDTH, 1 - y / total, text, va="center", ha=align, fontsize=size)

    for i in range(count):
        row, column = divmod(i, COLUMNS)
        x, y = left + column * (cell + gap), top + row * band
        show(result.originals[i], x, y)
        show(result.reconstructions[i], x, y + cell_height + gap)
        errors_at = y + 2 * cell_height + gap + line / 2 - 0.02
        error = f"{result.squared_errors[i]:#.2g}".rstrip(".")  # 0.020 and not 0.02, but 12 and not 12.
        write(error, x + cell / 2, errors_at, "center", 9)
        if column == 0:
            write("original", left - 0.1, y + cell_height / 2, "right", 10)
            write("reconstruction", left - 0.1, y + 1.5 * cell_height + gap, "right", 10)
            write("MSE", left - 0.1, errors_at, "right", 9)
    return figure
