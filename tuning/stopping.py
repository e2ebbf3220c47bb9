"""When a trial is not worth its budget: stopping rules as plain arithmetic on what trials reported.

A rule sees every report once, in the order in which they came, and answers each with a reason to stop or ``None``. That
is all of its memory, so a search that goes on rebuilds it by showing it the study's reports again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from models.family import Objective
from models.numerics import derive_seed
from tuning.config import SearchConfig
from tuning.results import Trial

MEDIAN_NEEDS = 4
"""Finished curves that the median rule waits for."""


class StoppingRule(Protocol):
    """The contract of a rule."""

    def observe(self, number: int, epoch: float, value: float) -> str | None:
        """Take note of a report; the reason why its trial should stop, if it should.

        A value that is not finite is passed over: its trial fails by other means, and the others are not judged by it.
        """


class NeverStop:
    """Every trial uses its full budget."""

    def observe(self, number: int, epoch: float, value: float) -> str | None:
        return None


class SuccessiveHalving:
    """Asynchronous successive halving, stopping variant (Li et al., "A System for Massively Parallel Hyperparameter
    Tuning", MLSys 2020; as in Ray Tune's AsyncHyperBandScheduler).

    At a rung a trial stops if it is worse than the best 1/η of the trials that were there before it; the first one
    passes. With several brackets (Hyperband, Li et al., JMLR 2018) bracket s leaves out the lowest s rungs and compares
    only with its own trials: a guard against objectives whose early values mislead.
    """

    def __init__(self, objective: Objective, rungs: tuple[float, ...], eta: int, *, brackets: int = 1, seed: int = 0):
        self._objective, self._rungs, self._eta, self._seed = objective, rungs, eta, seed
        # Bracket s holds η^(-s) as many trials as bracket 0, as in Hyperband, where their costs are about equal.
        self._weights = [float(eta) ** -s for s in range(brackets)]
        self._seen: dict[tuple[int, float], list[float]] = defaultdict(list)

    def bracket(self, number: int) -> int:
        """The bracket of a trial: decided by seed and number, so the same after an interruption."""
        point = derive_seed(self._seed, "bracket", number) / 2**32 * sum(self._weights)
        return int(np.searchsorted(np.cumsum(self._weights), point, side="right"))

    def observe(self, number: int, epoch: float, value: float) -> str | None:
        bracket = self.bracket(number)
        rung = next((r for r in self._rungs[bracket:] if math.isclose(r, epoch, rel_tol=1e-6)), None)
        if rung is None or not math.isfinite(value):
            return None
        seen = self._seen[bracket, rung]
        reason = None
        if seen:
            share = 100 / self._eta if self._objective.mode == "min" else 100 - 100 / self._eta
            cutoff = float(np.percentile(seen, share))
            if self._objective.better(cutoff, value):
                word = "above" if self._objective.mode == "min" else "below"
                reason = f"rung {rung:g}: {value:.6g} is {word} {cutoff:.6g}, the best 1/{self._eta} of {len(seen)}"
        seen.append(value)
        return reason


class MedianStopping:
    """Stop a trial whose best value so far is worse than the median of the others' values at that epoch.

    As in Golovin et al., "Google Vizier", KDD 2017, with values in place of running averages, as our curves have few
    points. Waits for :data:`MEDIAN_NEEDS` other trials and for the lowest rung.
    """

    def __init__(self, objective: Objective, min_epochs: float):
        self._objective, self._min_epochs = objective, min_epochs
        self._best: dict[int, float] = {}
        self._seen: dict[float, dict[int, float]] = defaultdict(dict)

    def observe(self, number: int, epoch: float, value: float) -> str | None:
        if not math.isfinite(value):
            return None
        best = self._best.get(number)
        self._best[number] = value if self._objective.better(value, best) else (best if best is not None else value)
        at_epoch = self._seen[round(epoch, 6)]
        others = [seen for other, seen in at_epoch.items() if other != number]
        at_epoch[number] = value
        if len(others) < MEDIAN_NEEDS or epoch < self._min_epochs:
            return None
        median = float(np.median(others))
        if not self._objective.better(median, self._best[number]):
            return None
        return f"epoch {epoch:g}: best {self._best[number]:.6g} is worse than the median {median:.6g} of {len(others)}"


def judged_epochs(config: SearchConfig) -> tuple[float, ...] | None:
    """Where the rule that ``config`` names may stop a trial: at these epochs only; ``None``: at every report."""
    if config.scheduler == "none":
        return ()
    return None if config.scheduler == "median" else config.rungs()


def make_rule(
    config: SearchConfig, objective: Objective, trials: Iterable[Trial], verdicts: dict[int, str | None] | None = None
) -> StoppingRule:
    """The rule that ``config`` names, with the memory of all reports of ``trials``.

    Args:
        verdicts: filled with what the rule said to the last report of each trial.
    """
    rungs = config.rungs()
    rule: StoppingRule = NeverStop()
    if config.scheduler in ("asha", "hyperband"):
        brackets = len(rungs) + 1 if config.scheduler == "hyperband" else 1
        rule = SuccessiveHalving(objective, rungs, config.reduction_factor, brackets=brackets, seed=config.seed)
    elif config.scheduler == "median":
        assert config.min_epochs is not None
        rule = MedianStopping(objective, config.min_epochs)
    reports = [(at, trial.number, epoch, value) for trial in trials for epoch, value, at in trial.curve]
    for _, number, epoch, value in sorted(reports):
        verdict = rule.observe(number, epoch, value)
        if verdicts is not None:
            verdicts[number] = verdict
    return rule
