"""The searches that are compared: the service's own study, sampler and driver, and Ray Tune's own pair of objects."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from benchmarks.quality.curves import MAX_EPOCHS, POINTS, Problem, space_of
from benchmarks.quality.simulation import Job
from models.datasets import DataSpec
from models.family import Record, get_family
from models.numerics import derive_seed
from tuning.config import make_config
from tuning.driver import Driver, Message
from tuning.store import NewStudy
from tuning.study import SearchStudy, _suggest

T = TypeVar("T")

ENDLESS = 100_000
"""Trials; the simulation ends before."""

MakeSampler = Callable[[str, int, int], BaseSampler]


class InMemory:
    """A store of a study that nobody wants to keep."""

    shown = "memory"

    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()

    def open(self, new: NewStudy) -> optuna.Study:
        self._study = optuna.create_study(study_name=new.name, direction=new.direction)
        for key, value in new.attrs.items():
            self._study.set_user_attr(key, value)
        return self._study

    def load(self) -> optuna.Study:
        return self._study

    def lasting(self, act: Callable[[], T]) -> T:
        return act()

    def close(self) -> None:
        """Nothing."""


class ToldComplete(SearchStudy):
    """The service's study, but a stopped trial is told as Ray Tune's OptunaSearch tells it."""

    def prune(self, number: int, reason: str) -> None:
        _, value, _ = self.trials[number].curve[-1]
        self._end(number, "pruned", reason, TrialState.COMPLETE, value)


def new_study(problem: Problem, seed: int, kind: type[SearchStudy] = SearchStudy, **settings: Any) -> SearchStudy:
    """A study of the service's own kind, in memory."""
    config = make_config(
        {
            **problem.settings,
            "name": "simulated",
            "seed": seed,
            "trials": ENDLESS,
            "max_epochs": MAX_EPOCHS,
            "min_epochs": 1 / 3,
            "tracking_uri": "none",
            **settings,
        }
    )
    family = get_family(config.family)
    store, spec = InMemory(), _no_images()
    attrs = {"began": time.time(), "data": spec.model_dump(mode="json"), "id": uuid.uuid4().hex}
    study = store.open(NewStudy(config.name, "minimize", attrs))
    return kind(study, store, config, family, spec)


class Ours:
    """The service without Ray: its driver, study, sampler and stopping rule.

    Args:
        make: what makes its samplers, instead of the service's own.
        settings: of the search; by default TPE, ASHA with rungs at 1/3, 1 and 3 of 9 epochs, default config first.
    """

    def __init__(
        self,
        problem: Problem,
        seed: int,
        *,
        kind: type[SearchStudy] = SearchStudy,
        make: MakeSampler | None = None,
        **settings: Any,
    ) -> None:
        study = new_study(problem, seed, kind, **settings)
        self._driver = Driver(study, [], max_concurrent=ENDLESS, deadline=None)
        self._metric, self._make = study.objective.metric, make
        self.points = known_points(study)

    def next(self) -> Job:
        with _sampler(self._make):
            trial = self._driver.next_trial()
        assert trial is not None
        return Job(trial.number, trial.config)

    def report(self, number: int, epoch: float, value: float) -> bool:
        record = Record(epoch, round(epoch * 1000), {self._metric: value})
        return self._driver.receive(number, Message((record,), "complete" if epoch == MAX_EPOCHS else "running"))


class RayPair:
    """``ray.tune.search.optuna.OptunaSearch`` and ``ASHAScheduler`` themselves, called as Ray Tune's controller does.

    That is ``TuneController._process_trial_result`` and ``stop_trial`` (ray 2.55 to 2.60): the scheduler hears a result
    first, the searcher only if the trial goes on; a trial that ends, for whatever reason, is told to both with its last
    result. The space is given as a function, which is how Ray Tune's documentation writes conditions.
    """

    points = POINTS[1:]

    def __init__(self, problem: Problem, seed: int, *, reduction_factor: int = 3, default_first: bool = False) -> None:
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        family, self._space = space_of(problem)
        self._fixed = {**family.Config().model_dump(), **self._space.fixed}
        self._searcher = OptunaSearch(
            self._ask,
            metric="loss",
            mode="min",
            seed=seed,
            points_to_evaluate=[self._space.default()] if default_first else None,
        )
        self._scheduler = ASHAScheduler(
            metric="loss", mode="min", max_t=int(MAX_EPOCHS), grace_period=1, reduction_factor=reduction_factor
        )
        self._trials: list[SimpleNamespace] = []

    def _ask(self, trial: Any) -> None:
        self._space.walk(lambda name, known: _suggest(trial, name, known))

    def next(self) -> Job:
        trial = SimpleNamespace(trial_id=f"{len(self._trials):08d}")
        config = self._searcher.suggest(trial.trial_id)
        self._scheduler.on_trial_add(None, trial)
        self._trials.append(trial)
        return Job(len(self._trials) - 1, {**self._fixed, **config})

    def report(self, number: int, epoch: float, value: float) -> bool:
        trial, result = self._trials[number], {"loss": value, "training_iteration": int(epoch)}
        stop = self._scheduler.on_trial_result(None, trial, result) == "STOP"
        if not stop:
            self._searcher.on_trial_result(trial.trial_id, result)
            return False
        self._scheduler.on_trial_complete(None, trial, result)
        self._searcher.on_trial_complete(trial.trial_id, result)
        return True


def tpe(**changes: Any) -> MakeSampler:
    """What :func:`tuning.samplers.make_sampler` makes for ``tpe``, with other settings."""

    def make(name: str, seed: int, number: int) -> BaseSampler:
        settings = {"multivariate": True, "group": True, "constant_liar": True, **changes}
        return TPESampler(**settings, seed=derive_seed(seed, "sampler", number))

    return make


def known_points(study: SearchStudy) -> tuple[float, ...]:
    """Where trials report, as the curves name these epochs."""
    return tuple(point for point in POINTS if any(abs(point - p) < 1e-6 for p in study.config.budget().report_points()))


@contextmanager
def _sampler(make: MakeSampler | None) -> Iterator[None]:
    if make is None:
        yield
    else:
        with mock.patch("tuning.study.make_sampler", make):
            yield


def _no_images() -> DataSpec:
    return DataSpec(
        source="none",
        channels=1,
        height=1,
        width=1,
        class_names=(),
        train_images=0,
        val_images=0,
        fingerprint="0" * 64,
    )
