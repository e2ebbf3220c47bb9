"""What a model family is: a config, a network, training phases and an objective.

A family is one file. Its config's fields carry default, bounds, help and search range; from that one definition come
validation, the search space, the command line's overrides and the reference table.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from models.errors import UserError, did_you_mean
from models.space import Choice

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from models.datasets import DataSpec
    from models.training import DataOnDevice

FAMILIES: dict[str, str] = {
    "conv_autoencoder": "models.conv_autoencoder:ConvAutoencoderFamily",
    "dense_autoencoder": "models.dense_autoencoder:DenseAutoencoderFamily",
    "stacked_autoencoder": "models.stacked_autoencoder:StackedAutoencoderFamily",
    "vae": "models.vae:VaeFamily",
    "gan": "models.gan:GanFamily",
    "dcgan": "models.dcgan:DcganFamily",
    "mlp_classifier": "models.classifiers:MlpClassifierFamily",
    "cnn_classifier": "models.classifiers:CnnClassifierFamily",
    "finetuned_classifier": "models.finetuned_classifier:FinetunedClassifierFamily",
}
"""Name → where the family is. A user's own family is named by such an import path instead."""

CAPABILITIES = ("encode", "decode", "sample", "classify")
"""Methods of a network that analysis may ask for: images → codes, codes → images, count → images, images → logits."""


class FamilyConfig(BaseModel):
    """Base of every family's config: frozen, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: Annotated[int, Choice(32, 64, 128, 256)] = Field(
        128, ge=1, le=65536, description="training images a step"
    )


ConfigT = TypeVar("ConfigT", bound=FamilyConfig)


@dataclass(frozen=True)
class Objective:
    """The number that ranks trials: a validation metric and its direction."""

    metric: str
    mode: Literal["min", "max"]

    def better(self, value: float, than: float | None) -> bool:
        """Whether ``value`` beats ``than``; anything finite beats ``None``, NaN beats nothing."""
        if math.isnan(value):
            return False
        return than is None or (value < than if self.mode == "min" else value > than)


@dataclass(frozen=True)
class Batch:
    """What a loss sees.

    Args:
        images: float (B, C, H, W) in [0, 1].
        labels: int64 (B,).
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Update:
    """One optimizer step of a batch: its loss is computed, differentiated and applied.

    A GAN has two of them in a phase, which run one after the other on the same batch.

    Args:
        loss: the loss of a batch, a scalar; or the loss and further scalars by name, which are averaged and reported.
        name: what the loss is reported as, with ``train_`` before it.
    """

    optimizer: torch.optim.Optimizer
    loss: Callable[[Batch], Tensor | tuple[Tensor, Mapping[str, Tensor]]]
    name: str = "loss"


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own updates.

    Args:
        share: the part of the trial's budget that it takes, relative to the other phases.
        ranks: whether the objective means something yet; a record of a phase that does not rank has none, and no
            scheduler judges its trial.
        patience: end the phase after so many whole epochs in which its first update's loss did not fall by more than
            ``tolerance``; what is left of its share goes to the later phases. ``None`` never; the last phase goes on.
    """

    name: str
    updates: Sequence[Update]
    share: float = 1.0
    ranks: bool = True
    patience: int | None = None
    tolerance: float = 0.0


@dataclass(frozen=True)
class Record:
    """What a trial reports at a rung or a whole epoch.

    Args:
        epoch: training passed so far, in epochs; may be a fraction.
        step: the same in optimizer steps.
        metrics: ``val_…`` averaged over the validation set, ``train_…`` over the steps since the last record.
        seconds: time spent on training and validation since the trial began, pauses not counted.
    """

    epoch: float
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Family(ABC, Generic[ConfigT]):
    """The contract of a family. Stateless: one object serves all trials."""

    name: ClassVar[str]
    title: ClassVar[str]
    """One line for people."""
    Config: ClassVar[type[FamilyConfig]]
    Network: ClassVar[type[nn.Module]]
    """Class of what :meth:`build` returns; its methods say what the family can do."""
    objective: ClassVar[Objective]

    @classmethod
    def capabilities(cls) -> tuple[str, ...]:
        """Which of :data:`CAPABILITIES` the network has."""
        return tuple(name for name in CAPABILITIES if hasattr(cls.Network, name))

    def check(self, config: ConfigT, spec: DataSpec) -> None:
        """Raise :class:`UserError` where this config cannot work on this data. Called before any training."""

    @abstractmethod
    def build(self, config: ConfigT, spec: DataSpec) -> nn.Module:
        """A fresh network, initialised from torch's current random state."""

    def initialise(self, config: ConfigT, network: nn.Module) -> None:
        """Give a network that was just built the weights that a run begins with, where those are not fresh ones.

        Called once a run, on the CPU; not where weights come from a checkpoint of the run itself.

        Raises:
            UserError: there are none to be had.
        """

    @abstractmethod
    def phases(self, config: ConfigT, network: nn.Module) -> Sequence[Phase]:
        """The training phases in order, with their optimizers."""

    def measure(self, config: ConfigT, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """What is averaged over the validation images: name without ``val_`` → (B,); (B, …) for :meth:`summarise`."""
        return {}

    def summarise(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics from the averages of :meth:`measure`: themselves, if each is a single number."""
        return {name: float(mean) for name, mean in means.items()}

    def evaluate(self, config: ConfigT, network: nn.Module, data: DataOnDevice) -> dict[str, float]:
        """Metrics of the validation set that are no averages over images, such as a distance of distributions.

        Raises:
            TrainingFailedError: the trial has failed in a way that only this sees.
        """
        return {}


def get_family(name: str) -> Family[Any]:
    """The family of that name in :data:`FAMILIES`, or at an import path ``package.module:Class``.

    Raises:
        UserError: there is no such family, or the path does not lead to one.
    """
    path = FAMILIES.get(name, name)
    if ":" not in path:
        raise UserError.of("family", name, did_you_mean(name, FAMILIES) + ", or your own as package.module:Class")
    module_name, _, class_name = path.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.append(".")  # a user's family lies beside their data, where an installed command does not look
    try:
        family = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: `:A`, `.a:A`
        raise UserError.of("family", name, f"cannot be imported: {error}{_near(path)}") from error
    except Exception as error:  # whatever is wrong in a user's file
        raise UserError.of("family", name, f"cannot be imported: {type(error).__name__}: {error}") from error
    if not _is_family(family):
        raise UserError.of("family", name, "must be a class derived from models.family.Family")
    made: Family[Any] = family()
    return made


def _is_family(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Family) and not inspect.isabstract(value)


def _near(path: str) -> str:
    """What else an import path may have meant: a file that lies here, or a family in the module that it names."""
    module_name, _, class_name = path.partition(":")
    module = sys.modules.get(module_name)
    if module is None:
        wanted, known = module_name, [file.stem for file in Path().glob("*.py")]
    else:
        wanted, known = class_name, [name for name, value in vars(module).items() if _is_family(value)]
    close = difflib.get_close_matches(wanted, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
