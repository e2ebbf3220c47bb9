"""The simulation behind `python -m benchmarks.quality`: its clock, its rules, and what each search tells Optuna."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from benchmarks.quality.curves import POINTS, Synthetic, recorded, reported
from benchmarks.quality.promotion import Promotion, Rungs
from benchmarks.quality.report import wins
from benchmarks.quality.searches import Ours, RayPair, ToldComplete
from benchmarks.quality.simulation import Job, simulate


class Falling:
    """Trial ``start`` has ``start - epoch / 10`` and takes ``start`` seconds an epoch."""

    settings: ClassVar = {"family": "none"}
    noise = 0.0

    def curve(self, config: Any) -> np.ndarray:
        falling: np.ndarray = config["start"] - np.array(POINTS) / 10
        return falling

    def seconds(self, config: Any) -> float:
        return float(config["start"])


class OneRung:
    """Trials 3, 2, 4, 4, … that report at 1 and 3; those that begin above 2 are stopped at 1."""

    points = (1.0, 3.0)

    def __init__(self) -> None:
        self.starts = [3.0, 2.0]
        self.heard: list[tuple[int, float, float]] = []

    def next(self) -> Job:
        number = len(self.starts) - 2
        self.starts.append(4.0)
        return Job(number, {"start": self.starts[number]})

    def report(self, number: int, epoch: float, value: float) -> bool:
        self.heard.append((number, epoch, round(value, 6)))
        return epoch == 3.0 or value > 2


def test_two_workers_report_in_the_order_of_time_and_are_paid_by_the_epoch() -> None:
    search = OneRung()
    course = simulate(search, Falling(), seed=0, epochs=6, seconds=0)
    # Trial 1 reports after 2 s and after 6 s; trial 0 after 3 s; trial 2, on its worker, after 7 s; trial 3 after 10 s.
    assert search.heard == [(1, 1.0, 1.9), (0, 1.0, 2.9), (1, 3.0, 1.7), (2, 1.0, 3.9)]
    assert course.seconds == [2, 3, 6, 7, 10]
    assert course.epochs == [1, 2, 4, 5, 6]
    assert course.values == pytest.approx([1.9, 1.9, 1.7, 1.7, 1.7])
    assert course.at([0.5, 1, 3.9, 4], course.epochs) == pytest.approx([np.inf, 1.9, 1.9, 1.7])
    assert course.trials == 5


def test_promotion_takes_the_best_third_of_a_rung_and_the_highest_rung_first() -> None:
    rungs = Rungs((1.0, 3.0), eta=3)
    rungs.record(0, 0, 0.5)
    rungs.record(0, 1, 0.4)
    assert rungs.promote() is None, "one of three, and there are two"
    rungs.record(0, 2, 0.6)
    assert rungs.promote() == (1, 0)
    assert rungs.promote() is None, "a trial is promoted once"
    for number, value in enumerate([0.45, 0.3, 0.2], start=3):
        rungs.record(0, number, value)
    assert [rungs.promote() for _ in range(3)] == [(5, 0), (4, 0), None], "two of six"
    for number in (1, 4, 5):
        rungs.record(1, number, 1 - number / 10)
    for number in (6, 7, 8):
        rungs.record(0, number, 0.1)
    assert rungs.promote() == (5, 1)
    assert rungs.promote() == (6, 0)


def test_a_promoted_trial_goes_on_from_its_rung_and_is_shown_to_the_sampler_as_it_is() -> None:
    problem = Synthetic(1, peaked=False)
    search = Promotion(problem, 1, paused="pruned", sampler="random")
    simulate(search, problem, seed=1, epochs=40, seconds=0)
    curves = {trial.number: [epoch for epoch, _, _ in trial.curve] for trial in search._study.ordered()}
    assert any(len(epochs) == 2 for epochs in curves.values())
    assert all(epochs == sorted(epochs) for epochs in curves.values())
    states = {trial.number: trial.state.name for trial in search._study._study.get_trials(deepcopy=False)}
    paused = [number for number, epochs in curves.items() if epochs and epochs[-1] < 3]
    assert {"PRUNED"} <= {states[number] for number in paused} <= {"PRUNED", "RUNNING"}
    assert list(states.values()).count("RUNNING") <= 3, "two workers, one of which may hold the last report"


def test_searches_tell_optuna_what_they_are_compared_for() -> None:
    problem = Synthetic(3, peaked=False)
    told = {}
    for name, search in {
        "PRUNED": Ours(problem, 3, min_epochs=1.0, sampler="random"),
        "COMPLETE": Ours(problem, 3, min_epochs=1.0, sampler="random", kind=ToldComplete),
        "Ray": RayPair(problem, 3),
    }.items():
        simulate(search, problem, seed=3, epochs=60, seconds=0)
        study = search._searcher._ot_study if isinstance(search, RayPair) else search._driver.study._study
        told[name] = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    stopped = [trial for trial in told["PRUNED"] if trial.state.name == "PRUNED"]
    assert stopped
    same = {trial.number: trial for trial in told["COMPLETE"]}
    for trial in stopped:
        assert same[trial.number].state.name == "COMPLETE"
        assert same[trial.number].value == trial.intermediate_values[max(trial.intermediate_values)]
    assert {trial.state.name for trial in told["Ray"]} == {"COMPLETE"}
    assert any(max(trial.intermediate_values, default=0) < 8 for trial in told["Ray"]), "and some were stopped"


def test_both_rules_stop_the_same_trials() -> None:
    from ray.tune.schedulers import ASHAScheduler

    problem = Synthetic(5, peaked=True)
    search = Ours(problem, 5, min_epochs=1.0, sampler="random")
    rays = ASHAScheduler(metric="loss", mode="min", max_t=9, grace_period=1, reduction_factor=3)
    trials: dict[int, SimpleNamespace] = {}
    verdicts = []
    ours = search.report

    def both(number: int, epoch: float, value: float) -> bool:
        if number not in trials:
            trials[number] = SimpleNamespace(trial_id=str(number))
            rays.on_trial_add(None, trials[number])
        theirs = rays.on_trial_result(None, trials[number], {"loss": value, "training_iteration": epoch}) == "STOP"
        verdicts.append((ours(number, epoch, value), theirs))
        return verdicts[-1][0]

    search.report = both  # type: ignore[method-assign]
    simulate(search, problem, seed=5, epochs=120, seconds=0)
    assert all(a == b for a, b in verdicts)
    assert {a for a, _ in verdicts} == {True, False}


def test_curves_are_what_their_description_says() -> None:
    base = {"lr": 1e-3, "batch_size": 128, "optimizer": "adam", "momentum": 0.9, "weight_decay": 1e-5}
    base |= {"width": 32, "dropout": 0.1, "batch_norm": False, "activation": "relu"}
    for seed in range(5):
        steady, peaked = Synthetic(seed, peaked=False), Synthetic(seed, peaked=True)
        assert (np.diff(steady.curve(base)) < 0).all()
        assert (peaked.curve(base) > steady.curve(base)).all()
        assert (steady.curve({**base, "lr": 0.1, "optimizer": "sgd", "momentum": 0.98}) == 1).all(), "diverges"
        assert (reported(steady, base, seed) == reported(steady, base, seed)).all()
        assert (reported(steady, base, seed) != reported(steady, base, seed + 1)).all()


def test_recorded_curves_can_be_asked_for_at_any_config() -> None:
    problem = recorded()
    config = {"batch_size": 128, "optimizer": "adam", "lr": 3e-3, "filters": 8, "latent_dim": 10}
    config |= {"batch_norm": False, "dropout": 0.0, "momentum": 0.9}
    curve = problem.curve(config)
    assert curve.shape == (len(POINTS),)
    assert 0.01 < curve[-1] < curve[0] < 0.3
    assert (problem.curve({**config, "momentum": 0.1}) == curve).all(), "Adam has no momentum"
    assert problem.fidelity["spearman_of_final_values"] > 0.7


def test_wins_are_counted_over_the_seeds_that_were_not_even() -> None:
    first, second = [1.0] * 8 + [3.0, 3.0, 2.0, None], [2.0] * 12
    told = wins(first, second)
    assert told.startswith("73 % (39–94); +0.5 ("), "8 of 11, Clopper and Pearson's table; (8 - 2) / 11"
    assert wins([1.0, None], [1.0, None]) == "even"
    assert wins([1.0, 2.0, 3.0], [3.0, 4.0, 5.0]).endswith("; +2.0 (+2.0 to +2.0)")
