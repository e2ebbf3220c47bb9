"""Driving the installed ``latentune`` command, and looking at what a search left behind."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from models import checkpoint
from models.datasets import TrainingData
from models.training import DataOnDevice
from tuning import api
from tuning.api import load_search
from tuning.database import stored_address
from tuning.driver import Driver
from tuning.progress import View
from tuning.results import ENDED, SearchResult, Trial
from tuning.stopping import judged_epochs, make_rule
from tuning.store import has_study
from tuning.trial import Assignment, gathered, train_trial

ROOT = Path(__file__).resolve().parent.parent
COMMAND = Path(sys.executable).with_name("latentune")
"""The installed command, beside the Python that runs the tests."""

PATIENCE_S = 120.0
"""After so long something hangs; a search on a busy machine needs a fraction of it."""

SLEEPY = "sleepy:Sleepy"


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, less whatever would lead the command to somebody's settings or servers."""
    foreign = ("LATENTUNE", "MLFLOW", "RAY_", "COLUMNS", "PYTEST")
    # Which Ray sets where it has started: how to show oneself to it.
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(foreign) or name == "RAY_AUTH_MODE"
    }
    return {**kept, **extra}


def with_test_families() -> dict[str, str]:
    """An environment in which processes find this package's sources and the families beside the tests."""
    path = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return environment(PYTHONPATH=os.pathsep.join(path))


class Running:
    """The command at work in the background, with what it has printed in files."""

    def __init__(self, words: Sequence[str], cwd: Path, env: dict[str, str]) -> None:
        number = len(list(cwd.glob("*.stderr")))
        self._files = [cwd / f"{number:02d}.{name}" for name in ("stdout", "stderr")]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(words, cwd=cwd, env=env, stdout=out, stderr=err, start_new_session=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self._files[0].read_text()

    @property
    def stderr(self) -> str:
        return self._files[1].read_text()

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Look again and again until ``holds()``; it must come true while the command runs."""
        began = time.monotonic()
        while not holds():
            assert self.process.poll() is None, f"ended too early with {self.process.returncode}: {self.stderr}"
            assert time.monotonic() - began < PATIENCE_S, f"waited too long: {self.stderr}"
            time.sleep(0.03)

    def send(self, number: signal.Signals) -> None:
        """A signal to the command's own process, not to those that it started."""
        os.kill(self.pid, number)

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end."""
        code = self.process.wait(PATIENCE_S)
        return subprocess.CompletedProcess(self.process.args, code, self.stdout, self.stderr)

    def kill(self) -> None:
        """What ``kill -9`` does, at a moment that the process knows nothing of."""
        self.send(signal.SIGKILL)
        assert self.process.wait(PATIENCE_S) == -signal.SIGKILL


@contextmanager
def running(*args: str, cwd: Path, env: dict[str, str] | None = None, program: str = str(COMMAND)) -> Iterator[Running]:
    """The command in the background; whatever is left of its process group ends with the block."""
    command = Running([program, *args], cwd, environment() if env is None else env)
    try:
        yield command
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
        command.process.wait(PATIENCE_S)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*args: str, cwd: Path, env: dict[str, str] | None = None, code: int | None = 0) -> Any:
    """The command from start to end, its exit code checked."""
    with running(*args, cwd=cwd, env=env) as command:
        done = command.finish()
    assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def read_json(text: str) -> Any:
    """The one JSON value that stdout holds; anything beside it is an error."""
    assert text.count("\n") == 1, text
    return json.loads(text)


def peek(cwd: Path, name: str) -> SearchResult | None:
    """A search as it stands; ``None`` before its study can be read."""
    if not has_study(cwd / "runs" / name):
        return None
    with suppress(Exception):  # the study is being made
        return load_search(name, cwd / "runs")
    return None


def states(result: SearchResult | None) -> list[str]:
    return [] if result is None else [trial.state for trial in result.trials]


def ended(result: SearchResult | None) -> int:
    """Trials that are over."""
    return sum(state in ENDED for state in states(result))


def open_optuna(result: SearchResult) -> optuna.Study:
    """The study with nothing but Optuna."""
    address = stored_address(result.run_dir)
    if address is None:
        storage = JournalStorage(JournalFileBackend(str(result.config.study_file)))
        return optuna.load_study(study_name=None, storage=storage)
    url = os.environ["LATENTUNE_STUDY_URL"].replace("postgresql://", "postgresql+psycopg://")
    return optuna.load_study(study_name=address.study, storage=url)


def assert_kept(before: Iterable[Trial], after: SearchResult) -> None:
    """Nothing that was told is lost, changed, or there twice."""
    now = {trial.number: trial for trial in after.trials}
    assert len(now) == len(after.trials)
    for old in before:
        new = now[old.number]
        assert old.params.items() <= new.params.items()
        if old.started_s is not None:
            assert (new.config, new.seed, new.started_s) == (old.config, old.seed, old.started_s)
        if old.state in ENDED:
            assert new == old
        assert new.records[: len(old.records)] == old.records, f"trial {old.number} was told anew"
        assert new.times[: len(old.times)] == old.times, f"trial {old.number} was told anew"


def assert_went_on(result: SearchResult) -> None:
    """No trial was trained anew: its checkpoint's own history is the study's, down to the seconds that it took."""
    for trial in result.trials:
        epochs = [record.epoch for record in trial.records]
        assert epochs == sorted(set(epochs))
        assert list(trial.times) == sorted(trial.times)
        if trial.state in ("complete", "pruned"):
            assert trial.checkpoint is not None
            assert checkpoint.read(trial.checkpoint)["records"] == [record.to_json() for record in trial.records]


def assert_rule_was_remembered(result: SearchResult) -> None:
    """Every verdict is the one that a rule gives which has seen all reports of the search, in their order."""
    rule = make_rule(result.config, result.objective, [])
    verdicts: dict[int, str] = {}
    reports = sorted((at, trial.number, epoch, value) for trial in result.trials for epoch, value, at in trial.curve)
    for _, number, epoch, value in reports:
        verdict = rule.observe(number, epoch, value)
        if verdict is not None and epoch < result.config.max_epochs:
            verdicts.setdefault(number, verdict)
    assert {trial.number: trial.reason for trial in result.trials if trial.state == "pruned"} == verdicts


def assert_told_to_optuna(result: SearchResult) -> None:
    """Optuna's own view: states, and every reported value of every trial, the last one of a stopped trial included."""
    names = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "interrupted": "RUNNING"}
    told = open_optuna(result).get_trials(deepcopy=False)
    assert len(told) == len(result.trials)
    for trial, frozen in zip(result.trials, told, strict=True):
        assert frozen.state.name == names[trial.state]
        assert frozen.intermediate_values == {round(epoch * 1000): value for epoch, value, _ in trial.curve}
        if trial.state == "complete":
            assert frozen.value == trial.value


def assert_mirrored(result: SearchResult, uri: str, *, alone: bool = True) -> str:
    """MLflow has one parent run and one run a trial, each with its params, curve, state; returns the parent's id.

    Args:
        alone: it has nothing besides.
    """
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [e for e in client.search_experiments() if e.name != "Default"]
    name = f"{result.config.family} on {result.config.data.source}".replace(":", "-")
    (experiment,) = experiments if alone else (e for e in experiments if e.name == name)
    assert experiment.name == name
    search_id = open_optuna(result).user_attrs["id"]
    runs = client.search_runs([experiment.experiment_id], f"tags.`latentune.search` = '{search_id}'")
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = {int(run.data.tags["latentune.trial"]): run for run in runs if run is not parent}
    told_of = sorted(int(run.data.tags["latentune.trial"]) for run in runs if run is not parent)
    assert told_of == list(range(len(result.trials))), told_of
    assert parent.info.status == ("FINISHED" if ended(result) == len(result.trials) else "KILLED")
    status = {"complete": "FINISHED", "pruned": "KILLED", "interrupted": "KILLED", "failed": "FAILED"}
    for trial in result.trials:
        run = children[trial.number]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == status[trial.state]
        assert run.data.params == {name: str(value) for name, value in trial.config.items()}
        points = [
            sorted((point.timestamp, point.value) for point in client.get_metric_history(run.info.run_id, name))
            for name in ("epoch", result.objective.metric)
        ]
        told = [(epoch, value) for (_, epoch), (_, value) in zip(*points, strict=True)]
        assert told == [(epoch, value) for epoch, value, _ in trial.curve]
        if trial.reason is not None:
            assert run.data.tags["latentune.reason"] == trial.reason
    return str(parent.info.run_id)


@contextmanager
def ray_for_tests(num_cpus: int = 2) -> Iterator[str]:
    """A Ray in this process, of two cores unless told otherwise.

    ``search()`` then uses it, and commands reach it at the yielded address.
    """
    import ray

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = with_test_families()["PYTHONPATH"]  # for the workers that Ray starts
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster (:class:`ray.cluster_utils.Cluster`) of a head and a second node, one core each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", with_test_families()["PYTHONPATH"])  # for the workers that the nodes start
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()


def raylet_pid(node: Any) -> int:
    """Process of a node of :func:`two_nodes` that its workers are the children of, and without which it is lost."""
    return int(node.all_processes["raylet"][0].process.pid)


def workers_of(node: Any) -> list[int]:
    """The processes on a node that train, or wait for the next trial."""
    found: list[int] = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(raylet_pid(node)).children():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if any(name in " ".join(child.cmdline()) for name in ("ResourceTrainable", "TrialActor")):
                    found.append(child.pid)
    return found


@contextmanager
def without_ray() -> Iterator[None]:
    """Inside, ``search()`` trains its trials in this process, one after the other, by the function that workers run."""
    from tuning import ray_session

    def train(driver: Driver, images: TrainingData, view: View) -> None:
        config, data = driver.study.config, DataOnDevice(images)
        judged = judged_epochs(config)
        assignment = Assignment(config.family, config.budget(), config.numerics(), judged)
        while (trial := driver.next_trial()) is not None:
            path = driver.study.checkpoint_path(trial.number)
            messages = train_trial(assignment, data, trial.config, trial.seed, path)
            while not driver.receive(trial.number, gathered(messages, judged)):
                pass
        assert driver.error is None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "_train", train)
        patch.setattr(ray_session, "ray_session", lambda config: nullcontext())
        yield
