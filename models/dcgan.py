"""Deep convolutional GAN (Radford, Metz and Chintala, ICLR 2016), as Giuliani (2022) trained it on 64×64 kanji.

Sides that can be halved at least twice down to 8 pixels or fewer: 28 → 14 → 7, 64 → 32 → 16 → 8 → 4. Grey or RGB.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import nn

from models.datasets import DataSpec
from models.errors import UserError
from models.gan import AdversarialConfig, AdversarialFamily, Adversaries
from models.space import Choice, Float

WIDEST_START = 8


class DcganConfig(AdversarialConfig):
    """Hyperparameters of the convolutional GAN."""

    filters: Annotated[int, Choice(16, 32, 64)] = Field(
        32, ge=1, le=256, description="nf: maps next to the image; every halving of the side doubles them"
    )
    dropout: Annotated[float, Float(0.0, 0.5, step=0.1)] = Field(
        0.0, ge=0, lt=1, description="share of the discriminator's maps dropped in training"
    )


class DcganFamily(AdversarialFamily[DcganConfig]):
    """Ranked by the Fréchet distance, as every adversarial family."""

    name = "dcgan"
    title = "deep convolutional generative adversarial network"
    Config = DcganConfig

    def check(self, config: DcganConfig, spec: DataSpec) -> None:
        super().check(config, spec)
        if start_size(spec) is None:
            raise UserError.of(
                "--image-size",
                f"{spec.height}x{spec.width}",
                f"{self.name} needs sides from 12 pixels that halve twice or more, to {WIDEST_START} or fewer: 28, 64",
            )

    def build(self, config: DcganConfig, spec: DataSpec) -> Adversaries:
        found = start_size(spec)
        assert found is not None, "check() comes first"
        (height, width), halvings = found
        widths = [config.filters * 2**i for i in range(halvings)]  # nearest the image first

        generator: list[nn.Module] = [
            nn.Linear(config.latent_dim, widths[-1] * height * width, bias=False),
            nn.Unflatten(1, (widths[-1], height, width)),
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(),
        ]
        for inner, outer in pairwise(reversed(widths)):
            generator += [nn.ConvTranspose2d(inner, outer, 4, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
        generator += [nn.ConvTranspose2d(widths[0], spec.channels, 4, 2, 1), nn.Tanh()]

        discriminator: list[nn.Module] = [nn.Conv2d(spec.channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for inner, outer in pairwise(widths):
            discriminator += [nn.Conv2d(inner, outer, 4, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.LeakyReLU(0.2)]
            discriminator += [nn.Dropout2d(config.dropout)] if config.dropout else []
        discriminator += [nn.Flatten(), nn.Linear(widths[-1] * height * width, 1)]

        network = Adversaries(nn.Sequential(*generator), nn.Sequential(*discriminator), config.latent_dim)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
        return network


def start_size(spec: DataSpec) -> tuple[tuple[int, int], int] | None:
    """(height, width) of the generator's first maps, and how often they double; ``None`` where no such size exists."""
    height, width, halvings = spec.height, spec.width, 0
    while min(height, width) > 4 and height % 2 == 0 and width % 2 == 0:
        height, width, halvings = height // 2, width // 2, halvings + 1
    return ((height, width), halvings) if halvings >= 2 and max(height, width) <= WIDEST_START else None
