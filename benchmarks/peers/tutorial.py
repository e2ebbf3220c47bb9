"""What the peers' scripts share: data, training and validation as PyTorch's and the libraries' tutorials write them.

Network, loss, optimizer and the validation are our families' own, so that what differs between contenders is the
service and the way to the images. What is kinder to the peers than their tutorials: data are read once a process, the
validation runs over images in memory without a ``DataLoader``, optimizers are fused, and no checkpoints are written.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from torchvision import datasets
from torchvision.transforms import ToTensor

from benchmarks.workloads import WORKLOADS, Workload
from models.datasets import DataSpec, ImageSet, TrainingData
from models.family import Batch
from models.numerics import Numerics
from models.training import DataOnDevice, measure


@dataclass(frozen=True)
class Task:
    """What a contender is asked to do.

    Args:
        part: ``search``, or ``same-work`` for a list of configs without stopping.
        out: file that gets one JSON line a report: time of day, trial, epoch, value.
        scratch: folder for whatever the library writes.
    """

    workload: str
    part: str
    seed: int
    trials: int
    data_dir: str
    out: str
    scratch: str

    @property
    def work(self) -> Workload:
        return WORKLOADS[self.workload]

    @property
    def epochs(self) -> int:
        return self.work.max_epochs if self.part == "search" else self.work.grid_epochs

    @property
    def configs(self) -> list[dict[str, Any]]:
        """The list of the same work."""
        return self.work.configs(self.seed)

    @property
    def metric(self) -> str:
        return self.work.get_family().objective.metric

    @property
    def mode(self) -> str:
        return self.work.get_family().objective.mode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of every peer."""
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--part", choices=("search", "same-work"), default="search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--data-dir", required=True, help="folder of torchvision's layout")
    parser.add_argument("--out", required=True)
    parser.add_argument("--scratch", required=True)


def task_of(arguments: argparse.Namespace) -> Task:
    return Task(**{name: getattr(arguments, name) for name in Task.__dataclass_fields__})


@functools.cache
def load_data(data_dir: str, train_images: int, val_images: int) -> tuple[Subset[Any], DataOnDevice]:
    """Training images as a torchvision data set, and the validation images in memory."""
    dataset = datasets.FashionMNIST(data_dir, train=True, transform=ToTensor())
    order = np.random.default_rng(0).permutation(len(dataset))
    train, val = Subset(dataset, order[val_images : val_images + train_images].tolist()), order[:val_images]
    images = ImageSet(dataset.data[val].numpy()[:, None], dataset.targets[val].numpy(), tuple(dataset.classes))
    _, channels, height, width = images.images.shape
    spec = DataSpec(
        source="fashion-mnist",
        channels=channels,
        height=height,
        width=width,
        class_names=images.class_names,
        train_images=train_images,
        val_images=val_images,
        fingerprint="",
    )
    return train, DataOnDevice(TrainingData(images, images, spec))  # nobody looks at its training images


def train(task: Task, given: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """Train a config, yielding epoch and objective after every epoch. ``given`` are the searched fields."""
    family = task.work.get_family()
    config = family.Config.model_validate({**task.work.fixed, **given})
    train_set, val = load_data(task.data_dir, task.work.train_images, task.work.val_images)
    # Loaded by the trial itself: where a trial trains on every core, worker processes only take their time from it.
    # An epoch of the autoencoder took 7.3 s of CPU time so, 8.8 s with one persistent worker and 7.9 s with two.
    loader = DataLoader(train_set, batch_size=config.batch_size, shuffle=True)
    torch.manual_seed(task.seed)
    network = family.build(config, val.spec)
    (phase,) = family.phases(config, network)
    (update,) = phase.updates
    for epoch in range(1, task.epochs + 1):
        network.train()
        for images, labels in loader:
            update.optimizer.zero_grad()
            loss = update.loss(Batch(images, labels))
            loss.backward()
            update.optimizer.step()
        metrics = measure(family, config, network, val, seed=task.seed, numerics=Numerics())
        yield epoch, metrics[task.metric.removeprefix("val_")]


def note(task: Task, trial: str, epoch: int, value: float) -> None:
    """Keep a report for the comparison; lines this short are appended whole, whichever process writes them."""
    line = json.dumps([time.time(), trial, epoch, value if math.isfinite(value) else None]) + "\n"
    file = os.open(Path(task.out), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
