"""How well classes keep apart in a space of codes, and what a map keeps of its neighbourhoods."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 10
"""k of the k-NN accuracy and of the trustworthiness; fewer where there are not so many others."""

SILHOUETTES = 5000
"""Most codes that the silhouette is computed of; it compares each with each."""

_BLOCK = 512
"""Rows of distances held at a time."""

Codes = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def silhouettes(codes: Codes, labels: Labels, seed: int) -> npt.NDArray[np.float64]:
    """The silhouette of each code, float64 (N,) in [-1, 1], with classes as the clusters; NaN where it has none.

    (b - a) / max(a, b), where a is the mean Euclidean distance to the other codes of the own class and b that to the
    nearest other class (Rousseeuw 1987); 0 for the only code of a class.

    Args:
        codes: (N, L).
        labels: (N,).
        seed: chooses at most :data:`SILHOUETTES` of them, which are then compared among themselves.
            None has one where all are of one class, or each of its own.
    """
    from sklearn.metrics import silhouette_samples

    chosen = np.arange(len(codes))
    if len(codes) > SILHOUETTES:
        chosen = np.sort(np.random.default_rng(seed).choice(len(codes), SILHOUETTES, replace=False))
    classes = len(np.unique(labels[chosen]))
    found = np.full(len(codes), np.nan)
    if 2 <= classes < len(chosen):
        found[chosen] = silhouette_samples(codes[chosen], labels[chosen])
    return found


def predict_by_neighbours(
    codes: Codes, train_codes: Codes | None, train_labels: Labels, k: int = NEIGHBOURS
) -> npt.NDArray[np.int64]:
    """The class, int64 (N,), that most of the ``k`` nearest training codes have (Euclidean; of equals the lower label).

    Args:
        train_codes: (M, L) with ``train_labels`` (M,); ``None`` for the codes themselves, each without itself.
    """
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k).fit(codes if train_codes is None else train_codes)
    # Asked without points, the index leaves each of its own out.
    nearest = index.kneighbors(None if train_codes is None else codes, return_distance=False)
    votes = np.zeros((len(codes), int(train_labels.max()) + 1), dtype=np.int32)
    for column in train_labels[nearest].T:
        votes[np.arange(len(codes)), column] += 1
    winners: npt.NDArray[np.int64] = votes.argmax(1)
    return winners


def trustworthiness(codes: Codes, places: Codes, k: int = NEIGHBOURS) -> float:
    """In [0, 1]: 1 where each code's ``k`` neighbours on the map are among its ``k`` nearest codes.

    1 - 2 / (N k (2N - 3k - 1)) · Σ max(0, r - k), over each code and its ``k`` neighbours on the map, r being such a
    neighbour's rank by distance in code space (Venna and Kaski 2001). As scikit-learn's, which holds and sorts all
    N × N distances, without doing so.

    Args:
        codes: (N, L).
        places: (N, 2), on the map.
        k: below N / 2.
    """
    from sklearn.metrics import euclidean_distances
    from sklearn.neighbors import NearestNeighbors

    count = len(codes)
    assert k < count / 2
    near = NearestNeighbors(n_neighbors=k).fit(places).kneighbors(return_distance=False)
    excess = 0
    for first in range(0, count, _BLOCK):
        rows = np.arange(first, min(first + _BLOCK, count))
        distances = euclidean_distances(codes[rows], codes)
        distances[np.arange(len(rows)), rows] = np.inf
        reach = np.take_along_axis(distances, near[rows], axis=1)
        for column in reach.T:
            ranks = 1 + (distances < column[:, None]).sum(1)
            excess += int(np.maximum(0, ranks - k).sum())
    return 1 - 2 * excess / (count * k * (2 * count - 3 * k - 1))


def mean_by_class(values: npt.NDArray[Any], labels: Labels, classes: int) -> npt.NDArray[np.float64]:
    """Mean of ``values`` (N,) by class, float64 (classes,); NaN for a class without images."""
    with np.errstate(invalid="ignore"):
        means: npt.NDArray[np.float64] = np.bincount(labels, values, classes) / np.bincount(labels, minlength=classes)
    return means
