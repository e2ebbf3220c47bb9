"""Stacked autoencoder classifier: greedy layer-wise pre-training, then fine-tuning of the whole.

Cedergren, Törnégren and Xiong (2019), after Bengio et al., "Greedy Layer-Wise Training of Deep Networks" (NIPS 2006):
each hidden layer is first trained to encode what the layers below it give, so that a decoder of its own can restore
that; then a linear classifier on top is trained together with all layers. Shape suffixes: B batch, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.classifiers import cross_entropy, measure_classification, require_classes
from models.datasets import DataSpec
from models.family import Batch, Family, Objective, Phase, Update
from models.layers import ACTIVATIONS, ActivationName
from models.optimizers import OptimizerConfig, make_optimizer
from models.space import Choice, Float, Int


class StackedAutoencoderConfig(OptimizerConfig):
    """Hyperparameters of the stacked autoencoder; the defaults are the report's."""

    hidden_layers: Annotated[int, Int(0, 3)] = Field(
        2, ge=0, le=8, description="hidden layers; 0 is a linear classifier"
    )
    hidden_units: Annotated[int, Choice(128, 256, 512)] = Field(
        256, ge=1, le=65536, description="units of every hidden layer"
    )
    activation: Annotated[ActivationName, Choice("relu", "sigmoid")] = Field(
        "relu", description="non-linearity of the hidden layers"
    )
    batch_norm: Annotated[bool, Choice(False, True)] = Field(True, description="batch normalisation of hidden layers")
    optimizer: Annotated[Literal["sgd", "adam", "adamw", "adamax"], Choice("sgd", "adam", "adamw")] = Field(
        "sgd", description="update rule, in pre-training and fine-tuning"
    )
    lr: Annotated[float, Float(1e-4, 3e-1, log=True)] = Field(0.1, gt=0, le=10, description="learning rate")
    init_std: float = Field(0.05, gt=0, le=1, description="weights begin as N(0, init_std²), biases at 0")
    pretrain_share: Annotated[float, Choice(0.0, 0.25, 0.5)] = Field(
        0.25, ge=0, le=0.9, description="part of the budget for pre-training, the same for each layer; 0 for none"
    )
    pretrain_patience: int = Field(
        1, ge=1, le=1000, description="whole epochs without improvement after which a layer's pre-training ends"
    )
    pretrain_tolerance: float = Field(1e-6, ge=0, le=1, description="what counts as an improvement of its loss")


class StackedAutoencoder(nn.Module):
    """The network; ``decoders`` serve pre-training only."""

    def __init__(self, config: StackedAutoencoderConfig, spec: DataSpec) -> None:
        super().__init__()
        width = spec.channels * spec.height * spec.width
        self.layers, self.decoders = nn.ModuleList(), nn.ModuleList()
        for _ in range(config.hidden_layers):
            norm = [nn.BatchNorm1d(config.hidden_units)] if config.batch_norm else []
            self.layers.append(
                nn.Sequential(nn.Linear(width, config.hidden_units), *norm, ACTIVATIONS[config.activation]())
            )
            self.decoders.append(nn.Linear(config.hidden_units, width))
            width = config.hidden_units
        self.head = nn.Linear(width, len(spec.class_names))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, config.init_std)
                nn.init.zeros_(module.bias)

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] → activations of the last hidden layer (B, F)."""
        hidden = images_BCHW.flatten(1)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden

    def classify(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, classes)."""
        logits: Tensor = self.head(self.encode(images_BCHW))
        return logits

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.classify(images_BCHW)


class StackedAutoencoderFamily(Family[StackedAutoencoderConfig]):
    """Pre-training, a phase a layer, then fine-tuning; ranked once that has begun."""

    name = "stacked_autoencoder"
    title = "classifier of greedily pre-trained layers"
    Config = StackedAutoencoderConfig
    Network = StackedAutoencoder
    objective = Objective("val_accuracy", "max")

    def check(self, config: StackedAutoencoderConfig, spec: DataSpec) -> None:
        require_classes(self.name, spec)

    def build(self, config: StackedAutoencoderConfig, spec: DataSpec) -> StackedAutoencoder:
        return StackedAutoencoder(config, spec)

    def phases(self, config: StackedAutoencoderConfig, network: nn.Module) -> Sequence[Phase]:
        assert isinstance(network, StackedAutoencoder)
        phases = []
        depth = len(network.layers) if config.pretrain_share > 0 else 0
        for i in range(depth):
            parameters = [*network.layers[i].parameters(), *network.decoders[i].parameters()]
            update = Update(make_optimizer(config, parameters), reconstruction(network, i), f"layer{i + 1}_loss")
            phases.append(
                Phase(
                    f"layer {i + 1}",
                    [update],
                    share=config.pretrain_share / depth,
                    # An accuracy of a classifier that has not begun to learn would only get deep networks pruned.
                    ranks=False,
                    patience=config.pretrain_patience,
                    tolerance=config.pretrain_tolerance,
                )
            )
        share = 1 - config.pretrain_share if depth else 1.0
        trained = [*network.layers.parameters(), *network.head.parameters()]
        update = Update(make_optimizer(config, trained), cross_entropy(network))
        return [*phases, Phase("fine-tuning", [update], share=share)]

    def measure(self, config: StackedAutoencoderConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return measure_classification(network, batch)


def reconstruction(network: StackedAutoencoder, index: int) -> Callable[[Batch], Tensor]:
    """Squared error with which layer ``index`` and its decoder restore what the layers below give."""

    def loss(batch: Batch) -> Tensor:
        given = batch.images.flatten(1)
        with torch.no_grad():
            for layer in network.layers[:index]:
                given = layer.eval()(given)  # finished: its batch statistics stay as they are
        restored = network.decoders[index](network.layers[index](given))
        if index == 0:
            restored = restored.sigmoid()  # pixels; activations have no upper end
        return nn.functional.mse_loss(restored, given)

    return loss
