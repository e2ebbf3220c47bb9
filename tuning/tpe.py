"""Optuna's TPE for searches of thousands of trials: the same proposals, sooner, and a bound on what they cost.

Optuna goes through all trials of a study several times for each proposal, in Python. What does not change between two
proposals is kept here, and above :data:`ALL` trials not all are looked at.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Container, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from optuna.study import Study

ALL, LATEST, BEST = 1000, 400, 100
"""Up to how many ended trials a proposal is made from all of them; above, from the latest, and the best of the others.

TPE draws candidates around the best 25, which are always among them, and weighs the others the less the older they are.
"""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class Memory:
    """What proposals of one study find out about its ended trials, which are the same at the next one."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, ...], dict[int, tuple[float, ...]]] = defaultdict(dict)
        """By searched fields and trial: their values as Optuna keeps them, none where it has not all of them."""
        self.kinds: dict[tuple[str, ...], FrozenTrial] = {}
        """The first ended trial with each set of fields."""
        self._looked_at = 0
        self._open: list[int] = []  # trials that were looked at, and had not ended
        self._ended: list[int] = []
        self._ranked: list[tuple[tuple[int, float, float], int]] = []  # ended trials, the best first

    def seen(self, study: Study) -> list[FrozenTrial]:
        """The trials to propose from, in order of number: all, up to :data:`ALL` that ended."""
        trials = study.get_trials(deepcopy=False)
        self._look_at(trials, study.direction)
        if len(self._ended) <= ALL:
            return trials
        recent = self._ended[-LATEST:]
        best = islice((number for _, number in self._ranked if number < recent[0]), BEST)
        running = [number for number in self._open if trials[number].state == TrialState.RUNNING]
        return [trials[number] for number in sorted([*best, *recent, *running])]

    def _look_at(self, trials: list[FrozenTrial], direction: StudyDirection) -> None:
        """Sort in the trials that are new, or have ended since."""
        looked, self._open = [*self._open, *range(self._looked_at, len(trials))], []
        self._looked_at = len(trials)
        for number in looked:
            trial = trials[number]
            if trial.state in ENDED:
                insort(self._ended, number)
                insort(self._ranked, (_rank(trial, direction), number))
                kind = tuple(trial.distributions)
                if kind not in self.kinds or number < self.kinds[kind].number:
                    self.kinds[kind] = trial
            elif not trial.state.is_finished():
                self._open.append(number)


def _rank(trial: FrozenTrial, direction: StudyDirection) -> tuple[int, float, float]:
    """Smaller is better, as TPE ranks: by value, and pruned ones after them, by how far they came and value."""
    sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
    if trial.state == TrialState.COMPLETE:
        return (0, 0.0, sign * cast(float, trial.value))
    step, value = max(trial.intermediate_values.items(), default=(-1, 0.0))
    return (1, -step, sign * value)


class QuickTPESampler(TPESampler):
    """TPE that remembers, for one proposal. Up to :data:`ALL` trials it proposes what Optuna's own does."""

    def __init__(self, memory: Memory, **settings: Any) -> None:
        super().__init__(**settings)
        self._memory = memory
        self._seen: list[FrozenTrial] | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        # It splits the fields into groups that always come together; a set of fields that it had changes nothing more.
        self._trials(study)
        kinds = sorted(self._memory.kinds.values(), key=lambda first: first.number)
        return super().infer_relative_search_space(_seeing(study, kinds), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(_seeing(study, self._trials(study)), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return super().sample_independent(_seeing(study, self._trials(study)), trial, param_name, param_distribution)

    def _trials(self, study: Study) -> list[FrozenTrial]:
        if self._seen is None:
            self._seen = self._memory.seen(study)
        return self._seen

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, np.ndarray[Any, Any]]:
        known = self._memory.rows[tuple(search_space)]
        rows: list[tuple[float, ...]] = []
        for trial in trials:
            row = known.get(trial.number)
            if row is None:
                params = self._get_params(trial, study)
                there = search_space.keys() <= params.keys()
                row = tuple(kind.to_internal_repr(params[name]) for name, kind in search_space.items() if there)
                if trial.state.is_finished():
                    known[trial.number] = row
            if row:
                rows.append(row)
        columns = list(zip(*rows, strict=True)) or [() for _ in search_space]
        return {name: np.asarray(column) for name, column in zip(search_space, columns, strict=True)}


class _Seeing:
    """A study, but for the trials that are seen of it."""

    def __init__(self, study: Study, trials: Iterable[FrozenTrial]) -> None:
        self._study, self._seen = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._seen if states is None or trial.state in states]


def _seeing(study: Study, trials: Iterable[FrozenTrial]) -> Study:
    return cast("Study", _Seeing(study, trials))
