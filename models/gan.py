"""Generative adversarial networks (Goodfellow et al., "Generative Adversarial Nets", NIPS 2014), fully connected.

Capettini's (2022): generator and discriminator of four linear layers, ReLU, dropout 0.3 in the discriminator, images in
[-1, 1] inside. What both GAN families share is here too: the losses, the two updates of a batch, the objective. Shape
suffixes: B batch, N noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.datasets import DataSpec
from models.errors import TrainingFailedError, UserError
from models.family import Batch, ConfigT, Family, FamilyConfig, Objective, Phase, Update
from models.frechet import FrechetScore
from models.space import Choice, Float
from models.training import DataOnDevice

LEARNT_SPREAD, LEAST_SPREAD = 0.1, 0.01
"""A generator whose samples once varied by the first part of what images do, and now by less than the second, has
collapsed to one picture."""


class AdversarialConfig(FamilyConfig):
    """What both GAN families have."""

    latent_dim: Annotated[int, Choice(32, 64, 100, 128)] = Field(
        100, ge=1, le=4096, description="size of the noise, drawn from N(0, I)"
    )
    loss: Annotated[Literal["non_saturating", "minimax", "hinge"], Choice("non_saturating", "hinge")] = Field(
        "non_saturating",
        description="non_saturating: BCE for both, the generator's targets flipped; minimax: the original game; hinge",
    )
    label_smoothing: Annotated[float, Choice(0.0, 0.1, 0.2, when={"loss": ("non_saturating", "minimax")})] = Field(
        0.0, ge=0, lt=0.5, description="the discriminator's target for real images is 1 minus this"
    )
    lr: Annotated[float, Float(5e-5, 2e-3, log=True)] = Field(
        2e-4, gt=0, le=1, description="Adam's rate, of both networks"
    )
    lr_ratio: Annotated[float, Float(0.25, 4.0, log=True)] = Field(
        1.0, gt=0, le=100, description="the discriminator's rate over the generator's"
    )
    beta1: Annotated[float, Choice(0.0, 0.5, 0.9)] = Field(0.5, ge=0, lt=1, description="Adam's first decay rate")


class GanConfig(AdversarialConfig):
    """Hyperparameters of the fully connected GAN."""

    lr: Annotated[float, Float(5e-5, 5e-3, log=True)] = Field(
        1e-3, gt=0, le=1, description="Adam's rate, of both networks (the report's: 1e-4)"
    )
    hidden_units: Annotated[int, Choice(64, 128, 256)] = Field(
        128,
        ge=1,
        le=8192,
        description="h: the generator's layers have h, 2h and 4h units, the discriminator's 4h, 2h, h",
    )
    activation: Annotated[Literal["relu", "leaky_relu"], Choice("relu", "leaky_relu")] = Field(
        "leaky_relu", description="non-linearity of both networks' hidden layers (the report's: relu)"
    )
    batch_norm: Annotated[bool, Choice(False, True)] = Field(
        True, description="batch normalisation of the generator's hidden layers (the report's: false)"
    )
    dropout: Annotated[float, Float(0.0, 0.5, step=0.1)] = Field(
        0.3, ge=0, lt=1, description="share of the discriminator's units dropped in training"
    )


class Adversaries(nn.Module):
    """A generator and a discriminator; inside, images are in [-1, 1]."""

    most_spread: Tensor

    def __init__(self, generator: nn.Module, discriminator: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.generator, self.discriminator, self.latent_dim = generator, discriminator, latent_dim
        self.register_buffer("most_spread", torch.zeros(()))
        """The most that samples ever varied: a generator begins with nearly equal ones, which is no collapse."""

    def noise(self, count: int) -> Tensor:
        """(count, N) from N(0, I), drawn with torch's global generator."""
        return torch.randn(count, self.latent_dim, device=next(self.parameters()).device)

    def decode(self, noise_BN: Tensor) -> Tensor:
        """Noise → images (B, C, H, W) in [0, 1]."""
        images: Tensor = self.generator(noise_BN)
        return (images + 1) / 2

    def sample(self, count: int) -> Tensor:
        """``count`` images in [0, 1]."""
        return self.decode(self.noise(count))

    def forward(self, noise_BN: Tensor) -> Tensor:
        return self.decode(noise_BN)


class AdversarialFamily(Family[ConfigT]):
    """A family that trains a generator against a discriminator, ranked by the Fréchet distance of its samples."""

    Network = Adversaries
    objective = Objective("val_frechet", "min")

    def check(self, config: ConfigT, spec: DataSpec) -> None:
        if spec.val_images < 2:
            raise UserError.of("--val-images", spec.val_images, f"{self.name} needs two at least, for a covariance")

    def phases(self, config: ConfigT, network: nn.Module) -> Sequence[Phase]:
        assert isinstance(config, AdversarialConfig)
        assert isinstance(network, Adversaries)
        generator, discriminator, betas = network.generator, network.discriminator, (config.beta1, 0.999)
        g_optimizer = torch.optim.Adam(generator.parameters(), config.lr, betas, fused=True)
        d_optimizer = torch.optim.Adam(discriminator.parameters(), config.lr * config.lr_ratio, betas, fused=True)

        def d_loss(batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            with torch.no_grad():
                fakes = generator(network.noise(len(batch.labels)))
            real, fake = discriminator(batch.images * 2 - 1), discriminator(fakes)
            loss = discriminator_loss(config, real, fake)
            return loss, {"d_real": real.detach().sigmoid().mean(), "d_fake": fake.detach().sigmoid().mean()}

        def g_loss(batch: Batch) -> Tensor:
            return generator_loss(config, discriminator(generator(network.noise(len(batch.labels)))))

        return [Phase("game", [Update(d_optimizer, d_loss, "d_loss"), Update(g_optimizer, g_loss, "g_loss")])]

    def evaluate(self, config: ConfigT, network: nn.Module, data: DataOnDevice) -> dict[str, float]:
        """``frechet``: squared Fréchet distance in the features of :mod:`models.frechet`; ``spread`` of the samples.

        Raises:
            TrainingFailedError: all samples look alike.
        """
        assert isinstance(network, Adversaries)
        score = FrechetScore.of(data).compare(network.sample)
        if score.spread < LEAST_SPREAD and float(network.most_spread) > LEARNT_SPREAD:
            raise TrainingFailedError(
                f"the generator has collapsed: its samples vary {score.spread:.2%} as much as images do"
            )
        network.most_spread.fill_(max(float(network.most_spread), score.spread))
        return {
            "frechet": score.distance,
            "spread": score.spread,
            "features_trained": float(score.trained),
        }


class GanFamily(AdversarialFamily[GanConfig]):
    """Linear layers on both sides."""

    name = "gan"
    title = "fully connected generative adversarial network"
    Config = GanConfig

    def build(self, config: GanConfig, spec: DataSpec) -> Adversaries:
        h, pixels = config.hidden_units, spec.channels * spec.height * spec.width

        def hidden(widths: Sequence[int], *, batch_norm: bool = False, dropout: float = 0.0) -> list[nn.Module]:
            built: list[nn.Module] = []
            for inner, outer in pairwise(widths):
                built += [nn.Linear(inner, outer)]
                built += [nn.BatchNorm1d(outer)] if batch_norm else []
                built += [nn.LeakyReLU(0.2) if config.activation == "leaky_relu" else nn.ReLU()]
                built += [nn.Dropout(dropout)] if dropout else []
            return built

        generator = nn.Sequential(
            *hidden((config.latent_dim, h, 2 * h, 4 * h), batch_norm=config.batch_norm),
            nn.Linear(4 * h, pixels),
            nn.Tanh(),
            nn.Unflatten(1, spec.shape),
        )
        discriminator = nn.Sequential(
            nn.Flatten(), *hidden((pixels, 4 * h, 2 * h, h), dropout=config.dropout), nn.Linear(h, 1)
        )
        return Adversaries(generator, discriminator, config.latent_dim)


def discriminator_loss(config: AdversarialConfig, real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the discriminator's logits (B, 1) on real images and on samples.

    BCE as in Goodfellow et al. with one-sided label smoothing (Salimans et al., NIPS 2016), or the hinge loss (Lim and
    Ye, "Geometric GAN", 2017).
    """
    if config.loss == "hinge":
        return (1 - real).relu().mean() + (1 + fake).relu().mean()
    bce = nn.functional.binary_cross_entropy_with_logits
    return bce(real, torch.full_like(real, 1 - config.label_smoothing)) + bce(fake, torch.zeros_like(fake))


def generator_loss(config: AdversarialConfig, fake: Tensor) -> Tensor:
    """Loss of the generator, from the discriminator's logits (B, 1) on its samples."""
    if config.loss == "hinge":
        return -fake.mean()
    if config.loss == "minimax":
        return nn.functional.logsigmoid(-fake).mean()  # log(1 - D(G(z))), which the generator makes small
    return nn.functional.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
