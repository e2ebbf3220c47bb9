"""How reconstructions came about: a trial trained once more, with a look at the same images between its epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from analysis.reconstruction import COLUMNS, as_float, shortened, squared_errors
from analysis.result import Columns, Result
from analysis.sheet import plot_sheet
from analysis.subject import Model, Split, Subject, images_of, images_text, subject_of
from models.checkpoint import Trained
from models.data_sources import ImageSet, Progress, silent
from models.datasets import DataOptions, load_training_data
from models.errors import UserError
from models.numerics import Numerics
from models.training import Budget, DataOnDevice, fit, start

ROWS = 10
"""About so many epochs are shown unless others are asked for: of 19 epochs every second one."""


@dataclass(frozen=True, eq=False)
class Evolution(Result):
    """Reconstructions of the same images at several epochs.

    Args:
        split: where the images are from.
        class_names: in label order.
        labels: int64 (n,).
        originals: float32 (n, C, H, W) in [0, 1].
        epochs: float64 (E,), ascending.
        reconstructions: float32 (E, n, C, H, W), cut off to [0, 1].
        squared_errors: float32 (E, n), mean over the pixels of each image, before it was cut off.
        metric: the objective.
        difference: between the objective that the checkpoint was kept for and the same one in this training: 0 where
            every number came out the same, ``None`` where that epoch was not reached.
    """

    name: ClassVar[str] = "evolution"
    split: Split
    class_names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    originals: npt.NDArray[np.float32]
    epochs: npt.NDArray[np.float64]
    reconstructions: npt.NDArray[np.float32]
    squared_errors: npt.NDArray[np.float32]
    metric: str
    difference: float | None

    def summary(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "mse": self.squared_errors.mean(1, dtype=np.float64),
            f"difference_of_{self.metric}": self.difference,
        }

    def tables(self) -> dict[str, Columns]:
        epochs, images = self.squared_errors.shape
        return {
            "evolution": {
                "epoch": np.repeat(self.epochs, images),
                "image": np.tile(np.arange(images), epochs),
                "label": np.tile(self.labels, epochs),
                "squared_error": self.squared_errors.ravel(),
            }
        }

    def figures(self) -> dict[str, Figure]:
        rows = [self.originals, *self.reconstructions]
        means = self.squared_errors.mean(1, dtype=np.float64)
        labels = [f"epoch {epoch:.3g}\nMSE {mse:.3g}" for epoch, mse in zip(self.epochs, means, strict=True)]
        names = [shortened(self.class_names[label]) if len(self.class_names) > 1 else "" for label in self.labels]
        of = images_text(len(self.labels), self.split)
        title = f"{of} as the model learned them; on the left the mean error of each row"
        sheet = plot_sheet(np.concatenate(rows), len(names), title, row_labels=["original", *labels], captions=names)
        return {"evolution": sheet}


def follow(
    model: Model,
    data: DataOptions,
    budget: Budget,
    *,
    split: Split = "val",
    count: int = COLUMNS,
    epochs: Sequence[float] | None = None,
    numerics: Numerics | None = None,
    on_progress: Progress = silent,
) -> Evolution:
    """Train a checkpoint's model again, from its config and seed, and reconstruct the same images at some epochs.

    A checkpoint holds the best weights only; training is reproducible, so that what is seen here is what happened then:
    to the last bit on the same kind of processor with the same number of threads.

    Args:
        data: that it was trained with.
        budget: that it was trained with; training ends at the last of ``epochs``, or where the
            checkpoint's weights were taken if that is later.
        count: images, at most :data:`COLUMNS`, spread evenly over the split.
        epochs: of those at which training reports, whole ones and rungs; by default about :data:`ROWS`, evenly spaced
            from the first to the last. Those that early stopping did not reach are left out.
        numerics: that it was trained with.

    Raises:
        UserError: the model comes from no checkpoint or cannot encode and decode, the data are not those that it was
            trained on, or there is no report at one of the epochs.
        NonFiniteError: training diverges, as it did not the first time.
    """
    subject = subject_of(model)
    subject.require("the evolution of reconstructions", "encode", "decode")
    trained = subject.trained
    if not isinstance(trained, Trained):
        raise UserError.of("model", subject.name, "must come from a checkpoint, which says how to train it again")
    chosen = chosen_epochs(budget, epochs)
    if not 1 <= count <= COLUMNS:
        raise UserError.of("--count", count, f"must be from 1 to {COLUMNS} to be followed over epochs")
    loaded = load_training_data(data)
    if loaded.spec.fingerprint != trained.spec.fingerprint:
        raise UserError.of("--dataset", data.source, "holds other images than the model was trained on")
    images = images_of(data if split == "test" else loaded, subject, split=split, count=count)
    numerics = numerics or Numerics()
    training = start(
        trained.family,
        trained.config,
        DataOnDevice(loaded, numerics.device),
        budget,
        seed=trained.seed,
        numerics=numerics,
    )
    seen: list[float] = []
    rows: list[npt.NDArray[np.float32]] = []
    again: float | None = None
    last = max(chosen[-1], trained.record.epoch)
    on_progress("training again", 0, math.ceil(last))
    for record in fit(training):
        on_progress("training again", math.floor(record.epoch), math.ceil(last))
        if record.epoch == trained.record.epoch:
            again = training.value_of(record)
        if record.epoch in chosen:
            seen.append(record.epoch)
            with numerics.applied():
                rows.append(Subject(training.network).reconstruct(images.images))
        if record.epoch >= last:
            break
    stored = training.value_of(trained.record)
    return _evolution(images, split, seen, rows, trained.family.objective.metric, _difference(stored, again))


def chosen_epochs(budget: Budget, epochs: Sequence[float] | None) -> list[float]:
    """Epochs to look at, ascending.

    Raises:
        UserError: training does not report at one of them.
    """
    reported = budget.report_points()
    whole = [point for point in reported if point == int(point)] or list(reported[-1:])
    if epochs is None:
        return whole[:: -(-len(whole) // ROWS)]
    wrong = sorted(set(map(float, epochs)) - set(reported))
    if wrong or not epochs:
        allowed = f"must be of {', '.join(f'{point:g}' for point in reported)}, where training reports"
        raise UserError.of("--epochs", ", ".join(f"{epoch:g}" for epoch in wrong) or "none", allowed)
    return sorted(set(map(float, epochs)))


def _evolution(
    images: ImageSet,
    split: Split,
    epochs: list[float],
    rows: list[npt.NDArray[np.float32]],
    metric: str,
    difference: float | None,
) -> Evolution:
    shown: npt.NDArray[np.float32] = np.stack(rows).clip(0, 1, dtype=np.float32)
    return Evolution(
        split,
        images.class_names,
        images.labels,
        as_float(images.images),
        np.array(epochs, dtype=np.float64),
        shown,
        np.stack([squared_errors(images.images, row) for row in rows]),
        metric,
        difference,
    )


def _difference(stored: float | None, again: float | None) -> float | None:
    return None if stored is None or again is None else abs(stored - again)
