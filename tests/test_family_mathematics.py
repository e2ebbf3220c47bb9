"""What each family computes, against NumPy, SciPy, scikit-learn, torch.distributions and sums done by hand."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from models import frechet
from models.checkpoint import load, save
from models.classifiers import CnnClassifierConfig, CnnClassifierFamily, MlpClassifierConfig, MlpClassifierFamily
from models.datasets import DataSpec, ImageSet, TrainingData
from models.dcgan import DcganConfig, DcganFamily, start_size
from models.dense_autoencoder import (
    DenseAutoencoder,
    DenseAutoencoderConfig,
    DenseAutoencoderFamily,
    activity_penalty,
    add_noise,
    sparseness,
)
from models.errors import TrainingFailedError, UserError
from models.family import Batch, Family, Update
from models.frechet import FrechetScore, feature_network
from models.gan import Adversaries, GanConfig, GanFamily, discriminator_loss, generator_loss
from models.numerics import Numerics
from models.stacked_autoencoder import (
    StackedAutoencoder,
    StackedAutoencoderConfig,
    StackedAutoencoderFamily,
    reconstruction,
)
from models.training import Budget, DataOnDevice, fit, start, validate
from models.vae import Vae, VaeConfig, VaeFamily, bound_terms

CLASSES = tuple("0123456789")
GREY, RGB = (1, 28, 28), (3, 64, 64)
LEAST_SEEN = frechet.LEAST_SEEN

Doubles = npt.NDArray[np.float64]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of feature networks that begins empty, its folder not there yet, and networks that learn little."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(frechet, "LEAST_SEEN", 0)
    monkeypatch.setenv(frechet.CACHE_VARIABLE, str(folder))
    return folder


def spec_of(shape: tuple[int, int, int], classes: Sequence[str] = CLASSES, train: int = 8, val: int = 8) -> DataSpec:
    channels, height, width = shape
    return DataSpec(
        source="made",
        channels=channels,
        height=height,
        width=width,
        class_names=tuple(classes),
        train_images=train,
        val_images=val,
        fingerprint="0" * 64,
    )


def on_device(train: npt.NDArray[Any], val: npt.NDArray[Any], classes: Sequence[str] = CLASSES) -> DataOnDevice:
    """Given pixels with labels that go round."""
    parts = [ImageSet(part, np.arange(len(part)) % len(classes), tuple(classes)) for part in (train, val)]
    shape = train.shape[1], train.shape[2], train.shape[3]
    return DataOnDevice(TrainingData(parts[0], parts[1], spec_of(shape, classes, len(train), len(val))))


def noise(shape: tuple[int, int, int], train: int = 8, val: int = 8, classes: Sequence[str] = CLASSES) -> DataOnDevice:
    """Images of random pixels."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (count, *shape), dtype=np.uint8) for count in (train, val)]
    return on_device(pixels[0], pixels[1], classes)


def batch_of(shape: tuple[int, int, int], count: int = 6) -> Batch:
    return Batch(torch.rand(count, *shape), torch.arange(count) % len(CLASSES))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def linear(inner: int, outer: int) -> int:
    """Weights and biases of a linear layer."""
    return inner * outer + outer


def conv(kernel: int, inner: int, outer: int) -> int:
    return kernel * kernel * inner * outer + outer


def array(tensor: Tensor) -> Doubles:
    return tensor.detach().numpy().astype(np.float64)


def logistic(x: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-x))


def weights_of(layer: Any) -> tuple[Doubles, Doubles]:
    return array(layer.weight), array(layer.bias)


def maps(network: nn.Module, given: Tensor, kinds: tuple[type[nn.Module], ...]) -> list[tuple[int, ...]]:
    """Shape, without the batch, of what each module of these kinds gives, in order."""
    shapes: list[tuple[int, ...]] = []
    hooks = [
        module.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        for module in network.modules()
        if isinstance(module, kinds)
    ]
    network.eval()
    with torch.inference_mode():
        network(given)
    for hook in hooks:
        hook.remove()
    return shapes


def only_update(family: Family[Any], config: Any, network: nn.Module) -> Update:
    (phase,) = family.phases(config, network)
    (update,) = phase.updates
    return update


def loss_of(update: Update, batch: Batch) -> tuple[float, dict[str, float]]:
    given = update.loss(batch)
    loss, others = given if isinstance(given, tuple) else (given, {})
    return float(loss.detach()), {name: float(value) for name, value in others.items()}


# --- variational autoencoder ------------------------------------------------------------------------------------------

VAE = VaeFamily()


class Known(Vae):
    """A VAE with a posterior and a decoder that are given."""

    def __init__(
        self,
        posterior: Callable[[Tensor], tuple[Tensor, Tensor]],
        decoder: Callable[[Tensor], Tensor],
        config: VaeConfig | None = None,
        train_images: int = 8,
    ) -> None:
        config = config or VaeConfig()
        super().__init__(config.model_copy(update={"filters": 1, "hidden_units": 1}), spec_of(GREY, train=train_images))
        self.given_posterior, self.given_decoder = posterior, decoder
        self.drawn: list[Tensor] = []

    def posterior(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return self.given_posterior(images_BCHW)

    def decode_logits(self, codes_BL: Tensor) -> Tensor:
        self.drawn.append(codes_BL)
        return self.given_decoder(codes_BL)


def test_vae_kl_is_that_of_torch_distributions() -> None:
    mean, log_variance = 2 * torch.randn(50, 7), 7 * torch.rand(50, 7) - 4
    network = Known(lambda _: (mean, log_variance), lambda _: torch.zeros(50, 1, 2, 2))
    _, kl = bound_terms(network, VaeConfig(), torch.rand(50, 1, 2, 2))
    expected = kl_divergence(Normal(mean, torch.exp(log_variance / 2)), Normal(0.0, 1.0))
    assert kl.shape == (50, 7)
    assert expected.min() >= 0
    torch.testing.assert_close(kl, expected, rtol=1e-4, atol=1e-5)


def test_vae_likelihoods() -> None:
    logits, images = 3 * torch.randn(9, 3, 4, 5), torch.rand(9, 3, 4, 5)
    network = Known(lambda _: (torch.zeros(9, 2), torch.zeros(9, 2)), lambda _: logits)
    nll, _ = bound_terms(network, VaeConfig(likelihood="bernoulli"), images)
    p, x = logistic(array(logits)), array(images)
    np.testing.assert_allclose(array(nll), -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum((1, 2, 3)), rtol=1e-5)
    # With black and white pixels it is a probability in the strict sense.
    nll, _ = bound_terms(network, VaeConfig(likelihood="bernoulli"), images.round())
    torch.testing.assert_close(-nll, Bernoulli(logits=logits).log_prob(images.round()).sum((1, 2, 3)))
    for sigma in (0.1, 0.7):
        nll, _ = bound_terms(network, VaeConfig(likelihood="gaussian", sigma=sigma), images)
        expected = Normal(logits.sigmoid(), sigma).log_prob(images).sum((1, 2, 3))
        torch.testing.assert_close(-nll, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_bound_of_a_vae_that_ignores_its_code_is_the_evidence(likelihood: str) -> None:
    """With the prior as the posterior there is nothing between the bound and log p(x)."""
    config = VaeConfig.model_validate({"likelihood": likelihood, "sigma": 0.3, "latent_dim": 3})
    logits, images = torch.randn(1, 4, 4), torch.rand(5, 1, 4, 4).round()
    prior = torch.zeros(5, 3)
    network = Known(lambda _: (prior, prior), lambda z: logits.repeat(len(z), 1, 1, 1))
    measured = VAE.measure(config, network, Batch(images, torch.zeros(5)))
    of_pixel = Bernoulli(logits=logits) if likelihood == "bernoulli" else Normal(logits.sigmoid(), 0.3)
    torch.testing.assert_close(measured["elbo"], of_pixel.log_prob(images).sum((1, 2, 3)))
    assert measured["kl"].tolist() == [0] * 5
    torch.testing.assert_close(measured["reconstruction"], -measured["elbo"])
    torch.testing.assert_close(measured["mse"], (logits.sigmoid() - images).square().mean((1, 2, 3)))


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (0.5, 1.0), (-0.3, 2.0)])
def test_bound_of_a_linear_gaussian_model(shift: float, stretch: float) -> None:
    """x = a + Wz + σε, where evidence and posterior are known: the bound is log p(x) less KL(q ‖ p(z | x)).

    The columns of W are orthogonal, so that the exact posterior has no covariances; ``shift`` and ``stretch`` move q
    away from it.
    """
    sigma, draws = 0.2, 40_000
    a = torch.tensor([0.4, 0.5, 0.6, 0.5], dtype=torch.float64)
    w = torch.tensor([[0.04, 0.0], [0.0, 0.05], [0.03, 0.0], [0.0, -0.02]], dtype=torch.float64)
    x = torch.tensor([0.7, 0.1, 0.5, 0.8], dtype=torch.float64)
    precision = torch.eye(2, dtype=torch.float64) + w.T @ w / sigma**2
    exact = MultivariateNormal(torch.linalg.solve(precision, w.T @ (x - a) / sigma**2), precision_matrix=precision)
    q_mean, q_variance = exact.mean + shift, exact.variance * stretch
    evidence = MultivariateNormal(a, w @ w.T + sigma**2 * torch.eye(4, dtype=torch.float64)).log_prob(x)
    gap = kl_divergence(MultivariateNormal(q_mean, torch.diag(q_variance)), exact)
    assert (gap < 1e-9) == (shift == 0 and stretch == 1)

    config = VaeConfig(likelihood="gaussian", sigma=sigma, beta=3.0)
    network = Known(
        lambda images: (q_mean.repeat(len(images), 1), q_variance.log().repeat(len(images), 1)),
        lambda z: torch.logit(a + z @ w.T).reshape(-1, 1, 2, 2),
    )
    images = x.reshape(1, 1, 2, 2).repeat(draws, 1, 1, 1)
    elbo = VAE.measure(config, network, Batch(images, torch.zeros(draws)))["elbo"]
    # Six standard errors of the mean over the draws of z.
    assert float(elbo.mean()) == pytest.approx(float(evidence - gap), abs=6 * float(elbo.std()) / math.sqrt(draws))
    assert float(elbo.std()) / math.sqrt(draws) < 0.01
    np.testing.assert_allclose(array(network.drawn[0].mean(0)), array(q_mean), atol=0.03)
    np.testing.assert_allclose(array(network.drawn[0].var(0)), array(q_variance), rtol=0.05)


def test_vae_collapsed_units_by_hand() -> None:
    """Two units of five say nothing; one says something of one image in 16 only, which counts."""

    class KnownFamily(VaeFamily):
        def build(self, config: VaeConfig, spec: DataSpec) -> Vae:
            def posterior(images: Tensor) -> tuple[Tensor, Tensor]:
                mean = torch.zeros(len(images), 5)
                mean[0, 2] = 1.0  # KL 0.5 of one image: 0.031 on average
                mean[:, 3], mean[:, 4] = 1.0, 0.13  # 0.5 and 0.00845
                return mean, torch.tensor([0.0, 0.3, 0.0, 0.0, 0.0]).repeat(len(images), 1)  # the second: 0.0249

            return Known(posterior, lambda z: torch.zeros(len(z), 1, 9, 9))

    metrics = validate(start(KnownFamily(), VaeConfig(), noise((1, 9, 9), val=16), Budget(1), seed=0))
    assert metrics["val_collapsed"] == pytest.approx(2 / 5)
    unit_kl = [0, (math.exp(0.3) - 1 - 0.3) / 2, 0.5 / 16, 0.5, 0.13**2 / 2]
    assert metrics["val_kl"] == pytest.approx(sum(unit_kl), rel=1e-5)
    assert metrics["val_elbo"] == pytest.approx(-metrics["val_reconstruction"] - metrics["val_kl"], rel=1e-6)
    assert metrics["val_reconstruction"] == pytest.approx(81 * math.log(2), rel=1e-6)
    assert sorted(metrics) == ["val_collapsed", "val_elbo", "val_kl", "val_mse", "val_reconstruction"]


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("warmup", [0.0, 2.0])
def test_vae_training_loss_with_beta_and_warm_up(likelihood: str, warmup: float) -> None:
    """(nll + β·min(1, epochs seen / warm-up)·KL) / pixels, at any number of images seen."""
    settings = {"likelihood": likelihood, "beta": 0.7, "warmup_epochs": warmup, "latent_dim": 3, "sigma": 0.4}
    config, train_images = VaeConfig.model_validate(settings), 50
    network = Vae(config, spec_of((2, 10, 11), train=train_images))
    update, batch = only_update(VAE, config, network), batch_of((2, 10, 11))
    for seen in (0, 6, 37, 99, 100, 101, 5000):
        network.images_seen.fill_(seen)
        torch.manual_seed(seen)
        loss, others = loss_of(update, batch)
        torch.manual_seed(seen)
        mean, log_variance = network.posterior(batch.images)
        q = Normal(mean, torch.exp(log_variance / 2))
        logits = network.decode_logits(mean + q.stddev * torch.randn(6, 3))
        of_pixel = (
            Bernoulli(logits=logits, validate_args=False)
            if likelihood == "bernoulli"
            else Normal(torch.sigmoid(logits), 0.4)
        )
        nll = -of_pixel.log_prob(batch.images).sum().item() / 6
        kl = kl_divergence(q, Normal(0.0, 1.0)).sum().item() / 6
        ramp = min(1.0, seen / (warmup * train_images)) if warmup else 1.0
        assert loss == pytest.approx((nll + 0.7 * ramp * kl) / (2 * 10 * 11), rel=1e-5)
        assert others == pytest.approx({"elbo": -nll - kl, "kl": kl}, rel=1e-4)
        assert network.images_seen == seen + 6


def test_vae_objective_knows_nothing_of_beta_and_warm_up() -> None:
    network, batch = Vae(VaeConfig(), spec_of(GREY)), batch_of(GREY)

    def measured(**settings: Any) -> dict[str, Tensor]:
        torch.manual_seed(3)
        return dict(VAE.measure(VaeConfig.model_validate(settings), network, batch))

    plain = measured()
    for other in (measured(beta=4.0), measured(beta=0.0), measured(warmup_epochs=3.0)):
        assert all(torch.equal(plain[name], other[name]) for name in plain)
    torch.testing.assert_close(plain["elbo"], -plain["reconstruction"] - plain["kl"])
    torch.testing.assert_close(plain["kl"], plain["unit_kl"].sum(1))


def test_vae_of_report_a() -> None:
    """28 → 24 → 20 pixels, 12,800 features, two linear layers to 256, and back."""
    config = VaeConfig(architecture="wide", filters=16, latent_dim=256)
    network = Vae(config, spec_of(GREY))
    shapes = maps(network, torch.rand(2, *GREY), (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    # The log-variance is not needed for a reconstruction, but computed.
    assert shapes == [(16, 24, 24), (32, 20, 20), (256,), (256,), (12_800,), (16, 24, 24), (1, 28, 28)]
    encoder = conv(5, 1, 16) + conv(5, 16, 32) + 2 * linear(12_800, 256)
    decoder = linear(256, 12_800) + conv(5, 32, 16) + conv(5, 16, 1)
    assert parameters(network) == encoder + decoder == 9_870_177


def test_vae_of_report_b() -> None:
    config = VaeConfig(architecture="strided", filters=8, latent_dim=2, beta=0.8, likelihood="gaussian")
    network = Vae(config, spec_of(GREY))
    shapes = maps(network, torch.rand(2, *GREY), (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    encoder = [(8, 14, 14), (16, 7, 7), (32, 3, 3), (64,), (2,), (2,)]
    assert shapes == [*encoder, (64,), (288,), (16, 7, 7), (8, 14, 14), (1, 28, 28)]
    counts = [conv(3, 1, 8), conv(3, 8, 16), conv(3, 16, 32), linear(288, 64), 2 * linear(64, 2)]
    counts += [linear(2, 64), linear(64, 288), conv(3, 32, 16), conv(3, 16, 8), conv(3, 8, 1)]
    assert parameters(network) == sum(counts) == 49_413


def test_vae_samples_are_decoded_codes_of_the_prior() -> None:
    config = VaeConfig(latent_dim=4)
    network = Vae(config, spec_of((3, 12, 15)))
    with torch.inference_mode():
        images = network.sample(7)
        torch.manual_seed(1)
        one = network.sample(5)
        torch.manual_seed(1)
        torch.testing.assert_close(one, network.decode_logits(torch.randn(5, 4)).sigmoid())
    assert images.shape == (7, 3, 12, 15)
    assert images.min() > 0
    assert images.max() < 1


def test_warm_up_goes_on_after_a_resume() -> None:
    config = VaeConfig(warmup_epochs=3.0, batch_size=4, beta=2.0, filters=4, latent_dim=2)
    data, budget = noise((1, 9, 9), train=8), Budget(4, rungs=(1.5,))
    whole = start(VAE, config, data, budget, seed=0)
    list(fit(whole))
    half = start(VAE, config, data, budget, seed=0)
    for record in fit(half):
        if record.epoch == 1.5:
            break
    resumed = start(VAE, config, data, budget, seed=0, state=half.state_dict())
    assert resumed.network.get_buffer("images_seen") == 12
    list(fit(resumed))
    assert resumed.network.get_buffer("images_seen") == 32
    assert resumed.records[-1].metrics == whole.records[-1].metrics


# --- dense autoencoder ------------------------------------------------------------------------------------------------

DENSE = DenseAutoencoderFamily()


def dense(shape: tuple[int, int, int] = (2, 3, 4), **settings: Any) -> tuple[DenseAutoencoderConfig, DenseAutoencoder]:
    config = DenseAutoencoderConfig.model_validate({"hidden_units": 6, **settings})
    return config, DenseAutoencoder(config, shape)


@pytest.mark.parametrize("units", [128, 256, 512, 1024])
def test_dense_parameters(units: int) -> None:
    """Report E's one-layer autoencoders, then deeper ones and tied ones."""
    _, one = dense(GREY, hidden_units=units)
    assert parameters(one) == linear(784, units) + linear(units, 784)
    _, three = dense(GREY, hidden_units=units, hidden_layers=3)
    assert parameters(three) == linear(784, units) + 4 * linear(units, units) + linear(units, 784)
    _, tied = dense(GREY, hidden_units=units, tied_weights=True)
    assert parameters(tied) == 784 * units + units + 784
    _, tied = dense(GREY, hidden_units=units, hidden_layers=3, tied_weights=True)
    assert parameters(tied) == 784 * units + 2 * units * units + 3 * units + 2 * units + 784


NON_LINEAR: dict[str, Callable[[Doubles], Doubles]] = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": logistic,
    "tanh": np.tanh,
}


@pytest.mark.parametrize("tied", [False, True], ids=["free", "tied"])
@pytest.mark.parametrize("activation", NON_LINEAR)
@pytest.mark.parametrize("output", ["sigmoid", "linear"])
def test_dense_layer_by_layer(tied: bool, activation: str, output: str) -> None:
    _, network = dense(hidden_layers=2, tied_weights=tied, activation=activation, output=output)
    act, images = NON_LINEAR[activation], torch.rand(5, 2, 3, 4)
    for bias in network.biases:
        nn.init.normal_(bias)
    (w1, b1), (w2, b2) = map(weights_of, network.encoder)
    codes = act(act(array(images).reshape(5, 24) @ w1.T + b1) @ w2.T + b2)
    if tied:
        c2, c1 = map(array, network.biases)
        made = act(codes @ w2 + c2) @ w1 + c1
    else:
        (v2, c2), (v1, c1) = map(weights_of, network.decoder)
        made = act(codes @ v2.T + c2) @ v1.T + c1
    np.testing.assert_allclose(array(network.encode(images)), codes, atol=1e-5)
    made = logistic(made) if output == "sigmoid" else made
    np.testing.assert_allclose(array(network(images)), made.reshape(5, 2, 3, 4), atol=1e-5)


def test_tied_weights_stay_tied_in_training() -> None:
    """One step of SGD moves the shared matrix by both halves' gradients."""
    config, network = dense(tied_weights=True, optimizer="sgd", lr=0.5, momentum=0, weight_decay=0, activation="tanh")
    batch = batch_of((2, 3, 4))
    layer: Any = network.encoder[0]
    encoder, decoder = layer.weight.detach().clone(), layer.weight.detach().T.clone()
    encoder.requires_grad_()
    decoder.requires_grad_()
    codes = torch.tanh(batch.images.flatten(1) @ encoder.T + layer.bias.detach())
    made = torch.sigmoid(codes @ decoder.T + network.biases[0].detach())
    torch.square(made - batch.images.flatten(1)).mean().backward()
    update = only_update(DENSE, config, network)
    loss = update.loss(batch)
    assert isinstance(loss, Tensor)
    loss.backward()
    update.optimizer.step()
    assert encoder.grad is not None
    assert decoder.grad is not None
    torch.testing.assert_close(layer.weight.detach(), encoder.detach() - 0.5 * (encoder.grad + decoder.grad.T))


@pytest.mark.parametrize("kind", ["none", "l1", "l2"])
def test_activity_penalty(kind: str) -> None:
    """λ·Σ|h| or λ·Σh² of an image, averaged over images, on top of the error."""
    config, network = dense(activity_penalty=kind, activity_weight=0.03, activation="tanh")
    batch = batch_of((2, 3, 4))
    hidden = network.encode(batch.images).detach()
    codes = array(hidden)
    assert codes.min() < 0
    summed = {"none": np.zeros(6), "l1": np.abs(codes).sum(1), "l2": (codes**2).sum(1)}[kind]
    assert float(activity_penalty(hidden, config)) == pytest.approx(0.03 * summed.mean(), rel=1e-5)
    error = ((array(network(batch.images)) - array(batch.images)) ** 2).mean()
    loss, _ = loss_of(only_update(DENSE, config, network), batch)
    assert loss == pytest.approx(error + 0.03 * summed.mean(), rel=1e-5)
    # Trials are ranked by the error alone.
    assert DENSE.measure(config, network, batch)["mse"].mean().item() == pytest.approx(error, rel=1e-5)


def hoyer(codes: Doubles) -> Doubles:
    n = codes.shape[1]
    made: Doubles = (np.sqrt(n) - np.abs(codes).sum(1) / np.sqrt((codes**2).sum(1))) / (np.sqrt(n) - 1)
    return made


def test_sparseness() -> None:
    codes = torch.randn(20, 9) * torch.rand(20, 9).round()
    codes[:, 0] = 1e-3  # none of them is all zeros
    np.testing.assert_allclose(array(sparseness(codes)), hoyer(array(codes)), atol=1e-5)
    torch.testing.assert_close(sparseness(100 * codes), sparseness(codes), rtol=1e-4, atol=1e-4)
    limits = torch.tensor([[0, -3.0, 0, 0], [2.0, 2, 2, 2], [0, 0, 0, 0], [1.0, -1, 1, -1], [1.0, 1, 0, 0]])
    half = (2 - math.sqrt(2)) / (2 - 1)
    assert sparseness(limits).tolist() == pytest.approx([1, 0, 1, 0, half], abs=1e-6)
    assert sparseness(torch.tensor([[0.0], [2.0]])).tolist() == [1, 1]
    config, network = dense(hidden_layers=2, activation="tanh")
    images = torch.rand(5, 2, 3, 4)
    measured = DENSE.measure(config, network, Batch(images, torch.zeros(5)))["sparseness"]
    np.testing.assert_allclose(array(measured), hoyer(array(network.encode(images))), atol=1e-5)


@pytest.mark.parametrize("level", [0.05, 0.3, 0.5])
def test_masking_noise_blackens_its_share_of_the_pixels(level: float) -> None:
    images = torch.rand(40, 3, 28, 28) + 0.1
    noisy = add_noise(images, DenseAutoencoderConfig(noise="masking", noise_level=level))
    black = noisy == 0
    count = black.numel()
    assert float(black.double().mean()) == pytest.approx(level, abs=5 * math.sqrt(level * (1 - level) / count))
    assert torch.equal(noisy[~black], images[~black])
    # Each pixel of each image and channel by itself: two of them are both black by chance only.
    for one, other in ((black[:-1], black[1:]), (black[:, :-1], black[:, 1:]), (black[..., :-1], black[..., 1:])):
        assert float((one & other).double().mean()) == pytest.approx(level**2, abs=5 * level / math.sqrt(count / 2))


@pytest.mark.parametrize("level", [0.1, 0.3])
def test_gaussian_noise_has_its_standard_deviation_and_is_not_cut_off(level: float) -> None:
    images = torch.rand(100, 1, 28, 28)
    noisy = add_noise(images, DenseAutoencoderConfig(noise="gaussian", noise_level=level))
    added = array(noisy - images)
    assert added.std() == pytest.approx(level, rel=0.02)
    assert added.mean() == pytest.approx(0, abs=5 * level / math.sqrt(added.size))
    assert noisy.min() < 0
    assert noisy.max() > 1
    assert add_noise(images, DenseAutoencoderConfig(noise="none", noise_level=level)) is images


@pytest.mark.parametrize("kind", ["gaussian", "masking"])
def test_noise_is_on_the_input_in_training_only(kind: str) -> None:
    config, network = dense(noise=kind, noise_level=0.4)
    batch = batch_of((2, 3, 4))
    for _ in range(2):
        mse = array(DENSE.measure(config, network, batch)["mse"])
        expected = (array(network(batch.images)) - array(batch.images)) ** 2
        np.testing.assert_allclose(mse, expected.mean((1, 2, 3)), rtol=1e-5)
    update = only_update(DENSE, config, network)
    torch.manual_seed(5)
    loss, _ = loss_of(update, batch)
    torch.manual_seed(5)
    made = network(add_noise(batch.images, config))
    # What has to come out is the clean image.
    assert loss == pytest.approx(((array(made) - array(batch.images)) ** 2).mean(), rel=1e-5)
    assert loss != pytest.approx(expected.mean(), rel=1e-3)


# --- stacked autoencoder ----------------------------------------------------------------------------------------------

STACKED = StackedAutoencoderFamily()


@pytest.mark.parametrize("std", [0.05, 0.2])
def test_stacked_begins_with_small_normal_weights(std: float) -> None:
    network = StackedAutoencoder(StackedAutoencoderConfig(init_std=std, hidden_layers=3), spec_of(GREY))
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 3 + 3 + 1
    for layer in linears:
        weights, biases = weights_of(layer)
        assert not biases.any()
        assert weights.std() == pytest.approx(std, rel=5 / math.sqrt(2 * weights.size))
        assert weights.mean() == pytest.approx(0, abs=5 * std / math.sqrt(weights.size))
        # As normal numbers, 4.55 % of them are off by more than two standard deviations.
        outside = (np.abs(weights) > 2 * std).mean()
        assert outside == pytest.approx(0.0455, abs=5 * math.sqrt(0.0455 * 0.9545 / weights.size))


@pytest.mark.parametrize("units", [128, 256, 512])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_stacked_of_report_e(units: int, layers: int) -> None:
    """Every size in its table, with its optimizer; batch norm goes with ReLU."""
    for activation, normed in (("relu", True), ("sigmoid", False)):
        given = {"hidden_units": units, "hidden_layers": layers, "activation": activation, "batch_norm": normed}
        config = StackedAutoencoderConfig.model_validate({**given, "weight_decay": 0})
        assert (config.optimizer, config.lr, config.momentum, config.init_std) == ("sgd", 0.1, 0.9, 0.05)
        assert config.pretrain_tolerance == 1e-6
        network = STACKED.build(config, spec_of(GREY))
        widths = [784, *[units] * layers, 10]
        used = sum(linear(a, b) for a, b in pairwise(widths)) + normed * 2 * units * layers
        spare = sum(linear(b, a) for a, b in pairwise(widths[:-1]))
        assert parameters(network) == used + spare
        assert parameters(network.decoders) == spare
        updates = [update for phase in STACKED.phases(config, network) for update in phase.updates]
        assert len(updates) == layers + 1
        for update in updates:
            (group,) = update.optimizer.param_groups
            assert isinstance(update.optimizer, torch.optim.SGD)
            assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 0)


def test_each_phase_trains_its_own_layer() -> None:
    """Three layers, a step an epoch: three epochs of pre-training, one a layer, then three of fine-tuning."""
    config = StackedAutoencoderConfig(
        hidden_layers=3, hidden_units=5, pretrain_share=0.5, pretrain_patience=1000, batch_size=8, weight_decay=0.01
    )
    training = start(STACKED, config, noise((1, 4, 4)), Budget(6), seed=0)
    before = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    parts = {f"layers.{i}": f"decoders.{i}" for i in range(3)}
    for epoch, record in enumerate(fit(training), 1):
        now = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
        changed = {name for name in now if not torch.equal(now[name], before[name])}
        pretrained = parts if epoch > 3 else dict([[*parts.items()][epoch - 1]])
        expected = {name for name in now if name.startswith(tuple(pretrained))}
        if epoch > 3:
            expected |= {"head.weight", "head.bias"}
            assert {"train_loss", "val_accuracy"} <= record.metrics.keys()
        else:
            expected |= {f"{decoder}.{kind}" for decoder in pretrained.values() for kind in ("weight", "bias")}
            assert [name for name in record.metrics if name.startswith("train")] == [f"train_layer{epoch}_loss"]
            assert "val_accuracy" not in record.metrics
            assert "val_cross_entropy" in record.metrics
            assert training.best is None
        # Batch norm's statistics too; a hidden layer's bias in front of it has no gradient but is decayed, from 0.
        unmoved = {name for name in expected if name.endswith(".0.bias") and name.startswith("layers")}
        assert changed - unmoved == expected - unmoved
        before = now
    assert training.best is not None


def test_pretraining_restores_what_the_layers_below_give() -> None:
    config = StackedAutoencoderConfig(hidden_layers=2, hidden_units=5, activation="relu", init_std=0.5)
    network = StackedAutoencoder(config, spec_of((1, 3, 4)))
    first: Any = network.layers[0]
    second: Any = network.layers[1]
    with torch.no_grad():
        first[1].running_mean.normal_()
        first[1].running_var.uniform_(0.5, 2)
        first[1].bias.normal_()
    batch = batch_of((1, 3, 4))
    pixels = array(batch.images).reshape(6, 12)

    def normalised(x: Doubles, norm: Any, mean: Doubles, variance: Doubles) -> Doubles:
        y: Doubles = (x - mean) / np.sqrt(variance + norm.eps) * array(norm.weight) + array(norm.bias)
        return np.maximum(y, 0)

    def times(x: Doubles, layer: Any) -> Doubles:
        weights, biases = weights_of(layer)
        made: Doubles = x @ weights.T + biases
        return made

    x = times(pixels, first[0])
    restored = logistic(times(normalised(x, first[1], x.mean(0), x.var(0)), network.decoders[0]))
    network.train()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert reconstruction(network, 0)(batch).item() == pytest.approx(((restored - pixels) ** 2).mean(), rel=1e-4)

    network.load_state_dict(state)  # the first layer's statistics have moved
    given = normalised(x, first[1], array(first[1].running_mean), array(first[1].running_var))
    y = times(given, second[0])
    restored = times(normalised(y, second[1], y.mean(0), y.var(0)), network.decoders[1])
    network.train()
    assert reconstruction(network, 1)(batch).item() == pytest.approx(((restored - given) ** 2).mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("layers", "share", "shares"),
    [(2, 0.5, [0.25, 0.25, 0.5]), (3, 0.75, [0.25, 0.25, 0.25, 0.25]), (2, 0.0, [1]), (0, 0.25, [1])],
)
def test_shares_of_pretraining_and_fine_tuning(layers: int, share: float, shares: list[float]) -> None:
    config = StackedAutoencoderConfig(
        hidden_layers=layers, hidden_units=4, pretrain_share=share, pretrain_patience=7, pretrain_tolerance=0.25
    )
    phases = STACKED.phases(config, STACKED.build(config, spec_of((1, 3, 3))))
    assert [phase.share for phase in phases] == pytest.approx(shares)
    assert [phase.ranks for phase in phases] == [False] * (len(shares) - 1) + [True]
    assert [(phase.patience, phase.tolerance) for phase in phases] == [(7, 0.25)] * (len(shares) - 1) + [(None, 0)]


def test_pretraining_that_does_not_get_better_ends_early() -> None:
    """At a rate of next to nothing the second epoch of a layer is no better than the first, and its last."""
    settings = {"hidden_layers": 2, "hidden_units": 4, "pretrain_share": 0.8, "batch_size": 8, "momentum": 0.0}
    config = StackedAutoencoderConfig.model_validate({**settings, "lr": 1e-12, "batch_norm": False})

    def losses(config: StackedAutoencoderConfig) -> str:
        training = start(STACKED, config, noise((1, 4, 4)), Budget(10), seed=0)
        names = [[name for name in record.metrics if name.startswith("train")] for record in fit(training)]
        return "".join({"train_layer1_loss": "1", "train_layer2_loss": "2", "train_loss": "f"}[n] for (n,) in names)

    assert losses(config) == "1122ffffff"
    assert losses(config.model_copy(update={"pretrain_patience": 2})) == "111222ffff"
    # A layer has four epochs of ten at most, so patience of four never ends one.
    assert losses(config.model_copy(update={"pretrain_patience": 4})) == "11112222ff"


def test_without_hidden_layers_it_is_logistic_regression() -> None:
    """Two steps of softmax regression with momentum and weight decay, in NumPy."""
    settings = {"hidden_layers": 0, "batch_size": 20, "lr": 0.3, "momentum": 0.8, "weight_decay": 0.01}
    config = StackedAutoencoderConfig.model_validate(settings)
    data = noise((1, 5, 6), train=20)
    training = start(STACKED, config, data, Budget(2), seed=0)
    assert parameters(training.network) == 30 * 10 + 10
    x = array(data.train.batch(slice(None)).images).reshape(20, 30)
    wanted = np.eye(10)[data.train.labels.numpy()]
    w, b = weights_of(training.network.head)
    velocity_w, velocity_b = np.zeros_like(w), np.zeros_like(b)
    losses = []
    for _ in range(2):
        scores = np.exp(x @ w.T + b)
        p = scores / scores.sum(1, keepdims=True)
        losses.append(-np.log((p * wanted).sum(1)).mean())
        velocity_w = 0.8 * velocity_w + (p - wanted).T @ x / 20 + 0.01 * w
        velocity_b = 0.8 * velocity_b + (p - wanted).mean(0) + 0.01 * b
        w, b = w - 0.3 * velocity_w, b - 0.3 * velocity_b
    records = list(fit(training))
    assert [record.metrics["train_loss"] for record in records] == pytest.approx(losses, rel=1e-5)
    trained_w, trained_b = weights_of(training.network.head)
    np.testing.assert_allclose(trained_w, w, atol=1e-5)
    np.testing.assert_allclose(trained_b, b, atol=1e-5)


# --- classifiers ------------------------------------------------------------------------------------------------------


def test_parameters_of_the_multilayer_perceptron() -> None:
    family = MlpClassifierFamily()
    two = family.build(MlpClassifierConfig(hidden_layers=2, hidden_units=64, dropout=0.2), spec_of(GREY))
    assert parameters(two) == linear(784, 64) + linear(64, 64) + linear(64, 10)
    normed = family.build(MlpClassifierConfig(hidden_layers=3, hidden_units=16, batch_norm=True), spec_of((3, 4, 5)))
    assert parameters(normed) == linear(60, 16) + 2 * linear(16, 16) + 3 * 2 * 16 + linear(16, 10)
    assert parameters(family.build(MlpClassifierConfig(hidden_layers=0), spec_of(GREY, "ab"))) == linear(784, 2)


def test_parameters_and_maps_of_the_convolutional_classifier() -> None:
    family, config = CnnClassifierFamily(), CnnClassifierConfig(filters=16, hidden_units=128)
    network = family.build(config, spec_of(GREY))
    assert parameters(network) == conv(3, 1, 16) + conv(3, 16, 32) + linear(32 * 7 * 7, 128) + linear(128, 10)
    shapes = maps(network, torch.rand(1, *GREY), (nn.Conv2d, nn.MaxPool2d))
    assert shapes == [(16, 28, 28), (16, 14, 14), (32, 14, 14), (32, 7, 7)]
    normed = family.build(config.model_copy(update={"batch_norm": True}), spec_of((3, 13, 30)))
    features = 32 * 3 * 7
    counts = conv(3, 3, 16) + conv(3, 16, 32) + linear(features, 128) + linear(128, 10)
    assert parameters(normed) == counts + 2 * (16 + 32 + 128)


@pytest.mark.parametrize("family", [MlpClassifierFamily(), CnnClassifierFamily(), StackedAutoencoderFamily()])
def test_accuracy_and_cross_entropy_are_scikit_learns(family: Family[Any]) -> None:
    data = noise((1, 8, 8), train=64, val=530)  # more than a validation step takes
    training = start(
        family, family.Config.model_validate({"batch_size": 32, "hidden_units": 64}), data, Budget(4), seed=0
    )
    record = list(fit(training))[-1]
    network: Any = training.network.eval()
    with torch.inference_mode():
        probabilities = array(torch.softmax(network.classify(data.val.batch(slice(None)).images).double(), 1))
    labels = data.val.labels.numpy()
    assert record.metrics["val_accuracy"] == pytest.approx(accuracy_score(labels, probabilities.argmax(1)))
    assert record.metrics["val_cross_entropy"] == pytest.approx(log_loss(labels, probabilities), rel=1e-5)
    assert 0 < record.metrics["val_accuracy"] < 1
    assert family.objective.metric == "val_accuracy"
    assert family.objective.mode == "max"


@pytest.mark.parametrize("family", [MlpClassifierFamily(), CnnClassifierFamily(), StackedAutoencoderFamily()])
@pytest.mark.parametrize("classes", [[], ["all"]], ids=["none", "one"])
def test_a_classifier_needs_two_classes(family: Family[Any], classes: list[str]) -> None:
    with pytest.raises(UserError, match="at least two classes") as caught:
        family.check(family.Config(), spec_of(GREY, classes))
    assert [problem.field for problem in caught.value.problems] == ["--dataset"]
    assert family.name in str(caught.value)
    family.check(family.Config(), spec_of(GREY, ["one", "two"]))


# --- generative adversarial networks ----------------------------------------------------------------------------------

GAN, DCGAN = GanFamily(), DcganFamily()
SMALL = {"hidden_units": 4, "latent_dim": 3, "batch_norm": True}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_adversarial_losses(smoothing: float) -> None:
    real, fake = torch.randn(7, 1) * 2, torch.randn(7, 1) * 2
    d_real, d_fake = logistic(array(real)), logistic(array(fake))
    # The target for real images is 1 - smoothing; for samples it stays 0.
    bce = -((1 - smoothing) * np.log(d_real) + smoothing * np.log(1 - d_real)).mean() - np.log(1 - d_fake).mean()
    hinge = np.maximum(0, 1 - array(real)).mean() + np.maximum(0, 1 + array(fake)).mean()
    by_hand = {
        "non_saturating": (bce, -np.log(d_fake).mean()),
        "minimax": (bce, np.log(1 - d_fake).mean()),
        "hinge": (hinge, -array(fake).mean()),
    }
    for name, (d_loss, g_loss) in by_hand.items():
        config = GanConfig.model_validate({"loss": name, "label_smoothing": smoothing})
        assert float(discriminator_loss(config, real, fake)) == pytest.approx(d_loss, rel=1e-5)
        assert float(generator_loss(config, fake)) == pytest.approx(g_loss, rel=1e-5)


@pytest.mark.parametrize("loss", ["non_saturating", "minimax", "hinge"])
@pytest.mark.parametrize("family", [GAN, DCGAN], ids=["gan", "dcgan"])
def test_each_update_moves_its_own_network(family: Family[Any], loss: str) -> None:
    config = family.Config.model_validate({"loss": loss, "latent_dim": 3, "dropout": 0.0})
    network = family.build(config, spec_of((1, 12, 12)))
    assert isinstance(network, Adversaries)
    (phase,) = family.phases(config, network)
    assert [update.name for update in phase.updates] == ["d_loss", "g_loss"]
    batch = batch_of((1, 12, 12))
    for update, moved, still in zip(
        phase.updates,
        (network.discriminator, network.generator),
        (network.generator, network.discriminator),
        strict=True,
    ):
        network.zero_grad()
        before = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
        given = update.loss(batch)
        (given[0] if isinstance(given, tuple) else given).backward()
        update.optimizer.step()
        changed = {name for name, tensor in network.named_parameters() if not torch.equal(tensor, before[name])}
        prefix = "discriminator." if moved is network.discriminator else "generator."
        assert all(name.startswith(prefix) for name in changed)
        # But for biases in front of batch norm, which have no gradient to speak of, everything moves.
        assert {name for name in before if name.startswith(prefix) and name.endswith("weight")} <= changed
        in_optimizer = {id(p) for group in update.optimizer.param_groups for p in group["params"]}
        assert in_optimizer == {id(parameter) for parameter in moved.parameters()}
        assert not in_optimizer & {id(parameter) for parameter in still.parameters()}
        if moved is network.discriminator:
            assert all(parameter.grad is None for parameter in still.parameters())


@pytest.mark.parametrize("loss", ["non_saturating", "minimax", "hinge"])
def test_each_network_plays_its_own_side(loss: str) -> None:
    """A step of the discriminator tells real images and samples further apart, one of the generator raises D(G(z))."""
    settings = {**SMALL, "loss": loss, "dropout": 0.0, "batch_norm": False, "beta1": 0.0}
    config = GanConfig.model_validate(settings)
    network = GAN.build(config, spec_of((1, 4, 4)))
    batch = batch_of((1, 4, 4), 64)

    def opinions() -> tuple[float, float]:
        torch.manual_seed(1)
        real, fake = 2 * batch.images - 1, network.generator(network.noise(64))
        with torch.no_grad():
            return float(network.discriminator(real).mean()), float(network.discriminator(fake).mean())

    def step(update: Update) -> None:
        torch.manual_seed(1)
        update.optimizer.zero_grad()
        given = update.loss(batch)
        (given[0] if isinstance(given, tuple) else given).backward()
        update.optimizer.step()

    d_update, g_update = GAN.phases(config, network)[0].updates
    began = opinions()
    step(d_update)
    judged = opinions()
    assert judged[0] - judged[1] > began[0] - began[1]
    step(g_update)
    pleased = opinions()
    assert pleased[0] == judged[0]
    assert pleased[1] > judged[1]


@pytest.mark.parametrize("family", [GAN, DCGAN], ids=["gan", "dcgan"])
def test_images_are_in_minus_one_to_one_inside(family: Family[Any]) -> None:
    config = family.Config.model_validate({"latent_dim": 3})
    network = family.build(config, spec_of((3, 12, 12)))
    assert isinstance(network, Adversaries)
    with torch.no_grad():  # far ends, both of them
        for parameter in network.generator.parameters():
            parameter.mul_(30)
    judged: list[Tensor] = []
    network.discriminator.register_forward_pre_hook(lambda _, given: judged.append(given[0].detach()))
    (phase,) = family.phases(config, network)
    batch = batch_of((3, 12, 12), 40)
    d_update, g_update = phase.updates
    _, others = loss_of(d_update, batch)
    loss_of(g_update, batch)
    real, fakes, for_generator = judged
    torch.testing.assert_close(real, batch.images * 2 - 1)
    for made in (fakes, for_generator):
        assert made.shape == (40, 3, 12, 12)
        assert made.min() < -0.9
        assert made.max() > 0.9
        assert made.abs().max() <= 1
    network.eval()
    with torch.inference_mode():
        torch.manual_seed(4)
        images = network.sample(40)
        torch.manual_seed(4)
        inside = network.generator(torch.randn(40, 3))
    torch.testing.assert_close(images, (inside + 1) / 2)
    assert images.min() >= 0
    assert images.max() <= 1
    assert others.keys() == {"d_real", "d_fake"}


def test_opinions_of_the_discriminator_are_reported_as_probabilities() -> None:
    config = GanConfig.model_validate({**SMALL, "dropout": 0.0})
    network = GAN.build(config, spec_of((1, 4, 4)))
    batch, logits = batch_of((1, 4, 4)), []
    network.discriminator.register_forward_hook(lambda _, __, out: logits.append(array(out)))
    _, others = loss_of(GAN.phases(config, network)[0].updates[0], batch)
    real, fake = logits
    assert others == pytest.approx({"d_real": logistic(real).mean(), "d_fake": logistic(fake).mean()}, rel=1e-5)
    record = next(fit(start(GAN, config, noise((1, 8, 8)), Budget(1), seed=0)))
    assert {"train_d_loss", "train_g_loss", "train_d_real", "train_d_fake"} <= record.metrics.keys()


@pytest.mark.parametrize("family", [GAN, DCGAN], ids=["gan", "dcgan"])
def test_learning_rates_of_both_networks(family: Family[Any]) -> None:
    config = family.Config.model_validate({"lr": 2e-3, "lr_ratio": 0.25, "beta1": 0.3})
    network = family.build(config, spec_of((1, 12, 12)))
    d_update, g_update = family.phases(config, network)[0].updates
    for update, lr in ((g_update, 2e-3), (d_update, 5e-4)):
        (group,) = update.optimizer.param_groups
        assert isinstance(update.optimizer, torch.optim.Adam)
        assert group["lr"] == pytest.approx(lr)
        assert group["betas"] == (0.3, 0.999)


def test_gan_of_report_b() -> None:
    """100 numbers, four linear layers each, ReLU, tanh at the end, dropout 0.3 in the discriminator."""
    config = GanConfig(activation="relu", batch_norm=False, dropout=0.3, lr=1e-4, hidden_units=128)
    network = GAN.build(config, spec_of(GREY))
    generator = linear(100, 128) + linear(128, 256) + linear(256, 512) + linear(512, 784)
    discriminator = linear(784, 512) + linear(512, 256) + linear(256, 128) + linear(128, 1)
    assert parameters(network.generator) == generator
    assert parameters(network.discriminator) == discriminator
    kinds = [[type(module).__name__ for module in part.children()] for part in network.children()]
    assert kinds[0] == ["Linear", "ReLU"] * 3 + ["Linear", "Tanh", "Unflatten"]
    assert kinds[1] == ["Flatten", *["Linear", "ReLU", "Dropout"] * 3, "Linear"]
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} == {0.3}
    normed = GAN.build(config.model_copy(update={"batch_norm": True}), spec_of(GREY))
    assert parameters(normed.generator) == generator + 2 * (128 + 256 + 512)
    assert parameters(normed.discriminator) == discriminator


@pytest.mark.parametrize(
    ("height", "width", "first", "doublings"),
    [(28, 28, (7, 7), 2), (64, 64, (4, 4), 4), (12, 12, (3, 3), 2), (32, 64, (4, 8), 3), (20, 28, (5, 7), 2)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_dcgan_sizes(channels: int, height: int, width: int, first: tuple[int, int], doublings: int) -> None:
    config = DcganConfig(filters=2, latent_dim=3)
    spec = spec_of((channels, height, width))
    DCGAN.check(config, spec)
    assert start_size(spec) == (first, doublings)
    network = DCGAN.build(config, spec)
    sides = [(first[0] * 2**i, first[1] * 2**i) for i in range(doublings + 1)]
    filters = [2 * 2**i for i in reversed(range(doublings))]  # halved where the side doubles
    grown = maps(network.generator, torch.randn(2, 3), (nn.Unflatten, nn.ConvTranspose2d))
    expected = [(count, *side) for count, side in zip([*filters, channels], sides, strict=True)]
    assert grown == expected
    shrunk = maps(network.discriminator, torch.rand(2, channels, height, width), (nn.Conv2d,))
    assert shrunk == expected[-2::-1]


def test_dcgan_parameters() -> None:
    """Report C's size, 64×64 in colour. Batch norm has two numbers a map, and stands in for the bias before it."""
    network = DCGAN.build(DcganConfig(filters=64, latent_dim=100), spec_of(RGB))
    generator = 100 * 512 * 4 * 4 + 2 * 512
    generator += 16 * 512 * 256 + 2 * 256 + 16 * 256 * 128 + 2 * 128 + 16 * 128 * 64 + 2 * 64 + conv(4, 64, 3)
    discriminator = conv(4, 3, 64) + 16 * 64 * 128 + 2 * 128 + 16 * 128 * 256 + 2 * 256 + 16 * 256 * 512 + 2 * 512
    discriminator += linear(512 * 4 * 4, 1)
    assert parameters(network.generator) == generator
    assert parameters(network.discriminator) == discriminator
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            weights = array(module.weight)
            assert weights.std() == pytest.approx(0.02, rel=5 / math.sqrt(2 * weights.size))
            assert weights.mean() == pytest.approx(0, abs=5 * 0.02 / math.sqrt(weights.size))
        elif isinstance(module, nn.BatchNorm2d):
            assert float(module.weight.mean()) == pytest.approx(1, abs=0.02)
            assert float(module.weight.std()) == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize("size", [(27, 28), (28, 27), (30, 30), (8, 8), (36, 36), (28, 64), (11, 11)])
def test_sizes_that_the_dcgan_cannot_mirror(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]}.*28, 64") as caught:
        start(DCGAN, DcganConfig(), noise((1, *size)), Budget(1), seed=0)
    assert [problem.field for problem in caught.value.problems] == ["--image-size"]


@pytest.mark.parametrize("family", [GAN, DCGAN], ids=["gan", "dcgan"])
def test_one_validation_image_has_no_covariance(family: Family[Any]) -> None:
    with pytest.raises(UserError, match=r"got 1; .*two at least") as caught:
        start(family, family.Config(), noise((1, 12, 12), val=1), Budget(1), seed=0)
    assert [problem.field for problem in caught.value.problems] == ["--val-images"]


class Switched(nn.Module):
    """A generator whose samples vary by ``scale`` of what uniform noise does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, noise_BN: Tensor) -> Tensor:
        return self.scale * (2 * torch.rand(len(noise_BN), 1, 8, 8) - 1)


def test_a_generator_that_varied_and_then_does_not_has_collapsed() -> None:
    data, config = noise((1, 8, 8), train=100, val=100), GanConfig()
    generator = Switched()
    network = Adversaries(generator, nn.Linear(1, 1), 3)

    generator.scale = 0.0
    metrics = GAN.evaluate(config, network, data)  # it has not begun to vary: no collapse, but no good either
    assert metrics["spread"] == pytest.approx(0, abs=1e-3)
    assert metrics["features_trained"] == 1
    constant = metrics["frechet"]

    generator.scale = 1.0
    metrics = GAN.evaluate(config, network, data)
    assert metrics["spread"] == pytest.approx(1, abs=0.3)
    assert metrics["frechet"] < constant / 4
    assert float(network.most_spread) == pytest.approx(metrics["spread"])

    generator.scale = 0.2
    less = GAN.evaluate(config, network, data)["spread"]  # less than before is no collapse
    assert 0.01 < less < 0.5
    assert float(network.most_spread) == pytest.approx(metrics["spread"])

    generator.scale = 0.0
    with pytest.raises(TrainingFailedError, match="collapsed"):
        GAN.evaluate(config, network, data)
    # What it once could is kept with the weights, so that a run that goes on knows it.
    resumed = Adversaries(generator, nn.Linear(1, 1), 3)
    resumed.load_state_dict(network.state_dict())
    with pytest.raises(TrainingFailedError, match="collapsed"):
        GAN.evaluate(config, resumed, data)


def test_a_collapse_ends_the_run() -> None:
    config = GanConfig.model_validate(SMALL)
    training = start(GAN, config, noise((1, 8, 8), train=50, val=50), Budget(3), seed=0)
    records = fit(training)
    next(records)
    training.network.get_buffer("most_spread").fill_(0.5)
    with torch.no_grad():
        for parameter in training.network.get_submodule("generator").parameters():
            parameter.zero_()
    training.phases = [
        type(phase)(phase.name, [update for update in phase.updates if update.name == "d_loss"])
        for phase in training.phases
    ]
    with pytest.raises(TrainingFailedError, match="collapsed"):
        next(records)
    assert len(training.records) == 1


# --- Fréchet distance -------------------------------------------------------------------------------------------------


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


def test_feature_network_is_trained_once_and_kept(digits: DataOnDevice, cache: Path, trainings: list[int]) -> None:
    first, _ = feature_network(digits)
    (file,) = cache.glob("features/*.pt")
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
    digits: DataOnDevice, cache: Path, trainings: list[int], damage: Callable[[bytes], bytes]
) -> None:
    first, _ = feature_network(digits)
    (file,) = cache.glob("features/*.pt")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    again, trained = feature_network(digits)
    assert trained
    assert len(trainings) == 2
    assert equal(features(again), features(first))
    third, _ = feature_network(digits)
    assert len(trainings) == 2
    assert equal(features(third), features(first))


def test_a_cache_that_cannot_be_written(digits: DataOnDevice, cache: Path, trainings: list[int]) -> None:
    cache.write_text("a file where the folder should be")
    first, trained = feature_network(digits)
    again, _ = feature_network(digits)
    assert trained
    assert len(trainings) == 2
    assert equal(features(again), features(first))
    assert FrechetScore(digits).compare(lambda n: torch.rand(n, *GREY)).distance > 0


def test_features_do_not_depend_on_what_else_the_process_does(digits: DataOnDevice, cache: Path) -> None:
    first, _ = feature_network(digits)
    state = torch.get_rng_state()
    (file,) = cache.glob("features/*.pt")
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
    classes: list[str], cache: Path, trainings: list[int]
) -> None:
    data = noise((1, 8, 8), val=50, classes=classes or ["all"])
    data.spec = data.spec.model_copy(update={"class_names": tuple(classes)})
    network, trained = feature_network(data)
    assert not trained
    assert not trainings
    assert not cache.exists()
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


def test_a_gans_checkpoint_loads_and_samples(tmp_path: Path) -> None:
    config = GanConfig.model_validate(SMALL)
    training = start(GAN, config, noise((1, 8, 8)), Budget(1), seed=0)
    list(fit(training))
    save(tmp_path / "gan.pt", training, family="gan", resumable=False)
    trained = load(tmp_path / "gan.pt")
    network: Any = trained.network
    with torch.inference_mode():
        assert network.sample(3).shape == (3, 1, 8, 8)
    assert trained.spec.class_names == CLASSES
    assert float(network.most_spread) > 0
