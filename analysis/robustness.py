"""What a model still makes of images that are noisy or in part covered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.axes import label_plainly
from analysis.figures import BLUE, GREY, WIDTH, style
from analysis.result import Columns, Result
from analysis.sheet import plot_sheet
from analysis.subject import Data, Model, Split, Subject, images_of, subject_of
from models.data_sources import ImageSet, Progress, silent
from models.errors import UserError

Floats = npt.NDArray[np.float32]

LEVELS: dict[str, tuple[float, ...]] = {
    "noise": tuple(float(variance) for variance in np.logspace(-3, 0, 10)),
    "rows": tuple(i / 10 for i in range(11)),
    "blocks": tuple(i / 10 for i in range(11)),
}
"""Corruption → how much of it: variance of the noise; share of the rows; share of the area."""

_AXES = {
    "noise": "variance of the Gaussian noise (pixels in [0, 1])",
    "rows": "share of the rows set to 0, from the top",
    "blocks": "share of the area in the block set to 0",
}
_EXAMPLES = 3


@dataclass(frozen=True, eq=False)
class Curve:
    """What one corruption does, level by level.

    Args:
        levels: (K,), ascending.
        scores: float64 (K, N) of each image: squared error per pixel of the reconstruction against the clean image, or
            for a classifier 1.0 where it is right and 0.0 where not.
        untouched: float64 (K, N), squared error per pixel of the corrupted image itself against the clean one.
        corrupted: float32 (E, S, C, H, W), the first images at some levels.
        answers: float32 (E, S, C, H, W), their reconstructions; or int64 (E, S), classes.
        shown: (S,), these levels.
    """

    levels: tuple[float, ...]
    scores: npt.NDArray[np.float64]
    untouched: npt.NDArray[np.float64]
    corrupted: Floats
    answers: npt.NDArray[Any]
    shown: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Robustness(Result):
    """What a model makes of corrupted images.

    Args:
        metric: ``mse`` of reconstructions, or a classifier's ``accuracy``.
        clean: float64 (N,), score of each image before it is corrupted.
        curves: corruption (``noise``, ``rows``, ``blocks``) → its curve.
        labels: int64 (E,), true classes of the examples.
    """

    name: ClassVar[str] = "robustness"
    metric: str
    split: str
    clean: npt.NDArray[np.float64]
    curves: dict[str, Curve]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Means over the images; of reconstructions also the first level at which they are nearer to the clean images
        than the corrupted ones are (``None`` for never): from there on the model takes corruption away."""
        numbers: dict[str, Any] = {"split": self.split, "images": len(self.clean)}
        numbers[f"clean_{self.metric}"] = float(self.clean.mean())
        for kind, curve in self.curves.items():
            means, untouched = curve.scores.mean(1), curve.untouched.mean(1)
            if self.metric == "mse":
                better = np.flatnonzero(means < untouched)
                numbers[f"{kind}_repaired_from"] = curve.levels[better[0]] if len(better) else None
            numbers[f"{kind}_{self.metric}"] = means.tolist()
        return numbers

    def tables(self) -> dict[str, Columns]:
        columns: dict[str, list[Any]] = {
            name: []
            for name in ("corruption", "level", self.metric, f"{self.metric}_sd", "corrupted_mse", "corrupted_mse_sd")
        }
        for kind, curve in self.curves.items():
            for level, scores, untouched in zip(curve.levels, curve.scores, curve.untouched, strict=True):
                row = (kind, level, scores.mean(), scores.std(), untouched.mean(), untouched.std())
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
        return {"robustness": columns}

    def figures(self) -> dict[str, Figure]:
        examples = {f"{kind}-examples": self._examples(kind) for kind in self.curves}
        return {"robustness": self._curves(), **examples}

    @style()
    def _curves(self) -> Figure:
        """A panel for each corruption; a band of a standard deviation over images, or of the mean's 95 % interval."""
        figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=(1.15, 1))
        for place, (kind, curve) in zip((grid[0, :], grid[1, 0], grid[1, 1]), self.curves.items(), strict=True):
            axes = figure.add_subplot(place)
            self._panel(axes, kind, curve)
        figure.axes[2].sharey(figure.axes[1])
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        what = "Reconstructions of corrupted images" if self.metric == "mse" else "Classes of corrupted images"
        figure.axes[0].set_title(f"{what}: {len(self.clean):,} {self.split} images")
        return figure

    def _panel(self, axes: Axes, kind: str, curve: Curve) -> None:
        means, levels = curve.scores.mean(1), np.asarray(curve.levels)
        if self.metric == "mse":
            spread, told = curve.scores.std(1), "± 1 standard deviation over images"
        else:
            spread = 1.96 * np.sqrt(means * (1 - means) / curve.scores.shape[1])
            told = "95 % interval of the mean"
        axes.fill_between(levels, (means - spread).clip(0), means + spread, color=BLUE, alpha=0.2, lw=0, label=told)
        line = "MSE of the reconstruction" if self.metric == "mse" else "accuracy"
        axes.plot(levels, means, color=BLUE, marker="o", markersize=5, linewidth=1.8, label=line)
        if self.metric == "mse":
            without = curve.untouched.mean(1)
            axes.plot(levels, without, color=GREY, linestyle="--", linewidth=1.5, label="MSE of the corrupted image")
        else:
            axes.axhline(1 / len(self.class_names), color=GREY, linestyle="--", linewidth=1.5, label="guessing")
        if kind == "noise":
            axes.set_xscale("log")
            label_plainly(axes.xaxis)
        if kind == "noise" and self.metric == "mse":
            axes.set_yscale("log")
            label_plainly(axes.yaxis)
            axes.set_ylim(bottom=0.3 * min(means[0], without[0]))
        else:
            axes.set_ylim(bottom=0)
        axes.set(xlabel=_AXES[kind], ylabel="mean squared error" if self.metric == "mse" else "accuracy")
        axes.grid()

    def _examples(self, kind: str) -> Figure:
        curve = self.curves[kind]
        corrupted = curve.corrupted.clip(0, 1)
        count, columns = corrupted.shape[:2]
        what = {"noise": "variance of the noise", "rows": "share of rows covered", "blocks": "share of area covered"}
        labels = [f"{level:.2g}" for level in curve.shown]
        if self.metric == "mse":
            rows = np.stack((corrupted, curve.answers.clip(0, 1)), axis=1)
            return plot_sheet(
                rows.reshape(-1, *rows.shape[3:]),
                columns,
                f"Corrupted images and their reconstructions; columns: {what[kind]}",
                row_labels=("corrupted", "reconstructed") * count,
                column_labels=labels,
            )
        return plot_sheet(
            corrupted.reshape(-1, *corrupted.shape[2:]),
            columns,
            f"Corrupted images and the class that they are taken for; columns: {what[kind]}",
            row_labels=[self.class_names[label][:14] for label in self.labels],
            column_labels=labels,
            captions=[self.class_names[answer][:14] for answer in curve.answers.ravel()],
        )


def measure_robustness(
    model: Model,
    data: Data,
    *,
    split: Split = "test",
    count: int | None = 2000,
    seed: int = 0,
    on_progress: Progress = silent,
) -> Robustness:
    """Corrupt images, and score what the model makes of them against the clean images.

    Bottaro (2020): Gaussian noise of ten variances from 1e-3 to 1, evenly spaced in logarithms and not cut off; and a
    share of the rows set to 0, here from the top. Besides them one block of each image's proportions at a random place.

    Args:
        split: part of the data set.
        count: so many of its images, spread evenly over it; ``None`` for all.
        seed: of noise and places, which are the same at every level: see :func:`corrupt`.

    Raises:
        UserError: the model cannot encode and decode, nor classify; or the images do not fit it.
    """
    subject = subject_of(model)
    reconstructs = {"encode", "decode"} <= set(subject.capabilities)
    if not reconstructs and "classify" not in subject.capabilities:
        has = ", ".join(subject.capabilities) or "none of these"
        told = f"robustness takes a model that can encode and decode, or classify; this one can: {has}"
        raise UserError.of("model", subject.name, told)
    images = images_of(data, subject, split=split, count=count, classes=not reconstructs)
    clean = images.images.astype(np.float32) / np.float32(255)
    examples = _examples(images.labels, seed)
    answer = _reconstruct if reconstructs else _classify
    done, steps = 0, 1 + sum(map(len, LEVELS.values()))
    curves = {}
    for kind, levels in LEVELS.items():
        shown = levels[:: 3 if kind == "noise" else 2]
        scores, untouched, pictures, answers = [], [], [], []
        for level in levels:
            done += 1
            on_progress(f"{kind} {level:.2g}", done, steps)
            corrupted = corrupt(clean, kind, level, seed)
            given, score = answer(subject, corrupted, clean, images)
            scores.append(score)
            untouched.append(_errors(corrupted, clean))
            if level in shown:
                pictures.append(corrupted[examples])
                answers.append(given[examples])
        curves[kind] = Curve(
            levels, np.stack(scores), np.stack(untouched), np.stack(pictures, 1), np.stack(answers, 1), shown
        )
    return Robustness(
        "mse" if reconstructs else "accuracy",
        split,
        answer(subject, clean, clean, images)[1],
        curves,
        images.labels[examples],
        images.class_names,
    )


def corrupt(images: Floats, kind: str, level: float, seed: int) -> Floats:
    """Images with ``noise`` of variance ``level``, or the share ``level`` of their ``rows`` or area (``blocks``) at 0.

    Every level draws anew from ``default_rng(seed)``: noise N(0, 1) as float32 of the images' shape, times √level; for
    blocks two numbers an image (N, 2) from [0, 1), which say where between the edges the block lies. So a level differs
    from the next in its strength alone.

    Args:
        images: float32 (N, C, H, W) in [0, 1].
        kind: of :data:`LEVELS`.
    """
    generator = np.random.default_rng(seed)
    if kind == "noise":
        return images + np.float32(np.sqrt(level)) * generator.standard_normal(images.shape, np.float32)
    count, _, height, width = images.shape
    covered = images.copy()
    if kind == "rows":
        covered[:, :, : round(level * height)] = 0
        return covered
    sides = round(np.sqrt(level) * height), round(np.sqrt(level) * width)
    places = generator.random((count, 2))
    for image, (down, right) in zip(covered, places, strict=True):
        top, left = int(down * (height - sides[0] + 1)), int(right * (width - sides[1] + 1))
        image[:, top : top + sides[0], left : left + sides[1]] = 0
    return covered


def _reconstruct(
    subject: Subject, corrupted: Floats, clean: Floats, images: ImageSet
) -> tuple[Floats, npt.NDArray[np.float64]]:
    restored = subject.reconstruct(corrupted)
    errors = _errors(restored, clean)
    if not np.isfinite(errors).all():
        bad = int((~np.isfinite(errors)).sum())
        raise UserError.of("model", subject.name, f"gives images that are not finite, {bad} of {len(errors)}")
    return restored, errors


def _classify(
    subject: Subject, corrupted: Floats, clean: Floats, images: ImageSet
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    classes = subject.classify(corrupted).argmax(1)  # type: ignore[arg-type]
    return classes, (classes == images.labels).astype(np.float64)


def _errors(images: Floats, clean: Floats) -> npt.NDArray[np.float64]:
    errors: npt.NDArray[np.float64] = np.square(images - clean).mean((1, 2, 3), dtype=np.float64)
    return errors


def _examples(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Places of some images, of different classes where there are enough."""
    order = np.random.default_rng(seed).permutation(len(labels))
    firsts = order[np.sort(np.unique(labels[order], return_index=True)[1])]
    return (firsts if len(firsts) >= _EXAMPLES else order)[:_EXAMPLES]
