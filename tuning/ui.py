"""MLflow's server on the store of a runs folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any

from models.errors import LatentuneError, UserError
from models.places import is_url
from tuning.config import NAME, runs_folder, without_password

START_S = 120.0
"""MLflow imports for seconds, and a new database is migrated first."""

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}

ALL = "/#/experiments"


def serve(
    runs_dir: str | Path,
    tracking_uri: str | None,
    host: str,
    port: int,
    say: Callable[[str], None],
    *,
    name: str | None = None,
    browser: bool = False,
) -> int:
    """Run the server until it ends or Ctrl-C; its exit code.

    Args:
        say: is told the address once it answers: of the search ``name``, else of all experiments.
        browser: open it, where there is one.

    Raises:
        UserError: nothing is tracked there, the address is a server's, or the port is taken.
        LatentuneError: the server did not come up.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is not None and uri.startswith(("http://", "https://")):
        say(f"the searches are on a server already: {without_password(uri)}")
        return 0
    runs_dir = runs_folder(runs_dir)
    if uri is None:
        if is_url(runs_dir):
            needs = "must be given, or MLFLOW_TRACKING_URI: a bucket holds no database of MLflow"
            raise UserError.of("--tracking-uri", None, needs)
        if not (runs_dir / "mlflow.db").exists():
            raise UserError.of("--runs-dir", str(runs_dir), "holds no tracked searches (no mlflow.db)")
        uri = f"sqlite:///{runs_dir / 'mlflow.db'}"
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError.of("--port", port, f"cannot listen on {host}: {error.strerror}; choose another") from error
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"),
        *("--artifacts-destination", str(runs_dir / "mlartifacts")),
    ]
    # The store by environment: an address with a password must not stand in the list of processes.
    environment = {**os.environ, **SETTINGS, "MLFLOW_BACKEND_STORE_URI": uri}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the server too, as Ctrl-C does
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(  # noqa: S603 - our own interpreter, arguments as a list
            command, env=environment, stdout=subprocess.DEVNULL, stderr=log
        )
        try:
            url = f"http://{host}:{port}"
            _wait(server, url, log)
            shown = url + address_of(url, name)
            say(f"MLflow UI: {shown}  (Ctrl-C ends it)")
            if browser:
                open_browser(shown)
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            signal.signal(signal.SIGTERM, before)
            if server.poll() is None:
                server.terminate()
                try:
                    server.wait(10)
                except subprocess.TimeoutExpired:
                    server.kill()


def _wait(server: subprocess.Popen[bytes], url: str, log: IO[str]) -> None:
    began = time.monotonic()
    while time.monotonic() - began < START_S:
        if server.poll() is not None:
            log.seek(0)
            lines = log.read().strip().splitlines()
            raise LatentuneError(f"the MLflow server ended at once: {lines[-1] if lines else server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):  # noqa: S310 - our own http address
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise LatentuneError(f"the MLflow server did not answer at {url} within {START_S:.0f} s")


def address_of(url: str, name: str | None) -> str:
    """Where a server's pages show a search, or all experiments.

    Raises:
        UserError: nothing of that search is tracked there.
    """
    if name is None:
        return ALL
    experiments = _ask(url, "experiments", {"max_results": 1000}).get("experiments", [])
    ids = [experiment["experiment_id"] for experiment in experiments]
    asked = {"experiment_ids": ids, "filter": f"attributes.run_name = '{name}'", "max_results": 1}
    runs = _ask(url, "runs", asked).get("runs", []) if NAME.fullmatch(name) else []
    if not runs:
        raise UserError.of("NAME", name, "MLflow knows no search of that name here; leave it out to see all")
    info = runs[0]["info"]
    return f"{ALL}/{info['experiment_id']}/runs/{info['run_id']}"


def open_browser(url: str) -> None:
    """Show a page to whoever sits at this machine; nothing in CI, and where there is no screen."""
    if os.environ.get("CI") or "PYTEST_CURRENT_TEST" in os.environ or not sys.stderr.isatty():
        return
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    with suppress(webbrowser.Error):
        webbrowser.open(url)


def _ask(url: str, what: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - our own http address
        f"{url}/api/2.0/mlflow/{what}/search",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
    return found
