"""Optuna Dashboard on a study, as the installed command serves it: everything to see, nothing to change."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers import environment, free_port, running
from studies import DO_NOTHING, METRIC, finish, open_by_hand, record

from tuning.dashboard import WRITES, for_looking
from tuning.study import load_study

pytest.importorskip("optuna_dashboard", reason="needs the extra: latentune[dashboard]")


def ask(url: str, method: str = "GET", body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_running_search_is_shown_and_cannot_be_changed(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path / "runs", trials=3)
    first = study.propose()
    assert first is not None
    finish(study, first, [0.5, 0.4, 0.3])
    port = free_port()
    url = f"http://127.0.0.1:{port}/api/studies"
    env = environment(PYTHONPATH=str(Path(__file__).resolve().parent.parent))
    with running("dashboard", "by-hand", "--port", str(port), cwd=tmp_path, env=env) as command:
        command.wait_until(lambda: f"http://127.0.0.1:{port}/dashboard/studies/" in command.stderr)
        before = (study.config.run_dir / "study.journal").read_bytes()
        _, seen = ask(f"{url}/0")
        assert [(t["state"], t["values"]) for t in seen["trials"]] == [("Complete", [0.3])]
        for method, path, body in (
            ("PUT", "/0/note", {"body": "mine", "version": 1}),
            ("POST", "/0/rename", {"study_name": "other"}),
            ("DELETE", "/0", None),
        ):
            status, told = ask(url + path, method, body)
            assert (status, told) == (403, {"reason": "latentune opens studies for looking only"})
        assert (study.config.run_dir / "study.journal").read_bytes() == before
        second = study.propose()  # the driver goes on writing, and that is seen
        assert second is not None
        study.report(second.number, record(1.0, 0.25))
        # The dashboard itself looks at the study again after some seconds only.
        command.wait_until(lambda: [t["state"] for t in ask(f"{url}/0")[1]["trials"]] == ["Complete", "Running"])
        command.send(signal.SIGINT)
        done = command.finish()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert METRIC in open_by_hand(tmp_path / "runs", trials=3).trials[1].records[0].metrics
    assert study.config.family == DO_NOTHING


def test_every_changing_call_of_a_storage_is_refused(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    before = (study.config.run_dir / "study.journal").read_bytes()
    opened = load_study(study.config.run_dir)
    for_looking(opened._storage)
    for change in (opened.ask, lambda: opened.set_user_attr("a", 1), lambda: opened._storage.delete_study(0)):
        with pytest.raises(PermissionError):
            change()
    assert (study.config.run_dir / "study.journal").read_bytes() == before
    assert all(hasattr(type(opened._storage), name) for name in WRITES)
