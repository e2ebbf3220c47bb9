"""Ray Tune behind the driver: thin adapters that carry its events to the driver and the driver's answers back.

Ray Tune's own searchers, schedulers and restore are not used, since they tell Optuna that a stopped trial completed,
forget rungs when a driver dies and cannot extend a finished run. Its part is the distributed one: actors, placement,
recovery.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from models.datasets import TrainingData
from models.errors import StorageError
from tuning.driver import Driver, Message
from tuning.ray_session import concurrency, environment
from tuning.trial import MESSAGE, Assignment, TrialActor
from tuning.verbosity import verbose

LOOK_AT_CLUSTER_S = 5.0
"""Pause between two looks at how many trials the cluster has room for."""

OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|running low on memory")
"""How Ray says that its memory monitor ended a worker. Of every other death it says that it *may* have been memory."""

NODE_LOST = "its node has died"
"""How Ray says that a worker died because all of its node did."""

TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files of every trial: the study has it all
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # its own snapshot of the run is never read
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # search() handles signals
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "10000",  # the driver says how many; by default one actor would start after another
    "RAY_AIR_NEW_OUTPUT": "0",
}


class TuneSearcher(Searcher):  # type: ignore[misc]
    """Asks the driver for trials."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._driver.full:
            return None
        with _carried_to(self._driver):
            trial = self._driver.next_trial()
            if trial is not None:
                path = self._driver.study.checkpoint_path(trial.number)
                return {"number": trial.number, "config": trial.config, "seed": trial.seed, "checkpoint": str(path)}
            if self._driver.waiting:
                return None
        return str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the scheduler hears it first, and with the reason."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see :meth:`save`."""


class TuneScheduler(FIFOScheduler):  # type: ignore[misc]
    """Carries results to the driver, and its verdict back."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None: Ray Tune then starts what is queued, and each trial keeps the worker that is starting for it.

        A trial that is chosen here takes over a worker that has become free, and the one that was starting for it is
        ended: with trials shorter than a worker's start, the second worker would never come. Besides, FIFO goes through
        all trials of the run at every event.
        """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return str(TrialScheduler.STOP if self._receive(trial, result) else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        # Ray Tune brings a trial's last result here alone; one that the driver stopped comes a second time, unheard.
        self._receive(trial, result)

    def _receive(self, trial: Any, result: dict[str, Any]) -> bool:
        verdict = [True]  # holds where our own code fails: then everything stops
        with _carried_to(self._driver):
            verdict.append(self._driver.receive(trial.config["number"], Message.from_json(result[MESSAGE])))
        return verdict[-1]


class SilentReporter(tune.ProgressReporter):  # type: ignore[misc]
    """In a notebook Ray Tune would otherwise clear the cell, our live view too, whatever ``verbose`` is."""

    def should_report(self, trials: Any, done: bool = False) -> bool:
        return False

    def report(self, trials: Any, done: bool, *sys_info: str) -> None:
        """Nothing."""


class TuneCallback(Callback):  # type: ignore[misc]
    """Looks after what no report tells of: workers that died or hang, nodes that came or went.

    A trial whose worker died is a failed one to Ray Tune, and the driver gives it to the searcher again. Ray's own
    retries count a death between two trials, in :meth:`TrialActor.reset_config`, twice, and give the next trial up.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._heard: dict[Any, float] = {}  # when each running trial began or reported last
        self._looked = time.monotonic()

    def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
        return Callback, ()  # as of the driver: for a restore that we never do

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._heard[trial] = time.monotonic()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        self._heard[trial] = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._heard.pop(trial, None)
        # Two thirds of what Ray Tune remembers of a trial: means and extremes of every number that it reported.
        with suppress(AttributeError):  # it is internal, and only memory is lost where it is called something else
            trial.run_metadata.metric_analysis.clear()
            trial.run_metadata.metric_n_steps.clear()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._heard.pop(trial, None)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        with _carried_to(self._driver):
            config = self._driver.study.config
            if now - self._looked >= LOOK_AT_CLUSTER_S:
                self._looked = now
                self._driver.max_concurrent = concurrency(config)
            if config.report_timeout is not None:
                for trial in [one for one, heard in self._heard.items() if now - heard > config.report_timeout]:
                    self._give_up(trial, f"no report for {config.report_timeout:g} s (report_timeout)")

    def _give_up(self, trial: Any, reason: str) -> None:
        """Fail a trial and end its worker, which may hang where no exception reaches it."""
        del self._heard[trial]
        self._driver.give_up(trial.config["number"], reason)
        actor = trial.temporary_state.ray_actor
        if actor is not None:
            ray.kill(actor)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._heard.pop(trial, None)
        with _carried_to(self._driver):
            # All failures so far, each under a line of its own. What the trial gives by itself is not written yet.
            error = Path(trial.error_file).read_text().rpartition("Failure # ")[2].partition("\n")[2]
            reason = " ".join(error.split())[:300] or "no reason given"
            if OUT_OF_MEMORY.search(error):
                reason = f"out of memory: {reason}"
            self._driver.lost(trial.config["number"], reason, counts=NODE_LOST not in error)


class TuneStopper(Stopper):  # type: ignore[misc]
    """Ends the run when the driver says so. Ray Tune then tells nobody: live trials stay unfinished, as meant."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._driver.stopping


@contextmanager
def _carried_to(driver: Driver) -> Iterator[None]:
    """An error in our own code ends the run and is raised at its end, instead of being logged as a trial's failure."""
    try:
        yield
    except OSError as error:
        driver.abort(StorageError(f"cannot write {driver.study.config.study_file}: {error.strerror or error}"))
    except Exception as error:
        driver.abort(error)


def run_trials(driver: Driver, assignment: Assignment, data: TrainingData, *, warm: bool = False) -> None:
    """Let Ray Tune run the driver's trials until there are no more, or the driver stops.

    Args:
        warm: take workers that are there already; they must have this process's environment.

    Raises:
        Exception: what :meth:`Driver.abort` was told.
    """
    config = driver.study.config
    scheduler = TuneScheduler(driver)
    trainable = tune.with_resources(
        tune.with_parameters(TrialActor, assignment=assignment, data=data),
        {"cpu": config.cpus_per_trial, "gpu": config.gpus_per_trial},
    )
    with (
        environment(TUNE_SETTINGS),
        nullcontext() if verbose() else _quiet(),
        _memory_kills_are_deaths(),
        _trainable_in_memory(),
        _any_worker() if warm else nullcontext(),
        tempfile.TemporaryDirectory(prefix="latentune-") as scratch,
    ):
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=TuneSearcher(driver), scheduler=scheduler, num_samples=-1, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=config.name,
                storage_path=scratch,
                stop=TuneStopper(driver),
                verbose=0,
                callbacks=[TuneCallback(driver)],
                progress_reporter=SilentReporter(),
                # By default a trial's end waits for one more task of its worker, which would save nothing.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    if driver.error is not None:
        raise driver.error


class _PlainActors:
    """Ray Tune's cache of actor classes, without the environment variables that it adds to them."""

    def __init__(self) -> None:
        self._made: dict[type, Any] = {}

    def get(self, trainable: type) -> Any:
        return self._made.setdefault(trainable, ray.remote(trainable))


@contextmanager
def _any_worker() -> Iterator[None]:
    """Let trials have the workers that Ray started with itself, which have loaded torch by now.

    An actor class with environment variables of its own, as Ray Tune makes them, always waits for a new process.
    """
    from ray.tune.execution import tune_controller

    before = tune_controller._ActorClassCache
    tune_controller._ActorClassCache = _PlainActors
    try:
        yield
    finally:
        tune_controller._ActorClassCache = before


@contextmanager
def _trainable_in_memory() -> Iterator[None]:
    """Let Ray Tune keep the trainable, which it otherwise fetches from the cluster and unpickles for every trial."""
    from ray.tune.registry import _global_registry as registry

    get = cache(registry.get)

    def contains(category: str, key: str) -> bool:
        with suppress(ValueError):  # not yet
            get(category, key)
            return True
        return False

    registry.get, registry.contains = get, contains
    try:
        yield
    finally:
        del registry.get, registry.contains


@contextmanager
def _memory_kills_are_deaths() -> Iterator[None]:
    """Let Ray Tune see a worker that Ray's memory monitor ended as one that died.

    Ray has an error of its own for it, which is no RayActorError: on any such error Ray Tune raises a RuntimeError and
    all of the run ends.
    """
    from ray.air.execution._internal import actor_manager
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.tune.execution import tune_controller

    for module in (actor_manager, tune_controller):  # which use the name in `isinstance` alone
        module.RayActorError = (RayActorError, OutOfMemoryError)
    try:
        yield
    finally:
        for module in (actor_manager, tune_controller):
            module.RayActorError = RayActorError


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray's loggers at ERROR: what a user has to know is said by us."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
