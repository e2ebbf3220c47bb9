"""Dense autoencoder: one or more hidden layers, under- or over-complete, regularised or denoising.

The one-layer autoencoders of Cedergren, Törnégren and Xiong (2019): 784 pixels, 128 to 1024 hidden units, ReLU or
sigmoid, L1 or L2 activity regularisation, Gaussian input noise. Shape suffixes: B batch, F features (C·H·W), L code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.datasets import DataSpec
from models.family import Batch, Family, Objective, Phase, Update
from models.layers import ACTIVATIONS, ActivationName
from models.optimizers import OptimizerConfig, make_optimizer
from models.space import Choice, Float, Int


class DenseAutoencoderConfig(OptimizerConfig):
    """Hyperparameters of the dense autoencoder."""

    hidden_units: Annotated[int, Choice(64, 128, 256, 512, 1024)] = Field(
        128, ge=1, le=65536, description="units of every hidden layer; the last of them is the code"
    )
    hidden_layers: Annotated[int, Int(1, 3)] = Field(
        1, ge=1, le=8, description="hidden layers from image to code; the decoder mirrors them"
    )
    activation: Annotated[ActivationName, Choice("relu", "sigmoid", "tanh", "leaky_relu")] = Field(
        "relu", description="non-linearity of the hidden layers"
    )
    output: Literal["sigmoid", "linear"] = Field("sigmoid", description="last layer; sigmoid keeps pixels in [0, 1]")
    tied_weights: Annotated[bool, Choice(False, True)] = Field(
        False, description="decoder weights are the encoder's, transposed"
    )
    activity_penalty: Annotated[Literal["none", "l1", "l2"], Choice("none", "l1", "l2")] = Field(
        "none", description="penalty on the code's activations, summed over units (as Keras' activity regularisation)"
    )
    activity_weight: Annotated[float, Float(1e-8, 1e-4, log=True, when={"activity_penalty": ("l1", "l2")})] = Field(
        1e-7, ge=0, le=1, description="weight λ of the activity penalty"
    )
    noise: Annotated[Literal["none", "gaussian", "masking"], Choice("none", "gaussian", "masking")] = Field(
        "none", description="noise on the input in training, which the network learns to take away"
    )
    noise_level: Annotated[float, Float(0.05, 0.5, when={"noise": ("gaussian", "masking")})] = Field(
        0.1, ge=0, le=1, description="standard deviation of Gaussian noise, or share of pixels set to 0"
    )


class DenseAutoencoder(nn.Module):
    """The network; ``shape`` is (C, H, W) of its images."""

    def __init__(self, config: DenseAutoencoderConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        widths = [shape[0] * shape[1] * shape[2], *[config.hidden_units] * config.hidden_layers]
        self.encoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        backwards = list(pairwise(reversed(widths)))
        self.decoder = nn.ModuleList([] if config.tied_weights else [nn.Linear(a, b) for a, b in backwards])
        self.biases = nn.ParameterList([torch.zeros(b) for _, b in backwards] if config.tied_weights else [])
        self.activation = ACTIVATIONS[config.activation]()

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] → codes (B, L), the activations of the last hidden layer."""
        hidden = images_BCHW.flatten(1)
        for layer in self.encoder:
            hidden = self.activation(layer(hidden))
        return hidden

    def decode(self, codes_BL: Tensor) -> Tensor:
        """Codes (B, L) → images (B, C, H, W)."""
        hidden = codes_BL
        for i in range(len(self.encoder)):
            if self.config.tied_weights:
                mirrored = self.encoder[len(self.encoder) - 1 - i]
                assert isinstance(mirrored, nn.Linear)
                hidden = nn.functional.linear(hidden, mirrored.weight.T, self.biases[i])
            else:
                hidden = self.decoder[i](hidden)
            if i < len(self.encoder) - 1:
                hidden = self.activation(hidden)
        if self.config.output == "sigmoid":
            hidden = hidden.sigmoid()
        return hidden.reshape(-1, *self.shape)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Reconstructions, same shape as the images."""
        return self.decode(self.encode(images_BCHW))


class DenseAutoencoderFamily(Family[DenseAutoencoderConfig]):
    """Ranked by the squared error on clean images, whatever penalty or noise it trains with."""

    name = "dense_autoencoder"
    title = "dense autoencoder, under- or over-complete, regularised or denoising"
    Config = DenseAutoencoderConfig
    Network = DenseAutoencoder
    objective = Objective("val_mse", "min")

    def build(self, config: DenseAutoencoderConfig, spec: DataSpec) -> DenseAutoencoder:
        return DenseAutoencoder(config, spec.shape)

    def phases(self, config: DenseAutoencoderConfig, network: nn.Module) -> Sequence[Phase]:
        assert isinstance(network, DenseAutoencoder)

        def loss(batch: Batch) -> Tensor:
            codes = network.encode(add_noise(batch.images, config))
            return nn.functional.mse_loss(network.decode(codes), batch.images) + activity_penalty(codes, config)

        return [Phase("reconstruction", [Update(make_optimizer(config, network.parameters()), loss)])]

    def measure(self, config: DenseAutoencoderConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """``mse``: squared error per pixel of the clean image; ``sparseness`` of the code, see :func:`sparseness`."""
        assert isinstance(network, DenseAutoencoder)
        codes = network.encode(batch.images)
        errors = torch.square(network.decode(codes) - batch.images).flatten(1)
        return {"mse": errors.mean(1), "sparseness": sparseness(codes)}


def sparseness(codes_BL: Tensor) -> Tensor:
    """Hoyer's sparseness of each code (B,): (√L - ‖h‖₁/‖h‖₂) / (√L - 1), 0 for equal activations, 1 for a single one.

    From Hoyer, "Non-negative Matrix Factorization with Sparseness Constraints" (JMLR 2004). A code of zeros counts as
    1, and so does one of a single unit, for which the formula says nothing.
    """
    root, norm = codes_BL.shape[1] ** 0.5, codes_BL.norm(dim=1)
    if root == 1:
        return torch.ones_like(norm)
    ratio = codes_BL.abs().sum(1) / norm.clamp(min=1e-12)
    return torch.where(norm > 1e-12, (root - ratio) / (root - 1), torch.ones_like(norm))


def add_noise(images: Tensor, config: DenseAutoencoderConfig) -> Tensor:
    """Images with the noise that ``config`` names; Gaussian noise is not cut off, as in the report."""
    if config.noise == "gaussian":
        return images + config.noise_level * torch.randn_like(images)
    if config.noise == "masking":
        return images * (torch.rand_like(images) >= config.noise_level)
    return images


def activity_penalty(codes_BL: Tensor, config: DenseAutoencoderConfig) -> Tensor:
    """λ·Σ|h| or λ·Σh² over units, averaged over the batch: Keras' ``activity_regularizer``, which the report used."""
    if config.activity_penalty == "none":
        return codes_BL.new_zeros(())
    activity = codes_BL.abs() if config.activity_penalty == "l1" else codes_BL.square()
    return config.activity_weight * activity.sum(1).mean()
