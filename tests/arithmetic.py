"""What tests of the families' arithmetic share: images, batches, counts of parameters, NumPy's words for layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.datasets import DataSpec, ImageSet, TrainingData
from models.dcgan import DcganFamily
from models.family import Batch, Family, Update
from models.gan import GanFamily
from models.training import DataOnDevice

CLASSES = tuple("0123456789")
GREY, RGB = (1, 28, 28), (3, 64, 64)

GAN, DCGAN = GanFamily(), DcganFamily()
SMALL = {"hidden_units": 4, "latent_dim": 3, "batch_norm": True}

Doubles = npt.NDArray[np.float64]


def spec_of(shape: tuple[int, int, int], classes: Sequence[str] = CLASSES, train: int = 8, val: int = 8) -> DataSpec:
    channels, height, width = shape
    return DataSpec(
        source="made",
        channels=channels,
        height=height,
        width=width,
        class_names=tuple(classes),
        train_images=train,
        val_images=val,
        fingerprint="0" * 64,
    )


def on_device(train: npt.NDArray[Any], val: npt.NDArray[Any], classes: Sequence[str] = CLASSES) -> DataOnDevice:
    """Given pixels with labels that go round."""
    parts = [ImageSet(part, np.arange(len(part)) % len(classes), tuple(classes)) for part in (train, val)]
    shape = train.shape[1], train.shape[2], train.shape[3]
    return DataOnDevice(TrainingData(parts[0], parts[1], spec_of(shape, classes, len(train), len(val))))


def noise(shape: tuple[int, int, int], train: int = 8, val: int = 8, classes: Sequence[str] = CLASSES) -> DataOnDevice:
    """Images of random pixels."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (count, *shape), dtype=np.uint8) for count in (train, val)]
    return on_device(pixels[0], pixels[1], classes)


def batch_of(shape: tuple[int, int, int], count: int = 6) -> Batch:
    return Batch(torch.rand(count, *shape), torch.arange(count) % len(CLASSES))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def linear(inner: int, outer: int) -> int:
    """Weights and biases of a linear layer."""
    return inner * outer + outer


def conv(kernel: int, inner: int, outer: int) -> int:
    return kernel * kernel * inner * outer + outer


def array(tensor: Tensor) -> Doubles:
    return tensor.detach().numpy().astype(np.float64)


def logistic(x: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-x))


def weights_of(layer: Any) -> tuple[Doubles, Doubles]:
    return array(layer.weight), array(layer.bias)


def maps(network: nn.Module, given: Tensor, kinds: tuple[type[nn.Module], ...]) -> list[tuple[int, ...]]:
    """Shape, without the batch, of what each module of these kinds gives, in order."""
    shapes: list[tuple[int, ...]] = []
    hooks = [
        module.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        for module in network.modules()
        if isinstance(module, kinds)
    ]
    network.eval()
    with torch.inference_mode():
        network(given)
    for hook in hooks:
        hook.remove()
    return shapes


def only_update(family: Family[Any], config: Any, network: nn.Module) -> Update:
    (phase,) = family.phases(config, network)
    (update,) = phase.updates
    return update


def loss_of(update: Update, batch: Batch) -> tuple[float, dict[str, float]]:
    given = update.loss(batch)
    loss, others = given if isinstance(given, tuple) else (given, {})
    return float(loss.detach()), {name: float(value) for name, value in others.items()}
