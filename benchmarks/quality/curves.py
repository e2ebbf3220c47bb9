"""Learning curves without training: made-up ones, a new problem for each seed, and recorded ones by a surrogate.

The made-up validation loss of a config after ``t`` epochs is ::

    floor + (1 - floor) · (1 + r·t)^-1.2 + overfitting · (t/9)^1.5

- Learning rate, momentum and batch size make one effective rate.
- ``floor`` is 0.1 · (1 + Σ weight · distance²) over rate, width, dropout and weight decay, with an offset for each
  optimizer, activation and batch norm. Where the best is and what each field weighs is drawn anew for each problem.
- ``r`` grows with the rate: of two trials around the best rate the quick one leads early and loses late: curves cross.
- More than 1.3 decades above the best rate a trial diverges: it stays at 1, what a constant prediction has.
- ``overfitting`` is 0 in "steady". In "peaked" it grows with width and rate and falls with dropout and weight decay, so
  that some losses are least after few epochs.
- What is reported has noise of 2 % (standard deviation) on top, the same in every search of the same seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from benchmarks.do_nothing import DoNothing
from models.family import Family, Objective, get_family
from models.numerics import derive_seed
from models.optimizers import OptimizerConfig
from models.space import Choice, Float, Int, Space

MAX_EPOCHS = 9.0
POINTS = (1 / 3, *(float(epoch) for epoch in range(1, 10)))
"""Epochs at which curves are known."""

RECORDED = Path(__file__).parents[1] / "results" / "curves-conv_autoencoder.json"


class Problem(Protocol):
    """What a search searches.

    Attributes:
        settings: family, fixed values and ranges, as a search takes them.
        noise: standard deviation of a report's relative error.
    """

    settings: Mapping[str, Any]
    noise: float

    def curve(self, config: Mapping[str, Any]) -> np.ndarray:
        """The objective, lower is better, at each of :data:`POINTS`, without noise."""

    def seconds(self, config: Mapping[str, Any]) -> float:
        """Simulated time of one epoch."""


def reported(problem: Problem, config: Mapping[str, Any], seed: int) -> np.ndarray:
    """What a trial reports at each of :data:`POINTS`: one config reports the same in every search of a seed."""
    random = np.random.default_rng(derive_seed(seed, "noise", json.dumps(dict(config), sort_keys=True)))
    return problem.curve(config) * np.exp(problem.noise * random.standard_normal(len(POINTS)))


def space_of(problem: Problem) -> tuple[Family[Any], Space]:
    """The problem's family and space."""
    family: Family[Any] = get_family(problem.settings["family"])
    return family, Space.of(family.Config, problem.settings.get("set"), problem.settings.get("space"))


def random_configs(problem: Problem, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Whole configs, drawn evenly over the space."""
    random = np.random.default_rng(seed)
    family, space = space_of(problem)
    defaults = family.Config().model_dump()
    for _ in range(count):
        yield {**defaults, **space.fixed, **space.walk(lambda name, known: _draw(known, random))}


def _draw(known: Float | Int | Choice, random: np.random.Generator) -> Any:
    if isinstance(known, Choice):
        return known.options[random.integers(len(known.options))]
    if known.log:
        return known.nearest(math.exp(random.uniform(math.log(known.low), math.log(known.high))))
    return known.nearest(random.uniform(known.low, known.high))


# --- made up ---------------------------------------------------------------------------------------------------------


class MadeUpConfig(OptimizerConfig):
    """Fields as image models have them."""

    width: Annotated[int, Int(8, 256, log=True)] = Field(64, ge=1, description="size of the network")
    dropout: Annotated[float, Float(0.0, 0.5, step=0.05)] = Field(0.0, ge=0, lt=1, description="as it says")
    batch_norm: Annotated[bool, Choice(False, True)] = Field(False, description="as it says")
    activation: Annotated[str, Choice("relu", "elu", "gelu")] = Field("relu", description="as it says")


class MadeUp(DoNothing):
    name = "made_up"
    title = "curves by a formula; never trained"
    Config = MadeUpConfig  # type: ignore[assignment]
    objective = Objective("val_loss", "min")


class Synthetic:
    """One made-up problem, as the module says."""

    settings: Mapping[str, Any] = {"family": "benchmarks.quality.curves:MadeUp"}
    noise = 0.02

    def __init__(self, seed: int, *, peaked: bool) -> None:
        draw = np.random.default_rng(derive_seed(seed, "problem")).uniform
        self._peaked = peaked
        self._rate, self._width, self._dropout, self._decay = draw(-3, -2), draw(4, 7.5), draw(0, 0.4), draw(-6, -3)
        self._weights = 10 ** draw(-1.3, 0, 4)
        self._offsets: dict[str, dict[Any, float]] = {
            "optimizer": dict(zip(("adam", "adamw", "sgd"), draw(0, 0.5, 3), strict=True)),
            "activation": dict(zip(("relu", "elu", "gelu"), draw(0, 0.3, 3), strict=True)),
            "batch_norm": dict(zip((False, True), draw(0, 0.3, 2), strict=True)),
        }
        for offsets in self._offsets.values():
            least = min(offsets.values())
            offsets.update({name: value - least for name, value in offsets.items()})

    def curve(self, config: Mapping[str, Any]) -> np.ndarray:
        epochs = np.asarray(POINTS)
        rate = math.log10(config["lr"]) - 0.5 * math.log10(config["batch_size"] / 128)
        if (
            config["optimizer"] == "sgd"
        ):  # ten times as large as Adam's where momentum is 0.9: both ranges hold the best
            rate += -math.log10(1 - config["momentum"]) - 1
        off, wide = rate - self._rate, math.log2(config["width"])
        if off > 1.3:
            return np.ones(len(epochs))
        decay = math.log10(config["weight_decay"])
        distances = np.array(
            [off, (wide - self._width) / 2, (config["dropout"] - self._dropout) / 0.25, (decay - self._decay) / 2.5]
        )
        floor = 1 + float(np.minimum(distances**2, 4) @ self._weights)
        floor += sum(offsets[config[name]] for name, offsets in self._offsets.items())
        floor *= 0.1
        quick = 15 * 10 ** (0.7 * max(off, -2)) * (config["width"] / 64) ** 0.2 * (1.5 if config["batch_norm"] else 1)
        curve = floor + (1 - floor) * (1 + quick * epochs) ** -1.2
        if self._peaked:
            free = wide - self._width - 6 * (config["dropout"] - 0.2) - 0.5 * (decay - self._decay)
            curve = curve + 0.1 * 10 ** (0.5 * off) / (1 + math.exp(-free)) * (epochs / MAX_EPOCHS) ** 1.5
        return np.asarray(np.minimum(curve, 1))

    def seconds(self, config: Mapping[str, Any]) -> float:
        return float((1 + config["width"] / 64) * (1 + 32 / config["batch_size"]))


# --- recorded --------------------------------------------------------------------------------------------------------


class Recorded:
    """Curves of trained trials, by a random forest over their configs where no trial was.

    Attributes:
        fidelity: how far the forest may be trusted, on configs that it has not seen (out of bag).
    """

    noise = 0.0

    def __init__(self, path: Path = RECORDED) -> None:
        from scipy.stats import spearmanr
        from sklearn.ensemble import RandomForestRegressor

        content = json.loads(path.read_text())
        self.settings: Mapping[str, Any] = content["settings"]
        _, self._space = space_of(self)
        trials = content["trials"]
        x = np.array([self._encode(trial["params"]) for trial in trials])
        y = np.log([[*trial["curve"], trial["seconds_an_epoch"]] for trial in trials])
        forest = RandomForestRegressor(200, max_features=0.5, oob_score=True, random_state=0).fit(x, y)
        self._trees = [tree.tree_ for tree in forest.estimators_]
        final, seen = y[:, -2], forest.oob_prediction_[:, -2]
        self.fidelity = {
            "trials": len(trials),
            "spearman_of_final_values": round(float(spearmanr(final, seen).statistic), 3),
            "r2_of_their_logarithms": round(float(1 - np.var(final - seen) / np.var(final)), 3),
        }
        self._known: dict[bytes, np.ndarray] = {}

    def curve(self, config: Mapping[str, Any]) -> np.ndarray:
        return self._predict(config)[:-1]

    def seconds(self, config: Mapping[str, Any]) -> float:
        return float(self._predict(config)[-1])

    def _predict(self, config: Mapping[str, Any]) -> np.ndarray:
        x = self._encode(config).astype(np.float32)[None]
        if x.tobytes() not in self._known:
            # The forest's own `predict` checks its input again and starts threads: 40 times as long for one config.
            self._known[x.tobytes()] = np.exp(np.mean([tree.predict(x).ravel() for tree in self._trees], axis=0))
        return self._known[x.tobytes()]

    def _encode(self, config: Mapping[str, Any]) -> np.ndarray:
        """Numbers on the scale of their range, choices one by one; a field that is not active is at its low end."""
        row: list[float] = []
        for name, known in self._space.ranges.items():
            active = all(config[other] in among for other, among in known.when.items())
            if isinstance(known, Choice):
                row += [float(config[name] == option) for option in known.options]
            else:
                value = config[name] if active else known.low
                row.append(math.log(value) if known.log else value)
        return np.array(row)


@cache
def recorded() -> Recorded:
    """The set that comes with the repository."""
    return Recorded()
