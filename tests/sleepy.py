"""A family for end-to-end tests, ``sleepy:Sleepy``: small, as slow as asked for, in trouble on demand.

It trains for real (dropout, momentum), so that a trial that goes on gives the numbers of one that was never interrupted
only if all of its state came back.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.datasets import DataSpec
from models.family import Batch, Family, FamilyConfig, Objective, Phase, Update
from models.space import Choice, Float

TROUBLE_AT_STEP = 3
"""Training step, counted from 1, at which trouble comes; the first epoch has fewer where the tests use it."""


class SleepyConfig(FamilyConfig):
    batch_size: int = Field(32, ge=1, description="not searched")
    kind: Annotated[Literal["plain", "noisy"], Choice("plain", "noisy")] = Field("plain", description="of images seen")
    noise: Annotated[float, Choice(0.1, 0.3, when={"kind": ("noisy",)})] = Field(0.1, description="only where noisy")
    latent_dim: Annotated[int, Choice(2, 4)] = Field(2, ge=1, description="size of the code")
    lr: Annotated[float, Float(1e-3, 10.0, log=True)] = Field(1.0, gt=0, description="learning rate")
    seconds: float = Field(0.0, ge=0, description="slept at every step")
    trouble: Literal[
        "none", "not_a_number", "minus_infinity", "raise", "kill", "kill_between", "memory", "devour", "hang"
    ] = Field("none", description="what goes wrong")
    marker: str = Field("", description="file made at a kill, so that there is no other")


class SleepyNetwork(nn.Module):
    def __init__(self, pixels: int, latent_dim: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(pixels, latent_dim), nn.Linear(latent_dim, pixels)
        self.drop = nn.Dropout(0.1)
        self.steps: Tensor
        self.tracker_seen: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("tracker_seen", torch.zeros(()))

    def encode(self, images_BCHW: Tensor) -> Tensor:
        codes: Tensor = self.inner(images_BCHW.flatten(1))
        return codes

    def decode(self, codes_BL: Tensor) -> Tensor:
        return torch.sigmoid(self.outer(codes_BL)).reshape(-1, 1, 28, 28)


class Sleepy(Family[SleepyConfig]):
    name = "sleepy"
    title = "a linear autoencoder that takes its time"
    Config = SleepyConfig
    Network = SleepyNetwork
    objective = Objective("val_mse", "min")

    def build(self, config: SleepyConfig, spec: DataSpec) -> SleepyNetwork:
        return SleepyNetwork(spec.height * spec.width, config.latent_dim)

    def phases(self, config: SleepyConfig, network: nn.Module) -> Sequence[Phase]:
        assert isinstance(network, SleepyNetwork)

        def loss(batch: Batch) -> Tensor:
            steps = int(network.steps.add_(1))
            time.sleep(config.seconds)
            if config.trouble == "raise" and steps == TROUBLE_AT_STEP:
                raise RuntimeError("the third wheel came off")
            if config.trouble == "kill" and steps == TROUBLE_AT_STEP and not Path(config.marker).exists():
                with suppress(OSError):
                    Path(config.marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if config.trouble == "kill_between" and steps == TROUBLE_AT_STEP and not Path(config.marker).exists():
                Path(config.marker).touch()
                # Once the worker is given its next trial.
                worker: Any = sys.modules["tuning.trial"]
                worker.train_trial = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            if config.trouble == "hang" and steps == TROUBLE_AT_STEP:
                time.sleep(3600)
            if config.trouble == "devour" and steps == TROUBLE_AT_STEP:
                devoured = torch.ones(3 * 2**30, dtype=torch.uint8)
                time.sleep(60)
                del devoured
            if config.trouble == "memory" and steps == TROUBLE_AT_STEP:
                torch.empty(2**46, dtype=torch.uint8, device=batch.images.device)
            seen = batch.images
            if config.kind == "noisy":
                seen = seen + config.noise * torch.randn_like(seen)
            error = nn.functional.mse_loss(network.decode(network.drop(network.encode(seen))), batch.images)
            return error * float("nan") if config.trouble == "not_a_number" and steps >= TROUBLE_AT_STEP else error

        optimizer = torch.optim.SGD(network.parameters(), lr=config.lr, momentum=0.5)
        return [Phase("reconstruction", [Update(optimizer, loss)])]

    def measure(self, config: SleepyConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        assert isinstance(network, SleepyNetwork)
        network.tracker_seen.fill_(float("mlflow" in sys.modules))
        error = torch.square(network.decode(network.encode(batch.images)) - batch.images).flatten(1).mean(1)
        return {"mse": error - float("inf") if config.trouble == "minus_infinity" else error}
