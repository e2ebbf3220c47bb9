"""Convolutional autoencoder of the lab reports of Guatto, Capettini, Giuliani (2022) and Bottaro (2020).

Encoder: three convolutions with nf, 2nf and 4nf filters (kernel 3, stride 2, padding 1, 1, 0), a hidden linear layer
and the latent layer; the decoder mirrors it. At 28×28 with nf = 8 this is 28 → 14 → 7 → 3 pixels and 288 features,
Guatto's network. Shape suffixes: B batch, C channels, H and W height and width, L latent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.datasets import DataSpec
from models.errors import UserError
from models.family import Batch, Family, Objective, Phase, Update
from models.layers import ACTIVATIONS, ActivationName, strided_decoder, strided_encoder, strided_sizes
from models.optimizers import OptimizerConfig, make_optimizer
from models.space import Choice, Float, Int

SMALLEST_SIDE = 9
"""Below it the third convolution has no 3×3 window left."""


class ConvAutoencoderConfig(OptimizerConfig):
    """Hyperparameters of the convolutional autoencoder."""

    filters: Annotated[int, Choice(4, 8, 16)] = Field(
        16, ge=1, le=256, description="nf: filters of the first convolution; the next have 2nf and 4nf"
    )
    hidden_units: Annotated[int, Choice(32, 64, 128, 256)] = Field(
        64, ge=1, le=8192, description="units of the linear layer between convolutions and latent code"
    )
    latent_dim: Annotated[int, Int(2, 64, log=True)] = Field(10, ge=1, le=4096, description="size of the latent code")
    activation: Annotated[ActivationName, Choice("relu", "leaky_relu", "elu", "gelu", "silu")] = Field(
        "relu", description="non-linearity after every layer but the last of encoder and decoder"
    )
    batch_norm: Annotated[bool, Choice(False, True)] = Field(
        False, description="batch normalisation after every convolution"
    )
    dropout: Annotated[float, Float(0.0, 0.5, step=0.05)] = Field(
        0.0, ge=0, lt=1, description="share of the hidden units dropped in training"
    )
    output: Literal["sigmoid", "linear"] = Field(
        "sigmoid", description="last layer of the decoder; sigmoid keeps pixels in [0, 1]"
    )


class ConvAutoencoder(nn.Module):
    """The network; ``shape`` is (C, H, W) of its images, with sides of at least 9 pixels."""

    def __init__(self, config: ConvAutoencoderConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, size, act = shape[0], shape[1:], ACTIVATIONS[config.activation]
        self.map_shape = (4 * config.filters, *strided_sizes(size)[-1])
        features = math.prod(self.map_shape)
        self.convs = strided_encoder(channels, config.filters, config.activation, config.batch_norm)
        self.to_code = nn.Sequential(
            nn.Linear(features, config.hidden_units),
            act(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_units, config.latent_dim),
        )
        self.from_code = nn.Sequential(
            nn.Linear(config.latent_dim, config.hidden_units),
            act(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_units, features),
            act(),
        )
        self.deconvs = strided_decoder(channels, config.filters, config.activation, size, config.batch_norm)
        self.last = nn.Sigmoid() if config.output == "sigmoid" else nn.Identity()

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] → codes (B, L)."""
        codes: Tensor = self.to_code(self.convs(images_BCHW).flatten(1))
        return codes

    def decode(self, codes_BL: Tensor) -> Tensor:
        """Codes (B, L) → images (B, C, H, W)."""
        images: Tensor = self.last(self.deconvs(self.from_code(codes_BL).unflatten(1, self.map_shape)))
        return images

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Reconstructions, same shape as the images."""
        return self.decode(self.encode(images_BCHW))


class ConvAutoencoderFamily(Family[ConvAutoencoderConfig]):
    """The convolutional autoencoder as a family, ranked by its squared error per pixel."""

    name = "conv_autoencoder"
    title = "convolutional autoencoder, three strided convolutions and a latent code"
    Config = ConvAutoencoderConfig
    Network = ConvAutoencoder
    objective = Objective("val_mse", "min")

    def check(self, config: ConvAutoencoderConfig, spec: DataSpec) -> None:
        if min(spec.height, spec.width) < SMALLEST_SIDE:
            size = f"{spec.height}x{spec.width}"
            raise UserError.of("--image-size", size, f"{self.name} needs at least {SMALLEST_SIDE} pixels a side")

    def build(self, config: ConvAutoencoderConfig, spec: DataSpec) -> ConvAutoencoder:
        return ConvAutoencoder(config, spec.shape)

    def phases(self, config: ConvAutoencoderConfig, network: nn.Module) -> Sequence[Phase]:
        def loss(batch: Batch) -> Tensor:
            return nn.functional.mse_loss(network(batch.images), batch.images)

        return [Phase("reconstruction", [Update(make_optimizer(config, network.parameters()), loss)])]

    def measure(self, config: ConvAutoencoderConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """``mse``: squared error per pixel in [0, 1]."""
        return {"mse": torch.square(network(batch.images) - batch.images).flatten(1).mean(1)}
