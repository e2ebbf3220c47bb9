"""Fréchet distance between real images and samples, in the features of a small network of our own.

The distance of Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (NIPS 2017), computed by torchmetrics, but
not in the features of Inception, which knows photographs: the features are the 64 hidden units (``cnn64``) of a
classifier that is trained once on the data set's own training images, from a fixed seed, and kept in a cache by the
images' fingerprint. Where there are no classes to learn the network stays as it is drawn; ``val_features_trained`` is 0
then. Distances are comparable only within the same data set and split.

The estimate is biased upwards, by an amount that falls as the number of samples grows; every trial and every rung uses
the same number (one a validation image, at most :data:`MOST_SAMPLES`), so that ranks are not touched by it.
"""

from __future__ import annotations

import copy
import io
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from models.checkpoint import read_tensors, write_atomically
from models.datasets import DataSpec
from models.errors import StorageError
from models.numerics import Numerics, RandomStream
from models.training import DataOnDevice

NAME = "cnn64-v2"
"""Changed whenever the network or its training changes, so that an old cache is not taken for it."""

FEATURES, TRAIN_IMAGES, EPOCHS, BATCH, SEED = 64, 10_000, 3, 100, 20_170_626
LEAST_SEEN = 10_000
"""Images that it is trained on, counting repetitions; of a small data set three epochs would teach it nothing."""

MOST_SAMPLES = 2048
CACHE_VARIABLE = "LATENTUNE_CACHE_DIR"


class FeatureNetwork(nn.Module):
    """Images in [0, 1], any size from 8 pixels a side → 64 features."""

    num_features = FEATURES

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(spec.channels, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(4),
            nn.Flatten(),
            nn.Linear(32 * 16, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, max(2, len(spec.class_names)))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, 64)."""
        features: Tensor = self.features(images_BCHW)
        return features


@dataclass(frozen=True)
class Comparison:
    """Samples against real images.

    Args:
        distance: squared Fréchet distance, 0 for the same distribution.
        spread: standard deviation of the samples' features over the real ones', averaged; near 0 where all samples look
            alike.
        trained: whether the features were learnt, or drawn.
    """

    distance: float
    spread: float
    trained: bool


class FrechetScore:
    """The measure for one data set on one device; made once, used at every rung of every trial."""

    def __init__(self, data: DataOnDevice) -> None:
        self._network, self._trained = feature_network(data)
        self._metric = FrechetInceptionDistance(feature=self._network, reset_real_features=False, normalize=True)
        self._metric.to(data.device)
        self.count = min(len(data.val), MOST_SAMPLES)
        with torch.no_grad():
            for first in range(0, len(data.val), 512):
                self._metric.update(data.val.batch(slice(first, first + 512)).images, real=True)
        self._real_std = self._std("real")

    @classmethod
    def of(cls, data: DataOnDevice) -> FrechetScore:
        """The measure for ``data``, kept with it."""
        if "frechet" not in data.memo:
            data.memo["frechet"] = cls(data)
        score = data.memo["frechet"]
        assert isinstance(score, cls)
        return score

    def compare(self, sample: Callable[[int], Tensor]) -> Comparison:
        """Compare ``sample(n)``, n images (n, C, H, W) in [0, 1], with the validation images."""
        self._metric.reset()
        with torch.no_grad():
            for first in range(0, self.count, 512):
                self._metric.update(sample(min(512, self.count - first)), real=False)
        distance = float(self._metric.compute())
        used = self._real_std > 1e-6  # a unit that is dead on real images says nothing
        spread = float((self._std("fake")[used] / self._real_std[used]).mean())
        # Rounding may bring the distance of equal distributions a little below 0; NaN passes.
        return Comparison(0.0 if distance < 0 else distance, spread, self._trained)

    def _std(self, kind: str) -> Tensor:
        """Standard deviation of each feature (64,), from the sums that the metric keeps."""
        count = getattr(self._metric, f"{kind}_features_num_samples")
        mean = getattr(self._metric, f"{kind}_features_sum") / count
        square = getattr(self._metric, f"{kind}_features_cov_sum").diagonal() / count
        std: Tensor = (square - mean.square()).clamp(min=0).sqrt()
        return std


def feature_network(data: DataOnDevice) -> tuple[FeatureNetwork, bool]:
    """The feature network of a data set, in evaluation mode, and whether it was trained; from the cache where it is."""
    spec = data.spec
    with RandomStream(SEED):
        network = FeatureNetwork(spec).eval()
    trained = len(spec.class_names) >= 2
    if trained:
        _learn(network, data, cache_dir() / "features" / f"{NAME}-{spec.fingerprint[:32]}.pt")
    return network.to(data.device), trained


def _learn(network: FeatureNetwork, data: DataOnDevice, path: Path) -> None:
    """Give ``network`` the weights in the cache at ``path``, or train it and put them there."""
    if _read(network, path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Trials that begin together wait for the first of them instead of each training the same network.
        with FileLock(f"{path}.lock", timeout=120):
            if not _read(network, path):
                _train(network, data)
                _write(network, path)
    except (OSError, Timeout):
        _train(network, data)  # no place for a cache: the same network, trained by each process


def cache_dir() -> Path:
    """``$LATENTUNE_CACHE_DIR``, or ``~/.cache/latentune``."""
    return Path(os.environ.get(CACHE_VARIABLE, "~/.cache/latentune")).expanduser()


def _train(network: FeatureNetwork, data: DataOnDevice) -> None:
    """Train on the CPU: the same features on every device, and the pooling has no deterministic gradient on a GPU."""
    stream = RandomStream(SEED + 1)
    count = min(len(data.train), TRAIN_IMAGES)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    with Numerics().applied(), stream, torch.enable_grad():
        network.train()
        for _ in range(max(EPOCHS, math.ceil(LEAST_SEEN / count))):
            for index in torch.split(torch.randperm(count), BATCH):
                batch = data.train.batch(index.to(data.device))
                logits = network.head(network(batch.images.cpu()))
                loss = nn.functional.cross_entropy(logits, batch.labels.cpu())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        network.eval()


def _read(network: FeatureNetwork, path: Path) -> bool:
    """Load the cached weights; anything that is not them counts as not there, and leaves the network as it is."""
    drawn = copy.deepcopy(network.state_dict())
    try:
        network.load_state_dict(read_tensors(path))
    except Exception:
        network.load_state_dict(drawn)  # of one that fits in part, that part was loaded
        return False
    return True


def _write(network: FeatureNetwork, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in network.state_dict().items()}, buffer)
    with suppress(StorageError):
        write_atomically(path, buffer.getvalue())
