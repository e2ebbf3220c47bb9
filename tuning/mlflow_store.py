"""Reaching an MLflow store, and finding in it what belongs to a search."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.places import local_copy
from tuning.config import SearchConfig, without_password
from tuning.verbosity import verbose

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def experiment_name(config: SearchConfig) -> str:
    """Searches of one family on one data set are compared side by side in one experiment."""
    return f"{config.family} on {config.data.source}".replace("/", "-").replace(":", "-")


def client_of(uri: str) -> MlflowClient:
    """A client of a store or server, quiet, and quick to give up."""
    # Our own thread tries again later; MLflow's many retries would only keep the end of a search waiting.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Our stdout is for results, and the address that MLflow would print there may hold a password.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for name in () if verbose() else ("mlflow", "alembic"):  # after the import, which sets levels of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what it logs as an error it raises too, and we tell
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri)


class _Sessions:
    """MLflow's maker of sessions with a database, by which a thread can use one for several calls."""

    def __init__(self, make: Callable[..., AbstractContextManager[Any]]) -> None:
        self._make, self._mine = make, threading.local()

    @contextmanager
    def __call__(self, read_only: bool = True) -> Iterator[Any]:
        shared = getattr(self._mine, "session", None)
        if shared is not None:
            yield shared
        else:
            with self._make(read_only=read_only) as session:
                yield session

    @contextmanager
    def shared(self) -> Iterator[None]:
        def refuse() -> None:
            raise RuntimeError("MLflow has a part of this already")

        with self._make(read_only=False) as session:
            session.commit, session.rollback = session.flush, refuse  # only the end of all commits
            self._mine.session = session
            try:
                yield
            finally:
                self._mine.session = None
                del session.commit, session.rollback


@contextmanager
def in_one_piece(client: MlflowClient) -> Iterator[None]:
    """What this thread sends inside is one transaction of a database without a server; over HTTP nothing changes.

    MLflow commits five times for one trial. Others can read meanwhile; whoever wants to write waits for the end.

    Raises:
        Exception: nothing arrived. Also where a part of it is there already, which MLflow finds out by undoing what it
            was sent last: to be sent again, call by call.
    """
    store: Any = client._tracking_client.store
    make = getattr(store, "ManagedSessionMaker", None)
    if make is None:
        yield
        return
    if not isinstance(make, _Sessions):
        store.ManagedSessionMaker = make = _Sessions(make)
    with make.shared():
        yield


def runs_of(client: MlflowClient, experiment_id: str, search_id: str, trial: str | None = None) -> list[Run]:
    """All runs of a search, or those of one of its trials."""
    wanted = f"tags.`latentune.search` = '{search_id}'"
    if trial is not None:
        wanted += f" AND tags.`latentune.trial` = '{trial}'"
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], wanted, max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def log_file(client: MlflowClient, run_id: str, path: Path, folder: str | None = None) -> None:
    """Log a file, which may be in a bucket, into a folder of a run's artifacts."""
    with local_copy(path) as file:
        client.log_artifact(run_id, str(file), folder)


def log_analysis(
    config: SearchConfig,
    search_id: str,
    trial: int | None,
    folder: Path,
    files: Sequence[Path],
    summary: Mapping[str, Any],
) -> str | None:
    """Log an analysis to a trial's run: ``<folder's name>.<number>`` as metrics, the files under ``analysis/``.

    Args:
        trial: ``None`` for the parent run.

    Returns:
        Why it could not be done, in one line; ``None`` where it was, or tracking is off.
    """
    uri = config.mlflow_uri
    if uri is None:
        return None
    from mlflow.entities import Metric

    try:
        client = client_of(uri)
        wanted = None if trial is None else str(trial)
        found = [
            run
            for experiment in client.search_experiments(filter_string=f"name = '{experiment_name(config)}'")
            for run in runs_of(client, experiment.experiment_id, search_id, wanted)
            if run.data.tags.get("latentune.trial") == wanted
        ]
        if not found:
            what = "this search" if trial is None else f"trial {trial}"
            return f"MLflow at {without_password(uri)} has no run of {what}; the results are in {folder}"
        now = int(time.time() * 1000)
        metrics = [
            Metric(f"{folder.name}.{name}", float(value), now, 0)
            for name, value in summary.items()
            if isinstance(value, int | float)
        ]
        run_id = found[0].info.run_id
        client.log_batch(run_id, metrics=metrics)
        for file in files:
            log_file(client, run_id, file, f"analysis/{folder.name}")
    except Exception as error:  # a server's 500, a locked database, no route
        told = " ".join(without_password(str(error)).split())[:200] or type(error).__name__
        return f"MLflow at {without_password(uri)} did not take the results ({told}); they are in {folder}"
    return None
