"""What an analysis works on: a network, however it was trained, and images that fit it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.checkpoint import Trained, load
from models.data_sources import ImageSet
from models.datasets import DataOptions, DataSpec, TrainingData, load_test_set, load_training_data
from models.errors import Problem, UserError
from models.family import CAPABILITIES
from models.numerics import evaluating
from models.places import is_url

Model = Trained | nn.Module | str | Path
"""What can be analysed: ``result.best.load()``, the path of a checkpoint, or any network with the methods that the
analysis needs (see :data:`models.family.CAPABILITIES`)."""

Data = ImageSet | TrainingData | DataOptions | str
"""Where images come from: themselves, a loaded data set, what to load, or only a data set's name."""

Split = Literal["train", "val", "test"]

BATCH = 512


@dataclass(frozen=True, eq=False)
class Subject:
    """A network to be analysed.

    Args:
        network: on any device.
        trained: all that is known of it, where it comes from a checkpoint.
    """

    network: nn.Module
    trained: Trained | None = None

    @property
    def spec(self) -> DataSpec | None:
        """Of the images that it was trained on, where that is known."""
        return None if self.trained is None else self.trained.spec

    @property
    def name(self) -> str:
        """Family or class."""
        return type(self.network).__name__ if self.trained is None else self.trained.family.name

    @property
    def capabilities(self) -> tuple[str, ...]:
        return tuple(name for name in CAPABILITIES if hasattr(self.network, name))

    @property
    def device(self) -> torch.device:
        parameter = next(self.network.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def require(self, analysis: str, *needed: str) -> None:
        """Raise where the network cannot do what an analysis needs.

        Raises:
            UserError: it says what is needed and what there is.
        """
        if not set(needed) <= set(self.capabilities):
            has = ", ".join(self.capabilities) or "none of these"
            raise UserError.of(
                "model", self.name, f"{analysis} takes a model that can {' and '.join(needed)}; this one can: {has}"
            )

    def encode(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Codes float32 (N, L) of images uint8 (N, C, H, W)."""
        return self._each(images, lambda network, batch: network.encode(batch).flatten(1))

    def decode(self, codes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Images float32 (N, C, H, W), as the network gives them, of codes float32 (N, L)."""
        return self._each(codes, lambda network, batch: network.decode(batch))

    def reconstruct(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Reconstructions float32 (N, C, H, W) of images: uint8 0..255 or float32 in [0, 1], of the same shape.

        Raises:
            UserError: what the network gives has another shape.
        """
        restored = self._each(images, lambda network, batch: network.decode(network.encode(batch)))
        if restored.shape != images.shape:
            shapes = f"{restored.shape[1:]}: must be {images.shape[1:]}, as the images"
            raise UserError.of("model", self.name, f"decodes images of shape {shapes}")
        return restored

    def classify(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits float32 (N, classes)."""
        return self._each(images, lambda network, batch: network.classify(batch))

    def sample(self, count: int, seed: int = 0) -> npt.NDArray[np.float32]:
        """Images float32 (count, C, H, W) that the network makes up; the same for the same ``seed``."""
        with evaluating(self.network), torch.inference_mode(), torch.random.fork_rng(devices=self._gpus()):
            torch.manual_seed(seed)
            counts = [min(BATCH, count - first) for first in range(0, count, BATCH)]
            network = cast(Any, self.network)  # nn.Module does not know of sample
            images: npt.NDArray[np.float32] = np.concatenate([network.sample(n).float().cpu().numpy() for n in counts])
        return images

    def _gpus(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _each(self, inputs: npt.NDArray[Any], step: Any) -> npt.NDArray[np.float32]:
        """``step(network, batch)`` over all inputs, in batches; uint8 ones are scaled to [0, 1] before."""
        parts = []
        with evaluating(self.network), torch.inference_mode():
            for first in range(0, len(inputs), BATCH):
                batch = torch.from_numpy(np.ascontiguousarray(inputs[first : first + BATCH])).to(self.device)
                batch = batch.float().div_(255) if batch.dtype == torch.uint8 else batch.float()
                output: Tensor = step(self.network, batch)
                parts.append(output.float().cpu().numpy())
        joined: npt.NDArray[np.float32] = np.concatenate(parts)
        return joined


def subject_of(model: Model | Any) -> Subject:
    """The network behind what a user gives.

    Raises:
        CheckpointError: the file is not a usable checkpoint.
        UserError: it is something else altogether.
    """
    if isinstance(model, str | Path) or is_url(model):
        model = load(cast(Path, model))
    if isinstance(model, Trained):
        return Subject(model.network, model)
    if not isinstance(model, nn.Module):
        allowed = "a loaded trial (result.best.load()), the path of a checkpoint, or a torch network"
        raise UserError.of("model", type(model).__name__, allowed)
    return Subject(model)


def images_of(
    data: Data, subject: Subject, *, split: Split = "val", count: int | None = None, classes: bool = False
) -> ImageSet:
    """Images for an analysis, checked to fit the network.

    Args:
        data: images as they are, or where to take them from.
        split: which part of a data set; without meaning for an :class:`ImageSet`.
        count: take so many, spread evenly over them; ``None`` all.
        classes: they must also have the classes that the network was trained on.

    Raises:
        UserError: images of another shape, other classes, none at all, or no such data set; all at once.
    """
    images = _load(data, split)
    problems = []
    if len(images.labels) == 0:
        problems.append(Problem("--split", split, "has no images"))
    if count is not None and count < 1:
        problems.append(Problem("--count", count, "must be at least 1"))
    spec = subject.spec
    if spec is not None:
        source = data if isinstance(data, str) else getattr(data, "source", None)
        if images.shape != spec.shape:
            hint = "; --channels and --image-size change that" if isinstance(data, DataOptions) else ""
            problems.append(
                Problem(
                    "--dataset",
                    source,
                    f"its images are {shape_text(images.shape)}; the model, trained on {spec.source}, takes "
                    f"{shape_text(spec.shape)}{hint}",
                )
            )
        if classes and images.class_names != spec.class_names:
            told = f"its classes are {_some(images.class_names)}; the model knows {_some(spec.class_names)}"
            problems.append(Problem("--dataset", source, told))
    if problems:
        raise UserError(*problems)
    if count is None or count >= len(images.labels):
        return images
    return images.take(np.linspace(0, len(images.labels) - 1, count).round().astype(np.int64))


def _load(data: Data, split: Split) -> ImageSet:
    if split not in get_args(Split):
        raise UserError.of("--split", split, "must be train, val or test")
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, str):
        data = DataOptions(source=data)
    if split == "test":
        if isinstance(data, TrainingData):
            raise UserError.of("--split", split, "a loaded data set has train and val; give its options or its name")
        return load_test_set(data)
    loaded = load_training_data(data) if isinstance(data, DataOptions) else data
    return loaded.train if split == "train" else loaded.val


def shape_text(shape: tuple[int, ...]) -> str:
    """``28x28, grey`` for (1, 28, 28)."""
    channels, height, width = shape
    return f"{height}x{width}, {({1: 'grey', 3: 'RGB'}).get(channels, f'{channels} channels')}"


def images_text(count: int, split: Split | None) -> str:
    """``2000 validation images``; of images that are no part of a data set only how many there are."""
    kind = {"train": "training ", "val": "validation ", "test": "test ", None: ""}[split]
    return f"{count} {kind}image{'' if count == 1 else 's'}"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "none"
