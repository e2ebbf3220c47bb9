"""Codes on a plane: principal components, t-SNE and UMAP."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.data_sources import Progress, silent
from models.errors import UserError

Method = Literal["pca", "tsne", "umap"]
METHODS: tuple[Method, ...] = ("pca", "tsne", "umap")
TITLES: dict[Method, str] = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}

PERPLEXITY = 30.0
UMAP_NEIGHBOURS = 15

_TOLD_EVERY = 25

Codes = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components.

    Args:
        mean: float64 (L,).
        axes: float64 (K, L), orthonormal rows, K = min(N, L); in each row the largest entry is positive.
        variances: float64 (K,), of the codes along them (divided by N - 1), descending.
        scores: float64 (N, K), the codes in these axes.
    """

    mean: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]
    variances: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]

    @property
    def ratios(self) -> npt.NDArray[np.float64]:
        """Share of the whole variance that each explains, float64 (K,), sum 1."""
        shares: npt.NDArray[np.float64] = self.variances / self.variances.sum()
        return shares


def principal_components(codes: Codes) -> Components:
    """By singular value decomposition of the centred codes (N, L)."""
    mean = codes.mean(0)
    left, singular, axes = np.linalg.svd(codes - mean, full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    return Components(mean, axes * signs[:, None], singular**2 / (len(codes) - 1), left * singular * signs)


def tsne(codes: Codes, seed: int, start: Codes, on_progress: Progress = silent) -> tuple[Codes, float]:
    """A map (N, 2) by t-SNE (van der Maaten and Hinton 2008; by interpolation: Linderman et al. 2019).

    Learning rate N / 12 and a PCA as start, as Kobak and Berens (2019) advise: what is far apart on the map then says
    something too.

    Args:
        codes: (N, L), N at least 5.
        start: (N, 2), first two principal components.

    Returns:
        The map, and the perplexity: :data:`PERPLEXITY`, or a third of the other codes if that is less.
    """
    from openTSNE import TSNE

    perplexity = min(PERPLEXITY, (len(codes) - 1) / 3)
    spread = start[:, 0].std()
    done = 0

    def tell(iteration: int, error: float, places: Codes) -> None:
        nonlocal done
        done += _TOLD_EVERY
        on_progress("t-SNE", done, 750)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that libraries which we do not use are missing
        fitted = TSNE(
            perplexity=perplexity,
            initialization=start * (1e-4 / spread),
            # Exact neighbours by a tree are faster than approximate ones here, and the same at every run.
            neighbors="exact",
            negative_gradient_method="fft" if len(codes) > 2000 else "bh",
            ints_in_interval=2,  # a coarser grid, a third of the time, trustworthiness lower by 0.0001
            n_jobs=1,  # two threads gain little and cost twice the processor time, wherever something else runs
            random_state=seed,
            callbacks=tell,
            callbacks_every_iters=_TOLD_EVERY,
        ).fit(codes)
    return np.asarray(fitted, dtype=np.float64), perplexity


def umap(codes: Codes, seed: int, start: Codes) -> tuple[Codes, int]:
    """A map (N, 2) by UMAP (McInnes et al. 2018).

    Args:
        codes: (N, L), N at least 5.
        start: (N, 2), first two principal components.

    Returns:
        The map, and the number of neighbours: :data:`UMAP_NEIGHBOURS`, or all others if they are less.

    Raises:
        UserError: the library is not installed.
    """
    require_umap()
    from umap import UMAP

    neighbours = min(UMAP_NEIGHBOURS, len(codes) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread
        reducer = UMAP(
            n_neighbors=neighbours,
            init=(start * (10 / np.abs(start).max())).astype(np.float32),
            random_state=seed,
            n_jobs=1,
        )
        placed = reducer.fit_transform(codes.astype(np.float32))
    return np.asarray(placed, dtype=np.float64), neighbours


def require_umap() -> None:
    """Raise unless UMAP is installed, without loading it.

    Raises:
        UserError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("umap") is None:
        raise UserError.of("--method", "umap", "needs a further library: pip install 'latentune[umap]'")
