"""Ray Tune behind the driver: thin adapters that carry its events to the driver and the driver's answers back.

Ray Tune's own searchers, schedulers and restore are not used, since they tell Optuna that a stopped trial completed,
forget rungs when a driver dies and cannot extend a finished run. Its part is the distributed one: actors, placement,
recovery.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import ray_constants
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from models.datasets import TrainingData
from models.errors import LatentuneError, Problem, StorageError, UserError
from models.places import is_url, put
from tuning.config import SearchConfig, cluster_address
from tuning.driver import Driver, Message
from tuning.trial import MESSAGE, Assignment, TrialActor

LOOK_AT_CLUSTER_S = 5.0
"""Pause between two looks at how many trials the cluster has room for."""

OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|running low on memory")
"""How Ray says that its memory monitor ended a worker. Of every other death it says that it *may* have been memory."""

NODE_LOST = "its node has died"
"""How Ray says that a worker died because all of its node did."""

PROBE_SECONDS = 60.0
"""How long a node may take to say whether it sees a file."""

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


@contextmanager
def ray_session(config: SearchConfig) -> Iterator[None]:
    """A connection to Ray: the one that is there, the cluster at ``address``, or a Ray of our own on this machine.

    Raises:
        UserError: the cluster cannot be reached, or can never give a trial what it asks for.
    """
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        address = cluster_address(config)
        try:
            with _our_sigterm():
                if address is None:
                    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves a search beside other work
                    # By default `init` would join whatever cluster somebody has started on this machine.
                    with _on_loopback():
                        ray.init(address="local", include_dashboard=False, **options)
                else:
                    ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            if address is None:
                raise LatentuneError(f"Ray could not be started: {error}") from error
            raise UserError.of("--address", address, f"no Ray cluster answers there ({error})") from error
    try:
        _check_cluster(config)
        if config.name:  # else it is for several searches, each of which checks its own folder
            check_shared_folder(config)
        with redirect_stdout(sys.stderr):  # where Ray tells of workers that died; stdout is for results
            yield
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _our_sigterm() -> Iterator[None]:
    """Keep Ray from putting a SIGTERM handler of its own in place of ours while it starts.

    It raises SystemExit wherever the process is; inside a hook that swallows exceptions the signal would be lost.
    """
    from ray._private import utils

    original = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = original


def _check_cluster(config: SearchConfig) -> None:
    """Make sure that some node has room for a trial, or that an autoscaler may start one that has.

    Raises:
        UserError: no node has.
    """
    wanted = {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}
    nodes = _nodes()
    if any(_room(node, wanted) for node in nodes):
        return
    shown = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)
    if _autoscaling():
        print(f"no node has {shown} for a trial yet: waiting for the cluster to start one", file=sys.stderr)
        return
    problems = []
    for label, name in (("--cpus-per-trial", "CPU"), ("--gpus-per-trial", "GPU")):
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if wanted[name] > most:
            allowed = f"at most {most:g}, which is what the largest node of the cluster has of {name}"
            problems.append(Problem(label, wanted[name], allowed))
    if not problems:
        problems.append(Problem("--gpus-per-trial", wanted["GPU"], f"no single node of the cluster has {shown}"))
    raise UserError(*problems)


def _nodes() -> list[dict[str, float]]:
    """What each living node has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(node: dict[str, float], wanted: dict[str, float]) -> int:
    """Trials that a node has room for at a time."""
    return min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items() if amount)


def _autoscaling() -> bool:
    """Whether an autoscaler starts the cluster's nodes: those bear the name of a node type.

    So do the machines of a fixed list (provider ``local``), all of which are there already.
    """
    from ray.autoscaler._private.local.config import LOCAL_CLUSTER_NODE_TYPE
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    nodes = get_cluster_resource_state(internal_kv_get_gcs_client()).node_states
    return any(node.ray_node_type_name not in ("", LOCAL_CLUSTER_NODE_TYPE) for node in nodes)


def _sees(probe: Path, token: str) -> bool:
    """Whether a node reaches a file of the driver's, to read and to write: trials keep their checkpoints there."""
    if is_url(probe):
        try:
            put(probe.with_name(f"{probe.name}-{uuid.uuid4().hex}"), b"")
            return probe.read_text() == token
        except Exception:  # each kind of storage has its own
            return False
    try:
        with probe.open("r+") as file:
            return file.read() == token
    except OSError:
        return False


def check_shared_folder(config: SearchConfig) -> None:
    """Make sure that every node reaches the search's folder, where trials keep their checkpoints.

    Raises:
        UserError: some do not; it names them.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2 and not is_url(config.run_dir):  # a bucket wants credentials, also of this machine's workers
        return
    token = uuid.uuid4().hex
    probe = config.run_dir / f".reachable-{token}"
    probe.write_text(token)

    sees = ray.remote(num_cpus=0, max_retries=0)(_sees)
    try:
        asked = {
            sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                probe, token
            ): node["NodeManagerAddress"]
            for node in nodes
        }
        answers, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_SECONDS)
        blind = []
        for answer in answers:
            # One that gives no answer was lost a moment ago, which Ray has not noticed yet: the search goes on without.
            with suppress(ray.exceptions.RayError):
                if not ray.get(answer):
                    blind.append(asked[answer])
    finally:
        for left in config.run_dir.glob(f"{probe.name}*"):
            left.unlink(missing_ok=True)
    if blind:
        raise UserError.of(
            "--runs-dir",
            str(config.runs_dir),
            f"must be a folder that all nodes share; these do not see it: {', '.join(blind)}",
        )


def concurrency(config: SearchConfig) -> int:
    """Trials that run at a time: as many as the nodes have room for now, at most what was asked for.

    With an autoscaler twice as many: it starts nodes for trials that wait.
    """
    wanted = {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}
    room = max(1, sum(_room(node, wanted) for node in _nodes()))
    if _autoscaling():
        room *= 2
    return min(room, config.max_concurrent or room)


def run_trials(driver: Driver, assignment: Assignment, data: TrainingData) -> None:
    """Let Ray Tune run the driver's trials until there are no more, or the driver stops.

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
        _environment(TUNE_SETTINGS),
        _quiet(),
        _memory_kills_are_deaths(),
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


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that starts inside listens on loopback alone; it would on every address of the machine.

    Ray does so by itself on Windows and macOS, by this setting, which it has read when it was imported.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):  # for the processes that it starts
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


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
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
