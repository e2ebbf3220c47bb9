"""Searches that never ran: trials with the values that a test wants, stopped at rungs as ASHA would."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from models.family import Objective, Record
from models.space import Choice, Float, Int, Range
from tuning.results import State, Trial

RUNGS = (1.0, 3.0)
BUDGET = 9.0
LOSS = Objective("val_mse", "min")

WIDE: dict[str, Range] = {
    "optimizer": Choice("sgd", "adam", "adamw"),
    "momentum": Float(0.0, 0.98, when={"optimizer": ("sgd",)}),
    "lr": Float(1e-5, 1e-1, log=True),
    "latent_dim": Int(2, 128, log=True),
    "filters": Choice(4, 8, 16),
    "activation": Choice("relu", "leaky_relu", "elu"),
    "batch_norm": Choice(False, True),
    "dropout": Float(0.0, 0.5, step=0.05),
}


@dataclass(frozen=True)
class Search:
    """What analyses of trials ask for, with names that a real search would refuse."""

    name: str
    objective: Objective
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        return next(iter(self.leaderboard()), None)

    def leaderboard(self) -> Sequence[Trial]:
        sign = 1 if self.objective.mode == "min" else -1
        complete = [trial for trial in self.trials if trial.state == "complete" and trial.value is not None]
        return sorted(complete, key=lambda trial: sign * (trial.value or 0.0))


def trial(
    number: int,
    state: State,
    curve: Sequence[tuple[float, float]] = (),
    params: Mapping[str, Any] | None = None,
    *,
    objective: Objective = LOSS,
    config: Mapping[str, Any] | None = None,
    reason: str | None = None,
) -> Trial:
    """One trial; the config holds what was proposed and nothing else, unless given."""
    params = dict(params or {})
    return Trial(
        number=number,
        state=state,
        family="conv_autoencoder",
        objective=objective,
        config=dict(config if config is not None else params),
        params=params,
        seed=number,
        numerics={"device": "cpu"},
        fingerprint="f" * 64,
        records=tuple(Record(epoch, int(epoch * 10), {objective.metric: value}, epoch) for epoch, value in curve),
        times=tuple(number + epoch for epoch, _ in curve),
        reason=reason,
        started_s=float(number),
        finished_s=None if state in ("running", "interrupted", "queued") else number + 10.0,
    )


def draw(ranges: Mapping[str, Range], random: np.random.Generator) -> dict[str, Any]:
    """Values drawn evenly; of logarithmic ranges, their logarithms."""
    drawn: dict[str, Any] = {}
    for name, known in ranges.items():
        if any(drawn.get(other) not in among for other, among in known.when.items()):
            continue
        if isinstance(known, Choice):
            drawn[name] = known.options[random.integers(len(known.options))]
        else:
            low, high = (math.log(known.low), math.log(known.high)) if known.log else (known.low, known.high)
            at = random.uniform(low, high)
            drawn[name] = known.nearest(math.exp(at) if known.log else at)
    return drawn


def search(
    ranges: Mapping[str, Range],
    count: int,
    final: Callable[[dict[str, Any]], float],
    *,
    mode: Literal["min", "max"] = "min",
    metric: str = "val_mse",
    name: str = "by-hand",
    failed: Sequence[int] = (),
    pruning: bool = True,
    seed: int = 0,
) -> Search:
    """``count`` random trials that end near ``final(params)``: off by a factor that depends on the epoch alone."""
    random = np.random.default_rng(seed)
    objective = Objective(metric, mode)
    seen: dict[float, list[float]] = {rung: [] for rung in RUNGS}
    trials = []
    for number in range(count):
        params = draw(ranges, random)
        config = {**{name: known.nearest(0.9) for name, known in ranges.items()}, **params}
        curve: list[tuple[float, float]] = []
        state: State = "failed" if number in failed else "complete"
        for epoch in (*RUNGS, BUDGET) if state == "complete" else ():
            factor = 1 + 1 / epoch
            value = final(params) * factor if mode == "min" else final(params) / factor
            curve.append((epoch, value))
            if pruning and epoch in seen:
                cutoff = np.quantile(seen[epoch] or [value], 0.4 if mode == "min" else 0.6)
                seen[epoch].append(value)
                if (value > cutoff) if mode == "min" else (value < cutoff):
                    state = "pruned"
                    break
        reason = {"pruned": f"rung {curve[-1][0]:g}: not among the best" if curve else "", "failed": "loss is nan"}
        trials.append(trial(number, state, curve, params, objective=objective, config=config, reason=reason.get(state)))
    return Search(name, objective, tuple(trials))


def bowl(params: Mapping[str, Any]) -> float:
    """Depends on the learning rate above all, and a little on whether there is an adaptive optimizer."""
    return float(0.02 * (1 + (math.log10(params["lr"]) + 3) ** 2) + 0.01 * (params.get("optimizer") == "sgd"))
