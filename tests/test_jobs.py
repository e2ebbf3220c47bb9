"""Searches as jobs of a real Ray cluster on this machine: submit, look, stop, submit again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import COMMAND, ROOT, environment, free_port, read_json, run

from models.errors import UserError
from tuning.api import load_search
from tuning.jobs import LARGEST_UPLOAD, Cluster, option, upload_size
from tuning.results import ENDED

SLEEPY = "sleepy:Sleepy"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all nodes share."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def env(shared: Path) -> Iterator[dict[str, str]]:
    """Environment of somebody who talks to a cluster of one node.

    A second node of this machine would share the first one's folder of working directories, and replace a job's.
    """
    from ray.cluster_utils import Cluster as RayCluster

    port = free_port()
    before = dict(os.environ)
    os.environ["PATH"] = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"  # where nodes have the command
    os.environ["LATENTUNE_RUNS_DIR"] = str(shared / "runs")
    os.environ["PYTHONPATH"] = str(ROOT)
    cluster = RayCluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": True,
            "dashboard_port": port,
            "dashboard_host": "127.0.0.1",
            "dashboard_agent_listen_port": free_port(),  # by default one port, which another Ray here may have
        },
    )
    try:
        yield environment(RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{port}")
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working directory with a family of one's own, and with what must stay behind."""
    (tmp_path / "sleepy.py").write_text((ROOT / "tests" / "sleepy.py").read_text())
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "huge.bin").write_bytes(bytes(LARGEST_UPLOAD + 1))
    return tmp_path


def wait_for(holds: Callable[[], bool], seconds: float = 120) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, "waited too long"
        time.sleep(0.3)


@pytest.mark.slow
def test_a_search_is_submitted_stopped_and_goes_on(project: Path, env: dict[str, str], shared: Path) -> None:
    words = ["search", SLEEPY, "--dataset", "digits", "--train-images", "96", "--val-images", "16", "--name", "far"]
    words += ["--trials", "12", "--max-epochs", "3", "--set", "seconds=0.4", "--tracking-uri", "none", "--quiet"]
    first = run("submit", "--no-wait", *words, cwd=project, env=env).stdout.strip()
    assert first.startswith("far-")

    def under_way() -> bool:
        if not (shared / "runs" / "far" / "study.journal").is_file():
            return False
        trials = load_search("far", shared / "runs").trials
        return any(trial.state in ENDED for trial in trials)

    wait_for(under_way)
    refused = run("submit", "--no-wait", *words, cwd=project, env=env, code=2)
    assert first in refused.stderr, "one run of a search at a time"
    assert "running" in run("jobs", cwd=project, env=env).stdout

    assert run("stop", first, cwd=project, env=env).stdout.strip() == f"{first}: stopped"
    left = load_search("far", shared / "runs").trials
    assert {trial.state for trial in left} & {"interrupted", "complete", "pruned"}
    assert len([trial for trial in left if trial.state in ENDED]) < 12
    said = run("logs", first, cwd=project, env=env).stdout
    assert "Traceback" not in said
    assert "SIGTERM received" not in said, "Ray's own handler, which ends the process soon"
    assert "# go on with it" in said, "it ended as SIGTERM ends a search"

    done = run("submit", *words, cwd=project, env=env)
    second = done.stdout.strip()
    assert second != first
    assert "12 trials" in done.stderr, "what the job prints is followed"
    trials = load_search("far", shared / "runs").trials
    assert [trial.state in ENDED for trial in trials] == [True] * 12
    for before in left:
        after = trials[before.number]
        assert after.records[: len(before.records)] == before.records
    listed = read_json(run("jobs", "--json", cwd=project, env=env).stdout)
    assert [(job["id"], job["status"]) for job in listed][:2] == [(second, "succeeded"), (first, "stopped")]


def test_a_job_that_fails_says_so(project: Path, env: dict[str, str]) -> None:
    failed = run("submit", "best", "nosuch", cwd=project, env=env, code=1)
    assert "no such search" in failed.stderr
    assert failed.stdout.startswith("best-")


def test_a_relative_run_folder_is_refused_in_a_job(project: Path, env: dict[str, str]) -> None:
    words = ["search", "conv_autoencoder", "--dataset", "digits", "--name", "lost", "--runs-dir", "runs"]
    failed = run("submit", *words, cwd=project, env=env, code=1)
    assert "--runs-dir" in failed.stderr
    assert "LATENTUNE_RUNS_DIR" in failed.stderr


def test_what_cannot_be_submitted_is_told_at_once(project: Path, env: dict[str, str]) -> None:
    told = run("submit", "--env", "oops", "search", "conv_autoencoder", cwd=project, env=env, code=2).stderr
    assert "--env" in told
    assert "--name" in told
    (project / "large.bin").write_bytes(bytes(LARGEST_UPLOAD + 1))
    assert "--working-dir" in run("submit", "best", "x", cwd=project, env=env, code=2).stderr
    assert "JOB" in run("logs", "nosuch", cwd=project, env=env, code=2).stderr
    nowhere = environment(RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{free_port()}")
    assert "no Ray dashboard answers" in run("jobs", cwd=project, env=nowhere, code=2).stderr


def test_what_is_shipped(project: Path) -> None:
    sources = (ROOT / "tests" / "sleepy.py").stat().st_size
    assert upload_size(project) == sources
    for name in (".venv/big", "data/x", "a/__pycache__/b", "model.pt"):
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
    assert upload_size(project) == sources
    (project / "a" / "code.py").write_bytes(bytes(10))
    assert upload_size(project) == sources + 10


def test_the_name_among_the_words() -> None:
    assert option(["search", "--name", "a", "--trials", "3"], "--name") == "a"
    assert option(["search", "--name=b"], "--name") == "b"
    assert option(["search", "--name"], "--name") is None


def test_no_cluster_is_a_mistake_for_people() -> None:
    with pytest.raises(UserError, match="--address"):
        Cluster(f"http://127.0.0.1:{free_port()}")


def test_a_run_folder_that_nodes_do_not_reach_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.cluster_utils import Cluster as RayCluster

    from tuning.config import make_config
    from tuning.ray_session import check_shared_folder

    cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        monkeypatch.chdir(tmp_path)
        # The second path leads each process into its own working directory, as a path does on disks of their own.
        for runs_dir, reached in ((tmp_path / "runs", True), (Path("/proc/self/cwd/runs"), False)):
            config = make_config({"family": "conv_autoencoder", "name": "x", "runs_dir": str(runs_dir)})
            config.run_dir.mkdir(parents=True, exist_ok=True)
            if reached:
                check_shared_folder(config)
            else:
                with pytest.raises(UserError, match=r"--runs-dir.*all nodes share"):
                    check_shared_folder(config)
            assert list(config.run_dir.iterdir()) == [], "nothing is left behind"
    finally:
        ray.shutdown()
        cluster.shutdown()
