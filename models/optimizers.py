"""The optimizer fields that families share, and the optimizer that they describe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import nn

from models.family import FamilyConfig
from models.space import Choice, Float


class OptimizerConfig(FamilyConfig):
    """Fields of a family that trains with one optimizer."""

    optimizer: Annotated[Literal["sgd", "adam", "adamw", "adamax"], Choice("sgd", "adam", "adamw")] = Field(
        "adam", description="update rule"
    )
    lr: Annotated[float, Float(1e-4, 1e-1, log=True)] = Field(3e-3, gt=0, le=10, description="learning rate")
    momentum: Annotated[float, Float(0.0, 0.98, when={"optimizer": ("sgd",)})] = Field(
        0.9, ge=0, lt=1, description="momentum of SGD; the other rules do not use it"
    )
    weight_decay: Annotated[float, Float(1e-7, 1e-2, log=True)] = Field(
        1e-5, ge=0, le=1, description="L2 penalty (decoupled with adamw)"
    )


def make_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The optimizer that ``config`` describes, over ``parameters`` or groups of them as torch takes them.

    Fused, which means one kernel for all parameters instead of a dozen each, where torch has the rule so.
    """
    parameters = cast("list[nn.Parameter]", list(parameters))
    lr, decay = config.lr, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=config.momentum, weight_decay=decay, fused=True)
    if config.optimizer == "adamax":
        return torch.optim.Adamax(parameters, lr, weight_decay=decay)
    rule = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return rule(parameters, lr, weight_decay=decay, fused=True)
