"""What a model makes of images: the error of each, and originals and reconstructions side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from analysis.by_class import plot_classes, table_of_classes
from analysis.result import Columns, Result
from analysis.sheet import plot_sheet
from analysis.subject import Data, Model, Split, Subject, images_of, images_text, subject_of
from models.data_sources import ImageSet, Progress, silent
from models.errors import UserError

if TYPE_CHECKING:
    from analysis.evolution import Evolution

COLUMNS = 10
"""Most images side by side; more of them go on below."""

CHUNK = 4096
"""Images whose reconstructions are held at a time; only those that are shown are kept."""

LONGEST_NAME = 11
"""Letters of a class name that fit below a picture."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Some images and what the network made of them.

    Args:
        indices: int64 (n,), positions in the images that were analysed.
        originals: float32 (n, C, H, W) in [0, 1].
        reconstructions: the same shape, cut off to [0, 1].
    """

    indices: npt.NDArray[np.int64]
    originals: npt.NDArray[np.float32]
    reconstructions: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reconstruction(Result):
    """The errors of all images, and some of them to look at.

    Args:
        split: which images; ``None`` where they were given as they are.
        class_names: in label order.
        labels: int64 (N,).
        squared_errors: float32 (N,), mean over the pixels of each image in [0, 1], of the network's own output before
            it is cut off to be shown; their mean over the validation images is what ``val_mse`` is.
        examples: spread evenly over the images.
        best: those with the lowest errors, the lowest first.
        worst: those with the highest errors, the highest first.
        evolution: how reconstructions of the examples came about, where that was asked for.
    """

    name: ClassVar[str] = "reconstruct"
    split: Split | None
    class_names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    squared_errors: npt.NDArray[np.float32]
    examples: Pairs
    best: Pairs
    worst: Pairs
    evolution: Evolution | None = None

    def summary(self) -> dict[str, Any]:
        errors, classes = self.squared_errors.astype(np.float64), self._classes()
        followed = {} if self.evolution is None else self.evolution.summary()
        present = [i for i, images in enumerate(classes["images"]) if images]
        return {
            "split": self.split,
            "images": len(errors),
            "mse": errors.mean(),
            "mse_std": errors.std(),
            "mse_median": np.median(errors),
            "mse_min": errors.min(),
            "mse_max": errors.max(),
            "best_class": self.class_names[min(present, key=lambda i: classes["mean"][i])],
            "worst_class": self.class_names[max(present, key=lambda i: classes["mean"][i])],
            **{f"evolution_{name}": value for name, value in followed.items()},
        }

    def tables(self) -> dict[str, Columns]:
        errors = {
            "index": np.arange(len(self.labels)),
            "label": self.labels,
            "class_name": np.array(self.class_names)[self.labels],
            "squared_error": self.squared_errors,
        }
        return {"errors": errors, "classes": self._classes(), **(self.evolution.tables() if self.evolution else {})}

    def figures(self) -> dict[str, Figure]:
        images = images_text(len(self.labels), self.split)
        of = f"of {images}: class, and mean squared error per pixel"
        return {
            "reconstructions": plot_pairs(self, self.examples, f"{len(self.examples.indices)} {of}"),
            "best": plot_pairs(self, self.best, f"the best {of}"),
            "worst": plot_pairs(self, self.worst, f"the worst {of}"),
            "errors-by-class": plot_classes(
                self.squared_errors.astype(np.float64),
                self.labels,
                self.class_names,
                "squared error per pixel (pixels from 0 to 1)",
                f"{images}: the error by class",
            ),
            **(self.evolution.figures() if self.evolution else {}),
        }

    def _classes(self) -> dict[str, npt.NDArray[Any]]:
        return table_of_classes(self.squared_errors.astype(np.float64), self.labels, self.class_names)


def reconstruct(
    model: Model,
    data: Data,
    *,
    split: Split = "val",
    count: int = 10,
    on_progress: Progress = silent,
) -> Reconstruction:
    """Encode and decode every image of a split.

    Args:
        model: one that can encode and decode; evaluated without dropout and the like, and left in the modes that it
            was in.
        count: at least 1; so many examples are kept, so many of the best and of the worst. If there are fewer images,
            all of them are.

    Raises:
        UserError: the model cannot encode and decode, its output has another shape than the images or is not finite,
            the images do not fit it, or there is none.
    """
    subject = subject_of(model)
    subject.require("reconstruct", "encode", "decode")
    if count < 1:
        raise UserError.of("--count", count, "must be at least 1")
    images = images_of(data, subject, split=split)
    number = len(images.labels)
    errors = np.empty(number, dtype=np.float32)
    for first in range(0, number, CHUNK):
        on_progress("reconstructing", first, number)
        chunk = images.images[first : first + CHUNK]
        errors[first : first + CHUNK] = squared_errors(chunk, subject.reconstruct(chunk))
    wrong = int((~np.isfinite(errors)).sum())
    if wrong:
        raise UserError.of("model", subject.name, f"gives pixels that are not finite for {wrong} of {number} images")
    order = np.argsort(errors, kind="stable")
    kept = min(count, number)
    return Reconstruction(
        None if isinstance(data, ImageSet) else split,
        images.class_names,
        images.labels,
        errors,
        _pairs(subject, images, np.linspace(0, number - 1, kept).round().astype(np.int64)),
        _pairs(subject, images, order[:kept]),
        _pairs(subject, images, order[::-1][:kept]),
    )


def squared_errors(images: npt.NDArray[np.uint8], reconstructions: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean over the pixels of each image, float32 (N,), of images uint8 (N, C, H, W) scaled to [0, 1]."""
    differences = reconstructions - as_float(images)
    errors: npt.NDArray[np.float32] = np.square(differences).mean((1, 2, 3), dtype=np.float64).astype(np.float32)
    return errors


def as_float(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Images 0..255 as float32 in [0, 1]."""
    scaled: npt.NDArray[np.float32] = np.divide(images, 255, dtype=np.float32)
    return scaled


def plot_pairs(result: Reconstruction, pairs: Pairs, title: str) -> Figure:
    """Originals with their classes, and below each its reconstruction with its mean squared error per pixel."""
    several = len(result.class_names) > 1
    names = [shortened(result.class_names[result.labels[i]]) if several else "" for i in pairs.indices]
    errors = [f"{result.squared_errors[i]:#.2g}".rstrip(".") for i in pairs.indices]  # 0.020, but 12 and not 12.
    columns = min(COLUMNS, len(pairs.indices))
    cells: list[npt.NDArray[np.float32]] = []
    captions: list[str] = []
    for first in range(0, len(names), columns):
        for images, told in ((pairs.originals, names), (pairs.reconstructions, errors)):
            cells += [*images[first : first + columns]]
            captions += told[first : first + columns]
            empty = -len(cells) % columns  # so that the next row begins below
            cells += [np.full(images.shape[1:], np.nan, dtype=np.float32)] * empty
            captions += [""] * empty
    labels = ["original", "decoded\nand MSE"] * (len(cells) // columns // 2)
    return plot_sheet(np.stack(cells), columns, title, row_labels=labels, captions=captions)


def shortened(name: str) -> str:
    """A class name as it fits below a picture."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _pairs(subject: Subject, images: ImageSet, indices: npt.NDArray[np.int64]) -> Pairs:
    chosen = images.images[indices]
    shown: npt.NDArray[np.float32] = subject.reconstruct(chosen).clip(0, 1, dtype=np.float32)
    return Pairs(indices, as_float(chosen), shown)
