"""TPE that remembers proposes what Optuna's own does; in long searches from fewer trials."""

from __future__ import annotations

import random

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuning.tpe import ALL, BEST, LATEST, Memory, QuickTPESampler

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SETTINGS = {"multivariate": True, "group": True, "constant_liar": True}
ALWAYS: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "width": IntDistribution(2, 64, step=2),
    "optimizer": CategoricalDistribution(("sgd", "adam")),
}
SOMETIMES = {"momentum": FloatDistribution(0.0, 1.0)}
"""Searched only with ``sgd``."""


def trials(count: int) -> list[FrozenTrial]:
    """A past: complete, pruned, failed and running trials, all over the space."""
    draw = random.Random(0)
    made = []
    for number in range(count):
        optimizer = draw.choice(("sgd", "adam"))
        params = {"lr": 10 ** draw.uniform(-5, -1), "width": 2 * draw.randint(1, 32), "optimizer": optimizer}
        fields = ALWAYS
        if optimizer == "sgd":
            params["momentum"], fields = draw.random(), {**ALWAYS, **SOMETIMES}
        state = draw.choices(list(TrialState)[:4], (2, 5, 4, 1))[0]
        state = TrialState.RUNNING if number == 3 else state
        curve = {step: draw.random() for step in range(1, draw.randint(2, 5))}
        value = min(curve.values()) if state == TrialState.COMPLETE else None
        made.append(
            create_trial(state=state, params=params, distributions=fields, value=value, intermediate_values=dict(curve))
        )
    return made


def study_of(past: list[FrozenTrial], direction: str) -> optuna.Study:
    study = optuna.create_study(direction=direction)
    study.add_trials(past)
    return study


def propose(study: optuna.Study, sampler: BaseSampler) -> dict[str, object]:
    study.sampler = sampler
    trial = study.ask(ALWAYS)
    if trial.params["optimizer"] == "sgd":
        trial.suggest_float("momentum", 0.0, 1.0)
    return trial.params


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_proposes_what_optuna_does(direction: str) -> None:
    past = trials(120)
    ours, theirs = study_of([], direction), study_of([], direction)
    memory = Memory()
    for seed, trial in enumerate(past):
        proposals = (
            propose(ours, QuickTPESampler(memory, seed=seed, **SETTINGS)),
            propose(theirs, TPESampler(seed=seed, **SETTINGS)),
        )
        assert proposals[0] == proposals[1]
        for study in (ours, theirs):
            study.add_trial(trial)
    assert {trial.state for trial in ours.trials} == set(TrialState) - {TrialState.WAITING}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_long_search(direction: str) -> None:
    """The running, the latest and the best: what Optuna would propose if there were no others."""
    past = trials(2 * ALL)
    study = study_of(past, direction)
    before = study.get_trials(deepcopy=False)
    seen = Memory().seen(study)
    assert [trial.number for trial in seen] == sorted(trial.number for trial in seen)
    assert [t for t in seen if t.state == TrialState.RUNNING] == [t for t in before if t.state == TrialState.RUNNING]
    ended = [trial for trial in before if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    old, recent = ended[:-LATEST], ended[-LATEST:]
    complete = [trial for trial in old if trial.state == TrialState.COMPLETE]
    best = sorted(complete, key=lambda trial: trial.values[0], reverse=direction == "maximize")[:BEST]
    kept = {trial.number for trial in [*best, *recent]}
    assert {trial.number for trial in seen if trial.state != TrialState.RUNNING} == kept
    assert len(ended) > ALL
    assert len(kept) == LATEST + BEST

    fewer = study_of(seen, direction)
    assert propose(study, QuickTPESampler(Memory(), seed=1, **SETTINGS)) == propose(
        fewer, TPESampler(seed=1, **SETTINGS)
    )


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_what_is_remembered_is_what_is_found_anew(direction: str) -> None:
    """Trials that end late, and in another order than they began."""
    kept, study, running = Memory(), study_of(trials(ALL + 200), direction), list[optuna.Trial]()
    draw = random.Random(1)
    for _ in range(120):
        running.append(study.ask(ALWAYS))
        if len(running) > 3:
            trial = running.pop(draw.randrange(len(running)))
            trial.report(draw.random(), 1)
            ends = {"state": TrialState.PRUNED} if draw.random() < 0.5 else {"values": draw.random()}
            study.tell(trial, **ends)
        seen = [trial.number for trial in kept.seen(study)]
        assert seen == [trial.number for trial in Memory().seen(study)]
        assert set(seen) >= {trial.number for trial in running}
    assert len(seen) < ALL
