"""What MLflow has of a search, and the calls that bring it up to date."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.datasets import DataSpec, TrainingData
from models.errors import LatentuneError
from models.family import Objective, get_family
from tuning.champion import crown
from tuning.config import SearchConfig, without_password
from tuning.mlflow_store import client_of, experiment_name, in_one_piece, log_file, runs_of
from tuning.pictures import snapshot
from tuning.results import ENDED, PAGE, Trial
from tuning.run_texts import NOTE, search_note, trial_name, trial_note
from tuning.study import checkpoint_path
from tuning.versions import versions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "interrupted": "KILLED"}
"""Trial state → MLflow run status; other states are RUNNING."""

METRICS_A_CALL, PARAM_CHARS = 1000, 6000
"""MLflow's limits."""


DESCRIBED = "latentune.described"
"""Tag of a parent run that has its params and its data set."""


@dataclass(frozen=True)
class _Sent:
    """What MLflow is known to have of a trial."""

    run_id: str
    records: int = 0
    state: str = ""


class Milestones:
    """Which trials deserve a picture: one that is the best so far at a rung or at the end of its budget.

    A search of n trials has about ln n of these at each rung.
    """

    def __init__(self, rungs: Sequence[float], objective: Objective) -> None:
        self._rungs, self._objective = rungs, objective
        self._best: dict[float, float] = {}

    def passed(self, trial: Trial, known: int) -> bool:
        """Whether a trial has come to one with its records from ``known`` on."""
        found = False
        for record in trial.records[known:]:
            value = record.metrics.get(self._objective.metric)
            at = max((rung for rung in self._rungs if rung <= record.epoch + 1e-9), default=None)
            last = trial.state == "complete" and record is trial.records[-1]
            if value is None or at is None or not (last or record.epoch - at < 1e-9):
                continue
            place = record.epoch if last else at
            if self._objective.better(value, self._best.get(place)):
                self._best[place], found = value, True
        return found


class Mirror:
    """What MLflow has of a search, and the calls that bring it up to date. Used by one thread."""

    def __init__(
        self,
        uri: str,
        config: SearchConfig,
        objective: Objective,
        spec: DataSpec,
        search_id: str,
        began: float,
        images: TrainingData | None = None,
    ) -> None:
        self.uri, self._config, self._objective, self._spec = uri, config, objective, spec
        self._search_id, self._began, self._images = search_id, began, images
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._parent = ""
        self._sent: dict[int, _Sent] = {}
        self._ended: set[int] = set()
        self._champion: Trial | None = None
        self._best_told = ""
        self._milestones = Milestones(config.rungs(), objective)
        self._wanted: dict[int, Trial] = {}
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
        client = client_of(self.uri)
        found = client.get_experiment_by_name(self.experiment)
        self._experiment_id = (
            found.experiment_id
            if found is not None
            else client.create_experiment(self.experiment, artifact_location=self._artifacts(), tags=self._kind())
        )
        self._sent = {}
        runs = runs_of(client, self._experiment_id, self._search_id)
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

    def send_all(self, trials: Sequence[Trial], *, together: bool) -> None:
        """Bring the runs of some trials up to date.

        Args:
            together: all or nothing, and quicker; not where MLflow may have a part of it already.
        """
        assert self._client is not None
        with in_one_piece(self._client) if together else nullcontext():
            for trial in trials:
                self.send(trial)

    def send(self, trial: Trial) -> None:
        """Bring a trial's run up to date."""
        from mlflow.entities import Metric, Param, RunTag

        assert self._client is not None
        if trial.started_s is None:  # a crash left it half proposed: MLflow would hold on to the values it lacks
            return
        sent = self._sent.get(trial.number)
        if sent is not None and sent.records == len(trial.records) and sent.state == trial.state:
            self._milestones.passed(trial, 0)  # had its picture, as far as it deserved one
            self._note_end(trial)
            return
        params: list[Param] = []
        if sent is None:
            run = self._client.create_run(
                self._experiment_id,
                start_time=self._millis(trial.started_s or 0.0),
                run_name=trial_name(trial),
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
        if ended:
            tags[NOTE] = trial_note(trial)
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
        if self._milestones.passed(trial, sent.records):
            self._wanted[trial.number] = trial
        self._note_end(trial, log=True)

    def send_snapshots(self) -> None:
        """Log a picture of each trial that has lately been the best at a rung, at the epoch of its weights.

        It is made from the trial's checkpoint as that is now, which may be a little further on. One that cannot be made
        is left out.
        """
        for number in sorted(self._wanted):
            trial, run_id = self._wanted[number], self._sent[number].run_id
            path = checkpoint_path(self._config, number)
            try:
                family = get_family(trial.family)
                shown = None if self._images is None else snapshot(path, family, self._images)
            except Exception as error:  # a checkpoint that is gone, a family of somebody's own
                logger.debug("no snapshot of trial %d: %s", number, error)
                shown = None
            if shown is not None:
                assert self._client is not None
                name, step, pixels = shown
                there = [Path(item.path).name for item in self._client.list_artifacts(run_id, "images")]
                if not any(file.startswith(f"{name}+step+{step}+") and file.endswith(".webp") for file in there):
                    self._client.log_image(run_id, pixels, key=name, step=step)
            del self._wanted[number]

    def end(self, pictures: Sequence[Path], over: bool) -> None:
        """Counts, pictures and state of the parent run; ``over`` where the search has all of its trials."""
        from mlflow.entities import Metric, RunTag

        assert self._client is not None
        states = [sent.state for sent in self._sent.values()]
        if self._champion is not None:
            self._wanted.setdefault(self._champion.number, self._champion)
        self.send_snapshots()
        champion = self._crown()
        now = int(time.time() * 1000)
        counts = {f"trials_{state}": states.count(state) for state in ("complete", "pruned", "failed")}
        self._client.log_batch(
            self._parent,
            metrics=[Metric(name, count, now, len(self._ended)) for name, count in counts.items()],
            tags=[
                RunTag("latentune.state", "finished" if over else "interrupted"),
                RunTag(NOTE, self._note({state: n for state in ENDED if (n := states.count(state))}, champion)),
            ],
        )
        for picture in pictures:
            log_file(self._client, self._parent, picture, "figures")
        for name, folder in (("search.yaml", None), (PAGE, "analysis/report")):
            if (self._config.run_dir / name).exists():
                log_file(self._client, self._parent, self._config.run_dir / name, folder)
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
                RunTag(NOTE, self._note({}, None)),
            ],
        )
        self._best_told = str(trial.number)

    def _crown(self) -> str | None:
        """Register the best model; its name there, ``None`` where it could not be made."""
        trial = self._champion
        if trial is None:
            return None
        assert self._client is not None
        names = self._config.name, self._search_id, self._experiment_id
        try:
            return crown(self._client, *names, self._sent[trial.number].run_id, trial, self._images)
        except LatentuneError as error:  # its checkpoint is gone
            logger.debug("no champion: %s", error)
            return None

    def _note(self, counts: Mapping[str, int], champion: str | None) -> str:
        there = self._parent and (self._config.run_dir / PAGE).exists()
        page = f"#/experiments/{self._experiment_id}/runs/{self._parent}/artifacts/analysis/report/{PAGE}"
        return search_note(self._config, self._objective, counts, self._champion, champion, page if there else None)

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
                NOTE: self._note({}, None),
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

    def _kind(self) -> dict[str, str]:
        """Tags by which MLflow's pages choose what they show of an experiment."""
        return {
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.experiment.primaryMetric.name": f"best_{self._objective.metric}",
            "mlflow.experiment.primaryMetric.greaterIsBetter": str(self._objective.mode == "max"),
        }

    def _artifacts(self) -> str | None:
        """With a database MLflow would put artifacts into the working directory; a server knows its own place."""
        if self.uri.startswith(("http:", "https:")):
            return None
        return (self._config.runs_dir.absolute() / "mlartifacts" / self.experiment.replace(" ", "-")).as_uri()

    def _millis(self, seconds: float | None) -> int:
        return int((self._began + (seconds or 0.0)) * 1000)


def _versions() -> dict[str, str]:
    names = {"python": "latentune.python", "platform": "latentune.platform", "commit": "mlflow.source.git.commit"}
    return {names.get(name, f"latentune.version.{name}"): value for name, value in versions().items()}
