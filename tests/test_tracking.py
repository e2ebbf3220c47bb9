"""MLflow as a mirror of the study: real stores and a real server, in good health and in bad."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from helpers import free_port
from mlflow import MlflowClient
from mlflow.entities import Run
from studies import DO_NOTHING, METRIC, distance, finish, images, open_by_hand, optuna_view, record

from models.datasets import TrainingData
from tuning import api, cli, tracking
from tuning.driver import Driver, Message
from tuning.progress import View
from tuning.study import SearchStudy
from tuning.tracking import MlflowTracker, NoTracker, make_tracker

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "interrupted": "KILLED", "running": "RUNNING"}
SLOW_CALL_S = 0.5
"""Telling the tracker of a trial takes microseconds; this is for a machine that does something else for a while."""


class Server:
    """MLflow's server on an address and a database that stay the same when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.database = folder / "server.db"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to start; see :meth:`wait`."""
        assert self._process is None
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                    *("--backend-store-uri", f"sqlite:///{self.database}", "--workers", "1"),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                ],
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        assert self._process is not None
        for _ in range(600):
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.url}/health", timeout=2):
                return
            time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        """Without a word of farewell."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Not started yet."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables; making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The store that a search in ``tmp_path`` uses unless it is told otherwise."""
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter pauses, so that a test sees several attempts."""
    monkeypatch.setattr(tracking, "GATHER_S", 0.02)
    monkeypatch.setattr(tracking, "RETRY_S", (0.05, 0.2))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MLFLOW"):
            monkeypatch.delenv(name)


class Told:
    """A search by hand whose trials are told to a tracker, with the slowest of these calls measured."""

    def __init__(self, study: SearchStudy, uri: str) -> None:
        self.study, self.tracker = study, MlflowTracker(uri, study)
        self.slowest = 0.0

    def tell(self, number: int) -> None:
        began = time.perf_counter()
        self.tracker.trial_changed(self.study.trials[number])
        self.slowest = max(self.slowest, time.perf_counter() - began)

    def begin(self) -> int:
        trial = self.study.propose()
        assert trial is not None
        self.tell(trial.number)
        return trial.number

    def resume(self, number: int) -> None:
        self.study.resume(number)
        self.tell(number)

    def report(self, number: int, *values: float | None, **metrics: float) -> None:
        for value in values:
            done = len(self.study.trials[number].records)
            self.study.report(number, record(done + 1.0, value, **metrics))
            self.tell(number)

    def end(self, number: int, how: str, *reason: str) -> None:
        getattr(self.study, how)(number, *reason)
        self.tell(number)

    def trial(self) -> int:
        """A whole one."""
        number = self.begin()
        value = distance(self.study.trials[number])
        self.report(number, value + 0.1, value, value + 0.2)
        self.end(number, "complete")
        return number

    def close(self, *pictures: Path) -> list[str]:
        return self.tracker.close(tuple(self.study.ordered()), pictures)


def runs_of(uri: str) -> tuple[Run, dict[int, Run]]:
    """The parent run and the trials' runs; there is one of each."""
    client = MlflowClient(uri)
    (experiment,) = (found for found in client.search_experiments() if found.name != "Default")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = {int(run.data.tags["latentune.trial"]): run for run in runs if run is not parent}
    assert len(children) == len(runs) - 1, "a trial has two runs"
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children.values())
    return parent, children


def history(uri: str, run: Run, key: str) -> list[tuple[int, float]]:
    """(milliseconds, value) of every point of a metric, in order of time."""
    points = MlflowClient(uri).get_metric_history(run.info.run_id, key)
    points.sort(key=lambda point: (point.timestamp, point.step))
    return [(point.timestamp, point.value) for point in points]


def wait_for(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Until ``holds``; it may raise a ValueError as long as the runs that it looks for are not there yet."""

    def now() -> bool:
        with suppress(ValueError):
            return holds()
        return False

    began = time.monotonic()
    while not now():
        assert time.monotonic() - began < seconds, "waited too long"
        time.sleep(0.02)


def assert_same(uri: str, study: SearchStudy) -> tuple[Run, dict[int, Run]]:
    """MLflow has of every trial what the study has, and every point of its curve once."""
    parent, children = runs_of(uri)
    assert sorted(children) == [trial.number for trial in study.ordered() if trial.state != "queued"]
    for number, run in children.items():
        trial = study.trials[number]
        state = "interrupted" if trial.state == "running" else trial.state
        name, *shown = run.info.run_name.split(" ")
        assert name == f"{number:03d}"
        assert [word.partition("=")[0] for word in shown] == list(trial.params)
        assert all(float(word.partition("=")[2]) == pytest.approx(trial.params[word[0]], rel=1e-3) for word in shown)
        note = run.data.tags.get("mlflow.note.content", "")
        assert note.startswith({"complete": "**Complete**", "pruned": "**Pruned** at the rung of "}.get(state, ""))
        if trial.finished_s is not None and trial.reason is not None:
            assert trial.reason.replace("\n", "\n    ") in note
        assert run.info.status == STATUS[state]
        assert run.data.params == {name: str(value) for name, value in trial.config.items()}
        tags = {k.removeprefix("latentune."): v for k, v in run.data.tags.items() if k.startswith("latentune.")}
        wanted = {
            "search": study.id,
            "trial": str(number),
            "seed": str(trial.seed),
            "state": state,
            "records": str(len(trial.records)),
        }
        if trial.reason is not None:
            wanted["reason"] = trial.reason
        if trial.state == "pruned":
            wanted["rung"] = f"{trial.epochs:g}"
        assert tags == wanted
        metrics = {name for r in trial.records for name in r.metrics}
        for name in metrics:
            told = [r.metrics[name] for r in trial.records if name in r.metrics]
            assert [value for _, value in history(uri, run, name)] == told
        if trial.records:
            millis = [int((study.began + at) * 1000) for at in trial.times]
            assert history(uri, run, "epoch") == list(zip(millis, [r.epoch for r in trial.records], strict=True))
        best = [] if trial.finished_s is None or trial.value is None else [trial.value]
        assert [value for _, value in history(uri, run, f"best_{METRIC}")] == best
        assert set(run.data.metrics) == metrics | ({"epoch", "train_seconds"} if trial.records else set()) | (
            {f"best_{METRIC}"} if best else set()
        )
        assert trial.started_s is not None
        assert run.info.start_time == int((study.began + trial.started_s) * 1000)
        if trial.finished_s is not None:
            assert run.info.end_time == int((study.began + trial.finished_s) * 1000)
    ended = [trial for trial in study.ordered() if trial.finished_s is not None]
    over = len(ended) == study.total
    assert parent.info.status == ("FINISHED" if over else "KILLED")
    assert parent.data.tags["latentune.state"] == ("finished" if over else "interrupted")
    for state in ("complete", "pruned", "failed"):
        assert parent.data.metrics[f"trials_{state}"] == sum(trial.state == state for trial in ended)
    complete = [trial for trial in ended if trial.state == "complete" and trial.value is not None]
    if complete:
        best_trial = min(complete, key=lambda trial: (trial.value, trial.number))
        assert parent.data.tags["latentune.best_trial"] == str(best_trial.number)
        assert json.loads(parent.data.tags["latentune.best_config"]) == best_trial.config
        assert parent.data.metrics[f"best_{METRIC}"] == best_trial.value
        assert f"**Best so far: {METRIC} " in parent.data.tags["mlflow.note.content"]
        assert f"trial {best_trial.number}." in parent.data.tags["mlflow.note.content"]
    counts = [f"{sum(t.state == s for t in ended)} {s}" for s in ("complete", "pruned", "failed")]
    told = ", ".join(count for count in counts if not count.startswith("0 "))
    assert not told or f"Trials: {told}." in parent.data.tags["mlflow.note.content"]
    assert f"latentune search {DO_NOTHING} --name {study.config.name}" in parent.data.tags["mlflow.note.content"]
    assert parent.data.params, "the parent's params are missing"
    assert parent.inputs.dataset_inputs, "the parent's data set is missing"
    return parent, children


# --- content ---------------------------------------------------------------------------------------------------------


def test_parent_run_says_what_the_search_is(tmp_path: Path, store: str) -> None:
    study = open_by_hand(tmp_path, trials=2, seed=5, space={"a": "0.1..0.9"}, set={"b": 0.25})
    told = Told(study, store)
    told.trial()
    told.trial()
    picture = tmp_path / "history.png"
    picture.write_bytes(b"\x89PNG")
    api.write_yaml(study.config)
    assert told.close(picture) == []
    parent, _ = assert_same(store, study)
    assert parent.info.run_name == "by-hand"
    assert parent.info.start_time == int(study.began * 1000)
    assert parent.data.params == {
        "family": DO_NOTHING,
        "data.source": "digits",
        "data.train_images": "64",
        "data.val_images": "16",
        "data.val_split": "random",
        "data.split_seed": "0",
        "set.batch_size": "32",
        "set.b": "0.25",
        "space.a": "0.1..0.9",
        "space.c": "0.0..1.0",
        "space.d": "0.0..1.0",
        "seed": "5",
        "max_epochs": "3.0",
        "min_epochs": "1.0",
        "reduction_factor": "3",
        "precision": "float32",
        "trials": "2",
        "sampler": "tpe",
        "scheduler": "asha",
        "cpus_per_trial": "1.0",
        "gpus_per_trial": "0.0",
        "max_failures": "3",
    }
    tags = parent.data.tags
    assert tags["latentune.search"] == study.id
    assert tags["latentune.family"] == DO_NOTHING
    assert tags["latentune.dataset"] == "digits"
    assert (tags["latentune.metric"], tags["latentune.mode"]) == (METRIC, "min")
    assert tags["latentune.run_dir"] == str(tmp_path / "by-hand")
    for name in ("latentune", "torch", "ray", "optuna", "mlflow"):
        assert tags[f"latentune.version.{name}"] == version(name)
    assert tags["latentune.python"] == ".".join(map(str, sys.version_info[:3]))
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert tags.get("mlflow.source.git.commit") == (git.stdout.strip() if git.returncode == 0 else None)
    (given,) = parent.inputs.dataset_inputs
    spec = images().spec
    assert given.dataset.name == "digits"
    assert spec.fingerprint.startswith(given.dataset.digest)
    assert json.loads(given.dataset.profile) == {"train_images": 64, "val_images": 16}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
    client = MlflowClient(store)
    assert [item.path for item in client.list_artifacts(parent.info.run_id, "figures")] == ["figures/history.png"]
    assert "search.yaml" in [item.path for item in client.list_artifacts(parent.info.run_id)]
    assert client.get_experiment(parent.info.experiment_id).name == "benchmarks.do_nothing-DoNothing on digits"
    assert told.tracker.run == {
        "tracking_uri": store,
        "experiment": "benchmarks.do_nothing-DoNothing on digits",
        "run_id": parent.info.run_id,
    }


def test_trials_of_every_kind(tmp_path: Path, store: str) -> None:
    study = open_by_hand(tmp_path, trials=6)
    told = Told(study, store)
    told.trial()
    pruned, failed, empty, running, bare = (told.begin() for _ in range(5))
    told.report(pruned, 0.9, train_loss=0.5)
    told.end(pruned, "prune", "rung 1: 0.9 is above 0.2, the best 1/3 of 3")
    told.report(failed, 1e-9, None, train_loss=0.5)
    told.end(failed, "fail", "val_distance became nan [/] “here”\nand there")
    told.end(empty, "complete")  # reported nothing
    told.report(running, 0.4)
    assert study.trials[empty].state == "failed"
    assert told.close() == []
    _, children = assert_same(store, study)
    assert [children[n].data.tags["latentune.state"] for n in range(6)] == [
        *("complete", "pruned", "failed", "failed", "interrupted", "interrupted"),
    ]
    assert children[pruned].data.tags["latentune.rung"] == "1"
    assert "latentune.rung" not in children[failed].data.tags
    assert bare in children


def test_best_so_far_is_a_curve_of_the_parent(tmp_path: Path, store: str, impatient: None) -> None:
    study = open_by_hand(tmp_path, trials=4)
    told = Told(study, store)
    for value in (0.5, 0.7, 0.3, 0.4):
        number = told.begin()
        told.report(number, value)
        told.end(number, "complete")
        wait_for(lambda n=number: sum(run.info.status == "FINISHED" for run in runs_of(store)[1].values()) > n)
    assert told.close() == []
    parent, _ = assert_same(store, study)
    assert [value for _, value in history(store, parent, f"best_{METRIC}")] == [0.5, 0.3]


def test_many_records_at_once(tmp_path: Path, store: str) -> None:
    """More than MLflow takes in one call."""
    study = open_by_hand(tmp_path, trials=1, max_epochs=1000)
    number = study.propose()
    assert number is not None
    for epoch in range(1, 702):
        study.report(0, record(float(epoch), 1 / epoch))
    study.complete(0)
    told = Told(study, store)
    assert told.close() == []
    _, children = assert_same(store, study)
    assert len(history(store, children[0], METRIC)) == 701


def test_searches_of_a_kind_share_an_experiment(tmp_path: Path, store: str) -> None:
    ids = []
    for name in ("one", "two"):
        study = open_by_hand(tmp_path, name=name, trials=1)
        told = Told(study, store)
        told.trial()
        assert told.close() == []
        assert told.tracker.run is not None
        ids.append(told.tracker.run["run_id"])
    client = MlflowClient(store)
    (experiment,) = (found for found in client.search_experiments() if found.name != "Default")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 4
    runs_by_id = {run.info.run_id: run for run in runs}
    for name, parent in zip(("one", "two"), ids, strict=True):
        (child,) = (run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent)
        assert child.info.run_name.startswith("000 a=")
        assert child.data.tags["latentune.search"] == runs_by_id[parent].data.tags["latentune.search"], name


def test_no_tracking(tmp_path: Path) -> None:
    tracker = make_tracker(open_by_hand(tmp_path, tracking_uri="none"))
    assert isinstance(tracker, NoTracker)
    assert tracker.run is None
    assert tracker.close((), ()) == []
    assert not (tmp_path / "mlflow.db").exists()


def test_store_comes_from_the_setting_or_the_environment_or_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = open_by_hand(tmp_path, tracking_uri=None).config
    assert plain.mlflow_uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert plain.mlflow_uri == "http://elsewhere:5000"
    assert plain.model_copy(update={"tracking_uri": "http://here:1"}).mlflow_uri == "http://here:1"
    assert plain.model_copy(update={"tracking_uri": "none"}).mlflow_uri is None


# --- going on --------------------------------------------------------------------------------------------------------


def test_search_that_goes_on_keeps_its_runs(tmp_path: Path, store: str) -> None:
    study = open_by_hand(tmp_path, trials=2)
    told = Told(study, store)
    told.trial()
    left = told.begin()
    told.report(left, 0.4)
    assert told.close() == []
    before, earlier = assert_same(store, study)
    assert before.info.status == "KILLED"

    study = open_by_hand(tmp_path, trials=3)
    told = Told(study, store)
    told.resume(left)
    wait_for(lambda: runs_of(store)[1][left].info.status == "RUNNING")
    parent, children = runs_of(store)
    assert parent.info.status == "RUNNING"
    assert children[left].data.tags["latentune.state"] == "running"
    told.report(left, 0.3, 0.5)
    told.end(left, "complete")
    told.trial()
    assert told.close() == []
    parent, children = assert_same(store, study)
    assert parent.info.run_id == before.info.run_id
    assert {n: children[n].info.run_id for n in earlier} == {n: run.info.run_id for n, run in earlier.items()}
    assert sorted(children) == [0, 1, 2]

    # Only looked at again, with nothing left to do.
    again = Told(open_by_hand(tmp_path, trials=3), store)
    assert again.close() == []
    same, still = assert_same(store, study)
    assert same.info.run_id == parent.info.run_id
    assert {n: run.info.run_id for n, run in still.items()} == {n: run.info.run_id for n, run in children.items()}


def test_trial_that_a_crash_left_half_proposed_is_told_once_it_is_whole(tmp_path: Path, store: str) -> None:
    study = open_by_hand(tmp_path, tracking_uri=store)
    finish(study, study.propose() or pytest.fail("no trial"))
    optuna_view(study).ask().suggest_float("a", 0.0, 1.0)  # and then the driver died

    opened = open_by_hand(tmp_path, tracking_uri=store)
    assert [trial.number for trial in opened.unfinished()] == [1]
    tracker = make_tracker(opened)
    assert tracker.close(opened.ordered(), []) == [], "what it lacks is not told as its default"
    assert set(runs_of(store)[1]) == {0}

    tracker = make_tracker(opened)
    trial = opened.resume(1)
    tracker.trial_changed(trial)
    finish(opened, trial)
    tracker.trial_changed(opened.trials[1])
    assert tracker.close(opened.ordered(), []) == []
    assert_same(store, opened)


def test_run_that_stopped_between_trials_is_not_finished(tmp_path: Path, store: str) -> None:
    study = open_by_hand(tmp_path, trials=5)
    told = Told(study, store)
    told.trial()
    assert told.close() == []
    parent, _ = runs_of(store)
    assert parent.info.status == "KILLED"
    assert parent.data.tags["latentune.state"] == "interrupted"


def test_search_begun_without_tracking_is_sent_whole(tmp_path: Path, store: str) -> None:
    study = open_by_hand(tmp_path, trials=3)
    told = Told(study, f"sqlite:///{tmp_path}/no/such/dir\0/x.db")
    told.trial()
    told.begin()
    (warning,) = told.close()
    assert "MLflow" in warning
    told = Told(open_by_hand(tmp_path, trials=3), store)
    assert told.close() == []
    assert_same(store, told.study)


# --- trouble ---------------------------------------------------------------------------------------------------------

CALLS = (
    *("get_experiment_by_name", "create_experiment", "search_runs", "create_run", "update_run", "log_inputs"),
    *("log_batch", "set_terminated", "log_artifact"),
)


def make_unreliable(monkeypatch: pytest.MonkeyPatch, seed: int, share: float) -> list[str]:
    """Let a share of MLflow's calls fail: half of them before anything is done, half when the answer is on its way."""
    chance, failed = random.Random(seed), []

    def unreliable(name: str) -> Callable[..., Any]:
        right = getattr(MlflowClient, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            fate = chance.random()
            if fate < share / 2:
                failed.append(f"before {name}")
                raise ConnectionError("connection refused")
            answer = right(*args, **kwargs)
            if fate < share:
                failed.append(f"after {name}")
                raise TimeoutError("the answer was lost")
            return answer

        return call

    for name in CALLS:
        monkeypatch.setattr(MlflowClient, name, unreliable(name))
    return failed


@pytest.mark.parametrize("seed", range(4))
def test_calls_that_fail_leave_nothing_out_and_nothing_twice(
    tmp_path: Path, store: str, impatient: None, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    study = open_by_hand(tmp_path, trials=8)
    (tmp_path / "by-hand" / "search.yaml").write_text("family: it\n")
    with monkeypatch.context() as trouble:
        failed = make_unreliable(trouble, seed, share=0.25)
        told = Told(study, store)
        for number in range(8):
            if number % 4 == 2:
                told.begin()
                told.report(number, 0.9)
                told.end(number, "prune", "rung 1")
            elif number % 4 == 3:
                told.begin()
                told.end(number, "fail", "it broke")
            else:
                told.trial()
            time.sleep(0.05)
        told.close()
    assert failed
    # However that went, the same command sends the rest when MLflow is well again.
    study = open_by_hand(tmp_path, trials=8)
    assert Told(study, store).close() == []
    assert_same(store, study)


@pytest.mark.parametrize("name", ["create_run", "log_inputs", "log_batch", "set_terminated"])
@pytest.mark.parametrize("call", [1, 2])
def test_every_call_may_be_the_one_that_fails(
    tmp_path: Path, store: str, impatient: None, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    """One failure of each kind, and the same run of the search makes up for it."""
    right, calls = getattr(MlflowClient, name), [0]

    def once(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        answer = right(*args, **kwargs)
        if calls[0] == call:
            raise TimeoutError("the answer was lost")
        return answer

    monkeypatch.setattr(MlflowClient, name, once)
    study = open_by_hand(tmp_path, trials=2)
    told = Told(study, store)
    told.trial()
    wait_for(lambda: calls[0] > 0 or name == "set_terminated")
    told.trial()
    assert told.close() == []
    assert_same(store, study)


def test_part_that_arrived_before_is_not_there_twice(tmp_path: Path, store: str, impatient: None) -> None:
    """An earlier driver died between a trial's metrics and the note of them; others are sent in one piece with it."""
    study = open_by_hand(tmp_path, trials=4)
    told = Told(study, store)
    told.trial()
    told.trial()
    assert told.close() == []
    client, (_, runs) = MlflowClient(store), runs_of(store)
    client.delete_tag(runs[0].info.run_id, "latentune.records")
    client.update_run(runs[0].info.run_id, status="RUNNING")
    study = open_by_hand(tmp_path, trials=4)
    told = Told(study, store)
    told.trial()
    told.trial()
    assert told.close() == []
    assert_same(store, study)


def test_server_that_comes_goes_and_comes_back(tmp_path: Path, server: Server, impatient: None) -> None:
    study = open_by_hand(tmp_path, trials=9)
    told = Told(study, server.url)  # nobody is there
    for _ in range(2):
        told.trial()
    assert told.tracker.run is None
    server.start()
    told.trial()
    server.wait()
    wait_for(lambda: told.tracker.run is not None)
    wait_for(lambda: len(runs_of(server.url)[1]) == 3)
    wait_for(lambda: all(run.info.status == "FINISHED" for run in runs_of(server.url)[1].values()))
    before, early = runs_of(server.url)
    for number, run in early.items():
        assert [value for _, value in history(server.url, run, METRIC)] == [
            value for _, value, _ in study.trials[number].curve
        ]

    server.kill()
    for _ in range(2):
        told.trial()
    left = told.begin()
    told.report(left, 0.4)
    began = time.monotonic()
    (warning,) = told.close()
    assert time.monotonic() - began < tracking.STUCK_S + 10
    assert server.url in warning
    assert "MLflow" in warning
    assert "has not received 3 trials" in warning
    assert "the same command sends them" in warning
    assert told.slowest < SLOW_CALL_S

    server.start()
    server.wait()
    study = open_by_hand(tmp_path, trials=6)
    told = Told(study, server.url)
    told.resume(left)
    told.report(left, 0.3, 0.2)
    told.end(left, "complete")
    assert told.close() == []
    parent, children = assert_same(server.url, study)
    assert parent.info.run_id == before.info.run_id
    assert {n: children[n].info.run_id for n in early} == {n: run.info.run_id for n, run in early.items()}
    assert sorted(children) == list(range(6))
    server.kill()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Somebody who takes every call and never says a word."""
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_server_that_never_answers_costs_the_end_no_more_than_its_bound(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking.STUCK_S <= 30
    assert tracking.LONGEST_FLUSH_S <= 180
    monkeypatch.setattr(tracking, "STUCK_S", 1.5)
    study = open_by_hand(tmp_path, trials=4)
    first = study.propose()
    assert first is not None
    finish(study, first)
    told = Told(study, silent_server)
    time.sleep(1.0)  # the tracker is at the first one
    for _ in range(3):
        told.trial()
    assert told.slowest < SLOW_CALL_S
    began = time.monotonic()
    (warning,) = told.close()
    assert time.monotonic() - began < 1.5 + 3
    assert "has not received 4 trials" in warning
    assert silent_server in warning
    assert [trial.state for trial in open_by_hand(tmp_path, trials=4).ordered()] == ["complete"] * 4


def test_slow_progress_has_a_bound_too(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes half a second a call gets what it can take in the time that a user can be asked to wait."""
    monkeypatch.setattr(tracking, "LONGEST_FLUSH_S", 1.5)
    right = MlflowClient.log_batch

    def slow(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.5)
        right(*args, **kwargs)

    study = open_by_hand(tmp_path, trials=8)
    for _ in range(8):
        trial = study.propose()
        assert trial is not None
        study.report(trial.number, record(1.0, 0.5))
        study.complete(trial.number)
    with monkeypatch.context() as trouble:
        trouble.setattr(MlflowClient, "log_batch", slow)
        told = Told(study, store)
        began = time.monotonic()
        (warning,) = told.close()
        assert time.monotonic() - began < 1.5 + 2
        assert "MLflow" in warning
        told.tracker._thread.join(30)  # its rest goes on in the background of this process
    monkeypatch.setattr(tracking, "LONGEST_FLUSH_S", 60.0)
    assert Told(open_by_hand(tmp_path, trials=8), store).close() == []
    assert_same(store, study)


# --- passwords -------------------------------------------------------------------------------------------------------


def train_here(driver: Driver, data: TrainingData, view: View) -> None:
    """Stands in for the part of a run that needs Ray."""
    while (trial := driver.next_trial()) is not None:
        driver.receive(trial.number, Message((record(3.0, distance(trial)),), "complete"))


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The command in this process."""
    monkeypatch.setattr(sys, "argv", ["latentune", *words])
    monkeypatch.setattr(api, "_train", train_here)
    with pytest.raises(SystemExit) as end:
        cli.run()
    assert isinstance(end.value.code, int)
    return end.value.code


SECRET = "s3cr3tw0rd"


def files_with(word: str, folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.is_file() and word.encode() in path.read_bytes())


SEARCH = ("search", DO_NOTHING, "--trials", "2", "--train-images", "64", "--val-images", "16", "--name", "quiet")


def test_password_from_the_environment_is_nowhere_to_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    dead = f"http://user:{SECRET}@127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead)
    assert call(monkeypatch, *SEARCH, "--runs-dir", str(tmp_path)) == 0
    seen = capfd.readouterr()
    assert "MLflow" in seen.err
    assert "has not received 2 trials" in seen.err
    assert call(monkeypatch, *SEARCH, "--runs-dir", str(tmp_path), "--json") == 0
    again = capfd.readouterr()
    assert SECRET not in seen.out + seen.err + again.out + again.err
    assert files_with(SECRET, tmp_path) == []
    assert files_with(DO_NOTHING, tmp_path) != [], "the look into the files sees what is in them"


def test_password_of_a_server_does_not_reach_its_runs(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server.start()
    server.wait()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url.replace("://", f"://user:{SECRET}@"))
    assert call(monkeypatch, *SEARCH, "--runs-dir", str(tmp_path), "--json") == 0
    seen = capfd.readouterr()
    assert "warning" not in seen.err
    assert json.loads(seen.out)["mlflow"]["tracking_uri"] == server.url
    server.kill()
    assert SECRET not in seen.out + seen.err
    assert files_with("quiet", server.folder) != []
    assert files_with(SECRET, server.folder) == []
    assert files_with(SECRET, tmp_path) == []


def test_password_in_a_setting_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"http://user:{SECRET}@127.0.0.1:1"
    assert call(monkeypatch, *SEARCH, "--runs-dir", str(tmp_path), "--tracking-uri", uri) == 2
    seen = capfd.readouterr()
    assert "MLFLOW_TRACKING_PASSWORD" in seen.err
    assert SECRET not in seen.out + seen.err
    assert files_with(SECRET, tmp_path) == []
