"""MLflow as a mirror of the study, written by a thread of the driver.

The thread compares what MLflow has of a trial with how the trial stands, and sends the difference. Whatever could not
be sent, because MLflow was slow, down, or the driver died, is still a difference afterwards, and goes out later or when
the search is continued. A run notes in a tag how many records it has, in the same call that sends them.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from models.datasets import DataSpec
from models.family import Objective
from tuning.config import SearchConfig, without_password
from tuning.results import Trial
from tuning.versions import versions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from tuning.study import SearchStudy

logger = logging.getLogger(__name__)

STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "interrupted": "KILLED"}
"""Trial state → MLflow run status; other states are RUNNING."""

GATHER_S = 0.5
"""Pause between two rounds of sending, in which changes of the same trial add up to one call."""

RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses after one, two, … failures in a row."""

STUCK_S, LONGEST_FLUSH_S = 20.0, 120.0
"""How long the end of a search waits for MLflow: without any progress, and in all. A database file cannot hang as a
server can, but on a busy machine its making takes long: for it only the second counts."""

METRICS_A_CALL, PARAM_CHARS = 1000, 6000
"""MLflow's limits."""


DESCRIBED = "latentune.described"
"""Tag of a parent run that has its params and its data set."""


class Tracker(Protocol):
    """What the search needs of a tracker."""

    @property
    def run(self) -> dict[str, str] | None:
        """``tracking_uri``, ``experiment`` and ``run_id`` of the parent run, once it is known."""

    def trial_changed(self, trial: Trial) -> None:
        """Note how a trial stands; returns at once."""

    def close(self, trials: Sequence[Trial], pictures: Sequence[Path]) -> list[str]:
        """Send what is left, within bounds; what could not be sent is told in the returned warnings."""


class NoTracker:
    """Tracking switched off."""

    run: dict[str, str] | None = None

    def trial_changed(self, trial: Trial) -> None:
        """Nothing."""

    def close(self, trials: Sequence[Trial], pictures: Sequence[Path]) -> list[str]:
        return []


def make_tracker(study: SearchStudy) -> Tracker:
    """The tracker that the study's config asks for, at work."""
    uri = study.config.mlflow_uri
    return NoTracker() if uri is None else MlflowTracker(uri, study)


@dataclass(frozen=True)
class _Sent:
    """What MLflow is known to have of a trial."""

    run_id: str
    records: int = 0
    state: str = ""


class MlflowTracker:
    """Keeps one parent run and one child run a trial in step with the study."""

    def __init__(self, uri: str, study: SearchStudy) -> None:
        self._study = study
        self._mirror = _Mirror(uri, study.config, study.objective, study.spec, study.id, study.began)
        self._lock = threading.Condition()
        self._waiting: dict[int, Trial] = {t.number: t for t in study.ordered() if t.state != "queued"}
        self._taken: dict[int, Trial] = {}
        self._pictures: Sequence[Path] = ()
        self._closing = self._over = False
        self._progress = time.monotonic()
        self._problem = ""
        self._thread = threading.Thread(target=self._work, name="latentune-mlflow", daemon=True)
        self._thread.start()

    @property
    def run(self) -> dict[str, str] | None:
        return self._mirror.run

    def trial_changed(self, trial: Trial) -> None:
        with self._lock:
            self._waiting[trial.number] = trial
            self._lock.notify()

    def close(self, trials: Sequence[Trial], pictures: Sequence[Path]) -> list[str]:
        with self._lock:
            for trial in trials:
                if trial.state == "running":
                    self._waiting[trial.number] = replace(trial, state="interrupted")
            self._over = sum(trial.finished_s is not None for trial in trials) >= max(self._study.total, len(trials))
            self._pictures, self._closing = pictures, True
            self._progress = began = time.monotonic()
            self._lock.notify()
        while self._thread.is_alive():
            self._thread.join(0.1)
            now = time.monotonic()
            stuck = not self._mirror.uri.startswith("sqlite:") and now - self._progress > STUCK_S
            if stuck or now - began > LONGEST_FLUSH_S:
                break
        if not self._thread.is_alive() and not self._problem:
            return []
        with self._lock:
            left = len({*self._waiting, *self._taken})
        return [
            f"MLflow at {self._mirror.shown_uri} has not received {left or 'some of the'} trials"
            f" ({self._problem or 'too slow'}); they are in the study, and the same command sends them"
        ]

    def _work(self) -> None:
        failures = 0
        while True:
            with self._lock:
                while not (self._waiting or self._closing):
                    self._lock.wait()
                self._taken, self._waiting, closing = self._waiting, {}, self._closing
            try:
                self._mirror.connect()
                for number in sorted(self._taken):
                    self._mirror.send(self._taken[number])
                    with self._lock:
                        del self._taken[number]
                    self._progress = time.monotonic()
                self._mirror.tell_best()
                if closing:
                    self._mirror.end(self._pictures, self._over)
                failures, self._problem = 0, ""
                if closing:
                    return
                self._pause(GATHER_S)
            except Exception as error:
                # Anything at all: a server's 500, a locked database, no route. The mirror finds out anew what is there.
                failures += 1
                self._problem = " ".join(without_password(str(error)).split())[:200] or type(error).__name__
                logger.debug("MLflow: %s", self._problem)
                self._mirror.disconnect()
                with self._lock:
                    self._waiting, self._taken = {**self._taken, **self._waiting}, {}
                if closing and failures >= 3:
                    return
                self._pause(RETRY_S[min(failures, len(RETRY_S)) - 1])

    def _pause(self, seconds: float) -> None:
        with self._lock:
            if not self._closing:
                self._lock.wait_for(lambda: self._closing, timeout=seconds)


class _Mirror:
    """What MLflow has of a search, and the calls that bring it up to date. Used by one thread."""

    def __init__(
        self, uri: str, config: SearchConfig, objective: Objective, spec: DataSpec, search_id: str, began: float
    ) -> None:
        self.uri, self._config, self._objective, self._spec = uri, config, objective, spec
        self._search_id, self._began = search_id, began
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._parent = ""
        self._sent: dict[int, _Sent] = {}
        self._ended: set[int] = set()
        self._champion: Trial | None = None
        self._best_told = ""
        self.run: dict[str, str] | None = None

    @property
    def shown_uri(self) -> str:
        """The address without a password."""
        return without_password(self.uri)

    @property
    def experiment(self) -> str:
        return experiment_name(self._config)

    def connect(self) -> None:
        """Find this search's runs, or create its parent run."""
        if self._client is not None:
            return
        client = _client(self.uri)
        found = client.get_experiment_by_name(self.experiment)
        self._experiment_id = (
            found.experiment_id
            if found is not None
            else client.create_experiment(self.experiment, artifact_location=self._artifacts())
        )
        self._sent = {}
        runs = _runs(client, self._experiment_id, self._search_id)
        parents = [run for run in runs if "latentune.trial" not in run.data.tags]
        for run in runs:
            tags = run.data.tags
            if "latentune.trial" in tags:
                state = tags.get("latentune.state", "")
                # The tag is set in the call before the status: where they differ the second never came.
                settled = run.info.status == STATUS.get(state, "RUNNING")
                self._sent[int(tags["latentune.trial"])] = _Sent(
                    run.info.run_id, int(tags.get("latentune.records", 0)), state if settled else ""
                )
        parent = parents[0] if parents else self._create_parent(client)
        self._parent = parent.info.run_id
        if DESCRIBED not in parent.data.tags:
            self._describe(client, parent)
        if parents:
            client.update_run(self._parent, status="RUNNING")
        self._best_told = parent.data.tags.get("latentune.best_trial", "")
        self._client = client
        self.run = {"tracking_uri": self.shown_uri, "experiment": self.experiment, "run_id": self._parent}

    def disconnect(self) -> None:
        """After an error: what MLflow has is no longer known."""
        self._client = None

    def send(self, trial: Trial) -> None:
        """Bring a trial's run up to date."""
        from mlflow.entities import Metric, Param, RunTag

        assert self._client is not None
        if trial.started_s is None:  # a crash left it half proposed: MLflow would hold on to the values it lacks
            return
        sent = self._sent.get(trial.number)
        if sent is not None and sent.records == len(trial.records) and sent.state == trial.state:
            self._note_end(trial)
            return
        params: list[Param] = []
        if sent is None:
            run = self._client.create_run(
                self._experiment_id,
                start_time=self._millis(trial.started_s or 0.0),
                run_name=f"{self._config.name}-{trial.number:04d}",
                tags={
                    "mlflow.parentRunId": self._parent,
                    "latentune.search": self._search_id,
                    "latentune.trial": str(trial.number),
                    "latentune.seed": str(trial.seed),
                },
            )
            sent = _Sent(run.info.run_id)
        if sent.records == 0:
            params = [Param(name, str(value)[:PARAM_CHARS]) for name, value in trial.config.items()]
        metrics = [
            # Fractions of an epoch are exact in `epoch`; MLflow's steps are whole numbers.
            Metric(name, value, self._millis(at), int(record.epoch))
            for record, at in zip(trial.records[sent.records :], trial.times[sent.records :], strict=True)
            for name, value in {**record.metrics, "epoch": record.epoch, "train_seconds": record.seconds}.items()
        ]
        ended = trial.finished_s is not None
        if ended and trial.value is not None:
            metrics.append(
                Metric(f"best_{self._objective.metric}", trial.value, self._millis(trial.finished_s), int(trial.epochs))
            )
        tags = {"latentune.records": str(len(trial.records)), "latentune.state": trial.state}
        if trial.reason:
            tags["latentune.reason"] = trial.reason
        if trial.state == "pruned":
            tags["latentune.rung"] = f"{trial.epochs:g}"
        for first in range(0, max(len(metrics), 1), METRICS_A_CALL):
            last = first + METRICS_A_CALL >= len(metrics)
            self._client.log_batch(
                sent.run_id,
                metrics=metrics[first : first + METRICS_A_CALL],
                params=params if first == 0 else [],
                # Noted only with the last part: if the others arrive alone they are sent again, the same to the digit.
                tags=[RunTag(name, value) for name, value in tags.items()] if last else [],
            )
        if trial.state in STATUS:
            end = self._millis(trial.finished_s) if ended else None
            self._client.set_terminated(sent.run_id, STATUS[trial.state], end)
        elif sent.state in STATUS:  # it goes on
            self._client.update_run(sent.run_id, status="RUNNING")
        self._sent[trial.number] = _Sent(sent.run_id, len(trial.records), trial.state)
        self._note_end(trial, log=True)

    def end(self, pictures: Sequence[Path], over: bool) -> None:
        """Counts, pictures and state of the parent run; ``over`` where the search has all of its trials."""
        from mlflow.entities import Metric, RunTag

        assert self._client is not None
        states = [sent.state for sent in self._sent.values()]
        now = int(time.time() * 1000)
        counts = {f"trials_{state}": states.count(state) for state in ("complete", "pruned", "failed")}
        self._client.log_batch(
            self._parent,
            metrics=[Metric(name, count, now, len(self._ended)) for name, count in counts.items()],
            tags=[RunTag("latentune.state", "finished" if over else "interrupted")],
        )
        for picture in pictures:
            self._client.log_artifact(self._parent, str(picture), "figures")
        settings = self._config.run_dir / "search.yaml"
        if settings.exists():
            self._client.log_artifact(self._parent, str(settings))
        self._client.set_terminated(self._parent, "FINISHED" if over else "KILLED")

    def _note_end(self, trial: Trial, log: bool = False) -> None:
        """Count an ended trial, and log to the parent where it is the best so far."""
        if trial.finished_s is None:
            return
        self._ended.add(trial.number)
        best = self._champion.value if self._champion else None
        if trial.state != "complete" or trial.value is None or not self._objective.better(trial.value, best):
            return
        self._champion = trial
        if log:
            self.tell_best()

    def tell_best(self) -> None:
        """Log the best trial so far to the parent run, where it does not stand there yet."""
        trial = self._champion
        if trial is None or str(trial.number) == self._best_told:
            return
        from mlflow.entities import Metric, RunTag

        assert self._client is not None
        assert trial.value is not None
        at = self._millis(trial.finished_s)
        self._client.log_batch(
            self._parent,
            metrics=[Metric(f"best_{self._objective.metric}", trial.value, at, len(self._ended))],
            tags=[
                RunTag("latentune.best_trial", str(trial.number)),
                RunTag("latentune.best_config", json.dumps(trial.config)),
            ],
        )
        self._best_told = str(trial.number)

    def _create_parent(self, client: MlflowClient) -> Run:
        config = self._config
        return client.create_run(
            self._experiment_id,
            start_time=self._millis(0.0),
            run_name=config.name,
            tags={
                "latentune.search": self._search_id,
                "latentune.family": config.family,
                "latentune.dataset": config.data.source,
                "latentune.run_dir": str(config.run_dir),
                "latentune.metric": self._objective.metric,
                "latentune.mode": self._objective.mode,
                "latentune.state": "running",
                **_versions(),
            },
        )

    def _describe(self, client: MlflowClient, parent: Run) -> None:
        """Params and data set of the parent run. May be done again, should MLflow fail in between."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        config = self._config
        shown = {**config.to_json(), "data": config.data.model_dump(mode="json", exclude={"data_dir"})}
        for name in ("tracking_uri", "address", "runs_dir", "name"):  # may hold a password, or is told elsewhere
            shown.pop(name, None)
        flat: dict[str, object] = {}
        for name, value in shown.items():
            flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        params = [
            Param(name, str(value)[:PARAM_CHARS])
            for name, value in flat.items()
            if value is not None and name not in parent.data.params
        ]
        for first in range(0, len(params), 100):
            client.log_batch(parent.info.run_id, params=params[first : first + 100])
        spec = self._spec
        images = Dataset(
            name=spec.source,
            digest=spec.fingerprint[:36],
            source_type="local",
            source=json.dumps({"source": spec.source}),
            schema=json.dumps({"images": [spec.channels, spec.height, spec.width], "classes": len(spec.class_names)}),
            profile=json.dumps({"train_images": spec.train_images, "val_images": spec.val_images}),
        )
        client.log_inputs(parent.info.run_id, [DatasetInput(images, [InputTag("mlflow.data.context", "training")])])
        client.log_batch(parent.info.run_id, tags=[RunTag(DESCRIBED, "true")])

    def _artifacts(self) -> str | None:
        """With a database file MLflow would put artifacts into the working directory; a server knows its own place."""
        if not self.uri.startswith("sqlite:"):
            return None
        return (self._config.runs_dir.absolute() / "mlartifacts" / self.experiment.replace(" ", "-")).as_uri()

    def _millis(self, seconds: float | None) -> int:
        return int((self._began + (seconds or 0.0)) * 1000)


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
        client = _client(uri)
        wanted = None if trial is None else str(trial)
        found = [
            run
            for experiment in client.search_experiments(filter_string=f"name = '{experiment_name(config)}'")
            for run in _runs(client, experiment.experiment_id, search_id, wanted)
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
            client.log_artifact(run_id, str(file), f"analysis/{folder.name}")
    except Exception as error:  # a server's 500, a locked database, no route
        told = " ".join(without_password(str(error)).split())[:200] or type(error).__name__
        return f"MLflow at {without_password(uri)} did not take the results ({told}); they are in {folder}"
    return None


def _runs(client: MlflowClient, experiment_id: str, search_id: str, trial: str | None = None) -> list[Run]:
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


def experiment_name(config: SearchConfig) -> str:
    """Searches of one family on one data set are compared side by side in one experiment."""
    return f"{config.family} on {config.data.source}".replace("/", "-").replace(":", "-")


def _client(uri: str) -> MlflowClient:
    # Our own thread tries again later; MLflow's many retries would only keep the end of a search waiting.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Our stdout is for results, and the address that MLflow would print there may hold a password.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets levels of its own
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri)


def _versions() -> dict[str, str]:
    names = {"python": "latentune.python", "platform": "latentune.platform", "commit": "mlflow.source.git.commit"}
    return {names.get(name, f"latentune.version.{name}"): value for name, value in versions().items()}
