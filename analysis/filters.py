"""What the layers of a network look for: their weights as images, and how many of their units are active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from analysis.activations import Call, trace
from analysis.figures import BLUE, GREY, WIDTH, style
from analysis.result import Columns, Result
from analysis.sheet import plot_sheet
from analysis.subject import BATCH, Data, Model, Split, Subject, images_of, subject_of
from models.data_sources import Progress, silent
from models.dense_autoencoder import sparseness
from models.errors import ProblemCollector, UserError, did_you_mean

Floats = npt.NDArray[np.float32]
Kind = Literal["pixels", "projected", "to pixels", "kernels", "matrix"]

_SAID = {
    "pixels": "weights on the pixels",
    "projected": "weights multiplied back to the pixels",
    "to pixels": "what each unit adds to the image",
    "kernels": "kernels, a column for each map",
    "matrix": "weights, a row for each unit",
}


@dataclass(frozen=True, eq=False)
class LayerActivity:
    """How active a layer is on the images of a split.

    Args:
        zero_share: mean share of activations that are at most the threshold in absolute value, 0..1.
        hoyer: mean of Hoyer's sparseness of each image's activations, 0..1, see
            :func:`models.dense_autoencoder.sparseness`.
        largest: float32 (U,), largest absolute activation of each unit on any image; of a convolution's anywhere.
        mean: float32 (U,), mean activation.
        active: float32 (U,), share of the images on which the unit is above the threshold, of a convolution's anywhere.
    """

    kind: Kind
    zero_share: float
    hoyer: float
    largest: Floats
    mean: Floats
    active: Floats


@dataclass(frozen=True, eq=False)
class Filters(Result):
    """A layer's weights, and the activity of all layers.

    Args:
        layer: its name in the network.
        kind: what ``weights`` are. ``pixels``: a unit's weights on the image, (C, H, W). ``projected``: the product of
            the linear layers from the pixels to this one, with the factors of batch normalisation; what the unit looks
            for if the layers between were linear, which they are not. ``to pixels``: a unit's weights in the layer that
            makes the image. ``kernels``: of a convolution, one for each input map. ``matrix``: weights as they are,
            where no pixels belong to them.
        weights: float32 (U, C, H, W); for ``kernels`` (U, input maps, h, w), for ``matrix`` (U, 1, 1, inputs).
        norms: float64 (U,), Euclidean norm of each unit's ``weights``.
        activity: layer → its activity, in the order of their work.
        threshold: activations of at most this size count as zero.
        images: how many they were measured on.
        count: most pictures to show.
    """

    name: ClassVar[str] = "filters"
    layer: str
    kind: Kind
    weights: Floats
    norms: npt.NDArray[np.float64]
    activity: dict[str, LayerActivity]
    threshold: float
    split: str
    images: int
    count: int

    @property
    def dead(self) -> npt.NDArray[np.int64]:
        """The layer's units that are above the threshold on no image at all."""
        return np.flatnonzero(self.activity[self.layer].largest <= self.threshold)

    @property
    def chosen(self) -> npt.NDArray[np.int64]:
        """The units shown, of largest norm first; of a convolution on many maps fewer, that have ``count`` kernels."""
        maps = self.weights.shape[1] if self.kind == "kernels" and self.weights.shape[1] not in (1, 3) else 1
        return np.argsort(-self.norms, kind="stable")[: max(1, self.count // maps)]

    def summary(self) -> dict[str, Any]:
        mine = self.activity[self.layer]
        return {
            "layer": self.layer,
            "weights": _SAID[self.kind] + (", as if all between were linear" if self.kind == "projected" else ""),
            "units": len(self.norms),
            "shown": len(self.chosen),
            "split": self.split,
            "images": self.images,
            "threshold": self.threshold,
            "zero_share": mine.zero_share,
            "hoyer_sparseness": mine.hoyer,
            "dead_units": len(self.dead),
            "layers": list(self.activity),
        }

    def tables(self) -> dict[str, Columns]:
        layers = self.activity.values()
        mine = self.activity[self.layer]
        tables: dict[str, Columns] = {
            "layers": {
                "layer": list(self.activity),
                "kind": [layer.kind for layer in layers],
                "units": [len(layer.mean) for layer in layers],
                "zero_share": [layer.zero_share for layer in layers],
                "hoyer_sparseness": [layer.hoyer for layer in layers],
                "dead_units": [int((layer.largest <= self.threshold).sum()) for layer in layers],
            },
        }
        if self.kind != "to pixels":  # its units are those of the layer before
            tables["units"] = {
                "unit": np.arange(len(self.norms)),
                "weight_norm": self.norms,
                "mean_activation": mine.mean,
                "active_share": mine.active,
                "dead": mine.largest <= self.threshold,
            }
        else:
            tables["units"] = {"unit": np.arange(len(self.norms)), "weight_norm": self.norms}
        return tables

    def figures(self) -> dict[str, Figure]:
        return {"weights": self._matrix() if self.kind == "matrix" else self._sheet(), "activity": self._activity()}

    @property
    def _title(self) -> str:
        shown, units = len(self.chosen), len(self.norms)
        which = f"{shown} of {units} units" if shown < units else f"{units} units" if units > 1 else "1 unit"
        what = "kernels" if self.kind == "kernels" and self.weights.shape[1] in (1, 3) else _SAID[self.kind]
        layer = self.layer if len(self.layer) <= 30 else f"…{self.layer[-29:]}"
        return f"{layer}: {what}; {which}, largest norm first"

    def _sheet(self) -> Figure:
        weights = self.weights[self.chosen]
        count, maps = weights.shape[:2]
        if self.kind != "kernels":
            columns = 10 if count <= 100 else 20 if count <= 200 else 25
            return plot_sheet(weights, columns, self._title, gap=0.03, signed=True)
        if maps in (1, 3):
            return plot_sheet(weights, min(16, count), self._title, signed=True, largest_cell=0.6)
        weights = weights.reshape(-1, 1, *weights.shape[2:])
        return plot_sheet(weights, min(maps, 32), self._title, gap=0.03, signed=True, largest_cell=0.35)

    @style()
    def _matrix(self) -> Figure:
        rows = self.weights[self.chosen].reshape(len(self.chosen), -1)
        figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
        axes = figure.add_subplot()
        reach = float(np.abs(rows).max()) or 1.0
        drawn = axes.imshow(rows, cmap="gray", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
        figure.colorbar(drawn, label="weight")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="input", ylabel="unit, largest norm first")
        axes.set_title(self._title)
        return figure

    @style()
    def _activity(self) -> Figure:
        """On how many images each unit is active: a line that falls to 0 where units are dead."""
        active = np.sort(self.activity[self.layer].active)[::-1]
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.add_subplot()
        ranks = np.arange(1, len(active) + 1)
        axes.fill_between(ranks, active, step="mid", color=BLUE, alpha=0.2, lw=0)
        axes.step(ranks, active, where="mid", color=BLUE, linewidth=1.8)
        alive = len(active) - len(np.flatnonzero(self.activity[self.layer].largest <= self.threshold))
        if alive < len(active):
            axes.axvline(alive + 0.5, color=GREY, linestyle="--", linewidth=1.2)
            side = "right" if alive > len(active) / 2 else "left"
            axes.text(alive + 0.5, 0.95, f" {len(active) - alive} never active ", va="top", ha=side, fontsize=9)
        axes.set(xlim=(0.5, len(active) + 0.5), ylim=(0, 1.03), ylabel="share of images on which it is active")
        axes.set_xlabel("unit, most often active first")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(f"{self.layer}: units with |activation| above {self.threshold:g} on {self.images:,} images")
        axes.grid(axis="y")
        return figure


def inspect_filters(
    model: Model,
    data: Data,
    *,
    layer: str | None = None,
    count: int = 400,
    threshold: float = 0.01,
    split: Split = "val",
    on_progress: Progress = silent,
) -> Filters:
    """A layer's weights as images; sparseness and dead units of all layers that work on images.

    Works on any network with linear layers or convolutions of two dimensions, whatever their names, by watching it at
    work: see :func:`analysis.activations.trace`; :mod:`analysis.activations` says what a layer's activation is.

    Two measures of sparseness: the share of activations near zero, and Hoyer's. Cedergren, Törnégren and Xiong (2019)
    print an "average sparseness" without a definition, and neither measure gives all of their figures. Of 1024 units
    trained for 12 epochs on images with noise of σ 0.1, ReLU ones are nearer to Hoyer's (report 0.16, Hoyer 0.17, zero
    share 0.06), sigmoid ones to the zero share (report 0.02, Hoyer 0.09, zero share 0.00).

    Args:
        layer: its name, as ``network.named_modules()`` has it; by default the first that works.
        count: show at most so many pictures, of the units with the largest weights.
        threshold: activations of at most this size count as zero.
        split: part of the data set that activations are measured on.

    Raises:
        UserError: there is no such layer; the model cannot take the images.
    """
    subject = subject_of(model)
    images = images_of(data, subject, split=split).images
    calls = {call.name: call for call in _trace(subject, images[: min(2, len(images))])}
    problems = ProblemCollector()
    if not calls:
        problems.add(
            "model", subject.name, "filters takes a network with linear layers or convolutions at work on images"
        )
    elif layer is not None and layer not in calls:
        problems.add("--layer", layer, did_you_mean(layer, calls))
    if count < 1:
        problems.add("--count", count, "must be at least 1")
    if not threshold >= 0:
        problems.add("--threshold", threshold, "must be 0 or more")
    problems.raise_if_any()
    chosen = layer or next(iter(calls))
    kinds = {name: _kind(call, calls, images.shape[1:]) for name, call in calls.items()}
    weights = _weights(calls[chosen], kinds[chosen], calls, images.shape[1:])
    norms = np.linalg.norm(weights.reshape(len(weights), -1).astype(np.float64), axis=1)
    activity = _activity(subject, images, kinds, threshold, on_progress)
    return Filters(chosen, kinds[chosen], weights, norms, activity, threshold, split, len(images), count)


def _trace(subject: Subject, images: npt.NDArray[np.uint8]) -> list[Call]:
    batch = torch.from_numpy(np.ascontiguousarray(images)).to(subject.device).float().div_(255)
    try:
        return trace(subject.network, batch)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        told = f"cannot work on images of shape {images.shape[1:]}: {str(error).partition(chr(10))[0]}"
        raise UserError.of("model", subject.name, told) from error


def _kind(call: Call, calls: dict[str, Call], shape: tuple[int, ...]) -> Kind:
    if not isinstance(call.layer, nn.Linear):
        return "kernels"
    if call.on_images and call.layer.in_features == np.prod(shape):
        return "pixels"
    if call.to_images and call.layer.out_features == np.prod(shape):
        return "to pixels"
    return "projected" if _way(call, calls) else "matrix"


def _way(call: Call, calls: dict[str, Call]) -> list[Call]:
    """The linear layers from the pixels to this one, both ends included; none where others are between."""
    way = [call]
    while not way[0].on_images:
        before = calls.get(way[0].before or "")
        fits = before is not None and before not in way and isinstance(before.layer, nn.Linear)
        if before is None or not fits or before.layer.out_features != way[0].layer.in_features:
            return []
        way.insert(0, before)
    return way if isinstance(way[0].layer, nn.Linear) else []


def _weights(call: Call, kind: Kind, calls: dict[str, Call], shape: tuple[int, ...]) -> Floats:
    weight = _array(call.layer.weight)
    if kind == "kernels":
        turned = isinstance(call.layer, nn.ConvTranspose2d) and call.layer.groups == 1
        return weight.swapaxes(0, 1) if turned else weight
    if kind == "matrix":
        return weight[:, None, None, :]
    if kind == "to pixels":
        return weight.T.reshape(-1, *shape)
    product, way = np.eye(int(np.prod(shape)), dtype=np.float32), _way(call, calls)
    for step in way:
        if step.gain is not None:
            product = _array(step.gain)[:, None] * product
        product = _array(step.layer.weight) @ product
    return product.reshape(-1, *shape)


def _array(tensor: Any) -> Floats:
    array: Floats = tensor.detach().float().cpu().numpy()
    return array


def _activity(
    subject: Subject,
    images: npt.NDArray[np.uint8],
    kinds: dict[str, Kind],
    threshold: float,
    on_progress: Progress,
) -> dict[str, LayerActivity]:
    sums: dict[str, list[Tensor]] = {}
    for first in range(0, len(images), BATCH):
        on_progress("activations", first, len(images))
        batch = images[first : first + BATCH]
        for call in _trace(subject, batch):
            values = call.activation.flatten(2) if call.activation.ndim > 2 else call.activation[:, :, None]
            values = values.float()
            if not torch.isfinite(values).all():
                raise UserError.of("model", subject.name, f"gives activations that are not finite, in {call.name}")
            size = values.abs()
            new = [
                (size <= threshold).double().mean((1, 2)).sum(),
                sparseness(values.flatten(1)).double().sum(),
                values.double().mean(2).sum(0),
                (size.amax(2) > threshold).double().sum(0),
                size.amax((0, 2)),
            ]
            old = sums.get(call.name)
            if old is not None:
                new = [*(a + b for a, b in zip(old[:4], new[:4], strict=True)), torch.maximum(old[4], new[4])]
            sums[call.name] = new
    return {
        name: LayerActivity(
            kinds[name],
            float(zero / len(images)),
            float(hoyer / len(images)),
            _array(largest),
            _array(mean / len(images)),
            _array(active / len(images)),
        )
        for name, (zero, hoyer, mean, active, largest) in sums.items()
    }
