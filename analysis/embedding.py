"""The codes of a split: their principal components, maps on a plane, and how well classes keep apart in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from analysis.by_class import plot_classes
from analysis.code_space import NEIGHBOURS, mean_by_class, predict_by_neighbours, silhouettes, trustworthiness
from analysis.maps import METHODS, TITLES, Components, Method, principal_components, require_umap, tsne, umap
from analysis.result import Columns, Result
from analysis.scatter import plot_scatter
from analysis.scree import plot_scree
from analysis.subject import Data, Model, Split, Subject, images_of, images_text, subject_of
from models.data_sources import ImageSet, Progress, silent
from models.errors import Problem, UserError, did_you_mean

FEWEST = 5
"""Images; of fewer there are no neighbourhoods to speak of."""

CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Embedding(Result):
    """Codes, maps of them, and figures of how the classes lie.

    Args:
        split: which images; ``None`` where they were given as they are.
        class_names: in label order.
        indices: int64 (N,), positions of the images in the split.
        labels: int64 (N,).
        codes: float64 (N, L).
        components: principal components of the codes.
        maps: method → float64 (N, 2). A code of one number has none.
        trustworthiness: method → of its map, in [0, 1], see :func:`analysis.code_space.trustworthiness`, with
            ``trust_neighbours`` neighbours.
        silhouettes: float64 (N,), in [-1, 1], by Euclidean distance in the space of codes, classes as clusters; NaN
            where an image was not drawn, and everywhere for a single class.
        hits: bool (N,), whether the majority of the ``knn`` nearest codes has the image's class; empty where there is
            only one class.
        knn: neighbours asked.
        knn_among: ``train``: the codes of all training images; ``others``: those of the other images here.
        notes: what was done otherwise than usual, a sentence each.
    """

    name: ClassVar[str] = "embed"
    split: Split | None
    class_names: tuple[str, ...]
    indices: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    codes: npt.NDArray[np.float64]
    components: Components
    maps: dict[Method, npt.NDArray[np.float64]]
    trustworthiness: dict[Method, float]
    trust_neighbours: int
    silhouettes: npt.NDArray[np.float64]
    hits: npt.NDArray[np.bool_]
    knn: int
    knn_among: str
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        ratios = self.components.ratios
        drawn = self.silhouettes[np.isfinite(self.silhouettes)]
        return {
            "split": self.split,
            "images": len(self.codes),
            "latent_dim": self.codes.shape[1],
            "constant_units": int((np.ptp(self.codes, axis=0) == 0).sum()),
            "knn_accuracy": self.hits.mean() if len(self.hits) else None,
            "knn_neighbours": self.knn,
            "knn_among": self.knn_among,
            "silhouette": drawn.mean() if len(drawn) else None,
            "silhouette_images": len(drawn),
            "silhouette_space": "codes",
            "explained_variance": ratios,
            "explained_variance_first_two": ratios[:2].sum(),
            **{f"trustworthiness_{method}": value for method, value in self.trustworthiness.items()},
            **({"trustworthiness_neighbours": self.trust_neighbours} if self.trustworthiness else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    def tables(self) -> dict[str, Columns]:
        names = np.array(self.class_names)
        codes: dict[str, Any] = {"index": self.indices, "label": self.labels, "class_name": names[self.labels]}
        codes |= {f"code_{i}": column for i, column in enumerate(self.codes.T)}
        for method, places in self.maps.items():
            codes |= {f"{method}_1": places[:, 0], f"{method}_2": places[:, 1]}
        counted = np.isfinite(self.silhouettes)
        classes = {
            "label": np.arange(len(names)),
            "class_name": names,
            "images": np.bincount(self.labels, minlength=len(names)),
            "silhouette": mean_by_class(self.silhouettes[counted], self.labels[counted], len(names)),
            "knn_accuracy": mean_by_class(self.hits, self.labels[: len(self.hits)], len(names)),
        }
        components = {
            "component": np.arange(1, len(self.components.variances) + 1),
            "variance": self.components.variances,
            "explained_variance": self.components.ratios,
        }
        return {"codes": codes, "classes": classes, "components": components}

    def figures(self) -> dict[str, Figure]:
        images = images_text(len(self.codes), self.split)
        ratios, size = self.components.ratios, self.codes.shape[1]
        figures = {}
        if size == 1:
            title = f"codes of {images} by class"
            figures["codes"] = plot_classes(self.codes[:, 0], self.labels, self.class_names, "code", title)
        if size == 2:
            title, axes = f"the codes themselves, {images}", ("code 0", "code 1")
            figures["codes"] = plot_scatter(self.codes, self.labels, self.class_names, axes, title)
        for method, places in self.maps.items():
            title = f"{TITLES[method]} of {size}-dimensional codes, {images}"
            axes = (f"{TITLES[method]} 1 (no unit)", f"{TITLES[method]} 2 (no unit)")
            if method == "pca":
                axes = tuple(f"component {i + 1} ({ratios[i]:.1%} of the variance)" for i in (0, 1))  # type: ignore[assignment]
            figures[method] = plot_scatter(places, self.labels, self.class_names, axes, title)
        if size > 1:
            figures["scree"] = plot_scree(ratios, f"principal components of {size}-dimensional codes, {images}")
        return figures


def embed(
    model: Model,
    data: Data,
    *,
    split: Split = "test",
    count: int | None = 10_000,
    methods: Sequence[Method] | None = None,
    seed: int = 0,
    on_progress: Progress = silent,
) -> Embedding:
    """Encode images, map their codes on a plane, and measure how well the classes keep apart.

    The k-NN accuracy is that of the majority of the 10 nearest codes (Euclidean; of equals the lower label) among those
    of all training images, if ``data`` says where these are and ``split`` is another part; else among the codes of the
    other images here (leave one out).

    Args:
        model: one that can encode.
        count: take so many images, spread evenly over the split; ``None`` all.
        methods: ``pca``, ``tsne`` and ``umap``, which takes the extra ``latentune[umap]``. By default the first two, as
            far as the codes have two numbers.
        seed: of t-SNE, UMAP, and the draw of the images that the silhouette is computed of.

    Raises:
        UserError: the model cannot encode, a code is not finite, all codes are the same, fewer than 5 images, images
            that do not fit, or a map that cannot be made; before any long work where it can be known.
    """
    subject = subject_of(model)
    subject.require("embed", "encode")
    wanted = _checked(methods, count)
    everything = images_of(data, subject, split=split)
    indices = np.arange(len(everything.labels))
    if count is not None and count < len(indices):
        indices = np.linspace(0, len(indices) - 1, count).round().astype(np.int64)
    if len(indices) < FEWEST:
        raise UserError.of("--split", split, f"has {len(indices)} images to embed; must be at least {FEWEST}")
    images = everything.take(indices)
    codes, labels = _encode(subject, images, "encoding", on_progress), images.labels
    if np.ptp(codes, axis=0).max() == 0:
        raise UserError.of("model", subject.name, f"gives all {len(codes)} images the same code: nothing to map")
    if codes.shape[1] == 1 and methods and wanted != ["pca"]:
        raise UserError.of(
            "--method", ", ".join(wanted), "maps codes of two numbers or more; this model's have one, shown by class"
        )
    notes: list[str] = []
    hits, knn, among = _neighbours(subject, data, split, codes, labels, notes, on_progress)
    on_progress("silhouette", 0, 1)
    each = silhouettes(codes, labels, seed)
    components = principal_components(codes)
    maps = _maps(codes, components, wanted, seed, notes, on_progress) if codes.shape[1] > 1 else {}
    trusted = min(NEIGHBOURS, (len(codes) - 1) // 2)
    trust = {}
    for i, (method, places) in enumerate(maps.items()):
        on_progress("trustworthiness", i, len(maps))
        trust[method] = trustworthiness(codes, places, trusted)
    return Embedding(
        split=None if isinstance(data, ImageSet) else split,
        class_names=images.class_names,
        indices=indices,
        labels=labels,
        codes=codes,
        components=components,
        maps=maps,
        trustworthiness=trust,
        trust_neighbours=trusted,
        silhouettes=each,
        hits=hits,
        knn=knn,
        knn_among=among,
        notes=tuple(notes),
    )


def _checked(methods: Sequence[Method] | None, count: int | None) -> list[Method]:
    problems = [
        Problem("--method", str(method), did_you_mean(str(method), METHODS))
        for method in methods or ()
        if method not in METHODS
    ]
    if count is not None and count < FEWEST:
        problems.append(Problem("--count", count, f"must be at least {FEWEST}"))
    if problems:
        raise UserError(*problems)
    if methods and "umap" in methods:
        require_umap()
    return [method for method in METHODS if method in (methods or ("pca", "tsne"))]


def _encode(subject: Subject, images: ImageSet, text: str, on_progress: Progress) -> npt.NDArray[np.float64]:
    """Codes float64 (N, L).

    Raises:
        UserError: one of them is not finite.
    """
    parts = []
    for first in range(0, len(images.labels), CHUNK):
        on_progress(text, first, len(images.labels))
        parts.append(subject.encode(images.images[first : first + CHUNK]))
    codes = np.concatenate(parts).astype(np.float64)
    wrong = int((~np.isfinite(codes)).any(1).sum())
    if wrong:
        raise UserError.of("model", subject.name, f"gives codes that are not finite for {wrong} of {len(codes)} images")
    return codes


def _neighbours(
    subject: Subject,
    data: Data,
    split: Split,
    codes: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    notes: list[str],
    on_progress: Progress,
) -> tuple[npt.NDArray[np.bool_], int, str]:
    """Hits of k-NN (none for a single class), k, and among which codes."""
    train_codes, train_labels, among = None, labels, "others"
    if split != "train" and not isinstance(data, ImageSet):
        train = images_of(data, subject, split="train")
        train_codes = _encode(subject, train, "encoding the training images", on_progress)
        train_labels, among = train.labels, "train"
    k = min(NEIGHBOURS, len(train_labels) - (train_codes is None))
    if len(np.unique(np.concatenate([labels, train_labels]))) == 1:
        notes.append("all images are of one class: neither silhouette nor k-NN accuracy say anything")
        return np.zeros(0, dtype=bool), k, among
    return predict_by_neighbours(codes, train_codes, train_labels, k) == labels, k, among


def _maps(
    codes: npt.NDArray[np.float64],
    components: Components,
    wanted: Sequence[Method],
    seed: int,
    notes: list[str],
    on_progress: Progress,
) -> dict[Method, npt.NDArray[np.float64]]:
    plane = components.scores[:, :2]
    maps: dict[Method, npt.NDArray[np.float64]] = {}
    for method in wanted:
        if method == "pca":
            maps[method] = plane
        elif method == "tsne":
            maps[method], perplexity = tsne(codes, seed, plane, on_progress)
            if perplexity < 30:
                notes.append(f"t-SNE with perplexity {perplexity:.3g} instead of 30, for so few images")
        else:
            on_progress("UMAP", 0, 1)
            maps[method], neighbours = umap(codes, seed, plane)
            if neighbours < 15:
                notes.append(f"UMAP with {neighbours} neighbours instead of 15, for so few images")
    return maps
