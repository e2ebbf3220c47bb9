"""Who is compared: for each contender its command, and its trace afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparing import goodput
from benchmarks.machine import machine
from benchmarks.workloads import WORKLOADS, Workload

ROOT = Path(__file__).resolve().parents[1]
OURS = "latentune"
PEERS = {
    "ray-tune": ["benchmarks.peers.ray_tune"],
    "ray-tune-reuse": ["benchmarks.peers.ray_tune", "--reuse"],
    "optuna": ["benchmarks.peers.optuna_pytorch"],
    "syne-tune": ["benchmarks.peers.syne_tune_asha"],
}
CONTENDERS = (OURS, *PEERS)
PARTS = ("search", "same-work")
TIMEOUT_S = 3600


@dataclass(frozen=True)
class Run:
    """One measurement: a contender at work on a part of a workload, with a seed."""

    workload: str
    part: str
    seed: int
    contender: str

    @property
    def work(self) -> Workload:
        return WORKLOADS[self.workload]

    @property
    def file_name(self) -> str:
        return f"{self.workload}-{self.part}-{self.contender}-{self.seed}.json"

    def trials(self) -> int:
        return self.work.trials if self.part == "search" else len(self.work.configs(self.seed))


def measure(
    run: Run, data_dir: Path, scratch: Path, syne_tune_python: str, trials: int | None = None
) -> dict[str, Any]:
    """Run a contender in a process of its own and say what it reported when.

    Args:
        scratch: an empty folder for what the contender writes.
        trials: of ours, where it is to go on for longer than the others.
    """
    before = machine()
    out, log = scratch / "trace.jsonl", scratch / "log.txt"
    trials = trials or run.trials()
    if run.contender == OURS:
        command = our_command(run, trials, data_dir, scratch)
    else:
        command = [sys.executable, "-m", *PEERS[run.contender], "--workload", run.workload, "--part", run.part]
        command += ["--seed", str(run.seed), "--trials", str(trials), "--data-dir", str(data_dir)]
        command += ["--out", str(out), "--scratch", str(scratch)]
    began, wall_s = _time(command, log)
    result = {
        "workload": run.workload,
        "part": run.part,
        "seed": run.seed,
        "contender": run.contender,
        "trials": trials,
        "wall_s": round(wall_s, 3),
        "machine": {**before, "load_average_after": machine()["load_average"]},
    }
    if run.contender == OURS:
        result |= _read_ours(began, wall_s, scratch)
    else:
        points = [json.loads(line) for line in out.read_text().splitlines()]
        result["trace"] = [[round(at - began, 3), trial, epoch, value] for at, trial, epoch, value in points]
    _check(run, result, log)
    return result


def our_command(run: Run, trials: int, data_dir: Path, scratch: Path) -> list[str]:
    """What a user would type, with MLflow and everything else that is on by default."""
    work = run.work
    command = [str(Path(sys.executable).with_name("latentune")), "search", work.family, "--dataset", "fashion-mnist"]
    command += ["--data-dir", str(data_dir), "--seed", str(run.seed)]
    command += ["--train-images", str(work.train_images), "--val-images", str(work.val_images)]
    fixed, space = dict(work.fixed), dict(work.space)
    if run.part == "search":
        command += ["--trials", str(trials), "--max-epochs", str(work.max_epochs)]
        command += ["--reduction-factor", str(work.reduction_factor)]
    else:
        # A report after every epoch and none before, as the others have it.
        command += ["--sampler", "grid", "--scheduler", "none", "--max-epochs", str(work.grid_epochs)]
        command += ["--min-epochs", "1"]
        fixed |= work.base
        space = {name: ",".join(map(str, values)) for name, values in work.grid_values(run.seed).items()}
    for option, pairs in (("--set", fixed), ("--space", space)):
        for name, value in pairs.items():
            command += [option, f"{name}={value}"]
    return [*command, "--name", "ours", "--runs-dir", str(scratch / "runs")]


def _time(command: list[str], log: Path) -> tuple[float, float]:
    """When the process was started (time of day) and for how many seconds it ran.

    Raises:
        RuntimeError: it failed, or took longer than :data:`TIMEOUT_S`; what is left of it is ended.
    """
    foreign = ("LATENTUNE", "MLFLOW", "RAY_", "SYNETUNE", "OMP_", "MKL_", "PYTHONPATH")
    env: Mapping[str, str] = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    with log.open("wb") as file:
        began, clock = time.time(), time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file, start_new_session=True)
        try:
            code: int | None = process.wait(TIMEOUT_S)
            wall_s = time.perf_counter() - clock
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{' '.join(command)}\nended with {code}:\n{tail}")
    return began, wall_s


def _read_ours(began: float, wall_s: float, scratch: Path) -> dict[str, Any]:
    """Trace and goodput from the study. Times are the driver's, of when it had kept a report."""
    from tuning import load_search
    from tuning.study import load_study

    result = load_search("ours", scratch / "runs")
    delay = load_study(result.run_dir).user_attrs["began"] - began
    trace = [
        [round(at + delay, 3), str(trial.number), round(epoch, 6), value]
        for trial in result.trials
        for epoch, value, at in trial.curve
    ]
    busy_s = sum(trial.records[-1].seconds for trial in result.trials if trial.records)
    share = goodput(
        busy_s,
        machine()["cores"],
        wall_s,
        [trial.started_s for trial in result.trials if trial.started_s is not None],
        [trial.finished_s for trial in result.trials if trial.finished_s is not None],
    )
    return {
        "trace": sorted(trace),
        "states": result.counts(),
        "busy_s": round(busy_s, 3),
        "goodput": {name: round(value, 4) for name, value in share.items()},
    }


def _check(run: Run, result: dict[str, Any], log: Path) -> None:
    """Whether the contender did what it was asked to.

    Raises:
        RuntimeError: trials or epochs are missing, or there are too many.
    """
    done: dict[str, float] = {}
    for _, trial, epoch, _ in result["trace"]:
        done[trial] = max(done.get(trial, 0), epoch)
    most = run.work.max_epochs if run.part == "search" else run.work.grid_epochs
    problem = None
    if not done or max(done.values()) > most:
        problem = f"epochs: {done}"
    if run.contender != OURS and len(done) < run.trials():  # one of ours may fail before its first report, by a NaN
        problem = f"{len(done)} trials of {run.trials()}"
    if run.part == "same-work" and sorted(done.values()) != [most] * run.trials():
        problem = f"not {run.trials()} trials of {most} epochs: {done}"
    if problem:
        raise RuntimeError(f"{run.contender}: {problem}\n{log.read_text(errors='replace')[-2000:]}")
