"""A family without work: what is left of a search's time is the service's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from models.datasets import DataSpec
from models.family import Batch, Family, FamilyConfig, Objective, Phase, Update
from models.space import Float


class DoNothingConfig(FamilyConfig):
    """Five numbers that the objective depends on, so that the sampler has something to learn."""

    a: Annotated[float, Float(0.0, 1.0)] = Field(0.5, ge=0, le=1, description="best at 0.3")
    b: Annotated[float, Float(0.0, 1.0)] = Field(0.5, ge=0, le=1, description="best at 0.3")
    c: Annotated[float, Float(0.0, 1.0)] = Field(0.5, ge=0, le=1, description="best at 0.3")
    d: Annotated[float, Float(0.0, 1.0)] = Field(0.5, ge=0, le=1, description="best at 0.3")


class OneNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()))


class DoNothing(Family[DoNothingConfig]):
    name = "do_nothing"
    title = "no work at all"
    Config = DoNothingConfig
    Network = OneNumber
    objective = Objective("val_distance", "min")

    def build(self, config: DoNothingConfig, spec: DataSpec) -> OneNumber:
        return OneNumber()

    def phases(self, config: DoNothingConfig, network: nn.Module) -> Sequence[Phase]:
        (number,) = network.parameters()
        return [Phase("nothing", [Update(torch.optim.SGD([number], lr=0.1), lambda batch: number * number)])]

    def measure(self, config: DoNothingConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        distance = sum((value - 0.3) ** 2 for value in (config.a, config.b, config.c, config.d))
        return {"distance": torch.full((len(batch.labels),), distance)}
