"""A classifier on a trained encoder: fine-tuning, and the same network from scratch to compare it with.

What Guatto, Capettini and Giuliani (2022) and Bottaro (2020) do with their best autoencoder: a new head on the latent
code, or a convolutional classifier on the reconstruction; parts of the autoencoder frozen, the rest trained with a
learning rate of its own. Shape suffixes: B batch, C channels, H and W height and width, L code.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from models import checkpoint as checkpoints
from models.classifiers import CnnClassifierConfig, CnnClassifierFamily, measure_classification, require_classes
from models.datasets import DataSpec
from models.encoders import describe, shape_text, trace
from models.errors import CheckpointError, ProblemCollector, UserError
from models.family import FAMILIES, Batch, Family, FamilyConfig, Objective, Phase, Update, get_family
from models.numerics import RandomStream
from models.optimizers import OptimizerConfig, make_optimizer
from models.places import place
from models.space import Choice, Float


def _absolute(path: str) -> str:
    # A worker may run in another folder than the command that was given the path.
    return str(place(path).expanduser().absolute()) if path else ""


class FinetunedClassifierConfig(OptimizerConfig):
    """Hyperparameters of fine-tuning; ``checkpoint`` has to be given."""

    checkpoint: Annotated[str, AfterValidator(_absolute)] = Field(
        "", description="file of the trained model whose encoder is used; this field has to be given"
    )
    encoder: str = Field(
        "", description="family, config and data of that model as JSON; read from the checkpoint, not to be given"
    )
    pretrained: bool = Field(
        True, description="begin with its weights; false: the same network from scratch, all of it trained with lr"
    )
    head: Annotated[Literal["linear", "mlp", "cnn"], Choice("linear", "mlp")] = Field(
        "linear", description="on the code: linear, or mlp with a hidden layer; cnn: on the reconstruction"
    )
    # Without `convs` in the range: an encoder need not have any.
    frozen: Annotated[Literal["convs", "encoder", "nothing"], Choice("encoder", "nothing")] = Field(
        "nothing",
        description="what keeps its weights: convolutions with their batch norms, all below the head, nothing",
    )
    lr: Annotated[float, Float(1e-4, 3e-2, log=True)] = Field(
        2e-3, gt=0, le=10, description="learning rate of the head"
    )
    encoder_lr: Annotated[float, Float(1e-5, 1e-2, log=True, when={"frozen": ("convs", "nothing")})] = Field(
        1e-3, gt=0, le=10, description="learning rate of what is below the head and not frozen"
    )
    hidden_units: Annotated[int, Choice(64, 128, 256, when={"head": ("mlp", "cnn")})] = Field(
        128, ge=1, le=65536, description="units of the head's hidden layer (mlp, cnn)"
    )
    filters: Annotated[int, Choice(8, 16, 32, when={"head": ("cnn",)})] = Field(
        16, ge=1, le=512, description="filters of the head's first convolution; the second has twice as many (cnn)"
    )
    dropout: Annotated[float, Float(0.0, 0.5, step=0.05, when={"head": ("mlp", "cnn")})] = Field(
        0.0, ge=0, lt=1, description="share of the head's hidden units dropped in training (mlp, cnn)"
    )

    @model_validator(mode="after")
    def _describe_encoder(self) -> Self:
        # With it the config says by itself what to build: a fine-tuned checkpoint outlives the file it began with.
        # What cannot be read stays empty, and `check` says why.
        if self.checkpoint and not self.encoder:
            with suppress(CheckpointError):
                object.__setattr__(self, "encoder", describe(self.checkpoint))
        return self


class FinetunedClassifier(nn.Module):
    """``head`` on ``base``, of which a part may rest.

    Args:
        base: the network with ``encode``, and ``decode`` where the head looks at reconstructions.
        features: from images (B, C, H, W) to what the head takes; a function of ``base``.
        resting: modules of ``base`` that stay in evaluation mode: batch statistics too are part of what is frozen.
    """

    def __init__(
        self, base: nn.Module, head: nn.Module, features: Callable[[nn.Module, Tensor], Tensor], resting: set[nn.Module]
    ) -> None:
        super().__init__()
        self.base, self.head = base, head
        self._features, self._resting = features, [module for module in base.modules() if module in resting]

    def train(self, mode: bool = True) -> Self:
        """As ever, but for what is frozen."""
        super().train(mode)
        for module in self._resting:
            module.training = False
        return self

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] → codes (B, L)."""
        return codes_of(self.base, images_BCHW)

    def classify(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, classes)."""
        logits: Tensor = self.head(self._features(self.base, images_BCHW))
        return logits

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.classify(images_BCHW)


class FinetunedClassifierFamily(Family[FinetunedClassifierConfig]):
    """Ranked by validation accuracy.

    Args:
        network: begin with this one, as it is now, instead of a checkpoint's.
        own: families that are not built in, by the names in the checkpoints to begin with: a file may not name code
            that is then imported.
    """

    name = "finetuned_classifier"
    title = "classifier on the encoder of a trained model"
    Config = FinetunedClassifierConfig
    Network = FinetunedClassifier
    objective = Objective("val_accuracy", "max")

    def __init__(self, network: nn.Module | None = None, own: Mapping[str, Family[Any]] | None = None) -> None:
        self._network, self._own = network, dict(own or {})

    def check(self, config: FinetunedClassifierConfig, spec: DataSpec) -> None:
        problems = ProblemCollector()
        with problems.gather():
            require_classes(self.name, spec)
        if config.head == "cnn":
            with problems.gather():
                CnnClassifierFamily().check(_cnn(config), spec)
        else:  # its batch norm needs two images to tell a spread from
            if config.batch_size < 2:
                problems.add("batch_size", config.batch_size, f"must be at least 2 with the head {config.head}")
            if spec.train_images < 2:
                problems.add("--train-images", spec.train_images, f"{self.name} needs at least 2")
        with problems.gather():
            self._check_base(config, spec)
        problems.raise_if_any()

    def _check_base(self, config: FinetunedClassifierConfig, spec: DataSpec) -> None:
        shown = config.checkpoint or None
        trained_on = self._described(config)[2] if self._knows_family(config) else None
        if trained_on is not None and trained_on.shape != spec.shape:
            channels, height, width = trained_on.shape
            takes = f"the encoder takes images of height {height}, width {width} and {channels} channels"
            raise UserError.of("checkpoint", shown, f"{spec.source} has images of {shape_text(spec.shape)}; {takes}")
        with RandomStream(0):  # none of the caller's random numbers
            base = self._fresh(config)
        needed = ("encode", "decode") if config.head == "cnn" else ("encode",)
        if not all(hasattr(base, name) for name in needed):
            raise UserError.of("checkpoint", shown, f"{type(base).__name__} has no {' and '.join(needed)}")
        use = trace(base, features_of(config), spec.shape)
        if config.pretrained and config.frozen == "convs" and not use.convolutional:
            raise UserError.of("frozen", "convs", f"{type(base).__name__} has no convolutions; use encoder or nothing")

    def build(self, config: FinetunedClassifierConfig, spec: DataSpec) -> FinetunedClassifier:
        base, features, classes = self._fresh(config), features_of(config), len(spec.class_names)
        use = trace(base, features, spec.shape)
        if config.head == "cnn":
            head: nn.Module = CnnClassifierFamily().build(_cnn(config), spec)
        else:
            # Codes have any scale: without it the first steps go into unlearning a head that is wrong and sure of it.
            head = nn.Sequential(nn.BatchNorm1d(use.width, affine=False))
            width = use.width
            if config.head == "mlp":
                head.extend([nn.Linear(width, config.hidden_units), nn.ReLU(), nn.Dropout(config.dropout)])
                width = config.hidden_units
            head.append(nn.Linear(width, classes))
        frozen, resting = use.of(config.frozen if config.pretrained else "nothing")
        for parameter in base.parameters():
            # What does not lead to the head (a decoder) is kept for the checkpoint's sake, but never trained.
            parameter.requires_grad_(parameter in use.parameters and parameter not in frozen)
        return FinetunedClassifier(base, head, features, resting)

    def initialise(self, config: FinetunedClassifierConfig, network: nn.Module) -> None:
        assert isinstance(network, FinetunedClassifier)
        if not config.pretrained:
            return
        if self._network is not None:
            network.base.load_state_dict(self._network.state_dict())
            return
        try:
            if describe(config.checkpoint) != config.encoder:
                raise CheckpointError("it holds another model now")
            network.base.load_state_dict(checkpoints.read(config.checkpoint)["weights"])
        except (CheckpointError, RuntimeError) as error:
            raise UserError.of("checkpoint", config.checkpoint, f"has no weights to begin with: {error}") from error

    def phases(self, config: FinetunedClassifierConfig, network: nn.Module) -> Sequence[Phase]:
        assert isinstance(network, FinetunedClassifier)
        below = [parameter for parameter in network.base.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"params": list(network.head.parameters()), "lr": config.lr}]
        if below:
            groups.append({"params": below, "lr": config.encoder_lr if config.pretrained else config.lr})

        def loss(batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            logits = network(batch.images)
            hits = (logits.detach().argmax(1) == batch.labels).float().mean()
            return nn.functional.cross_entropy(logits, batch.labels), {"accuracy": hits}

        name = "fine-tuning" if config.pretrained else "from scratch"
        return [Phase(name, [Update(make_optimizer(config, groups), loss)])]

    def measure(self, config: FinetunedClassifierConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return measure_classification(network, batch)

    def _knows_family(self, config: FinetunedClassifierConfig) -> bool:
        """Whether the base is known by its family; raises where it is not known at all."""
        if config.encoder:
            return True
        if self._network is not None:
            return False
        if not config.checkpoint:
            raise UserError.of("checkpoint", None, "must be given: the file of a trained model with an encoder")
        try:
            describe(config.checkpoint)
        except CheckpointError as error:
            told = str(error).removeprefix(f"{config.checkpoint}: ")
            raise UserError.of("checkpoint", config.checkpoint, f"must be a trained model's file: {told}") from error
        return True

    def _described(self, config: FinetunedClassifierConfig) -> tuple[Family[Any], FamilyConfig, DataSpec]:
        """The family, config and data of the base.

        Raises:
            UserError: they are not known here, or do not go together.
        """
        shown = config.checkpoint or config.encoder[:80]
        try:
            told = json.loads(config.encoder or describe(config.checkpoint))
            name = str(told["family"])
            if name not in self._own and name not in list(FAMILIES):
                builtin = f"is of the family {name!r}, which is not built in; FinetunedClassifierFamily(own=…) takes it"
                raise UserError.of("checkpoint", shown, builtin)
            family = self._own.get(name) or get_family(name)
            base, spec = family.Config.model_validate(told["config"]), DataSpec.model_validate(told["data"])
            family.check(base, spec)
        except (ValueError, KeyError, TypeError) as error:  # pydantic's are ValueErrors
            raise UserError.of("checkpoint", shown, f"does not fit its family: {error}") from error
        return family, base, spec

    def _fresh(self, config: FinetunedClassifierConfig) -> nn.Module:
        """The base with weights from torch's current random state."""
        if self._knows_family(config):
            family, base, spec = self._described(config)
            return family.build(base, spec).requires_grad_(True)
        assert self._network is not None
        network = copy.deepcopy(self._network).cpu().requires_grad_(True)
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                cast(Any, module).reset_parameters()
            elif not config.pretrained and next(module.parameters(recurse=False), None) is not None:
                kind = type(module).__name__
                raise UserError.of("pretrained", False, f"{kind} has no reset_parameters() that would begin it anew")
        return network


def codes_of(base: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Codes (B, L); of a variational encoder its posterior means, which is what ``encode`` gives."""
    codes: Tensor = cast(Any, base).encode(images_BCHW)
    return codes.flatten(1)


def _restored(base: nn.Module, images_BCHW: Tensor) -> Tensor:
    images: Tensor = cast(Any, base).decode(cast(Any, base).encode(images_BCHW))
    return images


def features_of(config: FinetunedClassifierConfig) -> Callable[[nn.Module, Tensor], Tensor]:
    """What the head looks at: reconstructions (B, C, H, W) or codes (B, L)."""
    return _restored if config.head == "cnn" else codes_of


def _cnn(config: FinetunedClassifierConfig) -> CnnClassifierConfig:
    return CnnClassifierConfig(filters=config.filters, hidden_units=config.hidden_units, dropout=config.dropout)
