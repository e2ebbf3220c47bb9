"""Images a second that trials train on one GPU, alone and several at a time.

    python benchmarks/gpu.py [--device cuda] [--seconds 5] [--trials 1 2 4 8]

Every trial is a process of its own, as in a search; the images (28x28, random) are on the device from the start. Prints
one JSON object: for each family and precision the images a second of all trials together, and how many times that of
one trial they are. ``--device cpu`` is for trying the script.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from typing import Any

import numpy as np
import torch
from torch import multiprocessing

from models.datasets import DataSpec, ImageSet, TrainingData
from models.family import get_family
from models.numerics import Numerics
from models.training import Budget, DataOnDevice, fit, start

IMAGES, BATCH = 12_800, 128
FAMILIES = ("conv_autoencoder", "vae", "cnn_classifier", "mlp_classifier")


def images() -> TrainingData:
    """Random pixels and labels of ten classes."""
    rng = np.random.default_rng(0)
    classes = tuple("0123456789")

    def some(count: int) -> ImageSet:
        return ImageSet(rng.integers(0, 256, (count, 1, 28, 28), dtype=np.uint8), rng.integers(0, 10, count), classes)

    spec = DataSpec(
        source="made",
        channels=1,
        height=28,
        width=28,
        class_names=classes,
        train_images=IMAGES,
        val_images=512,
        fingerprint="",
    )
    return TrainingData(some(IMAGES), some(512), spec)


def train(name: str, device: str, precision: Any, seconds: float, ready: Any, speeds: Any) -> None:
    """One trial: an epoch to warm up, then epochs for ``seconds`` beside the others."""
    family = get_family(name)
    numerics = Numerics(device, precision)
    config = family.Config(batch_size=BATCH)
    training = start(family, config, DataOnDevice(images(), device), Budget(10_000), seed=1, numerics=numerics)
    epochs = fit(training)
    next(epochs)
    ready.wait()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(epochs)  # validates too, 512 images
        done += IMAGES
    if device == "cuda":
        torch.cuda.synchronize()
    speeds.put(done / (time.perf_counter() - began))


def together(count: int, *arguments: Any) -> float:
    """Images a second of ``count`` trials at a time."""
    context = multiprocessing.get_context("spawn")
    ready, speeds = context.Barrier(count), context.Queue()
    trials = [context.Process(target=train, args=(*arguments, ready, speeds)) for _ in range(count)]
    for trial in trials:
        trial.start()
    total = sum(speeds.get(timeout=120) for _ in trials)
    for trial in trials:
        trial.join()
    return float(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    found = []
    for family, precision in itertools.product(arguments.families, arguments.precisions):
        speeds = {n: together(n, family, arguments.device, precision, arguments.seconds) for n in arguments.trials}
        one = speeds[arguments.trials[0]] / arguments.trials[0]
        found.append(
            {
                "family": family,
                "precision": precision,
                "images_a_second": {str(n): round(speed) for n, speed in speeds.items()},
                "times_one_trial": {str(n): round(speed / one, 2) for n, speed in speeds.items()},
            }
        )
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    print(json.dumps({"device": card, "torch": torch.__version__, "batch_size": BATCH, "results": found}))


if __name__ == "__main__":
    main()
