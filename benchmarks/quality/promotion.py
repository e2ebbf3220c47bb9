"""ASHA as in its paper: trials pause at a rung and are promoted later, when enough of the others were worse."""

from __future__ import annotations

import copy
from typing import Any, Literal

from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from benchmarks.quality.curves import MAX_EPOCHS, Problem
from benchmarks.quality.searches import known_points, new_study
from benchmarks.quality.simulation import Job
from models.family import Record


class Rungs:
    """Algorithm 2 of Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020; lower is better.

    Args:
        epochs: of the rungs, lowest first, the full budget not among them.
    """

    def __init__(self, epochs: tuple[float, ...], eta: int) -> None:
        self.epochs, self._eta = epochs, eta
        self._seen: list[dict[int, float]] = [{} for _ in epochs]
        self._promoted: list[set[int]] = [set() for _ in epochs]

    def record(self, rung: int, number: int, value: float) -> None:
        self._seen[rung][number] = value

    def pass_by(self, rung: int, number: int) -> None:
        """Let a trial go on without being asked for."""
        self._promoted[rung].add(number)

    def promote(self) -> tuple[int, int] | None:
        """A paused trial among the best 1/η of its rung, and that rung, the highest first; ``None`` if none is."""
        for rung in reversed(range(len(self.epochs))):
            seen, promoted = self._seen[rung], self._promoted[rung]
            best = sorted(seen, key=lambda number: (seen[number], number))[: len(seen) // self._eta]
            for number in best:
                if number not in promoted:
                    promoted.add(number)
                    return number, rung
        return None


class Promotion:
    """The service's study and sampler under the promotion rule.

    Args:
        paused: what the sampler is shown of a paused trial. ``running`` is what it is to Optuna until it ends.
            ``pruned`` is the best that one could do: a finished trial of its last rung, opened again by a promotion,
            which no public call of Optuna can do.
        first_whole: never pause the first trial, the default config.
    """

    def __init__(
        self,
        problem: Problem,
        seed: int,
        *,
        paused: Literal["running", "pruned"],
        first_whole: bool = False,
        **settings: Any,
    ) -> None:
        self._study = new_study(problem, seed, **settings)
        self._rungs = Rungs(self._study.config.rungs(), self._study.config.reduction_factor)
        self._paused, self._first_whole = paused, first_whole
        self.points = known_points(self._study)

    def next(self) -> Job:
        found = self._rungs.promote()
        if found is None:
            trial = self._study.propose()
            assert trial is not None
            return Job(trial.number, trial.config)
        number, rung = found
        self._show(number, TrialState.RUNNING)
        after = next(point for point in self.points if abs(point - self._rungs.epochs[rung]) < 1e-6)
        return Job(number, self._study.trials[number].config, after=after)

    def report(self, number: int, epoch: float, value: float) -> bool:
        metric = self._study.objective.metric
        self._study.report(number, Record(epoch, round(epoch * 1000), {metric: value}))
        if epoch == MAX_EPOCHS:
            self._study.complete(number)
            return True
        rung = next((i for i, known in enumerate(self._rungs.epochs) if abs(known - epoch) < 1e-6), None)
        if rung is None:
            return False
        self._rungs.record(rung, number, value)
        if self._first_whole and number == 0:
            self._rungs.pass_by(rung, number)
            return False
        self._show(number, TrialState.PRUNED)
        return True

    def _show(self, number: int, state: TrialState) -> None:
        if self._paused == "running":
            return
        storage = self._study._study._storage
        assert isinstance(storage, InMemoryStorage)
        shown = copy.copy(storage._get_trial(self._study._handles[number]._trial_id))
        shown.state = state
        storage._set_trial(shown._trial_id, shown)
