"""What contenders are compared on, as data: the same network, space, images and budget for each of them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from models.family import Family, get_family
from models.space import Choice, Range, Space


@dataclass(frozen=True)
class Workload:
    """A search that every contender does.

    Args:
        train_images, val_images: of Fashion-MNIST's training files, split as :func:`models.datasets.load_training_data`
            splits them.
        fixed: field → value.
        space: field → range, as the command line writes it. With ``fixed`` it names every field that has a range.
        grid: field → range that two values are drawn from, for the same work; the other fields are as in ``base``.
        base: values of the searched fields that ``grid`` leaves out.
        grid_epochs: of each config of the grid; nothing is stopped there.
    """

    name: str
    family: str
    train_images: int
    val_images: int
    fixed: Mapping[str, Any]
    space: Mapping[str, str]
    grid: Mapping[str, str]
    base: Mapping[str, Any]
    trials: int = 24
    max_epochs: int = 9
    reduction_factor: int = 3
    grid_epochs: int = 3

    def get_family(self) -> Family[Any]:
        return get_family(self.family)

    def ranges(self) -> dict[str, Range]:
        """What is searched, checked to be all that this workload names."""
        ranges = dict(Space.of(self.get_family().Config, self.fixed, self.space).ranges)
        assert set(ranges) == set(self.space), "a field is neither fixed nor given a range"
        return ranges

    def grid_values(self, seed: int) -> dict[str, list[Any]]:
        """Two values of each field in ``grid``, drawn by ``seed``; as text they are the same numbers."""
        drawn = random.Random(seed)
        ranges = Space.of(self.get_family().Config, {**self.fixed, **self.base}, self.grid).ranges
        return {name: sorted(_two(ranges[name], drawn)) for name in self.grid}

    def configs(self, seed: int) -> list[dict[str, Any]]:
        """The searched fields of every config of the same work."""
        texts = {name: ",".join(map(str, values)) for name, values in self.grid_values(seed).items()}
        space = Space.of(self.get_family().Config, {**self.fixed, **self.base}, texts)
        return [{**self.base, **point} for point in space.grid()]


def _two(known: Range, drawn: random.Random) -> list[Any]:
    values = known.values()
    if values is not None:
        return drawn.sample(list(values), 2)
    assert not isinstance(known, Choice)
    low, high = math.log(known.low), math.log(known.high)
    return [float(f"{math.exp(drawn.uniform(low, high)):.3g}") for _ in range(2)]


AUTOENCODER = Workload(
    name="autoencoder",  # the space of Capettini's report; what that leaves open as its reproduction has it
    family="conv_autoencoder",
    train_images=10_000,
    val_images=5_000,
    fixed={
        **{"batch_size": 64, "hidden_units": 64, "activation": "relu", "batch_norm": False, "dropout": 0.0},
        "momentum": 0.9,
    },
    space={
        **{"filters": "4,8,16", "latent_dim": "2..10", "optimizer": "sgd,adam"},
        **{"lr": "1e-5..1e-1:log", "weight_decay": "1e-5..1e-1:log"},
    },
    grid={"filters": "4,8,16", "latent_dim": "2..10", "lr": "1e-4..1e-2:log"},
    base={"optimizer": "adam", "weight_decay": 1e-5},
)

CLASSIFIER = Workload(
    name="classifier",  # the network of Optuna's own PyTorch example, with its ranges
    family="mlp_classifier",
    train_images=10_000,
    val_images=5_000,
    fixed={
        **{"batch_size": 128, "activation": "relu", "batch_norm": False, "momentum": 0.9, "weight_decay": 0.0},
    },
    space={
        **{"hidden_layers": "1..3", "hidden_units": "64,128,256,512", "dropout": "0.2..0.5"},
        **{"optimizer": "sgd,adam", "lr": "1e-5..1e-1:log"},
    },
    grid={"hidden_layers": "1..3", "hidden_units": "64,128,256,512", "lr": "1e-4..1e-2:log"},
    base={"optimizer": "adam", "dropout": 0.2},
)

WORKLOADS = {
    known.name: known
    for full in (AUTOENCODER, CLASSIFIER)
    for known in (
        full,
        replace(
            full,
            name=f"{full.name}-smoke",  # whether everything works, in seconds; its figures mean nothing
            train_images=600,
            val_images=200,
            trials=4,
            max_epochs=3,
            grid_epochs=1,
        ),
    )
}
