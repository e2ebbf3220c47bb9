"""That nothing listens beyond loopback unless it is told to: looked up in the kernel's tables, process by process."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import psutil
import pytest
from helpers import SLEEPY, Running, running, with_test_families


def listening(command: Running) -> dict[tuple[str, int], str]:
    """Address and port at which a command or a process that it started listens, with that process's name."""
    first = psutil.Process(command.pid)
    family = {process.pid: process.name() for process in [first, *first.children(recursive=True)]}
    found = psutil.net_connections("inet")
    return {
        (one.laddr.ip, one.laddr.port): family[one.pid]
        for one in found
        if one.status == psutil.CONN_LISTEN and one.pid in family
    }


def is_loopback(address: str) -> bool:
    known = ip_address(address)
    return ((isinstance(known, IPv6Address) and known.ipv4_mapped) or known).is_loopback


def open_to_others(command: Running) -> dict[tuple[str, int], str]:
    return {place: name for place, name in listening(command).items() if not is_loopback(place[0])}


@pytest.mark.slow
def test_a_search_and_the_ui_listen_on_loopback_alone(tmp_path: Path) -> None:
    words = ["search", SLEEPY, "--dataset", "digits", "--train-images", "96", "--val-images", "16", "--name", "near"]
    words += ["--trials", "2", "--max-epochs", "2", "--set", "seconds=0.5", "--max-concurrent", "1", "--quiet"]
    with running(*words, cwd=tmp_path, env=with_test_families()) as search:
        search.wait_until(lambda: any((tmp_path / "runs" / "near").glob("**/*.pt")))  # a trial is at work
        names = set(listening(search).values())
        assert {"raylet", "gcs_server"} <= names
        assert open_to_others(search) == {}
        assert search.finish().returncode == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with running("ui", "--port", str(port), cwd=tmp_path) as ui:
        ui.wait_until(lambda: "MLflow UI" in ui.stderr)
        assert ("127.0.0.1", port) in listening(ui)
        assert open_to_others(ui) == {}
