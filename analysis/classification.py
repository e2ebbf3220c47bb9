"""How well a classifier tells classes apart: confusions, and precision, recall and F1 of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure

from analysis.figures import WIDTH, style
from analysis.result import Columns

MOST_CELLS = 12
"""Classes up to which counts are written into a confusion matrix."""

MOST_NAMES = 40
"""Classes up to which their names stand at its axes."""

NO_IMAGES = "#EEEEEE"
"""A row of a class without images."""


@dataclass(frozen=True, eq=False)
class Classification:
    """What became of images.

    Args:
        class_names: (K,).
        labels: int64 (N,), the true classes.
        predicted: int64 (N,), the classes with the largest logit.
    """

    class_names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Share of the images whose class was found."""
        return float((self.labels == self.predicted).mean())

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Images (K, K): the true class in rows, the predicted one in columns."""
        classes = len(self.class_names)
        counts = np.bincount(self.labels * classes + self.predicted, minlength=classes**2)
        return counts.reshape(classes, classes)

    @property
    def rates(self) -> npt.NDArray[np.float64]:
        """:attr:`confusion` as shares of its rows (K, K); NaN for a class without images."""
        return _ratio(self.confusion, self.confusion.sum(1, keepdims=True))

    def per_class(self) -> dict[str, npt.NDArray[np.float64 | np.int64]]:
        """``precision``, ``recall``, ``f1`` in [0, 1] and ``support`` (images) of each class, (K,) each.

        With TP images of a class that were found in it: precision TP / predicted, recall TP / support, F1 their
        harmonic mean 2 TP / (predicted + support). NaN where that divides by 0: nothing predicted, or no images.
        """
        confusion = self.confusion
        hits, predicted, support = np.diag(confusion), confusion.sum(0), confusion.sum(1)
        return {
            "precision": _ratio(hits, predicted),
            "recall": _ratio(hits, support),
            "f1": _ratio(2 * hits, predicted + support),
            "support": support,
        }


def classified(
    class_names: tuple[str, ...], labels: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]
) -> Classification:
    """The classification that logits (N, K) mean."""
    return Classification(class_names, labels, logits.argmax(1).astype(np.int64))


def class_table(runs: Sequence[tuple[str, Classification]]) -> Columns:
    """A row for each run and class."""
    tables = [(name, found, found.per_class()) for name, found in runs]
    measures = ("precision", "recall", "f1", "support")
    return {
        "run": [name for name, found, _ in tables for _ in found.class_names],
        "class": [label for _, found, _ in tables for label in found.class_names],
        **{measure: np.concatenate([columns[measure] for _, _, columns in tables]) for measure in measures},
    }


def confusion_table(runs: Sequence[tuple[str, Classification]]) -> Columns:
    """A row for each run, true class and predicted class that an image has."""
    names, true, predicted, images, shares = [], [], [], [], []
    for name, found in runs:
        confusion, rates = found.confusion, found.rates
        for row, column in np.argwhere(confusion):
            names.append(name)
            true.append(found.class_names[row])
            predicted.append(found.class_names[column])
            images.append(int(confusion[row, column]))
            shares.append(float(rates[row, column]))
    return {"run": names, "true": true, "predicted": predicted, "images": images, "share_of_true": shares}


@style()
def plot_confusion(found: Classification, title: str) -> Figure:
    """Shares of each true class as shades; with few classes also as percentages, with the counts below."""
    classes, rates, counts = len(found.class_names), found.rates, found.confusion
    figure = Figure(figsize=(WIDTH, 7.0), layout="constrained")
    colours = colormaps["Blues"].with_extremes(bad=NO_IMAGES)
    axes = figure.add_subplot()
    shown = axes.imshow(np.ma.masked_invalid(rates), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    if classes <= MOST_NAMES:
        names = [name if len(name) <= 14 else f"{name[:13]}…" for name in found.class_names]
        size = 9.0 if classes <= 20 else 7.0
        axes.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(classes), names, fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if classes <= MOST_CELLS:
        for row in range(classes):
            for column in range(classes):
                if counts[row, column]:
                    share = rates[row, column]
                    text = f"{_percent(share)}\n{counts[row, column]}"
                    colour = "white" if share > 0.55 else "black"
                    axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour, linespacing=1.1)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the true class")
    bar.outline.set_visible(False)
    return figure


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1f} %"


def _ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    result = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    np.divide(part, whole, out=result, where=np.broadcast_to(whole > 0, result.shape))
    return result
