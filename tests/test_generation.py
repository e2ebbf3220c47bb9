"""Generating: codes, ways and neighbours against NumPy and scikit-learn, and what each kind of model is offered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from helpers import run
from scipy.stats import norm
from torch import Tensor, nn

from analysis import generate
from analysis.latent import lerp, slerp
from analysis.neighbours import find_neighbours
from models import checkpoint
from models.checkpoint import Trained
from models.datasets import DataOptions, TrainingData, load_training_data
from models.errors import UserError
from models.family import get_family
from models.training import Budget, DataOnDevice, fit, start

OPTIONS = DataOptions(source="digits", train_images=300, val_images=60)


def train(folder: Path, family: str, epochs: float = 2.0, **config: Any) -> Path:
    """The checkpoint of a model after some seconds of training."""
    chosen = get_family(family)
    training = start(
        chosen,
        chosen.Config(batch_size=32, **config),
        DataOnDevice(load_training_data(OPTIONS)),
        Budget(epochs),
        seed=0,
    )
    for _ in fit(training):
        pass
    path = folder / f"{family}.pt"
    checkpoint.save(path, training, family=family, resumable=False)
    return path


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return load_training_data(OPTIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def vae(folder: Path) -> Trained:
    return checkpoint.load(train(folder, "vae", latent_dim=2, lr=3e-3))


@pytest.fixture(scope="module")
def autoencoder(folder: Path) -> Trained:
    return checkpoint.load(train(folder, "conv_autoencoder", latent_dim=4))


@pytest.fixture(scope="module")
def gan(folder: Path) -> Trained:
    return checkpoint.load(train(folder, "gan"))


class Linear(nn.Module):
    """Encodes by a fixed matrix into maps, decodes by its transpose."""

    def __init__(self, size: int = 6, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.linalg.qr(torch.randn(784, size, generator=generator))[0] * scale)

    def encode(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.matrix).unflatten(1, (-1, 1, 2))

    def decode(self, codes: Tensor) -> Tensor:
        return (codes.flatten(1) @ self.matrix.T).unflatten(1, (1, 28, 28))


# --- ways, neighbours -------------------------------------------------------------------------------------------------


def test_the_spherical_way_turns_steadily_and_keeps_the_norm() -> None:
    generator = np.random.default_rng(0)
    start_, end = generator.standard_normal((2, 30)).astype(np.float32)
    end *= np.linalg.norm(start_) / np.linalg.norm(end)
    way = slerp(start_, end, 7)
    np.testing.assert_allclose(np.linalg.norm(way, axis=1), np.linalg.norm(start_), rtol=1e-5)
    np.testing.assert_allclose(way[[0, -1]], [start_, end], atol=1e-5)
    cosines = (way[:-1] * way[1:]).sum(1) / np.linalg.norm(start_) ** 2
    whole = np.arccos(start_ @ end / np.linalg.norm(start_) ** 2)
    np.testing.assert_allclose(np.arccos(cosines), whole / 6, rtol=1e-3)
    # White's formula, for equal norms the same.
    omega, t = whole, 0.5
    by_hand = (np.sin((1 - t) * omega) * start_ + np.sin(t * omega) * end) / np.sin(omega)
    np.testing.assert_allclose(way[3], by_hand, rtol=1e-4, atol=1e-5)


def test_the_norm_of_the_spherical_way_goes_linearly() -> None:
    way = slerp(np.array([1, 0], np.float32), np.array([0, 3], np.float32), 5)
    np.testing.assert_allclose(np.linalg.norm(way, axis=1), [1, 1.5, 2, 2.5, 3], rtol=1e-6)
    np.testing.assert_allclose(np.degrees(np.arctan2(way[:, 1], way[:, 0])), [0, 22.5, 45, 67.5, 90], atol=1e-3)


@pytest.mark.parametrize("end", [[0, 0], [2, 2], [-1, -1]])
def test_without_one_shortest_arc_the_way_is_straight(end: list[float]) -> None:
    first, last = np.array([1, 1], np.float32), np.array(end, np.float32)
    np.testing.assert_array_equal(slerp(first, last, 5), lerp(first, last, 5))
    np.testing.assert_allclose(lerp(first, last, 5), np.linspace(first, last, 5), atol=1e-6)


def test_neighbours_are_those_of_brute_force() -> None:
    generator = np.random.default_rng(1)
    training = generator.integers(0, 256, (50, 1, 6, 6), dtype=np.uint8)
    samples = generator.random((7, 1, 6, 6), dtype=np.float32)
    samples[3] = training[17].astype(np.float32) / 255  # a copy
    held_out = generator.integers(0, 256, (5, 1, 6, 6), dtype=np.uint8)
    found = find_neighbours(samples, training, held_out, k=4)
    apart = np.sqrt(((samples[:, None].astype(float) - training[None] / 255.0) ** 2).sum((2, 3, 4)))
    np.testing.assert_array_equal(found.indices, np.argsort(apart, axis=1)[:, :4])
    np.testing.assert_allclose(found.distances, np.sort(apart, axis=1)[:, :4], atol=1e-3)
    assert (found.indices[3, 0], found.distances[3, 0] < 1e-3) == (17, True)
    np.testing.assert_allclose(found.images * 255, training[found.indices], atol=1e-4)
    others = np.sqrt(((held_out[:, None] / 255.0 - training[None] / 255.0) ** 2).sum((2, 3, 4))).min(1)
    np.testing.assert_allclose(found.held_out, others, atol=1e-5)


# --- models of each kind ----------------------------------------------------------------------------------------------


def test_a_vae_does_all(vae: Trained, data: TrainingData) -> None:
    told: list[str] = []
    result = generate(vae, data, count=40, on_progress=lambda text, done, total: told.append(text))
    assert result.left_out == {}
    assert told == ["samples", "grid", "interpolation", "variations", "nearest"]
    network: Any = vae.network

    assert result.samples is not None
    torch.manual_seed(0)
    with torch.inference_mode():
        np.testing.assert_allclose(result.samples, network.sample(40).numpy(), atol=1e-6)

    assert result.grid is not None
    quantiles = norm.ppf((np.arange(15) + 0.5) / 15)
    np.testing.assert_allclose(result.grid.values, [quantiles, quantiles], atol=1e-5)
    with torch.inference_mode():
        code = torch.tensor([[quantiles[3], quantiles[11]]], dtype=torch.float32)
        np.testing.assert_allclose(result.grid.images[11, 3], network.decode(code)[0].numpy(), atol=1e-5)
    steps = np.abs(np.diff(result.grid.images, axis=0)).mean((2, 3, 4))
    across = np.abs(result.grid.images - result.grid.images[::-1, ::-1]).mean((2, 3, 4))
    assert steps.max() < across.max(), "neighbours in the grid are more alike than its corners"

    assert result.interpolation is not None
    assert result.interpolation.indices is not None
    assert result.interpolation.ends is not None
    labels = data.val.labels[result.interpolation.indices]
    assert (labels[:, 0] != labels[:, 1]).all()
    first = torch.from_numpy(data.val.images[result.interpolation.indices[:, 0]]).float() / 255
    np.testing.assert_allclose(result.interpolation.ends[:, 0], first.numpy(), atol=1e-6)
    with torch.inference_mode():
        ends = network.decode(network.encode(first)).numpy()
    for way in (result.interpolation.linear, result.interpolation.spherical):
        np.testing.assert_allclose(way[:, 0], ends, atol=1e-4)

    assert result.variations is not None
    assert result.variations.posterior is not None
    originals = torch.from_numpy(data.val.images[result.variations.indices]).float() / 255
    with torch.inference_mode():
        restored = network(originals).numpy()
    np.testing.assert_allclose(result.variations.noisy[:, 0], restored, atol=1e-4)
    table = result.variations.table()
    errors = ((restored - originals.numpy()) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(table["mse"][:: len(result.variations.noise)], errors, rtol=1e-3)

    assert result.nearest is not None
    assert result.nearest.samples is result.samples
    assert result.summary()["frechet"] > result.summary()["frechet_of_training_images"] >= 0


def test_an_autoencoder_decodes_codes_like_those_of_training_images(autoencoder: Trained, data: TrainingData) -> None:
    result = generate(autoencoder, data, what=["samples"], count=20)
    assert result.summary()["samples_from"] == "a Gaussian fitted to the codes of 300 training images"
    assert result.grid is result.nearest is None
    everything = generate(autoencoder, data, count=20)
    assert everything.left_out == {"grid": "takes a latent space of 2 dimensions; this one has 4"}
    np.testing.assert_array_equal(everything.samples, result.samples)
    assert everything.variations is not None
    assert everything.variations.posterior is None


def test_drawn_codes_have_the_mean_and_covariance_of_known_ones(data: TrainingData) -> None:
    from analysis.latent import latent_space
    from analysis.subject import Subject

    network = Linear()
    space = latent_space(Subject(network), data.train.images)
    assert space.shape == (3, 1, 2)
    known = data.train.images.reshape(300, -1) / 255.0 @ network.matrix.detach().double().numpy()
    drawn = space.draw(200_000, np.random.default_rng(0))
    spread = known.std(0)
    np.testing.assert_allclose((drawn.mean(0) - known.mean(0)) / spread, np.zeros(6), atol=0.02)
    np.testing.assert_allclose(
        np.cov(drawn.T) / np.outer(spread, spread), np.cov(known.T) / np.outer(spread, spread), atol=0.02
    )
    shares = np.array([1, 3, 5, 7]) / 8
    np.testing.assert_allclose(space.quantiles(4), np.quantile(known, shares, axis=0).T, atol=1e-4)
    code = space.encode(data.val.images[:2])
    decoded = code @ network.matrix.detach().numpy().T
    np.testing.assert_allclose(space.decode(code), decoded.reshape(2, 1, 28, 28).clip(0, 1), atol=1e-5)


def test_a_gan_goes_between_noise_vectors(gan: Trained, data: TrainingData) -> None:
    result = generate(gan, data, what=["interpolation", "nearest"], count=5)
    assert result.interpolation is not None
    assert result.interpolation.ends is None
    assert result.tables().keys() == {"nearest"}
    with pytest.raises(UserError) as told:
        generate(gan, data, what=["variations", "grid", "smaples"], count=0)
    assert str(told.value).splitlines() == [
        "--what: got 'variations'; takes a model that can encode and decode",
        "--what: got 'grid'; takes a latent space of 2 dimensions; this one has 100",
        "--what: got 'smaples'; did you mean 'samples'? allowed: samples, grid, interpolation, variations, nearest",
        "--count: got 0; must be at least 1",
    ]


def test_a_network_of_ones_own(data: TrainingData) -> None:
    result = generate(Linear(2), data, count=9, image=3)
    assert result.left_out == {}
    assert result.variations is not None
    assert result.variations.indices.tolist() == [3] * 6
    assert set(result.figures()) == {"samples", "real-and-generated", "grid", "interpolation", "variations", "nearest"}


class Decoder(nn.Module):
    """Decodes only, and does not say what."""

    def decode(self, codes: Tensor) -> Tensor:
        return codes.new_zeros(len(codes), 1, 28, 28)


def test_what_is_refused(data: TrainingData) -> None:
    with pytest.raises(UserError, match="latent_dim: the network does not say"):
        generate(Decoder(), data)
    assert generate(Decoder(), data, latent_dim=2, what=["grid"]).grid is not None
    with pytest.raises(UserError, match="latent_dim: got 5; must be 6"):
        generate(Linear(), data, latent_dim=5)
    with pytest.raises(UserError, match="gives codes that are not finite, 300 of 300"):
        generate(Linear(scale=float("nan")), data)
    with pytest.raises(UserError, match="can decode; this one can: none of these"):
        generate(nn.Linear(2, 2), data)
    with pytest.raises(UserError, match="--image: got 60; must be from 0 to 59"):
        generate(Linear(), data, image=60)
    one = DataOptions(source="digits", train_images=1, val_images=1)
    with pytest.raises(UserError, match="--train-images: got 1; must be two at least"):
        generate(Linear(), one)
    alone = TrainingData(data.train, data.val.take(np.flatnonzero(data.val.labels == 1)), data.spec)
    result = generate(Linear(), alone, count=2)
    assert result.left_out["interpolation"] == "takes images of two classes at least"


def test_other_images_than_the_model_takes(vae: Trained) -> None:
    with pytest.raises(UserError, match="its images are 16x16, grey; the model, trained on digits, takes 28x28, grey"):
        generate(vae, OPTIONS.model_copy(update={"image_size": 16}))


def test_the_command(folder: Path, vae: Trained, tmp_path: Path) -> None:
    path = str(folder / "vae.pt")
    done = run("generate", path, "--what", "grid,nearest", "--count", "6", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert told["analysis"] == "generate"
    assert told["latent_dim"] == 2
    files = set(told["files"])
    assert {"grid.png", "grid.svg", "nearest.png", "nearest.parquet", "generate.json"} <= files
    table = pyarrow.parquet.read_table(Path(told["folder"]) / "nearest.parquet").to_pydict()
    assert len(table["distance"]) == 6 * 5
