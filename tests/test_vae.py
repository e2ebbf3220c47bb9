"""Variational autoencoders against torch.distributions, known evidences and sums done by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from arithmetic import (
    GREY,
    array,
    batch_of,
    conv,
    linear,
    logistic,
    loss_of,
    maps,
    noise,
    only_update,
    parameters,
    spec_of,
)
from torch import Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from models.datasets import DataSpec
from models.family import Batch
from models.training import Budget, fit, start, validate
from models.vae import Vae, VaeConfig, VaeFamily, bound_terms

pytestmark = pytest.mark.usefixtures("seeded")


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
