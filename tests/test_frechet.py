"""The Fréchet distance against its formula, and the feature network that it is taken in."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from arithmetic import (
    CLASSES,
    GAN,
    GREY,
    SMALL,
    Doubles,
    noise,
    on_device,
    spec_of,
)
from torch import Tensor, nn

from models import frechet
from models.datasets import ImageSet, TrainingData
from models.frechet import FrechetScore, feature_network
from models.gan import GanConfig
from models.numerics import Numerics
from models.training import Budget, DataOnDevice, fit, start

pytestmark = pytest.mark.usefixtures("seeded", "feature_cache")

LEAST_SEEN = frechet.LEAST_SEEN


class Pixels(nn.Module):
    """Features that are the pixels themselves."""

    num_features = 4

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.flatten(1)


@pytest.fixture
def pixels_as_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "feature_network", lambda data: (Pixels(), False))


def frechet_by_hand(m1: Doubles, s1: Doubles, m2: Doubles, s2: Doubles) -> float:
    return float(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real))


def in_turn(images: Tensor) -> Callable[[int], Tensor]:
    """The next n of some images at each call."""
    left = iter(images)

    def sample(count: int) -> Tensor:
        return torch.stack([next(left) for _ in range(count)])

    return sample


@pytest.mark.usefixtures("pixels_as_features")
def test_frechet_distance_of_gaussians() -> None:
    rng = np.random.default_rng(0)
    mean_1, mean_2 = np.array([0.5, 0.4, 0.6, 0.5]), np.array([0.55, 0.4, 0.45, 0.5])
    root_1, root_2 = 0.06 * rng.normal(size=(4, 4)), 0.09 * rng.normal(size=(4, 4))
    real = (np.clip(mean_1 + rng.normal(size=(5000, 4)) @ root_1.T, 0, 1) * 255).round().astype(np.uint8)
    fakes = (mean_2 + rng.normal(size=(frechet.MOST_SAMPLES, 4)) @ root_2.T).astype(np.float32)
    data = on_device(real[:8].reshape(-1, 1, 2, 2), real.reshape(-1, 1, 2, 2))
    score = FrechetScore(data)
    drawn = torch.from_numpy(fakes).reshape(-1, 1, 2, 2)
    found = score.compare(in_turn(drawn))
    x, y = real.astype(np.float64) / 255, fakes.astype(np.float64)
    of_samples = frechet_by_hand(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert found.distance == pytest.approx(of_samples, rel=1e-4)
    known = frechet_by_hand(mean_1, root_1 @ root_1.T, mean_2, root_2 @ root_2.T)
    assert found.distance == pytest.approx(known, rel=0.1)
    assert found.spread == pytest.approx((y.std(0) / x.std(0)).mean(), rel=1e-4)
    assert not found.trained
    # The real images' part is computed once, the samples' part each time afresh.
    assert score.compare(in_turn(drawn)) == found
    moved = score.compare(in_turn(drawn + 0.5))
    assert moved.distance - found.distance == pytest.approx((1.0 + (y.mean(0) - x.mean(0)).sum()), rel=1e-3)
    assert score.compare(in_turn(drawn)) == found


@pytest.mark.usefixtures("pixels_as_features")
@pytest.mark.parametrize(("val", "count"), [(2, 2), (512, 512), (700, 700), (2500, 2048)])
def test_as_many_samples_as_validation_images_but_not_too_many(val: int, count: int) -> None:
    asked: list[int] = []

    def sample(number: int) -> Tensor:
        asked.append(number)
        return torch.rand(number, 1, 2, 2)

    score = FrechetScore(noise((1, 2, 2), val=val))
    for _ in range(2):
        asked.clear()
        score.compare(sample)
        assert sum(asked) == score.count == count
        assert max(asked) <= 512


@pytest.mark.usefixtures("pixels_as_features")
def test_spread_of_samples() -> None:
    data = noise((1, 2, 2), val=400)
    images = data.val.batch(slice(None)).images
    images[:, 0, 0, 0] = 0.5
    data.val.images[:, 0, 0, 0] = 127  # a pixel that never changes says nothing
    score, mean = FrechetScore(data), images.mean(0)
    for scale in (1.0, 0.5, 0.0):
        shrunk = mean + scale * (images - mean)
        shrunk[:, 0, 0, 0] = torch.rand(400)
        assert score.compare(in_turn(shrunk)).spread == pytest.approx(scale, abs=1e-3)


def halves(digits: DataOnDevice) -> tuple[DataOnDevice, Tensor]:
    """Half of the digits as training and validation images, and the other half."""
    images, labels = digits.train.images.numpy(), digits.train.labels.numpy()
    parts = [ImageSet(images[part], labels[part], CLASSES) for part in (slice(0, 200), slice(0, 200))]
    data = DataOnDevice(TrainingData(parts[0], parts[1], spec_of(GREY, train=200, val=200)))
    return data, digits.train.batch(slice(200, 400)).images


def test_real_images_are_close_to_real_images(digits: DataOnDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "LEAST_SEEN", LEAST_SEEN)
    data, others = halves(digits)
    score = FrechetScore.of(data)
    assert FrechetScore.of(data) is score
    same = score.compare(in_turn(data.val.batch(slice(None)).images))
    real = score.compare(in_turn(others))
    blurred = score.compare(in_turn(nn.functional.avg_pool2d(others, 5, 1, 2)))
    random = score.compare(in_turn(torch.rand(200, *GREY)))
    constant = score.compare(lambda count: torch.full((count, *GREY), 0.5))
    assert same.distance == pytest.approx(0, abs=1e-3)
    assert 0 <= real.distance < blurred.distance / 4
    assert real.distance < random.distance / 20
    assert real.distance < constant.distance / 20
    assert real.trained
    assert real.spread == pytest.approx(1, abs=0.3)
    assert constant.spread == pytest.approx(0, abs=1e-3)


def features(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at each training of a feature network."""
    counted: list[int] = []
    train = frechet._train

    def counting(*args: Any) -> None:
        counted.append(1)
        train(*args)

    monkeypatch.setattr(frechet, "_train", counting)
    return counted


def test_feature_network_learns_the_classes(digits: DataOnDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "LEAST_SEEN", LEAST_SEEN)
    network, trained = feature_network(digits)
    assert trained
    assert not network.training
    with torch.inference_mode():
        made = network(digits.val.images.float() / 255)
        right = (network.head(made).argmax(1) == digits.val.labels).double().mean()
    assert made.shape == (80, frechet.FEATURES)
    assert right > 0.7  # a tenth by chance, from 400 training images


def test_feature_network_is_trained_once_and_kept(
    digits: DataOnDevice, feature_cache: Path, trainings: list[int]
) -> None:
    first, _ = feature_network(digits)
    (file,) = feature_cache.glob("features/*.pt")
    assert digits.spec.fingerprint[:32] in file.name
    written = file.stat().st_mtime_ns
    torch.manual_seed(99)
    again, trained = feature_network(digits)
    assert trained
    assert equal(features(again), features(first))
    assert file.stat().st_mtime_ns == written
    assert len(trainings) == 1
    # Other images, another network.
    spec = digits.spec.model_copy(update={"fingerprint": "f" * 64})
    other = DataOnDevice(
        TrainingData(
            ImageSet(digits.train.images.numpy()[:100], digits.train.labels.numpy()[:100], CLASSES),
            ImageSet(digits.val.images.numpy(), digits.val.labels.numpy(), CLASSES),
            spec,
        )
    )
    different, _ = feature_network(other)
    assert len(trainings) == 2
    assert not equal(features(different), features(first))


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit_off(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]


def of_another_shape(content: bytes) -> bytes:
    """Fits in all but its last layer."""
    weights = torch.load(io.BytesIO(content), weights_only=True)
    changed = {name: tensor + 1 for name, tensor in weights.items()}
    changed["head.bias"] = torch.zeros(3)
    buffer = io.BytesIO()
    torch.save(changed, buffer)
    return buffer.getvalue()


def replaced(content: bytes) -> bytes:
    return b"no torch file"


@pytest.mark.parametrize("damage", [truncated, one_bit_off, of_another_shape, replaced, lambda _: b""])
def test_a_damaged_cache_is_trained_again(
    digits: DataOnDevice, feature_cache: Path, trainings: list[int], damage: Callable[[bytes], bytes]
) -> None:
    first, _ = feature_network(digits)
    (file,) = feature_cache.glob("features/*.pt")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    again, trained = feature_network(digits)
    assert trained
    assert len(trainings) == 2
    assert equal(features(again), features(first))
    third, _ = feature_network(digits)
    assert len(trainings) == 2
    assert equal(features(third), features(first))


def test_a_cache_that_cannot_be_written(digits: DataOnDevice, feature_cache: Path, trainings: list[int]) -> None:
    feature_cache.write_text("a file where the folder should be")
    first, trained = feature_network(digits)
    again, _ = feature_network(digits)
    assert trained
    assert len(trainings) == 2
    assert equal(features(again), features(first))
    assert FrechetScore(digits).compare(lambda n: torch.rand(n, *GREY)).distance > 0


def test_features_do_not_depend_on_what_else_the_process_does(digits: DataOnDevice, feature_cache: Path) -> None:
    first, _ = feature_network(digits)
    state = torch.get_rng_state()
    (file,) = feature_cache.glob("features/*.pt")
    file.unlink()
    torch.manual_seed(7)
    drawn = torch.rand(5)
    torch.manual_seed(7)
    with Numerics(threads=2).applied(), torch.no_grad():
        again, _ = feature_network(digits)
    assert equal(features(again), features(first))
    assert torch.equal(torch.rand(5), drawn)
    torch.set_rng_state(state)


@pytest.mark.parametrize("classes", [[], ["all"]], ids=["none", "one"])
def test_without_classes_features_are_random_and_it_is_said(
    classes: list[str], feature_cache: Path, trainings: list[int]
) -> None:
    data = noise((1, 8, 8), val=50, classes=classes or ["all"])
    data.spec = data.spec.model_copy(update={"class_names": tuple(classes)})
    network, trained = feature_network(data)
    assert not trained
    assert not trainings
    assert not feature_cache.exists()
    again, _ = feature_network(data)
    assert equal(features(network), features(again))
    record = next(fit(start(GAN, GanConfig.model_validate(SMALL), data, Budget(1), seed=0)))
    assert record.metrics["val_features_trained"] == 0
    assert record.metrics["val_frechet"] > 0


def test_two_at_once_train_once(digits: DataOnDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one waits for the first, and takes what that has learnt."""
    train, begun, may_go_on, trained = frechet._train, threading.Event(), threading.Event(), []

    def slowly(network: Any, data: DataOnDevice) -> None:
        trained.append(threading.current_thread().name)
        begun.set()
        assert may_go_on.wait(60)
        train(network, data)

    monkeypatch.setattr(frechet, "_train", slowly)
    found: list[nn.Module] = []
    first = threading.Thread(target=lambda: found.append(feature_network(digits)[0]), name="first")
    first.start()
    assert begun.wait(60)
    threading.Timer(0.5, may_go_on.set).start()
    second, _ = feature_network(digits)
    first.join(60)
    assert trained == ["first"]
    assert equal(features(second), features(found[0]))
