"""Searches on clusters of several nodes, some of which are lost; and trials that hang."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    SLEEPY,
    assert_kept,
    assert_mirrored,
    assert_told_to_optuna,
    assert_went_on,
    ended,
    peek,
    raylet_pid,
    run,
    running,
    states,
    two_nodes,
    with_test_families,
    workers_of,
)

from tuning.api import load_search

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SMALL = ("--set", "seconds=0.1", "--max-epochs", "4", "--reduction-factor", "2", "--train-images", "96")
"""Three steps and 0.3 s an epoch, and one rung, at epoch 2."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with two_nodes() as nodes:
        yield nodes


def places(cwd: Path, address: str) -> tuple[str, ...]:
    return ("--runs-dir", str(cwd / "runs"), "--address", address, "--name", "it")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_node_costs_no_trial_and_a_new_one_is_used(tmp_path: Path, cluster: Any) -> None:
    head, second = cluster.list_all_nodes()
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    # A lost node is not counted as a failure of the trials that were on it.
    words = ("search", SLEEPY, "--trials", "12", "--scheduler", "none", "--max-failures", "0", *SMALL)
    places_ = (*places(tmp_path, cluster.address), "--tracking-uri", uri)
    with running(*words, *places_, "--set", "seconds=0.4", cwd=tmp_path, env=with_test_families()) as driver:

        def both_at_work() -> bool:
            now = peek(tmp_path, "it")
            if now is None or not (workers_of(head) and workers_of(second)):
                return False
            at_work = [trial for trial in now.trials if trial.state == "running"]
            return len(at_work) == 2 and all(trial.records for trial in at_work)

        driver.wait_until(both_at_work)
        before = load_search("it", tmp_path / "runs")
        os.kill(raylet_pid(second), signal.SIGKILL)
        driver.wait_until(lambda: ended(peek(tmp_path, "it")) >= 3)
        third = cluster.add_node(num_cpus=1)
        driver.wait_until(lambda: bool(workers_of(third)))
        done = driver.finish()
    assert done.returncode == 0, done.stderr
    after = load_search("it", tmp_path / "runs")
    assert states(after) == ["complete"] * 12
    assert_kept(before.trials, after)
    assert_went_on(after)
    assert_told_to_optuna(after)
    assert_mirrored(after, uri)


@pytest.mark.slow
def test_a_node_that_comes_late_is_used_by_trials_shorter_than_its_start(tmp_path: Path, cluster: Any) -> None:
    """Its first worker is left to start, and stays."""
    words = ("search", SLEEPY, "--dataset", "digits", "--tracking-uri", "none", "--trials", "60", "--scheduler", "none")
    with running(
        *(*words, *places(tmp_path, cluster.address), "--max-epochs", "1", "--train-images", "96"),
        *("--set", "seconds=0.3"),
        cwd=tmp_path,
        env=with_test_families(),
    ) as driver:
        driver.wait_until(lambda: ended(peek(tmp_path, "it")) >= 3)
        late = cluster.add_node(num_cpus=1)
        seen: set[int] = set()
        while driver.process.poll() is None:
            seen.update(workers_of(late))
            time.sleep(0.05)
    assert driver.process.returncode == 0, driver.stderr
    assert len(seen) == 1


@pytest.mark.slow
def test_what_no_single_node_has_is_refused(tmp_path: Path, cluster: Any) -> None:
    """Two cores are there, but not on one node."""
    words = ("search", SLEEPY, "--dataset", "digits", "--tracking-uri", "none", *places(tmp_path, cluster.address))
    done = run(*words, "--cpus-per-trial", "2", "--gpus-per-trial", "1", cwd=tmp_path, env=with_test_families(), code=2)
    assert "--cpus-per-trial: got 2.0; at most 1" in done.stderr
    assert "--gpus-per-trial: got 1.0; at most 0" in done.stderr


@pytest.mark.slow
def test_where_nodes_are_started_on_demand_a_search_waits_for_one(tmp_path: Path, cluster: Any) -> None:
    """An autoscaler's node is known by the name of its type, which it is given here by hand."""
    cluster.add_node(num_cpus=1, env_vars={"RAY_NODE_TYPE_NAME": "worker"})
    words = ("search", SLEEPY, "--dataset", "digits", "--tracking-uri", "none", "--trials", "2", *SMALL)
    with running(
        *words, *places(tmp_path, cluster.address), "--cpus-per-trial", "2", cwd=tmp_path, env=with_test_families()
    ) as driver:
        driver.wait_until(lambda: "no node has 2 CPU for a trial yet: waiting" in driver.stderr)
        cluster.add_node(num_cpus=2)
        done = driver.finish()
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_trial_that_hangs_is_given_up_and_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    words = ("search", SLEEPY, "--dataset", "digits", "--name", "it", "--tracking-uri", "none", "--trials", "3")
    options = ("--space", "trouble=none,hang", "--sampler", "grid", "--set", "kind=plain", "--set", "latent_dim=2")
    more = ("--set", "lr=1", "--scheduler", "none", "--max-concurrent", "1", "--report-timeout", "30s")
    run(*words, *options, *more, "--max-epochs", "2", "--train-images", "96", cwd=tmp_path, env=with_test_families())
    trials = load_search("it", tmp_path / "runs").trials
    assert {trial.config["trouble"]: trial.state for trial in trials} == {"none": "complete", "hang": "failed"}
    (hung,) = [trial for trial in trials if trial.state == "failed"]
    assert hung.reason == "no report for 30 s (report_timeout)"


@pytest.mark.slow
def test_the_times_that_a_trial_is_begun_again_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    words = ("search", SLEEPY, "--dataset", "digits", "--name", "it", "--tracking-uri", "none", "--trials", "1")
    # There is no such place for the mark, so that it dies each time.
    options = ("--set", "trouble=kill", "--set", "marker=/no/such/place", "--max-failures", "1")
    run(*words, *options, "--max-epochs", "1", "--train-images", "96", cwd=tmp_path, env=with_test_families(), code=1)
    (trial,) = load_search("it", tmp_path / "runs").trials
    assert trial.state == "failed"
    assert (trial.reason or "").startswith("its worker died 2 times")


@pytest.mark.slow
def test_a_worker_that_dies_between_two_trials_costs_neither(tmp_path: Path) -> None:
    words = ("search", SLEEPY, "--name", "it", "--tracking-uri", "none", "--trials", "3", "--max-concurrent", "1")
    options = ("--set", "trouble=kill_between", "--set", f"marker={tmp_path / 'killed'}", "--max-failures", "1")
    run(*words, *options, "--max-epochs", "2", "--train-images", "96", cwd=tmp_path, env=with_test_families())
    assert (tmp_path / "killed").exists()
    assert set(states(load_search("it", tmp_path / "runs"))) <= {"complete", "pruned"}


@pytest.mark.slow
def test_a_worker_that_ray_ends_for_memory_fails_its_trial_alone(tmp_path: Path) -> None:
    """By a real memory monitor, with a limit a little above what the machine uses now."""
    from ray._common.utils import get_system_memory
    from ray._private.utils import get_used_memory

    used, there = get_used_memory(), get_system_memory()
    if there - used < 6 * 2**30:
        pytest.skip("needs 6 GiB of free memory")
    env = {**with_test_families(), "RAY_memory_usage_threshold": f"{(used + 2 * 2**30) / there:.4f}"}
    words = ("search", SLEEPY, "--name", "it", "--tracking-uri", "none", "--trials", "1", "--max-failures", "1")
    options = ("--set", "trouble=devour", "--max-epochs", "2", "--train-images", "96", "--max-concurrent", "1")
    done = run(*words, *options, cwd=tmp_path, env=env, code=1)
    assert "Traceback" not in done.stderr
    (trial,) = load_search("it", tmp_path / "runs").trials
    assert trial.state == "failed"
    assert (trial.reason or "").startswith("its worker died 2 times: out of memory: ")


def test_without_memory_a_trial_fails_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers import without_ray

    from tuning import search

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with without_ray():
        result = search(
            SLEEPY,
            dataset="digits",
            data={"train_images": 96},
            trials=1,
            max_epochs=1,
            set={"trouble": "memory"},
            runs_dir=tmp_path,
            tracking_uri="none",
            progress="none",
            pictures=False,
        )
    (trial,) = result.trials
    assert trial.state == "failed"
    assert (trial.reason or "").startswith("out of memory: ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_chaos(tmp_path: Path) -> None:
    """A round of the script that the README's table comes from."""
    import chaos

    figures = chaos.rounds(1, seed=7, folder=tmp_path)
    assert figures["trials"] == chaos.TRIALS
    assert sum(figures["kills"].values()) >= 2
    assert figures["points"] > 0
