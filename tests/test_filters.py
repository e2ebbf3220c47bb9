"""Weights, their products, sparseness and dead units against NumPy, on networks whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers import run
from torch import Tensor, nn

from analysis import inspect_filters
from models.data_sources import ImageSet
from models.datasets import DataSpec
from models.errors import UserError
from models.family import Family, get_family


@pytest.fixture(scope="module")
def images() -> ImageSet:
    pixels = np.random.default_rng(5).integers(0, 256, (600, 1, 8, 6), dtype=np.uint8)
    return ImageSet(pixels, np.zeros(600, np.int64), ("only",))


class Functional(nn.Module):
    """Functions instead of modules, scaled input, batch norm, and a last layer that makes the image."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(48, 12), nn.Linear(12, 5), nn.Linear(5, 48)
        self.norm, self.inplace = nn.BatchNorm1d(12), inplace
        with torch.no_grad():
            self.norm.running_var.copy_(torch.rand(12) + 0.5)
            self.norm.weight.copy_(torch.randn(12))
            self.first.bias[3] = -1e3
            self.norm.weight[3] = 1.0

    def encode(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(images.flatten(1) * 2 - 1)))
        return nn.functional.relu(self.second(hidden), inplace=self.inplace)

    def decode(self, codes: Tensor) -> Tensor:
        return self.last(codes).sigmoid().view(-1, 1, 8, 6)


def hoyer(activations: npt.NDArray[np.float64]) -> float:
    root = np.sqrt(activations.shape[1])
    norms = np.sqrt((activations**2).sum(1))
    ratio = np.abs(activations).sum(1) / np.where(norms > 0, norms, 1)
    return float(np.where(norms > 0, (root - ratio) / (root - 1), 1).mean())


@pytest.mark.parametrize("inplace", [False, True])
def test_a_known_networks_weights_and_activity(images: ImageSet, inplace: bool) -> None:
    network = Functional(inplace)
    weights = {name: tensor.detach().double().numpy() for name, tensor in network.state_dict().items()}
    first = inspect_filters(network, images)
    assert (first.layer, first.kind) == ("first", "pixels")
    np.testing.assert_allclose(first.weights, weights["first.weight"].reshape(12, 1, 8, 6), rtol=1e-6)
    np.testing.assert_allclose(first.norms, np.linalg.norm(weights["first.weight"], axis=1), rtol=1e-6)

    pixels = images.images.reshape(600, -1) / 255.0 * 2 - 1
    gain = weights["norm.weight"] / np.sqrt(weights["norm.running_var"] + 1e-5)
    hidden = pixels @ weights["first.weight"].T + weights["first.bias"] - weights["norm.running_mean"]
    hidden = np.maximum(hidden * gain + weights["norm.bias"], 0)
    codes = np.maximum(hidden @ weights["second.weight"].T + weights["second.bias"], 0)
    for name, values in (("first", hidden), ("second", codes)):
        activity = first.activity[name]
        assert activity.zero_share == pytest.approx((values <= 0.01).mean(), abs=1e-4)
        assert activity.hoyer == pytest.approx(hoyer(values), abs=1e-4)
        np.testing.assert_allclose(activity.active, (values > 0.01).mean(0), atol=2e-3)
        np.testing.assert_allclose(activity.mean, values.mean(0), atol=1e-4)
    np.testing.assert_array_equal(first.dead, np.flatnonzero(hidden.max(0) <= 0.01))
    assert 3 in first.dead

    second = inspect_filters(network, images, layer="second")
    assert second.kind == "projected"
    product = weights["second.weight"] @ (gain[:, None] * weights["first.weight"])
    np.testing.assert_allclose(second.weights, product.reshape(5, 1, 8, 6), rtol=1e-4, atol=1e-6)
    last = inspect_filters(network, images, layer="last")
    assert last.kind == "to pixels"
    np.testing.assert_allclose(last.weights, weights["last.weight"].T.reshape(5, 1, 8, 6), rtol=1e-6)


class Convolutions(nn.Module):
    """A convolution, a pooling, and 48 values that are no pixels before the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 3))
        self.up = nn.ConvTranspose2d(2, 7, 3)  # at no work

    def classify(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images))


def test_convolutions_show_kernels_and_what_follows_no_pixels(images: ImageSet) -> None:
    network = Convolutions()
    result = inspect_filters(network, images)
    assert (result.layer, result.kind, list(result.activity)) == ("conv", "kernels", ["conv", "head.3"])
    np.testing.assert_array_equal(result.weights, network.conv.weight.detach().numpy())
    with torch.no_grad():
        maps = network.conv(torch.from_numpy(images.images).float() / 255).relu().numpy()
    assert result.activity["conv"].zero_share == pytest.approx((maps <= 0.01).mean(), abs=1e-5)
    np.testing.assert_allclose(result.activity["conv"].active, (maps.max((2, 3)) > 0.01).mean(0), atol=1e-6)
    head = inspect_filters(network, images, layer="head.3")
    assert head.kind == "matrix", "48 inputs, as many as pixels, but they are none"
    assert set(head.figures()) == {"weights", "activity"}


def test_of_many_units_the_largest_are_shown(images: ImageSet) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 300), nn.ReLU())
    result = inspect_filters(network, images, count=100)
    norms = np.linalg.norm(network[1].weight.detach().numpy(), axis=1)
    np.testing.assert_array_equal(result.chosen, np.argsort(-norms, kind="stable")[:100])
    sheet = result.figures()["weights"]
    assert "100 of 300 units, largest norm first" in sheet.texts[0].get_text()
    assert len(sheet.axes[0].images) == 100
    assert result.summary()["shown"] == 100


def test_every_layer_of_every_family_can_be_shown(family: Family[Any]) -> None:
    classes = tuple("0123456789")
    spec = DataSpec(
        source="x", channels=1, height=28, width=28, class_names=classes, train_images=9, val_images=9, fingerprint=""
    )
    network = family.build(family.Config(), spec)
    images = ImageSet(np.random.default_rng(0).integers(0, 256, (4, 1, 28, 28), dtype=np.uint8), np.arange(4), classes)
    layers = inspect_filters(network, images).summary()["layers"]
    for layer in layers:
        result = inspect_filters(network, images, layer=layer, count=20)
        assert len(result.chosen) >= 1
        assert np.isfinite(result.weights).all()
        assert 0 <= result.activity[layer].zero_share <= 1
    shown = {inspect_filters(network, images, layer=layer).kind for layer in layers}
    assert shown & {"pixels", "kernels"}
    assert not any(module._forward_hooks for module in network.modules()), "nothing is left behind"


def test_what_is_refused(images: ImageSet) -> None:
    with pytest.raises(UserError) as told:
        inspect_filters(Functional(), images, layer="secnd", count=0, threshold=-1)
    assert str(told.value).splitlines() == [
        "--layer: got 'secnd'; did you mean 'second'? allowed: first, second, last",
        "--count: got 0; must be at least 1",
        "--threshold: got -1; must be 0 or more",
    ]
    with pytest.raises(UserError, match="linear layers or convolutions at work"):
        inspect_filters(nn.Flatten(), images)
    with pytest.raises(UserError, match=r"cannot work on images of shape \(1, 8, 6\)"):
        inspect_filters(nn.Sequential(nn.Flatten(), nn.Linear(5, 5)), images)
    broken = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    nn.init.constant_(broken[1].bias, float("nan"))
    with pytest.raises(UserError, match="activations that are not finite, in 1"):
        inspect_filters(broken, images)


def test_the_command(tmp_path: Path) -> None:
    from models import checkpoint
    from models.datasets import DataOptions, load_training_data
    from models.training import Budget, DataOnDevice, fit, start

    family = get_family("dense_autoencoder")
    data = DataOnDevice(load_training_data(DataOptions(train_images=100, val_images=20)))
    training = start(family, family.Config(hidden_units=100, hidden_layers=2), data, Budget(1), seed=0)
    for _ in fit(training):
        pass
    checkpoint.save(tmp_path / "m.pt", training, family="dense_autoencoder", resumable=False)
    told = json.loads(run("filters", "m.pt", "--layer", "encoder.1", "--json", cwd=tmp_path).stdout)
    assert told["layers"] == ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]
    assert {"weights.png", "weights.svg", "activity.png", "layers.parquet", "units.parquet"} <= set(told["files"])
    assert told["weights"] == "weights multiplied back to the pixels, as if all between were linear"
