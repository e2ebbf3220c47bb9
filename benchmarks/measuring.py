"""What the benchmarks of training steps share: images without a data set, a loop without a service, ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from models.datasets import DataSpec, ImageSet, TrainingData
from models.family import Batch, Family, get_family
from models.numerics import Numerics
from models.training import Budget, DataOnDevice, Training, fit, start

SIDE, CLASSES = 28, 10

Chunk = Callable[[], int]
"""Trains for a while and says on how many images."""


def synthetic(train_images: int, val_images: int, seed: int = 0) -> TrainingData:
    """Grey 28×28 images of ten classes, each a blurred spot with noise; the same for the same arguments."""
    random = np.random.default_rng(seed)
    centres = random.uniform(6, 22, (CLASSES, 2))
    rows, columns = np.mgrid[:SIDE, :SIDE]

    def part(count: int) -> ImageSet:
        labels = random.integers(0, CLASSES, count)
        spots = centres[labels] + random.normal(0, 1, (count, 2))
        far = (rows - spots[:, 0, None, None]) ** 2 + (columns - spots[:, 1, None, None]) ** 2
        images = 220 * np.exp(-far / 30) + random.uniform(0, 30, (count, SIDE, SIDE))
        return ImageSet(images.astype(np.uint8)[:, None], labels, tuple(map(str, range(CLASSES))))

    train, val = part(train_images), part(val_images)
    spec = DataSpec(
        source="synthetic",
        channels=1,
        height=SIDE,
        width=SIDE,
        class_names=train.class_names,
        train_images=train_images,
        val_images=val_images,
        fingerprint=f"synthetic-{train_images}-{val_images}-{seed}",
    )
    return TrainingData(train, val, spec)


def begin(name: str, data: DataOnDevice, numerics: Numerics, epochs: float = 10_000, **config: Any) -> Training:
    """A run of a family with its default config, but for ``config``."""
    family: Family[Any] = get_family(name)
    return start(family, family.Config(**config), data, Budget(epochs), seed=0, numerics=numerics)


def fit_chunks(training: Training) -> Chunk:
    """One epoch of :func:`models.training.fit` a call."""
    records, images = fit(training), len(training.data.train)

    def chunk() -> int:
        next(records)
        return images

    return chunk


def bare_chunks(training: Training) -> Chunk:
    """As many steps as an epoch has, on one batch that is there already, by the least code that does it."""
    size, steps = training.config.batch_size, training.steps_per_epoch
    batch = first_batch(training)
    updates = training.phases[0].updates
    training.network.train()

    def chunk() -> int:
        with training.numerics.applied():
            for _ in range(steps):
                for update in updates:
                    bare_step(update.optimizer, lambda b, loss=update.loss: scalar(loss(b)), batch, training.numerics)
        return size * steps

    return chunk


def first_batch(training: Training) -> Batch:
    """A full batch of images in their order, begun again where there are too few."""
    images = training.data.train
    return images.batch(torch.arange(training.config.batch_size, device=training.data.device) % len(images))


def scalar(given: Any) -> torch.Tensor:
    """The loss in what an update's loss gives."""
    loss: torch.Tensor = given[0] if isinstance(given, tuple) else given
    return loss


def bare_step(
    optimizer: torch.optim.Optimizer, loss: Callable[[Batch], torch.Tensor], batch: Batch, numerics: Numerics
) -> None:
    optimizer.zero_grad(set_to_none=True)
    with numerics.autocast():
        value = loss(batch)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def contiguous(training: Training) -> Training:
    """The same run with its filters as torch makes them: channels first."""
    for parameter in training.network.parameters():
        parameter.data = torch.empty_like(parameter.data, memory_format=torch.contiguous_format).copy_(parameter.data)
    return training


def unfused(training: Training) -> Training:
    """The same run with optimizers as torch makes them."""
    for phase in training.phases:
        for update in phase.updates:
            for group in update.optimizer.param_groups:
                group["fused"] = False
    return training


def compiled(training: Training) -> Training:
    """The same run with its network compiled, where the loss calls it as a whole."""
    training.network.compile()
    return training


def rate(chunk: Chunk, device: str, seconds: float) -> float:
    """Images a second of a chunk that is called for ``seconds``, at least once, after one call to warm up."""
    chunk()
    wait(device)
    images, began = 0, time.perf_counter()
    while True:
        images += chunk()
        wait(device)
        if (taken := time.perf_counter() - began) >= seconds:
            return images / taken


def interleaved(chunks: dict[str, Chunk], device: str, rounds: int) -> dict[str, list[float]]:
    """Images a second of every chunk in each of ``rounds``, one after the other, so that all see the same machine."""
    for chunk in chunks.values():
        chunk()
    rates: dict[str, list[float]] = {name: [] for name in chunks}
    for _ in range(rounds):
        for name, chunk in chunks.items():
            wait(device)
            began = time.perf_counter()
            images = chunk()
            wait(device)
            rates[name].append(images / (time.perf_counter() - began))
    return rates


def ratio(rates: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of the same rounds."""
    ratios = [a / b for a, b in zip(rates, to, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"median": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3), "rounds": len(ratios)}


def wait(device: str) -> None:
    """Until the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
