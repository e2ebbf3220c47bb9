"""Searches whose workers, nodes, drivers and MLflow server are killed at random, and what is left of them.

    python tests/chaos.py [--rounds 20] [--seed 0]

In each round a search on a cluster of two nodes is disturbed every few seconds until it has ended by itself. Then:
every trial stands in the study exactly once, in a final state; every point of a curve that could be read before a kill
is still there, unchanged; no trial was trained anew from zero; MLflow has one run a trial, which agrees with the study;
the best value is the best of the curves. Whatever does not hold ends the script with an error. Prints a table.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from helpers import (
    COMMAND,
    SLEEPY,
    Running,
    assert_kept,
    assert_mirrored,
    assert_told_to_optuna,
    assert_went_on,
    environment,
    free_port,
    raylet_pid,
    two_nodes,
    with_test_families,
    workers_of,
)

from tuning.api import load_search
from tuning.results import ENDED, SearchResult

TRIALS = 10
MOST_KILLS, PAUSE_S = 6, (1.0, 5.0)
"""Kills a round, and seconds between two of them."""

ROUND_S = 300.0
KINDS = ("worker", "raylet", "driver", "mlflow")
TITLES = {"worker": "workers", "raylet": "nodes", "driver": "drivers", "mlflow": "MLflow servers"}


class Mlflow:
    """A real server on a database file, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        artifacts = ["--artifacts-destination", str(self._folder / "artifacts")]
        env = environment(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        with (self._folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command, *store, *artifacts], env=env, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Until it answers."""
        began = time.monotonic()
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert time.monotonic() - began < 120, "the MLflow server does not come up"
                time.sleep(0.3)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Round:
    """One search under attack."""

    def __init__(self, name: str, seed: int, folder: Path, cluster: Any, mlflow: Mlflow) -> None:
        self._name, self._folder, self._cluster, self._mlflow = name, folder, cluster, mlflow
        self._random = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self._seen: list[SearchResult] = []
        self._words = [
            *("search", SLEEPY, "--dataset", "digits", "--name", name, "--trials", str(TRIALS), "--seed", str(seed)),
            *("--max-epochs", "4", "--reduction-factor", "2", "--train-images", "96", "--set", "seconds=0.2"),
            *("--max-failures", "50", "--address", cluster.address, "--tracking-uri", mlflow.uri, "--quiet"),
        ]

    def go(self) -> SearchResult:
        """Disturb the search until it is over; how it stands then, checked."""
        began = time.monotonic()
        driver, kind = self._start(), self._random.choice(KINDS)
        next_kill, server_back = time.monotonic() + 6, 0.0
        while True:
            now = time.monotonic()
            assert now - began < ROUND_S, f"{self._name} does not end: {driver.stderr}"
            if server_back and now >= server_back:
                self._mlflow.start()
                server_back = 0.0
            code = driver.process.poll()
            if code == 0:
                break
            assert code in (None, -signal.SIGKILL), f"{self._name}: {driver.stderr}"
            if code is not None:
                driver = self._start()
            if now >= next_kill and self.kills.total() < MOST_KILLS and self._kill(kind, driver, bool(server_back)):
                self.kills[kind] += 1
                if kind == "mlflow":
                    server_back = now + 5
                next_kill = now + self._random.uniform(*PAUSE_S)
                kind = self._random.choice(KINDS)  # kept until there is one: else it would rarely be a worker
            time.sleep(0.1)
        if server_back:
            self._mlflow.start()
        self._mlflow.wait()
        last = self._start()  # sends what MLflow has missed
        assert last.process.wait(ROUND_S) == 0, last.stderr
        assert "warning" not in last.stderr, last.stderr
        return self._checked()

    def _start(self) -> Running:
        return Running([str(COMMAND), *self._words], self._folder, with_test_families())

    def _look(self) -> None:
        if (self._folder / "runs" / self._name / "study.journal").is_file():
            self._seen.append(load_search(self._name, self._folder / "runs"))

    def _kill(self, kind: str, driver: Running, server_down: bool) -> bool:
        """Whether there was something to kill."""
        nodes = self._cluster.list_all_nodes()
        workers = [pid for node in nodes for pid in workers_of(node)]
        if (kind == "worker" and not workers) or (kind == "mlflow" and server_down):
            return False
        self._look()
        if kind == "worker":
            os.kill(self._random.choice(workers), signal.SIGKILL)
        elif kind == "raylet":
            node = nodes[-1]
            os.kill(raylet_pid(node), signal.SIGKILL)
            self._cluster.remove_node(node, allow_graceful=False)
            self._cluster.add_node(num_cpus=1)
        elif kind == "driver":
            if driver.process.poll() is not None:
                return False
            driver.kill()
        else:
            self._mlflow.kill()
        return True

    def _checked(self) -> SearchResult:
        result = load_search(self._name, self._folder / "runs")
        assert [trial.number for trial in result.trials] == list(range(TRIALS))
        assert all(trial.state in ENDED for trial in result.trials)
        for before in self._seen:
            assert_kept(before.trials, result)
        assert_went_on(result)
        assert_told_to_optuna(result)
        assert_mirrored(result, self._mlflow.uri)
        best = min(value for trial in result.trials if trial.state == "complete" for _, value, _ in trial.curve)
        assert result.best is not None
        assert result.best.value == best
        return result


def rounds(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Play ``count`` rounds; what was killed and checked.

    Raises:
        AssertionError: something was lost, doubled or changed.
    """
    kills: Counter[str] = Counter()
    points = trials = 0
    began = time.monotonic()
    mlflow = Mlflow(folder)
    try:
        with two_nodes() as cluster:
            mlflow.wait()
            for number in range(count):
                one = Round(f"round-{number:02d}", seed + number, folder, cluster, mlflow)
                result = one.go()
                kills += one.kills
                trials += len(result.trials)
                points += sum(len(trial.curve) for trial in result.trials)
                told = ", ".join(f"{n} {TITLES[kind]}" for kind, n in sorted(one.kills.items()))
                print(f"round {number}: {told}; {result.counts()}", file=sys.stderr, flush=True)
    finally:
        mlflow.kill()
    wall = time.monotonic() - began
    return {"rounds": count, "kills": dict(kills), "trials": trials, "points": points, "seconds": round(wall)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = rounds(arguments.rounds, arguments.seed, Path(folder))
    print("| searches | trials | killed | points of curves compared | lost, doubled or changed |")
    print("|---|---|---|---|---|")
    killed = ", ".join(f"{figures['kills'].get(kind, 0)} {TITLES[kind]}" for kind in KINDS)
    print(f"| {figures['rounds']} | {figures['trials']} | {killed} | {figures['points']} | 0 |")


if __name__ == "__main__":
    main()
