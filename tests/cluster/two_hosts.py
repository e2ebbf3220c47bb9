"""Two hosts on one machine, and Ray's cluster launcher against them with ``docs/cluster/on-premise.yaml``.

A host is a process tree with namespaces of its own for processes, mounts, network and name, with an sshd, a ``/tmp``
and a home. The hosts share the machine's disks: the virtual environment and the run folder are what all nodes see.

``python tests/cluster/two_hosts.py`` (as root) goes the way of the README, says what it does and how long it took, and
leaves nothing behind.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from tuning.api import load_search
from tuning.results import ENDED

ROOT = Path(__file__).resolve().parents[2]
VENV = Path(sys.prefix)
CLUSTER_FILE = ROOT / "docs" / "cluster" / "on-premise.yaml"
NEEDED = ("ip", "unshare", "ssh", "ssh-keygen", "/usr/sbin/sshd", "rsync")
NETWORK = "198.18.{}"
"""Of the block for tests of networks, which nobody routes (RFC 2544); the last but one number is of this process."""
PATIENCE_S = 240.0

FAMILY = """
import os, socket
from sleepy import Sleepy

class Seen(Sleepy):
    name = "seen"

    def build(self, config, spec):
        with open(os.environ["LATENTUNE_RUNS_DIR"] + "/hosts", "a") as file:
            file.write(socket.gethostname() + "\\n")
        return super().build(config, spec)
"""
"""A family of the user's own, shipped by ``submit``: it leaves word of the host that trained."""


def missing() -> str | None:
    """What this machine lacks for hosts of our own; ``None`` where nothing is."""
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    if lacking:
        return f"needs {', '.join(lacking)}"
    if not (VENV / "bin" / "ray").exists():
        return f"needs the command ray in {VENV / 'bin'}"
    if any(path.is_relative_to("/tmp") for path in (ROOT, VENV)):
        return "needs the project outside of /tmp, of which each host has its own"
    tried = subprocess.run(["unshare", "--pid", "--fork", "--mount", "--net", "--uts", "true"], capture_output=True)
    return None if tried.returncode == 0 else "needs to be allowed namespaces"


class Host:
    """A running host; ``pid`` is its first process as this machine sees it."""

    def __init__(self, name: str, folder: Path, gateway: str, address: str, bridge: str) -> None:
        self.name, self.address, self.home = name, address, folder / name
        self.home.mkdir()
        (self.home / "address").write_text(f"{address}/24")
        (self.home / "gateway").write_text(gateway)
        lines = Path("/etc/passwd").read_text().splitlines()
        mine = [line for line in lines if not line.startswith("root:")]
        (self.home / "passwd").write_text("\n".join([f"root:x:0:0:root:{self.home}:/bin/bash", *mine]) + "\n")
        (self.home / "sshd_config").write_text(
            f"ListenAddress {address}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nUseDNS no\n"
        )
        self.process = subprocess.Popen(
            [
                *("unshare", "--pid", "--fork", "--mount", "--net", "--uts", "--mount-proc", "--kill-child"),
                *("bash", str(Path(__file__).with_name("host.sh")), name, str(self.home)),
            ],
            env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
        )
        outside = f"{bridge}{name[0]}"
        wait_until(lambda: self._children() != [], f"{name} has a first process")
        self.pid = self._children()[0]
        ip("link", "add", outside, "master", bridge, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        ip("link", "set", outside, "up")
        wait_until(lambda: connects(address, 22), f"{name} answers")

    def _children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def processes(self) -> list[str]:
        """The command lines of what runs on the host."""
        own = Path(f"/proc/{self.pid}/ns/pid").readlink()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (entry / "ns" / "pid").readlink() == own:
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return [line for line in found if line]

    def end(self) -> None:
        """Kill its first process, and with it, by the kernel, all others; the network cable goes with them."""
        self.process.kill()
        self.process.wait()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def connects(address: str, port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex((address, port)) == 0


def wait_until(holds: Callable[[], bool], what: str) -> None:
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > PATIENCE_S:
            raise TimeoutError(f"not so after {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.3)


def ssh_sockets(cluster_name: str) -> Path:
    """Where Ray's launcher on this machine keeps those of its connections to a cluster."""
    user, cluster = (hashlib.sha256(name.encode()).hexdigest()[:10] for name in (getpass.getuser(), cluster_name))
    return Path(f"/tmp/ray_ssh_{user}") / cluster


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts on a network of their own, of which this machine is the gateway."""
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    bridge, network = f"lt{os.getpid()}", NETWORK.format(os.getpid() % 256)
    hosts: list[Host] = []
    ip("link", "add", bridge, "type", "bridge")
    try:
        ip("address", "add", f"{network}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for number, name in ((2, "head"), (3, "worker")):
            hosts.append(Host(name, folder, f"{network}.1", f"{network}.{number}", bridge))
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.end()
        ip("link", "delete", bridge)
        shutil.rmtree(ssh_sockets(folder.name), ignore_errors=True)


def cluster_file(folder: Path, head: Host, worker: Host) -> Path:
    """The project's file for machines of one's own, filled in."""
    config: dict[str, Any] = yaml.safe_load(CLUSTER_FILE.read_text())
    config["cluster_name"] = folder.name
    config["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(folder / "key")}
    *others, install = config["setup_commands"]
    assert "node.sh" in install
    shared = {"LATENTUNE_RUNS_DIR": folder / "shared", "LATENTUNE_VENV": VENV}
    node = " ".join(f"{name}={value}" for name, value in shared.items()) + " bash ~/latentune/cluster/node.sh"
    config["setup_commands"] = [*others, node]
    small = " --num-cpus=1 --object-store-memory=200000000"
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "ray start" in commands[-1]
        commands[-1] += small
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class Walk:
    """Somebody at this machine with a home of their own, who follows the README."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.began = folder, time.monotonic()
        (folder / "me").mkdir()
        (folder / "tmp").mkdir()
        foreign = ("LATENTUNE", "MLFLOW", "RAY_", "PYTEST")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        path = f"{VENV / 'bin'}{os.pathsep}{self.env['PATH']}"
        self.env |= {"PATH": path, "HOME": str(folder / "me"), "TMPDIR": str(folder / "tmp"), "COLUMNS": "200"}

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def run(self, *words: str, code: int = 0, cwd: Path = ROOT, **extra: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            words, cwd=cwd, env=self.env | extra, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=480
        )
        assert done.returncode == code, f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


def walk(folder: Path) -> None:
    """Up, submit, jobs, logs, stop, submit again, down.

    Raises:
        AssertionError: something did not go as the README says.
    """
    me = Walk(folder)
    project = folder / "project"
    project.mkdir()
    shutil.copy(ROOT / "tests" / "sleepy.py", project)
    (project / "seen.py").write_text(FAMILY)
    sys.path.insert(0, str(project))  # to look at the searches of its family here
    (folder / "shared").mkdir()
    with two_hosts(folder) as (head, worker):
        me.say(f"hosts at {head.address} and {worker.address}")
        assert head.processes() == [line for line in head.processes() if "sshd" in line]
        me.run("ray", "get-auth-token", "--generate")
        file = str(cluster_file(folder, head, worker))
        me.run("ray", "up", "--yes", file)
        me.say("ray up: done")
        try:
            status = ["ray", "exec", file, "ray status"]
            wait_until(lambda: "2.0 CPU" in me.run(*status).stdout, "both nodes are in the cluster")
            me.say("the worker has joined")
            _ports(head)
            with _dashboard(me, file) as address:
                _search(me, project, address)
        finally:
            me.run("ray", "down", "--yes", file)
        me.say("ray down: done")
        for host in (head, worker):
            wait_until(lambda host=host: not _of_ray(host), f"no Ray is left on {host.name}")
        me.say("no Ray process on either host")


def _of_ray(host: Host) -> list[str]:
    return [line for line in host.processes() if "raylet" in line or "gcs_server" in line or "ray::" in line]


def _ports(head: Host) -> None:
    assert connects(head.address, 6379), "where the worker found it"
    assert not connects(head.address, 8265), "the dashboard is for the head itself, and whoever has a tunnel to it"


@contextmanager
def _dashboard(me: Walk, file: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with (me.folder / "tunnel.log").open("w") as log:
        tunnel = subprocess.Popen(
            ["ray", "dashboard", file, "--port", str(port)],
            cwd=ROOT, env=me.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: connects("127.0.0.1", port), "the tunnel to the dashboard stands")
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(tunnel.pid, signal.SIGTERM)
        tunnel.wait()


def _search(me: Walk, project: Path, address: str) -> None:
    runs = me.folder / "shared"
    latentune = str(VENV / "bin" / "latentune")

    def run(*words: str, **extra: Any) -> subprocess.CompletedProcess[str]:
        return me.run(latentune, *words, cwd=project, RAY_API_SERVER_ADDRESS=address, **extra)

    def ended() -> int:
        if not (runs / "far" / "study.journal").is_file():
            return 0
        return sum(trial.state in ENDED for trial in load_search("far", runs).trials)

    stranger = run("jobs", code=2, HOME=str(me.folder / "tmp"))
    assert "ray get-auth-token" in stranger.stderr, stranger.stderr
    me.say("without the token: refused")

    words = ["search", "seen:Seen", "--dataset", "digits", "--train-images", "96", "--val-images", "16"]
    words += ["--name", "far", "--trials", "12", "--max-epochs", "3", "--set", "seconds=0.7", "--sampler", "random"]
    words += ["--tracking-uri", "none", "--quiet"]
    first = run("submit", "--no-wait", *words).stdout.strip()
    me.say(f"submitted {first}")
    wait_until(lambda: ended() > 0, "a trial has ended")
    assert [job["status"] for job in json.loads(run("jobs", "--json").stdout)] == ["running"]
    assert run("stop", first).stdout.strip() == f"{first}: stopped"
    left = load_search("far", runs).trials
    before = [trial for trial in left if trial.state in ENDED]
    me.say(f"stopped; {len(before)} of 12 trials had ended, {len(left) - len(before)} were interrupted")
    assert 0 < len(before) < 12
    assert "# go on with it" in run("logs", first).stdout, "it ended as SIGTERM ends a search"

    again = run("submit", *words)
    assert "12 trials" in again.stderr
    after = load_search("far", runs).trials
    assert [trial.state in ENDED for trial in after] == [True] * 12
    for trial in left:
        assert after[trial.number].records[: len(trial.records)] == trial.records
    jobs = json.loads(run("jobs", "--json").stdout)
    assert [(job["id"], job["status"]) for job in jobs] == [
        (again.stdout.strip(), "succeeded"),
        (first, "stopped"),
    ]
    hosts = (runs / "hosts").read_text().split()
    assert set(hosts) == {"head", "worker"}, hosts
    on = {name: hosts.count(name) for name in sorted(set(hosts))}
    me.say(f"submitted again: all 12 trials have ended; networks were built on {on}")


def main() -> None:
    if (lacking := missing()) is not None:
        raise SystemExit(f"two hosts: {lacking}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the hosts end before this process does
    # Not in /tmp, of which each host has its own.
    with tempfile.TemporaryDirectory(prefix="latentune-", dir="/var/tmp") as folder:
        walk(Path(folder))


if __name__ == "__main__":
    main()
