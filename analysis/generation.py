"""Images that a model makes up, and how they compare with real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from analysis.latent import LatentSpace, finite, latent_space
from analysis.neighbours import Neighbours, find_neighbours
from analysis.result import Columns, Result
from analysis.sheet import plot_sheet
from analysis.subject import Model, Split, Subject, images_of, subject_of
from analysis.wandering import Grid, Interpolations, Variations, interpolate, make_grid, vary
from models.data_sources import ImageSet, Progress, silent
from models.datasets import DataOptions, TrainingData, load_training_data
from models.errors import ProblemCollector, UserError, did_you_mean
from models.numerics import Numerics

Floats = npt.NDArray[np.float32]

PARTS = ("samples", "grid", "interpolation", "variations", "nearest")
VARIED = 6
"""Images that are varied, where none is named; of a named one there are as many rows."""


@dataclass(frozen=True, eq=False)
class Generation(Result):
    """What a model makes up; a part that does not apply to it is ``None``.

    Args:
        source: what the codes of samples were drawn from, in words.
        latent_dim: number of values in a code; ``None`` for a model that cannot decode.
        left_out: part → why it is not there.
        samples: float32 (N, C, H, W) in [0, 1].
        real: float32 (N, C, H, W), as many images of the split, fewer if it has fewer.
        frechet: squared Fréchet distance between samples and validation images in the features of
            :mod:`models.frechet`; NaN where it was not measured.
        frechet_of_training_images: the same for training images in place of samples: about the least that a distance
            from so many images can be.
    """

    name: ClassVar[str] = "generate"
    source: str
    latent_dim: int | None
    left_out: dict[str, str]
    samples: Floats | None = None
    real: Floats | None = None
    frechet: float = float("nan")
    frechet_of_training_images: float = float("nan")
    grid: Grid | None = None
    interpolation: Interpolations | None = None
    variations: Variations | None = None
    nearest: Neighbours | None = None

    def summary(self) -> dict[str, Any]:
        """Distances to the nearest training images are medians: of the samples, and of validation images.

        Samples far nearer than those are copies, unless they are blurred: a blurred image is near to many.
        """
        numbers: dict[str, Any] = {"samples_from": self.source}
        if self.latent_dim is not None:
            numbers["latent_dim"] = self.latent_dim
        if self.samples is not None:
            numbers["frechet"] = self.frechet
            numbers["frechet_of_training_images"] = self.frechet_of_training_images
        if self.nearest is not None:
            numbers["nearest_distance"] = float(np.median(self.nearest.distances[:, 0]))
            numbers["nearest_distance_of_validation_images"] = float(np.median(self.nearest.held_out))
        return {**numbers, **({"left_out": self.left_out} if self.left_out else {})}

    def tables(self) -> dict[str, Columns]:
        tables: dict[str, Columns] = {}
        if self.nearest is not None:
            count, k = self.nearest.indices.shape
            tables["nearest"] = {
                "sample": np.repeat(np.arange(count), k),
                "rank": np.tile(np.arange(1, k + 1), count),
                "training_image": self.nearest.indices.ravel(),
                "distance": self.nearest.distances.ravel(),
            }
        if self.interpolation is not None and self.interpolation.ends is not None:
            tables["interpolation"] = self.interpolation.table()
        if self.variations is not None:
            tables["variations"] = self.variations.table()
        return tables

    def figures(self) -> dict[str, Figure]:
        figures = {}
        if self.samples is not None and self.real is not None:
            figures["samples"] = plot_sheet(self.samples, 16, f"Samples from {self.source}", gap=0.03)
            figures["real-and-generated"] = _against(self.real, self.samples)
        parts = {"grid": self.grid, "interpolation": self.interpolation, "variations": self.variations}
        for name, part in {**parts, "nearest": self.nearest}.items():
            if part is not None:
                figures[name] = part.figure()
        return figures


def generate(
    model: Model,
    data: TrainingData | DataOptions | str,
    *,
    what: Sequence[str] | None = None,
    split: Split = "val",
    count: int = 64,
    image: int | None = None,
    latent_dim: int | None = None,
    seed: int = 0,
    on_progress: Progress = silent,
) -> Generation:
    """Let a model make up images, and compare them with those that it was trained on.

    A model that can ``sample`` is taken to have the prior N(0, I) over what it decodes. Of one that only encodes and
    decodes random codes are decoded, drawn from the Gaussian fitted to the codes of training images. They show the
    holes of its latent space: codes that are as probable as others, but to which no image belongs.

    Args:
        data: what it was trained on; the training images are needed too.
        what: of ``samples`` (also against real images, with the Fréchet distance), ``grid`` (over a latent space of two
            dimensions), ``interpolation`` (between images of different classes, or else between noise vectors),
            ``variations`` (of images), ``nearest`` (training images to the samples); by default all that apply.
        split: where the images come from that are shown, interpolated and varied.
        count: samples.
        image: vary this one of the split instead of some spread over it.
        latent_dim: size of a code, for a network that decodes, does not encode, and does not say it.

    Raises:
        UserError: the model can do nothing of this, or not what was asked for; or the data do not fit it.
    """
    subject = subject_of(model)
    can = set(subject.capabilities)
    if not can & {"decode", "sample"}:
        subject.require("generate", "decode")
    if isinstance(data, ImageSet):
        raise UserError.of(
            "data", "ImageSet", "must tell training from validation images: a name, options or TrainingData"
        )
    loaded = (
        load_training_data(DataOptions(source=data) if isinstance(data, str) else data, on_progress=on_progress)
        if not isinstance(data, TrainingData)
        else data
    )
    images = images_of(data if split == "test" else loaded, subject, split=split)
    images_of(loaded, subject, split="train")
    space = latent_space(subject, loaded.train.images, latent_dim) if "decode" in can else None
    left_out = _left_out(can, space, images)
    _check(what, left_out, count, image, images)
    wanted = [part for part in PARTS if part not in left_out and (what is None or part in what)]

    def generator(part: str) -> np.random.Generator:
        return np.random.default_rng([seed, PARTS.index(part)])  # what is left out changes nothing in the others

    made: dict[str, Any] = {}
    for done, part in enumerate(wanted):
        on_progress(part, done, len(wanted))
        if part == "samples":
            made["samples"] = _samples(subject, space, count, seed)
            made["real"] = _spread(images.images, count).astype(np.float32) / np.float32(255)
            distances = _frechet(loaded, lambda n: _samples(subject, space, n, seed + 1))
            made["frechet"], made["frechet_of_training_images"] = distances
        elif part == "nearest":
            samples = made["samples"] if "samples" in made else _samples(subject, space, count, seed)
            made[part] = find_neighbours(samples, loaded.train.images, _spread(loaded.val.images, max(count, 256)))
        elif space is not None and part == "grid":
            made[part] = make_grid(space)
        elif space is not None and part == "interpolation":
            made[part] = interpolate(space, images if "encode" in can else None, generator(part))
        elif space is not None:
            indices = np.full(VARIED, image) if image is not None else _places(len(images.labels), VARIED)
            made[part] = vary(space, images.images[indices], indices, generator(part))
    source = space.source if space is not None else "what the model draws itself"
    return Generation(source, None if space is None else space.size, {} if what else left_out, **made)


def sample_sheet(model: Model, title: str, count: int = 64, columns: int = 16, seed: int = 0) -> Figure:
    """A sheet of ``count`` samples; the same for the same ``seed``.

    Raises:
        UserError: the model cannot sample.
    """
    subject = subject_of(model)
    subject.require("generate", "sample")
    images: Floats = subject.sample(count, seed)
    return plot_sheet(images, columns, title)


def _left_out(can: set[str], space: LatentSpace | None, images: ImageSet) -> dict[str, str]:
    """Part → why it does not apply to a model that can ``can``."""
    reasons = {}
    if space is None:
        reasons = dict.fromkeys(("grid", "interpolation"), "takes a model that can decode")
    elif space.size != 2:
        reasons["grid"] = f"takes a latent space of 2 dimensions; this one has {space.size}"
    if not {"encode", "decode"} <= can:
        reasons["variations"] = "takes a model that can encode and decode"
    elif len(np.unique(images.labels)) < 2:
        reasons["interpolation"] = "takes images of two classes at least"
    return reasons


def _check(
    what: Sequence[str] | None, left_out: dict[str, str], count: int, image: int | None, images: ImageSet
) -> None:
    """Raise what is wrong with what was asked for, all at once."""
    problems = ProblemCollector()
    for part in what or ():
        if part not in PARTS:
            problems.add("--what", part, did_you_mean(part, PARTS))
        elif part in left_out:
            problems.add("--what", part, left_out[part])
    if what is not None and not what:
        problems.add("--what", None, f"must be of {', '.join(PARTS)}")
    if count < 1:
        problems.add("--count", count, "must be at least 1")
    if image is not None and not 0 <= image < len(images.labels):
        problems.add("--image", image, f"must be from 0 to {len(images.labels) - 1}, the images of the split")
    problems.raise_if_any()


def _samples(subject: Subject, space: LatentSpace | None, count: int, seed: int) -> Floats:
    if "sample" in subject.capabilities:
        return finite(subject, subject.sample(count, seed), "samples").clip(0, 1)
    assert space is not None
    return space.decode(space.draw(count, np.random.default_rng([seed, 0])))


def _frechet(data: TrainingData, sample: Any) -> tuple[float, float]:
    """Of samples and of training images; NaN where there are too few images for it."""
    from models.frechet import FrechetScore
    from models.training import DataOnDevice

    if len(data.val.labels) < 2 or min(data.spec.height, data.spec.width) < 8:
        return float("nan"), float("nan")
    with Numerics().applied():
        score = FrechetScore.of(DataOnDevice(data))
        distance = score.compare(_in_parts(sample(score.count)))
        if len(data.train.labels) < score.count:
            return distance.distance, float("nan")
        real = data.train.images[: score.count].astype(np.float32) / np.float32(255)
        return distance.distance, score.compare(_in_parts(real)).distance


def _in_parts(images: Floats) -> Any:
    """A function count → the next so many of ``images``."""
    rest: Iterator[Floats] = iter(images)
    return lambda count: torch.from_numpy(np.stack([next(rest) for _ in range(count)]))


def _places(available: int, count: int) -> npt.NDArray[np.int64]:
    return np.linspace(0, available - 1, min(count, available)).round().astype(np.int64)


def _spread(images: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    """So many of the images, spread evenly over them."""
    return images[_places(len(images), count)]


def _against(real: Floats, samples: Floats) -> Figure:
    """Eight columns of real images, a gap, eight columns of samples."""
    count = min(64, len(real), len(samples))
    rows = -(-count // 8)
    places = np.full((2, rows * 8, *real.shape[1:]), np.nan, np.float32)
    places[0, :count], places[1, :count] = real[:count], samples[:count]
    blocks = places.reshape(2, rows, 8, *real.shape[1:])
    gap = np.full((rows, 1, *real.shape[1:]), np.nan, np.float32)
    sheet = np.concatenate((blocks[0], gap, blocks[1]), axis=1)
    title = f"{count} real images (left) and {count} made up by the model (right)"
    return plot_sheet(sheet.reshape(-1, *real.shape[1:]), 17, title, gap=0.03)
