"""Robustness curves against corruptions made by hand, and on real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet
import pytest
import torch
from helpers import run
from torch import Tensor, nn

from analysis import measure_robustness
from analysis.robustness import corrupt
from models import checkpoint
from models.data_sources import ImageSet
from models.datasets import DataOptions, load_test_set
from models.errors import UserError
from models.family import get_family
from models.training import Budget, DataOnDevice, fit, start

VARIANCES = 10.0 ** np.linspace(-3, 0, 10)


class Halving(nn.Module):
    """Its reconstruction is half of the image."""

    def encode(self, images: Tensor) -> Tensor:
        return images.flatten(1) / 2

    def decode(self, codes: Tensor) -> Tensor:
        return codes.unflatten(1, (1, 12, 8))


class Brightness(nn.Module):
    """Three classes by the mean of the image."""

    def classify(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(1)
        return torch.stack((0.4 - mean, torch.full_like(mean, -0.01), mean - 0.6), dim=1)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    generator = np.random.default_rng(5)
    pixels = generator.integers(1, 256, (40, 1, 12, 8), dtype=np.uint8)
    return ImageSet(pixels, np.arange(40) % 3, ("a", "b", "c"))


def mse(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    errors: npt.NDArray[np.float64] = ((left.astype(float) - right) ** 2).reshape(len(left), -1).mean(1)
    return errors


def test_curves_are_those_of_corruptions_by_hand(images: ImageSet) -> None:
    seen: list[tuple[int, int]] = []
    result = measure_robustness(
        Halving(), images, seed=7, on_progress=lambda _, done, total: seen.append((done, total))
    )
    clean = images.images / 255.0
    np.testing.assert_allclose(result.clean, mse(clean / 2, clean), rtol=1e-5)
    noise = np.random.default_rng(7).standard_normal(clean.shape, np.float32)
    np.testing.assert_allclose(result.curves["noise"].levels, VARIANCES)
    for i, variance in enumerate(VARIANCES):
        noisy = clean + np.sqrt(variance) * noise
        np.testing.assert_allclose(result.curves["noise"].scores[i], mse(noisy / 2, clean), rtol=1e-4)
        np.testing.assert_allclose(result.curves["noise"].untouched[i], mse(noisy, clean), rtol=1e-3)
    for i in range(11):
        covered = clean.copy()
        covered[:, :, : round(12 * i / 10)] = 0
        np.testing.assert_allclose(result.curves["rows"].scores[i], mse(covered / 2, clean), rtol=1e-4)
    summary = result.summary()
    np.testing.assert_allclose(summary["noise_mse"], result.curves["noise"].scores.mean(1))
    # Noise of variance v is v/4 of the half, which is nearer than v itself where 3 v / 4 > mean of x² / 4.
    better = np.flatnonzero((clean**2).mean() / 3 < VARIANCES)
    assert summary["noise_repaired_from"] == pytest.approx(VARIANCES[better[0]])
    table = result.tables()["robustness"]
    assert table["mse_sd"][3] == pytest.approx(result.curves["noise"].scores[3].std())
    assert seen == [(i, 33) for i in range(1, 33)]


def test_a_block_has_the_share_of_the_area_and_the_images_proportions() -> None:
    images = np.ones((300, 3, 20, 10), np.float32)
    for share in (0.0, 0.25, 0.5, 1.0):
        covered = corrupt(images, "blocks", share, 3) == 0
        assert (covered == covered[:, :1]).all(), "the same place in each channel"
        rows, columns = covered[:, 0].any(2), covered[:, 0].any(1)
        height, width = round(20 * share**0.5), round(10 * share**0.5)
        assert (rows.sum(1) == height).all()
        assert (columns.sum(1) == width).all()
        assert (covered[:, 0].sum((1, 2)) == height * width).all()
        if share == 0.25:  # 11 places from top to bottom, 6 from left to right, all of them used
            assert set(rows.argmax(1)) == set(range(11))
            assert set(columns.argmax(1)) == set(range(6))
    np.testing.assert_array_equal(corrupt(images, "blocks", 0.3, 3), corrupt(images, "blocks", 0.3, 3))
    assert (corrupt(images, "blocks", 0.3, 3) != corrupt(images, "blocks", 0.3, 4)).any()


def test_accuracy_of_a_classifier(images: ImageSet) -> None:
    result = measure_robustness(Brightness(), images, count=30)
    assert result.metric == "accuracy"
    chosen = np.linspace(0, 39, 30).round().astype(int)
    clean, labels = images.images[chosen] / 255.0, images.labels[chosen]
    for i in range(11):
        covered = clean.copy()
        covered[:, :, : round(12 * i / 10)] = 0
        mean = covered.mean((1, 2, 3))
        classes = np.argmax(np.stack((0.4 - mean, np.full(30, -0.01), mean - 0.6)), axis=0)
        assert result.summary()["rows_accuracy"][i] == pytest.approx((classes == labels).mean())
    assert "rows_repaired_from" not in result.summary()
    assert set(result.figures()) == {"robustness", "noise-examples", "rows-examples", "blocks-examples"}


class Broken(Halving):
    def decode(self, codes: Tensor) -> Tensor:
        return super().decode(codes) * float("nan")


def test_what_is_refused(images: ImageSet) -> None:
    with pytest.raises(UserError, match="encode and decode, or classify; this one can: none of these"):
        measure_robustness(nn.Linear(2, 2), images)
    with pytest.raises(UserError, match="gives images that are not finite, 40 of 40"):
        measure_robustness(Broken(), images)
    with pytest.raises(UserError, match="has no images"):
        measure_robustness(Halving(), images.take(np.arange(0)))
    one = measure_robustness(Halving(), images.take(np.arange(1)))
    assert len(one.clean) == 1
    assert one.figures()


def trained(data: DataOptions, path: Path, epochs: float) -> Path:
    from models.datasets import load_training_data

    family = get_family("conv_autoencoder")
    training = start(
        family,
        family.Config(batch_size=64, lr=3e-3),
        DataOnDevice(load_training_data(data)),
        Budget(epochs),
        seed=0,
    )
    for _ in fit(training):
        pass
    checkpoint.save(path, training, family="conv_autoencoder", resumable=False)
    return path


def test_the_command(tmp_path: Path) -> None:
    path = trained(DataOptions(train_images=200, val_images=40), tmp_path / "m.pt", 1)
    done = run("robustness", str(path), "--count", "50", "--seed", "2", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    expected = measure_robustness(path, load_test_set(DataOptions()), count=50, seed=2)
    np.testing.assert_allclose(told["noise_mse"], expected.curves["noise"].scores.mean(1), rtol=1e-5)
    table = pyarrow.parquet.read_table(Path(told["folder"]) / "robustness.parquet").to_pydict()
    assert table["corruption"] == ["noise"] * 10 + ["rows"] * 11 + ["blocks"] * 11
    np.testing.assert_allclose(table["mse"], [m for c in expected.curves.values() for m in c.scores.mean(1)], rtol=1e-5)


@pytest.mark.slow
def test_more_corruption_is_never_better_on_real_images(real_data: Path, tmp_path: Path) -> None:
    data = DataOptions(source="fashion-mnist", data_dir=str(real_data), train_images=10_000, val_images=1000)
    result = measure_robustness(trained(data, tmp_path / "m.pt", 3), data, split="val", count=1000)
    for kind, curve in result.curves.items():
        means = curve.scores.mean(1)
        noise = 2 * curve.scores.std(1) / np.sqrt(1000)  # of a mean; images are the same at each level, so it is less
        assert (np.diff(means) > -noise[1:]).all(), kind
        assert means[-1] > 2 * result.clean.mean()
    assert result.summary()["noise_repaired_from"] < 0.1
