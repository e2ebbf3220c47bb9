"""Ray on this machine or a cluster: connecting, and whether it can do what a search asks for.

Loads Ray alone. Ray Tune takes a second to load, which is spent while Ray's own processes start.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from models.errors import LatentuneError, Problem, UserError
from models.places import is_url, put
from tuning.config import SearchConfig, cluster_address
from tuning.verbosity import verbose

WARM_WORKERS = {
    "preload_python_modules": ["tuning.warm"],
    # Else they end again before Ray Tune asks for them: being large, or after a second of waiting.
    "idle_worker_killing_memory_threshold_bytes": 2**31,
    "idle_worker_killing_time_threshold_ms": 60_000,
}
"""Lets the workers that Ray starts with itself, one a core, load torch before they are asked for anything."""

PROBE_SECONDS = 60.0
"""How long a node may take to say whether it sees a file."""


@contextmanager
def ray_session(config: SearchConfig) -> Iterator[bool]:
    """A connection to Ray: the one that is there, the cluster at ``address``, or a Ray of our own on this machine.

    Yields:
        Whether it is of our own, so that its workers have this process's environment.

    Raises:
        UserError: the cluster cannot be reached, or can never give a trial what it asks for.
    """
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        level = logging.INFO if verbose() else logging.ERROR
        options: dict[str, Any] = {"log_to_driver": verbose(), "logging_level": level}
        address = cluster_address(config)
        try:
            with _our_sigterm():
                if address is None:
                    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves a search beside other work
                    # By default `init` would join whatever cluster somebody has started on this machine.
                    with _on_loopback(), _fewer_processes():
                        ray.init(address="local", include_dashboard=False, _system_config=_warm(config), **options)
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
            yield ours and cluster_address(config) is None
    finally:
        if ours:
            ray.shutdown()


def _warm(config: SearchConfig) -> dict[str, Any]:
    """Settings that warm workers up, where at least half of them will be wanted."""
    cores = os.cpu_count() or 1
    wanted = min(cores / config.cpus_per_trial, config.max_concurrent or cores, config.trials or cores)
    return WARM_WORKERS if wanted * 2 >= cores else {}


@contextmanager
def _our_sigterm() -> Iterator[None]:
    """Keep Ray from putting SIGTERM handlers of its own in place of ours while it starts.

    The one in Python raises SystemExit wherever the process is; inside a hook that swallows exceptions the signal would
    be lost. The one in C++ prints a stack, calls ours, and ends the process three seconds later.
    """
    from ray._private import utils

    original = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = original
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # in place of the one in C++


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


@contextmanager
def _fewer_processes() -> Iterator[None]:
    """A Ray that starts inside has no dashboard, no tail of its logs and no autoscaler.

    These do nothing for a Ray that one search starts for itself, and cost two seconds of a core before its first trial.
    """
    from ray._private.node import Node

    names = ("start_api_server", "start_monitor", *(() if verbose() else ("start_log_monitor",)))
    before = {name: getattr(Node, name) for name in names}
    for name in names:
        setattr(Node, name, lambda node, **options: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that starts inside listens on loopback alone; it would on every address of the machine.

    Ray does so by itself on Windows and macOS, by this setting, which it has read when it was imported.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):  # for the processes that it starts
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """Environment variables that hold inside, for this process and those that it starts."""
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
