"""How much of a search's outcome each parameter explains, by two methods, and how far that can be trusted.

fANOVA (Hutter, Hoos, Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014) fits a
random forest to all values and splits its variance. PED-ANOVA (Watanabe, Bansal, Hutter, IJCAI 2023) compares where the
best trials lie with where all of them lie. Both are Optuna's. Logarithmic ranges are given to them as logarithms: its
fANOVA would otherwise weigh 0.01 to 0.1 ten times as heavily as 0.001 to 0.01.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from analysis.axes import Parameter

if TYPE_CHECKING:
    import optuna

Floats = npt.NDArray[np.float64]
Method = Literal["fanova", "ped_anova"]
METHODS: tuple[Method, ...] = ("fanova", "ped_anova")
DRAWS: dict[Method, int] = {"fanova": 10, "ped_anova": 20}
"""Resampled and shuffled sets of trials; a forest costs a hundred times as much as two densities."""

TREES, FORESTS = 16, 4
"""Of a forest, and how many of them are averaged for the share itself."""

MOST = 200
"""Trials that are looked at; of more as many are drawn. What a forest costs grows with their square."""

BEST = 5
"""Trials that PED-ANOVA takes for the best at least, as Optuna advises; else a tenth of them."""


@dataclass(frozen=True, eq=False)
class Weights:
    """What one method says of P parameters.

    Args:
        share: float64 (P,), the parameters' parts of what they explain together; they add up to 1, or are all 0.
        low, high: float64 (P,), 10 % and 90 % of the shares over resampled trials.
        chance: float64 (P,), what 90 % stay below when the values are shuffled among the trials, in the units of
            ``share``: a share that is not above it says nothing. May exceed 1.
    """

    share: Floats
    low: Floats
    high: Floats
    chance: Floats


def weigh(
    method: Method,
    parameters: Sequence[Parameter],
    positions: Floats,
    active: npt.NDArray[np.bool_],
    values: Floats,
    mode: Literal["min", "max"],
    *,
    seed: int = 0,
    told: Callable[[], None] = lambda: None,
) -> Weights:
    """Shares of the parameters, with their spread and what chance would give; of :data:`MOST` trials at most.

    Args:
        positions: float64 (N, P), as :meth:`analysis.axes.Parameter.position`.
        active: bool (N, P), whether a conditional parameter was searched. PED-ANOVA knows of conditions. fANOVA does
            not: elsewhere it gets values drawn at random, since one and the same value would say of a parameter what
            is true of its condition.
        values: float64 (N,), finite.
        told: called after each of ``2 * DRAWS[method] + 1`` steps.
    """
    random = np.random.default_rng(seed)
    if len(values) > MOST:
        drawn = np.sort(random.choice(len(values), MOST, replace=False))
        positions, active, values = positions[drawn], active[drawn], values[drawn]
    count = len(values)

    def step(rows: npt.NDArray[np.int64], of: Floats, forests: int = 1) -> Floats:
        there, explained = active[rows], np.zeros(len(parameters))
        for _ in range(forests if method == "fanova" else 1):
            filled = np.where(there, positions[rows], _anywhere(parameters, len(rows), random))
            explained += _explained(method, parameters, filled, there, of, mode, int(random.integers(2**31)))
        told()
        return explained / (forests if method == "fanova" else 1)

    everything = np.arange(count)
    explained = step(everything, values, FORESTS)
    draws = DRAWS[method]
    resampled = [random.integers(0, count, count) for _ in range(draws)]
    spread = np.array([_share(step(rows, values[rows])) for rows in resampled])
    shuffled = np.array([step(everything, random.permutation(values)) for _ in range(draws)])
    low, high = np.quantile(spread, (0.1, 0.9), axis=0)
    chance = np.quantile(shuffled, 0.9, axis=0) / (explained.sum() or 1.0)
    return Weights(_share(explained), low, high, chance)


def _anywhere(parameters: Sequence[Parameter], count: int, random: np.random.Generator) -> Floats:
    """float64 (count, P), drawn evenly over the ranges."""
    columns = []
    for parameter in parameters:
        low, high = parameter.limits
        drawn = random.integers(0, int(high) + 1, count) if parameter.is_choice else random.uniform(low, high, count)
        columns.append(drawn.astype(np.float64))
    return np.stack(columns, axis=1)


def _share(explained: Floats) -> Floats:
    total = explained.sum()
    return explained / total if total > 0 else np.zeros_like(explained)


def _explained(
    method: Method,
    parameters: Sequence[Parameter],
    positions: Floats,
    active: npt.NDArray[np.bool_],
    values: Floats,
    mode: Literal["min", "max"],
    seed: int,
) -> Floats:
    """What each parameter explains by itself: a part of the variance, or a divergence of two densities."""
    if np.ptp(values) == 0:
        return np.zeros(len(parameters))
    with _quiet():
        from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

        whole = method == "fanova"
        study = _study(parameters, positions, np.ones_like(active) if whole else active, values, mode)
        best = min(0.5, max(0.1, BEST / len(values)))
        evaluator = (
            FanovaImportanceEvaluator(n_trees=TREES, seed=seed)
            if whole
            else PedAnovaImportanceEvaluator(target_quantile=best)
        )
        found = get_param_importances(study, evaluator=evaluator, normalize=False)
    explained = np.array([max(float(found.get(parameter.name, 0.0)), 0.0) for parameter in parameters])
    finite: Floats = np.nan_to_num(explained, posinf=0.0)
    return finite


def _study(
    parameters: Sequence[Parameter],
    positions: Floats,
    active: npt.NDArray[np.bool_],
    values: Floats,
    mode: Literal["min", "max"],
) -> optuna.Study:
    """A study in memory with a complete trial for each value."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    def distribution(parameter: Parameter) -> BaseDistribution:
        low, high = parameter.limits
        if parameter.is_choice:
            return CategoricalDistribution(tuple(range(int(high) + 1)))
        return FloatDistribution(low, high)

    known = [distribution(parameter) for parameter in parameters]
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    for row, searched, value in zip(positions, active, values, strict=True):
        params: dict[str, Any] = {}
        for parameter, at, there in zip(parameters, row, searched, strict=True):
            if there:
                low, high = parameter.limits
                params[parameter.name] = int(at) if parameter.is_choice else float(np.clip(at, low, high))
        study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions={p.name: d for p, d in zip(parameters, known, strict=True) if p.name in params},
                value=float(value),
            )
        )
    return study


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's messages and warnings, which speak of what nobody here has written."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
