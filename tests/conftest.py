"""Fixtures that several test files use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from pydantic import Field, create_model

from models import checkpoint, frechet
from models.conv_autoencoder import ConvAutoencoderConfig, ConvAutoencoderFamily
from models.datasets import DataOptions, load_training_data
from models.family import FAMILIES, Family, get_family
from models.training import Budget, DataOnDevice, fit, start

settings.register_profile("latentune", deadline=None)  # how long an example takes says what else runs here
settings.load_profile("latentune")

_VARIABLE = "LATENTUNE_TEST_DATA"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory: pytest.TempPathFactory, digits: DataOnDevice) -> Path:
    """The checkpoint of an autoencoder that has hardly begun, with something of everything that can be frozen."""
    path = tmp_path_factory.mktemp("encoder") / "checkpoint.pt"
    config = ConvAutoencoderConfig(filters=4, batch_norm=True, dropout=0.1, batch_size=32)
    training = start(ConvAutoencoderFamily(), config, digits, Budget(1), seed=0)
    list(fit(training))
    checkpoint.save(path, training, family="conv_autoencoder", resumable=False)
    return path


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, encoder_file: Path, monkeypatch: pytest.MonkeyPatch) -> Family[Any]:
    """Each family in turn, with a default config that can be built."""
    family = get_family(request.param)
    if "checkpoint" in family.Config.model_fields:  # it begins with another model: its default config has one to find
        field = Field(str(encoder_file), description=family.Config.model_fields["checkpoint"].description)
        given_ = create_model("Config", __base__=family.Config, checkpoint=(str, field))
        monkeypatch.setattr(type(family), "Config", given_)
    return family


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser that is installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def seeded() -> Iterator[None]:
    """torch's random numbers begin anew, and go on afterwards where they were."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def feature_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of feature networks that begins empty, its folder not there yet, and networks that learn little."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(frechet, "LEAST_SEEN", 0)
    monkeypatch.setenv(frechet.CACHE_VARIABLE, str(folder))
    return folder
