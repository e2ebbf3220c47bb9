"""Optuna Dashboard on the study of a search: to look at, not to change anything in it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from models.errors import LatentuneError, UserError

HOST = "127.0.0.1"

WRITES = (
    *("create_new_study", "delete_study", "set_study_user_attr", "set_study_system_attr", "create_new_trial"),
    *("set_trial_param", "set_trial_state_values", "set_trial_intermediate_value"),
    *("set_trial_user_attr", "set_trial_system_attr"),
)
"""Methods of an Optuna storage that change it."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: a line for every request is of no use to anybody."""


def serve(name: str, runs_dir: str | Path, port: int, say: Callable[[str], None], browser: bool) -> None:
    """Serve the dashboard on loopback until Ctrl-C.

    Raises:
        UserError: no such search, or the port is taken.
        LatentuneError: Optuna Dashboard is not installed.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise LatentuneError('Optuna Dashboard is not installed: pip install "latentune[dashboard]"') from error
    from tuning.api import load_search
    from tuning.study import load_study
    from tuning.ui import open_browser

    study = load_study(load_search(name, runs_dir).run_dir)
    storage = for_looking(study._storage)
    try:
        server = make_server(HOST, port, looking_only(wsgi(storage)), _Server, _Silent)
    except OSError as error:
        raise UserError.of("--port", port, f"cannot listen on {HOST}: {error.strerror}; choose another") from error
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    url = f"http://{HOST}:{port}/dashboard/studies/{study._study_id}"
    say(f"Optuna Dashboard: {url}  (Ctrl-C ends it)")
    if browser:
        open_browser(url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        server.server_close()


def for_looking(storage: Any) -> Any:
    """A storage whose every change is refused: a running search must stay the only one who writes its study."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("this view of the study is for looking only")

    for method in WRITES:
        setattr(storage, method, refuse)
    return storage


def looking_only(app: Any) -> Any:
    """The same pages, but nothing besides GET and HEAD: saving a note, say, is answered with 403 and why."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            answer: Iterable[bytes] = app(environ, start_response)
            return answer
        start_response("403 Forbidden", [("Content-Type", "application/json")])
        return [json.dumps({"reason": "latentune opens studies for looking only"}).encode()]

    return guarded
