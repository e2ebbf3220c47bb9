"""Pictures of a latent space: a grid of codes, the ways between two codes, and the surroundings of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from analysis.figures import WIDTH, style
from analysis.latent import LatentSpace, lerp, slerp
from analysis.result import Columns
from analysis.sheet import plot_sheet
from models.data_sources import ImageSet
from models.numerics import evaluating

Floats = npt.NDArray[np.float32]

GRID_STEPS, PATH_STEPS, PAIRS, POSTERIOR_DRAWS = 15, 9, 5, 3
NOISE = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Standard deviations of the noise in variations, in those of the codes."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Images decoded from a grid over a plane of codes.

    Args:
        values: float32 (2, S), ascending; of the first and the second value of a code.
        images: float32 (S, S, C, H, W) in [0, 1]; ``images[i, j]`` of the code (``values[0, j]``, ``values[1, i]``).
        source: whose quantiles the values are.
    """

    values: Floats
    images: Floats
    source: str

    @style()
    def figure(self) -> Figure:
        """One picture of all images, the second value of the code growing upwards."""
        steps, _, channels, height, width = self.images.shape
        rows = self.images[::-1].transpose(0, 3, 1, 4, 2)  # (S, H, S, W, C), the highest row first
        mosaic = rows.reshape(steps * height, steps * width, channels)
        figure = Figure(figsize=(WIDTH, 0.9 * WIDTH * height / width + 0.3), layout="constrained")
        axes = figure.add_subplot()
        shown = mosaic if channels == 3 else mosaic.mean(2)
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(0, steps, 0, steps), aspect="auto")
        places = np.arange(0, steps, 2)
        axes.set_xticks(places + 0.5, [f"{self.values[0, i]:.2f}" for i in places])
        axes.set_yticks(places + 0.5, [f"{self.values[1, i]:.2f}" for i in places])
        axes.set(xlabel="first value of the code", ylabel="second value of the code")
        axes.set_title(f"Decoded from a grid of codes, at quantiles of {self.source}")
        return figure


def make_grid(space: LatentSpace, steps: int = GRID_STEPS) -> Grid:
    """A grid of ``steps`` × ``steps`` codes at quantiles, decoded; for a latent space of two dimensions."""
    values = space.quantiles(steps)
    first, second = np.meshgrid(values[0], values[1])
    images = space.decode(np.stack((first.ravel(), second.ravel()), axis=1))
    source = "N(0, 1)" if space.codes is None else "training images' codes"
    return Grid(values, images.reshape(steps, steps, *images.shape[1:]), source)


@dataclass(frozen=True, eq=False)
class Interpolations:
    """Images on the ways between pairs of codes.

    Args:
        linear: float32 (P, S, C, H, W) in [0, 1], on the straight line.
        spherical: the same shape, turning at a steady angle, see :func:`analysis.latent.slerp`.
        ends: float32 (P, 2, C, H, W), the images whose codes the ends are; ``None`` where the ends were drawn.
        indices: int64 (P, 2), places of these images.
        classes: their class names, a pair each.
    """

    linear: Floats
    spherical: Floats
    ends: Floats | None = None
    indices: npt.NDArray[np.int64] | None = None
    classes: tuple[tuple[str, str], ...] = ()

    def figure(self) -> Figure:
        """Two rows a pair, linear above spherical; with the images themselves at both sides where there are any."""
        both = np.stack((self.linear, self.spherical), axis=1)  # (P, 2, S, C, H, W)
        steps = both.shape[2] - 1
        labels = ["0", *(f"{i}/{steps}" for i in range(1, steps)), "1"]
        if self.ends is not None:
            sides = np.broadcast_to(self.ends[:, None], (len(both), 2, *self.ends.shape[1:]))
            both = np.concatenate((sides[:, :, :1], both, sides[:, :, 1:]), axis=2)
            labels = ["image", *labels, "image"]
        what = "two noise vectors" if self.ends is None else "the codes of two images"
        return plot_sheet(
            both.reshape(-1, *both.shape[3:]),
            both.shape[2],
            f"On the way between {what}, in shares of the way",
            row_labels=("linear", "spherical") * len(both),
            column_labels=labels,
        )

    def table(self) -> Columns:
        """The pairs: places and classes of their images; empty where noise was drawn."""
        indices = np.empty((0, 2), np.int64) if self.indices is None else self.indices
        return {
            "start_image": indices[:, 0],
            "end_image": indices[:, 1],
            "start_class": [start for start, _ in self.classes],
            "end_class": [end for _, end in self.classes],
        }


def interpolate(space: LatentSpace, images: ImageSet | None, generator: np.random.Generator) -> Interpolations:
    """Ways between the codes of images of different classes, or between codes that are drawn.

    Args:
        images: with two classes at least; ``None`` to draw codes.
    """
    classes: tuple[tuple[str, str], ...] = ()
    if images is None:
        codes, ends, indices = space.draw(2 * PAIRS, generator), None, None
    else:
        present = generator.permutation(np.unique(images.labels))
        pairs = min(PAIRS, len(present) if len(present) > 2 else 1)
        labels = np.stack([np.roll(present, -i)[:2] for i in range(pairs)])  # each class with the next one
        indices = np.array([[generator.choice(np.flatnonzero(images.labels == c)) for c in pair] for pair in labels])
        codes = space.encode(images.images[indices.ravel()])
        ends = images.images[indices].astype(np.float32) / np.float32(255)
        classes = tuple((images.class_names[a], images.class_names[b]) for a, b in labels)
    ways = [
        np.concatenate([way(codes[i], codes[i + 1], PATH_STEPS) for i in range(0, len(codes), 2)])
        for way in (lerp, slerp)
    ]
    linear, spherical = (space.decode(way) for way in ways)
    shape = (len(codes) // 2, PATH_STEPS, *linear.shape[1:])
    return Interpolations(linear.reshape(shape), spherical.reshape(shape), ends, indices, classes)


@dataclass(frozen=True, eq=False)
class Variations:
    """Images, and what is decoded from the surroundings of their codes.

    Args:
        originals: float32 (N, C, H, W) in [0, 1].
        indices: int64 (N,), their places.
        noisy: float32 (N, V, C, H, W), decoded from the code with noise, in one direction for an image, of each size.
        noise: (V,), in standard deviations of the codes: 1 of each value under the prior N(0, I), else as they are
            spread over training images.
        posterior: float32 (N, D, C, H, W), decoded from draws of q(z | x), for a network that has ``posterior``.
    """

    originals: Floats
    indices: npt.NDArray[np.int64]
    noisy: Floats
    noise: tuple[float, ...]
    posterior: Floats | None

    def figure(self) -> Figure:
        """An image a row: itself, with growing noise, and drawn from its posterior."""
        parts = [self.originals[:, None], self.noisy]
        labels = ["\nimage", *(f"noise\n{size:g} sd" for size in self.noise)]
        if self.posterior is not None:
            parts.append(self.posterior)
            labels += ["from its\nposterior"] * self.posterior.shape[1]
        rows = np.concatenate(parts, axis=1)
        return plot_sheet(
            rows.reshape(-1, *rows.shape[2:]),
            rows.shape[1],
            "Images, decoded again with noise on the code (sd: standard deviation of the codes)",
            column_labels=labels,
        )

    def table(self) -> Columns:
        """Mean squared error per pixel of each variation with noise, against its image."""
        errors = np.square(self.noisy - self.originals[:, None]).mean((2, 3, 4), dtype=np.float64)
        images, sizes = len(self.originals), len(self.noise)
        return {
            "image": np.repeat(self.indices, sizes),
            "noise_sd": np.tile(np.asarray(self.noise), images),
            "mse": errors.ravel(),
        }


def vary(
    space: LatentSpace, images: npt.NDArray[np.uint8], indices: npt.NDArray[np.int64], generator: np.random.Generator
) -> Variations:
    """Variations of the images uint8 (N, C, H, W); ``indices`` (N,) are their places, for the record."""
    codes = space.encode(images)
    direction = generator.standard_normal((len(images), 1, space.size), np.float32) * space.scale
    moved = codes[:, None] + np.asarray(NOISE, np.float32)[:, None] * direction
    noisy = space.decode(moved.reshape(-1, space.size))
    noisy = noisy.reshape(len(images), len(NOISE), *noisy.shape[1:])
    posterior = None
    if hasattr(space.subject.network, "posterior"):
        mean, deviation = _posterior(space, images)
        drawn = generator.standard_normal((len(images), POSTERIOR_DRAWS, space.size), np.float32)
        decoded = space.decode((mean[:, None] + deviation[:, None] * drawn).reshape(-1, space.size))
        posterior = decoded.reshape(len(images), POSTERIOR_DRAWS, *decoded.shape[1:])
    return Variations(images.astype(np.float32) / np.float32(255), indices, noisy, NOISE, posterior)


def _posterior(space: LatentSpace, images: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Mean and standard deviation (N, L) of q(z | x), from a ``posterior`` that gives mean and log-variance."""
    network: Any = space.subject.network
    with evaluating(network), torch.inference_mode():
        mean, log_variance = network.posterior(torch.from_numpy(images).to(space.subject.device).float() / 255)
    return mean.flatten(1).cpu().numpy(), (0.5 * log_variance).exp().flatten(1).cpu().numpy()
