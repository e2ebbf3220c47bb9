"""Convolutional variational autoencoder (Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014).

Two architectures: ``wide``, Guatto's (2022), two convolutions with kernel 5 and stride 1 and no padding (at 28×28 with
16 filters 12,800 features); ``strided``, Capettini's (2022), the convolutional autoencoder's encoder and decoder. Shape
suffixes: B batch, L latent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.conv_autoencoder import SMALLEST_SIDE
from models.datasets import DataSpec
from models.errors import UserError
from models.family import Batch, Family, Objective, Phase, Update
from models.layers import ACTIVATIONS, ActivationName, strided_decoder, strided_encoder, strided_sizes
from models.optimizers import OptimizerConfig, make_optimizer
from models.space import Choice, Float, Int

COLLAPSED_NATS = 0.01
"""A latent unit whose mean KL is below this says nothing of its image."""


class VaeConfig(OptimizerConfig):
    """Hyperparameters of the variational autoencoder."""

    architecture: Annotated[Literal["strided", "wide"], Choice("strided", "wide")] = Field(
        "strided", description="strided: kernel 3, stride 2, three layers; wide: kernel 5, stride 1, two layers"
    )
    filters: Annotated[int, Choice(4, 8, 16)] = Field(
        8, ge=1, le=256, description="filters of the first convolution; the next have twice as many each"
    )
    hidden_units: Annotated[int, Choice(32, 64, 128, 256, when={"architecture": ("strided",)})] = Field(
        64, ge=1, le=8192, description="units of the linear layer before and after the code (strided)"
    )
    latent_dim: Annotated[int, Int(2, 64, log=True)] = Field(16, ge=1, le=4096, description="size of the latent code")
    activation: Annotated[ActivationName, Choice("relu", "leaky_relu", "elu", "gelu", "silu")] = Field(
        "relu", description="non-linearity after every layer but the last of encoder and decoder"
    )
    likelihood: Literal["bernoulli", "gaussian"] = Field(
        "bernoulli",
        description="of a pixel; not searched, since bounds on different likelihoods cannot be compared",
    )
    sigma: Annotated[float, Float(0.05, 1.0, log=True, when={"likelihood": ("gaussian",)})] = Field(
        0.1, gt=0, le=10, description="standard deviation of a pixel under the Gaussian likelihood"
    )
    beta: Annotated[float, Float(0.1, 4.0, log=True)] = Field(
        1.0, ge=0, le=100, description="weight of the KL term in training; trials are ranked at 1 whatever it is"
    )
    warmup_epochs: Annotated[float, Choice(0.0, 1.0, 3.0)] = Field(
        0.0, ge=0, le=1000, description="epochs in which the KL term's weight rises from 0 to beta"
    )
    lr: Annotated[float, Float(1e-4, 1e-2, log=True)] = Field(1e-3, gt=0, le=10, description="learning rate")


class Vae(nn.Module):
    """The network; images of ``spec.shape``."""

    images_seen: Tensor

    def __init__(self, config: VaeConfig, spec: DataSpec) -> None:
        super().__init__()
        channels, size, act = spec.channels, (spec.height, spec.width), ACTIVATIONS[config.activation]
        self.latent_dim, self.train_images = config.latent_dim, spec.train_images
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.float64))
        nf, latent = config.filters, config.latent_dim
        if config.architecture == "strided":
            map_shape = (4 * nf, *strided_sizes(size)[-1])
            features, hidden = math.prod(map_shape), config.hidden_units
            self.encoder = nn.Sequential(
                strided_encoder(channels, nf, config.activation), nn.Flatten(), nn.Linear(features, hidden), act()
            )
            before: list[nn.Module] = [nn.Linear(latent, hidden), act(), nn.Linear(hidden, features), act()]
            after: list[nn.Module] = [strided_decoder(channels, nf, config.activation, size)]
        else:
            map_shape = (2 * nf, size[0] - 8, size[1] - 8)
            features = hidden = math.prod(map_shape)
            self.encoder = nn.Sequential(
                nn.Conv2d(channels, nf, 5), act(), nn.Conv2d(nf, 2 * nf, 5), act(), nn.Flatten()
            )
            before = [nn.Linear(latent, features), act()]
            after = [nn.ConvTranspose2d(2 * nf, nf, 5), act(), nn.ConvTranspose2d(nf, channels, 5)]
        self.to_mean, self.to_log_variance = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(*before, nn.Unflatten(1, map_shape), *after)

    def posterior(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), each (B, L)."""
        hidden = self.encoder(images_BCHW)
        # Cut off where exp() would leave float32: a trial then diverges visibly, by its loss.
        return self.to_mean(hidden), self.to_log_variance(hidden).clamp(-30, 20)

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] → posterior means (B, L)."""
        return self.posterior(images_BCHW)[0]

    def decode_logits(self, codes_BL: Tensor) -> Tensor:
        """Codes (B, L) → logits of the pixels (B, C, H, W)."""
        logits: Tensor = self.decoder(codes_BL)
        return logits

    def decode(self, codes_BL: Tensor) -> Tensor:
        """Codes (B, L) → mean images (B, C, H, W) in [0, 1]."""
        return self.decode_logits(codes_BL).sigmoid()

    def sample(self, count: int) -> Tensor:
        """Mean images of ``count`` codes from the prior N(0, I), drawn with torch's global generator."""
        return self.decode(torch.randn(count, self.latent_dim, device=self.to_mean.weight.device))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Reconstructions through the posterior means."""
        return self.decode(self.encode(images_BCHW))


class VaeFamily(Family[VaeConfig]):
    """Ranked by the evidence lower bound at β = 1."""

    name = "vae"
    title = "convolutional variational autoencoder"
    Config = VaeConfig
    Network = Vae
    objective = Objective("val_elbo", "max")

    def check(self, config: VaeConfig, spec: DataSpec) -> None:
        if min(spec.height, spec.width) < SMALLEST_SIDE:
            size = f"{spec.height}x{spec.width}"
            raise UserError.of("--image-size", size, f"{self.name} needs at least {SMALLEST_SIDE} pixels a side")

    def build(self, config: VaeConfig, spec: DataSpec) -> Vae:
        return Vae(config, spec)

    def phases(self, config: VaeConfig, network: nn.Module) -> Sequence[Phase]:
        assert isinstance(network, Vae)

        def loss(batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            epochs = network.images_seen / network.train_images
            risen = epochs / config.warmup_epochs if config.warmup_epochs else torch.ones_like(epochs)
            network.images_seen += len(batch.labels)
            nll_B, kl_BL = bound_terms(network, config, batch.images)
            nll, kl = nll_B.mean(), kl_BL.sum(1).mean()
            # Per pixel, so that a learning rate means the same at every image size.
            beta = config.beta * risen.clamp(max=1)
            return (nll + beta * kl).float() / batch.images[0].numel(), {
                "elbo": -(nll + kl).detach(),
                "kl": kl.detach(),
            }

        return [Phase("bound", [Update(make_optimizer(config, network.parameters()), loss)])]

    def measure(self, config: VaeConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """In nats an image, with one code drawn from the posterior: ``elbo`` at β = 1, ``reconstruction``, ``kl``.

        Also ``mse`` through the posterior mean, and the KL of each latent unit.
        """
        assert isinstance(network, Vae)
        nll_B, kl_BL = bound_terms(network, config, batch.images)
        return {
            "elbo": -nll_B - kl_BL.sum(1),
            "reconstruction": nll_B,
            "kl": kl_BL.sum(1),
            "mse": torch.square(network(batch.images) - batch.images).flatten(1).mean(1),
            "unit_kl": kl_BL,
        }

    def summarise(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The means; for the units' KL ``collapsed``, the share of them below 0.01 nats."""
        collapsed = (means["unit_kl"] < COLLAPSED_NATS).double().mean()
        return {**{k: float(v) for k, v in means.items() if k != "unit_kl"}, "collapsed": float(collapsed)}


def bound_terms(network: Vae, config: VaeConfig, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """In nats: -log p(x | z) of each image (B,) for one z ~ q(z | x), and KL(q(z | x) ‖ N(0, I)) by unit (B, L)."""
    mean_BL, log_variance_BL = network.posterior(images_BCHW)
    codes_BL = mean_BL + torch.exp(0.5 * log_variance_BL) * torch.randn_like(mean_BL)
    logits = network.decode_logits(codes_BL)
    if config.likelihood == "bernoulli":
        # Grey values count as probabilities, as is usual; the constant that would make it a density is left out.
        nll = nn.functional.binary_cross_entropy_with_logits(logits, images_BCHW, reduction="none")
    else:
        scaled = (images_BCHW - logits.sigmoid()) / config.sigma
        nll = 0.5 * torch.square(scaled) + math.log(config.sigma) + 0.5 * math.log(2 * math.pi)
    kl_BL = 0.5 * (torch.square(mean_BL) + log_variance_BL.exp() - 1 - log_variance_BL)
    return nll.flatten(1).sum(1), kl_BL
