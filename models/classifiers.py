"""Plain classifiers: the networks that fine-tuned autoencoders are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from models.datasets import DataSpec
from models.errors import UserError
from models.family import Batch, ConfigT, Family, Objective, Phase, Update
from models.layers import ACTIVATIONS, ActivationName
from models.optimizers import OptimizerConfig, make_optimizer
from models.space import Choice, Float, Int

SMALLEST_CNN_SIDE = 4
"""Two poolings by 2 need it."""


class ClassifierConfig(OptimizerConfig):
    """What both classifiers have."""

    hidden_units: Annotated[int, Choice(64, 128, 256, 512)] = Field(
        128, ge=1, le=65536, description="units of a hidden linear layer"
    )
    activation: Annotated[ActivationName, Choice("relu", "leaky_relu", "gelu")] = Field(
        "relu", description="non-linearity after every layer but the last"
    )
    batch_norm: Annotated[bool, Choice(False, True)] = Field(False, description="batch normalisation of hidden layers")
    dropout: Annotated[float, Float(0.0, 0.5, step=0.05)] = Field(
        0.0, ge=0, lt=1, description="share of the hidden units dropped in training"
    )


class MlpClassifierConfig(ClassifierConfig):
    """Hyperparameters of the multilayer perceptron."""

    hidden_layers: Annotated[int, Int(1, 3)] = Field(2, ge=0, le=8, description="hidden layers")


class CnnClassifierConfig(ClassifierConfig):
    """Hyperparameters of the convolutional classifier."""

    filters: Annotated[int, Choice(8, 16, 32)] = Field(
        16, ge=1, le=512, description="filters of the first convolution; the second has twice as many"
    )


class Classifier(nn.Module):
    """``features`` then ``head``; images in [0, 1] → logits."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def classify(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, classes)."""
        logits: Tensor = self.head(self.features(images_BCHW).flatten(1))
        return logits

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.classify(images_BCHW)


class ClassifierFamily(Family[ConfigT]):
    """What families share that train ``classify`` with cross-entropy."""

    Network = Classifier
    objective = Objective("val_accuracy", "max")

    def check(self, config: ConfigT, spec: DataSpec) -> None:
        require_classes(self.name, spec)

    def phases(self, config: ConfigT, network: nn.Module) -> Sequence[Phase]:
        assert isinstance(config, OptimizerConfig)
        return [Phase("classification", [Update(make_optimizer(config, network.parameters()), cross_entropy(network))])]

    def measure(self, config: ConfigT, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return measure_classification(network, batch)


class MlpClassifierFamily(ClassifierFamily[MlpClassifierConfig]):
    """Hidden layers on pixels."""

    name = "mlp_classifier"
    title = "multilayer perceptron on pixels"
    Config = MlpClassifierConfig

    def build(self, config: MlpClassifierConfig, spec: DataSpec) -> Classifier:
        width, layers = spec.channels * spec.height * spec.width, list[nn.Module]()
        for _ in range(config.hidden_layers):
            layers += hidden_layer(config, width)
            width = config.hidden_units
        return Classifier(nn.Flatten(), nn.Sequential(*layers, nn.Linear(width, len(spec.class_names))))


class CnnClassifierFamily(ClassifierFamily[CnnClassifierConfig]):
    """Two convolutions with pooling, then a hidden layer."""

    name = "cnn_classifier"
    title = "two convolutions with pooling and a hidden linear layer"
    Config = CnnClassifierConfig

    def check(self, config: CnnClassifierConfig, spec: DataSpec) -> None:
        super().check(config, spec)
        if min(spec.height, spec.width) < SMALLEST_CNN_SIDE:
            size = f"{spec.height}x{spec.width}"
            raise UserError.of("--image-size", size, f"{self.name} needs at least {SMALLEST_CNN_SIDE} pixels a side")

    def build(self, config: CnnClassifierConfig, spec: DataSpec) -> Classifier:
        layers, inner = list[nn.Module](), spec.channels
        for outer in (config.filters, 2 * config.filters):
            layers += [nn.Conv2d(inner, outer, 3, padding=1)]
            layers += [nn.BatchNorm2d(outer)] if config.batch_norm else []
            layers += [ACTIVATIONS[config.activation](), nn.MaxPool2d(2)]
            inner = outer
        features = inner * (spec.height // 4) * (spec.width // 4)
        head = [*hidden_layer(config, features), nn.Linear(config.hidden_units, len(spec.class_names))]
        return Classifier(nn.Sequential(*layers), nn.Sequential(*head))


def hidden_layer(config: ClassifierConfig, width: int) -> list[nn.Module]:
    """Linear, batch norm where wanted, non-linearity, dropout."""
    norm = [nn.BatchNorm1d(config.hidden_units)] if config.batch_norm else []
    return [
        nn.Linear(width, config.hidden_units),
        *norm,
        ACTIVATIONS[config.activation](),
        nn.Dropout(config.dropout),
    ]


def require_classes(family: str, spec: DataSpec) -> None:
    """Raise :class:`UserError` where there is nothing to tell apart."""
    if len(spec.class_names) < 2:
        raise UserError.of("--dataset", spec.source, f"{family} needs at least two classes; it has {spec.class_names}")


def cross_entropy(network: nn.Module) -> Callable[[Batch], Tensor]:
    """The loss of ``network(images)`` as logits."""
    return lambda batch: nn.functional.cross_entropy(network(batch.images), batch.labels)


def measure_classification(network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """``accuracy`` (0 or 1) and ``cross_entropy`` (nats) of each image."""
    logits = network(batch.images)
    return {
        "accuracy": (logits.argmax(1) == batch.labels).float(),
        "cross_entropy": nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none"),
    }
