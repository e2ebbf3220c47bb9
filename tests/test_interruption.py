"""Searches that are killed, stopped, out of time or extended: nothing told is lost, nothing is done twice."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import (
    SLEEPY,
    Running,
    assert_kept,
    assert_mirrored,
    assert_rule_was_remembered,
    assert_told_to_optuna,
    assert_went_on,
    ended,
    peek,
    ray_for_tests,
    run,
    running,
    states,
    with_test_families,
    without_ray,
)

from models import checkpoint
from tuning import replay, search
from tuning.api import load_search
from tuning.results import ENDED, SearchResult
from tuning.stopping import make_rule

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SLOW = ("--set", "seconds=0.1", "--max-epochs", "4", "--reduction-factor", "2", "--train-images", "96")
"""Three steps and 0.3 s an epoch, and one rung, at epoch 2."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a Ray that commands and this process share, where a Ray of their own is not what is tested."""
    with ray_for_tests() as address:
        yield address


def begun(result: SearchResult | None) -> bool:
    return result is not None


def in_first_trials(result: SearchResult | None) -> bool:
    return result is not None and ended(result) == 0 and any(trial.records for trial in result.trials)


def some_ended(result: SearchResult | None) -> bool:
    return (
        result is not None
        and ended(result) >= 3
        and any(trial.records and trial.state == "running" for trial in result.trials)
    )


def run_ids(uri: str) -> dict[str, str]:
    """MLflow's run of every trial, by number; that of the search by the empty string."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = [run for e in client.search_experiments() for run in client.search_runs([e.experiment_id])]
    ids = {run.data.tags.get("latentune.trial", ""): run.info.run_id for run in runs}
    assert len(ids) == len(runs), "a trial has two runs"
    return ids


@pytest.mark.slow
def test_killed_driver_loses_nothing(tmp_path: Path, cluster: str) -> None:
    """One search of eight trials, two at a time, killed at three moments.

    MLflow is there from the third on, and is told all then.
    """
    # Found beside the data, as a user's own family is: nothing but the installed command and this folder.
    shutil.copy(Path(__file__).with_name("sleepy.py"), tmp_path)
    command = ("search", SLEEPY, "--name", "it", "--trials", "8", "--max-concurrent", "2", "--quiet", *SLOW)
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    untracked, tracked = ("--tracking-uri", "none"), ("--tracking-uri", uri, "--address", cluster)
    left: list[SearchResult] = []
    for moment, options in ((begun, untracked), (in_first_trials, untracked), (some_ended, tracked)):
        with running(*command, *options, cwd=tmp_path) as driver:
            driver.wait_until(lambda moment=moment: moment(peek(tmp_path, "it")))  # type: ignore[misc]
            driver.kill()
        left.append(load_search("it", tmp_path / "runs"))
    ids = run_ids(uri)
    assert "interrupted" in states(left[1])
    assert ended(left[2]) >= 3
    assert "warning" not in run(*command, *tracked, cwd=tmp_path).stderr
    result = load_search("it", tmp_path / "runs")
    assert len(result.trials) == 8
    assert set(states(result)) <= {"complete", "pruned"}
    assert "pruned" in states(result), "nothing was stopped: rungs cannot be checked"
    for before in left:
        assert_kept(before.trials, result)
    assert_went_on(result)
    assert_rule_was_remembered(result)
    assert_told_to_optuna(result)
    assert_mirrored(result, uri)
    assert ids.items() <= run_ids(uri).items(), "MLflow's runs are other ones than before"
    assert len(ids) > 3
    for trial in result.trials:
        assert trial.checkpoint is not None
        weights = checkpoint.read(trial.checkpoint)["weights"]
        assert weights["tracker_seen"] == 0, "a worker imported MLflow"
        assert weights["steps"] <= trial.records[-1].step

    # Trained again in one go: those that had to go on from a checkpoint, and one that was stopped.
    resumed = {trial.number for before in left for trial in before.trials if trial.records and trial.state not in ENDED}
    assert resumed
    for number in sorted({*resumed, states(result).index("pruned")}):
        assert replay("it", number, tmp_path / "runs").identical, f"trial {number} gives other numbers"

    # What a rule remembers of the last kill: a worse trial would have been stopped, and against how many.
    def verdict(trials: SearchResult) -> str:
        said = make_rule(trials.config, trials.objective, trials.trials).observe(99, 2.0, 9.9)
        return said or ""

    there = sum(any(epoch == 2.0 for epoch, _, _ in trial.curve) for trial in left[2].trials)
    assert there >= 2
    assert verdict(left[2]).endswith(f"of {there}")


def printed_command(stdout: str) -> str:
    (line,) = (line for line in stdout.splitlines() if line.endswith("# go on with it"))
    return line.partition("#")[0].strip()


@pytest.mark.slow
def test_stopped_search_goes_on_as_it_would_have(tmp_path: Path, cluster: str) -> None:
    """Ctrl-C, SIGTERM, a time budget and more trials, one after the other in one search; each loses nothing.

    With one trial at a time, so that the outcome is that of a search that was never stopped.
    """
    env = with_test_families()
    command = ("search", SLEEPY, "--name", "it", "--trials", "6", "--max-concurrent", "1", "--seed", "3", *SLOW)

    def wait_for_progress(driver: Running, more: int) -> None:
        """Until ``more`` trials than now have ended, and another one has reported."""
        enough = ended(peek(tmp_path, "it")) + more
        driver.wait_until(
            lambda: (
                ended(now := peek(tmp_path, "it")) >= enough
                and now is not None
                and now.trials[-1].state == "running"
                and bool(now.trials[-1].records)
            )
        )

    def assert_stopped(done: subprocess.CompletedProcess[str], before: SearchResult) -> SearchResult:
        now = load_search("it", tmp_path / "runs")
        assert_kept(before.trials, now)
        assert [state for state in states(now) if state not in ENDED] == ["interrupted"], "the one at work stays"
        assert_told_to_optuna(now)
        assert "failed" not in states(now)
        assert "Traceback" not in done.stderr
        return now

    # Ctrl-C goes to all processes of a terminal's foreground, Ray's too.
    with running(*command, "--tracking-uri", "none", cwd=tmp_path, env=env) as driver:
        wait_for_progress(driver, 1)
        before = load_search("it", tmp_path / "runs")
        os.killpg(driver.pid, signal.SIGINT)
        done = driver.finish()
    assert done.returncode == 130
    now = assert_stopped(done, before)
    assert "stopped" in done.stdout
    assert "trial 0 complete val_mse" in done.stderr, "progress is told on stderr"
    assert "trial 0 complete val_mse" not in done.stdout

    # As printed.
    line = printed_command(done.stdout)
    program, *args = shlex.split(line)
    with running(*args, cwd=tmp_path, env={**env, "RAY_ADDRESS": cluster}, program=program) as driver:
        driver.wait_until(lambda: "running" in states(peek(tmp_path, "it")))
        # Meanwhile somebody else tries the same.
        second = run(*args, cwd=tmp_path, env=env, code=2)
        assert f"already running: process {driver.pid} of " in second.stderr
        assert second.stdout == ""
        before = load_search("it", tmp_path / "runs")
        wait_for_progress(driver, 1)
        driver.send(signal.SIGTERM)
        done = driver.finish()
    assert done.returncode == 143
    assert_kept(now.trials, before)
    now = assert_stopped(done, before)
    assert printed_command(done.stdout) == line

    # A budget that is too short for so many trials.
    budget = 6.0
    options = ("--trials", "60", "--time-budget", f"{budget:g}s", "--address", cluster, "--json")
    done = run("search", "--name", "it", *options, cwd=tmp_path, env=env)
    told = json.loads(done.stdout)
    assert told["outcome"] == "time budget"
    assert told["trials"]["interrupted"] <= 1
    assert told["trials"]["failed"] == 0
    assert told["wall_s"] < budget + 8
    late = load_search("it", tmp_path / "runs")
    assert_kept(now.trials, late)
    assert "failed" not in states(late)

    # To its end, and beyond it, with nothing said of the settings.
    many = len(late.trials) + 1
    for trials in (many, many + 2):
        result = search(name="it", runs_dir=tmp_path / "runs", trials=trials, time_budget="1h", progress="none")
        assert result.outcome == "finished"
        assert len(result.trials) == ended(result) == trials
        assert_kept(late.trials, result)
        late = result
    assert_went_on(result)
    assert_rule_was_remembered(result)
    assert_told_to_optuna(result)

    with without_ray():
        whole = search(
            SLEEPY,
            name="whole",
            runs_dir=tmp_path / "runs",
            trials=many + 2,
            max_concurrent=1,
            seed=3,
            max_epochs=4,
            reduction_factor=2,
            data={"train_images": 96},
            set={"seconds": 0.0},
            tracking_uri="none",
            progress="none",
            pictures=False,
        )
    assert [(t.number, t.state, t.params) for t in result.trials] == [
        (t.number, t.state, t.params) for t in whole.trials
    ]
    assert [[r.metrics for r in t.records] for t in result.trials] == [
        [r.metrics for r in t.records] for t in whole.trials
    ]


@pytest.mark.slow
def test_time_budget_does_not_wait_for_an_epoch(tmp_path: Path, cluster: str) -> None:
    began = time.monotonic()
    result = search(
        SLEEPY,
        name="it",
        runs_dir=tmp_path,
        trials=2,
        max_epochs=4,
        data={"train_images": 96},
        set={"seconds": 60.0},
        time_budget=5,
        tracking_uri="none",
        progress="none",
    )
    assert time.monotonic() - began < 25
    assert result.outcome == "time budget"
    assert set(states(result)) <= {"interrupted"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_ray_starts(number: signal.Signals, tmp_path: Path) -> None:
    """Ray has a signal handler of its own by then."""
    options = ("--name", "it", "--trials", "2", "--tracking-uri", "none", *SLOW)
    with running("search", SLEEPY, *options, cwd=tmp_path, env=with_test_families()) as driver:
        children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children")
        driver.wait_until(lambda: begun(peek(tmp_path, "it")) and bool(children.read_text()))
        driver.send(number)
        done = driver.finish()
    assert done.returncode == 128 + number
    assert printed_command(done.stdout)
    assert "Traceback" not in done.stderr
    assert states(load_search("it", tmp_path / "runs")) == []
