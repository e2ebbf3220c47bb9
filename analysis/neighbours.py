"""The images nearest to others, pixel by pixel: whether what a model makes up is a copy of what it has learnt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from analysis.sheet import plot_sheet

Floats = npt.NDArray[np.float32]

SHOWN = 10
"""Samples in the picture."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Samples and their nearest training images.

    Distances are Euclidean between all pixel values, in [0, 1]: 0 for a copy, √(C·H·W) between black and white.

    Args:
        samples: float32 (N, C, H, W) in [0, 1].
        images: float32 (N, K, C, H, W), the training images nearest to each, nearest first.
        indices: int64 (N, K), their places in the training set.
        distances: float64 (N, K), ascending.
        held_out: float64 (M,), distance of validation images to their nearest training image: what an image that was
            not learnt is apart from those that were.
    """

    samples: Floats
    images: Floats
    indices: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float64]
    held_out: npt.NDArray[np.float64]

    def figure(self) -> Figure:
        """Each row a sample, then its nearest training images with their distances."""
        shown, columns = min(SHOWN, len(self.samples)), 1 + self.indices.shape[1]
        pictures = np.concatenate((self.samples[:shown, None], self.images[:shown]), axis=1)
        gap = np.full_like(pictures[:, :1], np.nan)
        captions = [text for row in self.distances[:shown] for text in ("", *(f"{value:.2f}" for value in row), "")]
        labels = ("sample", *(f"{i}." for i in range(1, columns)), "")
        return plot_sheet(
            np.concatenate((pictures, gap), axis=1).reshape(-1, *pictures.shape[2:]),
            2 * (columns + 1) if shown > 1 else columns + 1,
            "Samples, and to the right of each the nearest training images (L2 distance of pixels)",
            column_labels=labels * (2 if shown > 1 else 1),
            captions=captions,
        )


def find_neighbours(
    samples: Floats, training: npt.NDArray[np.uint8], held_out: npt.NDArray[np.uint8], k: int = 5
) -> Neighbours:
    """The ``k`` training images nearest to each sample, by comparing with all of them.

    Args:
        samples: float32 (N, C, H, W), at least one.
        training: uint8 (T, C, H, W); where there are fewer than ``k``, all.
        held_out: uint8 (M, C, H, W), of the same data set.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(k, len(training)), algorithm="brute").fit(_flat(training))
    distances, indices = search.kneighbors(samples.reshape(len(samples), -1))
    apart = search.kneighbors(_flat(held_out), n_neighbors=1)[0][:, 0] if len(held_out) else np.empty(0)
    images = training[indices].astype(np.float32) / np.float32(255)
    return Neighbours(samples, images, indices.astype(np.int64), np.asarray(distances, np.float64), apart.astype(float))


def _flat(images: npt.NDArray[np.uint8]) -> Floats:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
