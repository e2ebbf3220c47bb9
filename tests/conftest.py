"""Fixtures that several test files use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from models.datasets import DataOptions, load_training_data
from models.training import DataOnDevice

settings.register_profile("latentune", deadline=None)  # how long an example takes says what else runs here
settings.load_profile("latentune")

_VARIABLE = "LATENTUNE_TEST_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of torchvision's layout with the real MNIST and Fashion-MNIST; tests that need it are else skipped."""
    given = os.environ.get(_VARIABLE)
    folder = Path(given) if given else Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets: set {_VARIABLE} to a folder with FashionMNIST/raw and MNIST/raw")
    return folder


@pytest.fixture(scope="session")
def digits() -> DataOnDevice:
    """400 training and 80 validation images of the digits, 28x28x1."""
    return DataOnDevice(load_training_data(DataOptions(train_images=400, val_images=80)))
