"""Searches made by hand: a study whose trials are proposed, reported and ended by a test, without Ray."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from models.datasets import DataOptions, TrainingData, load_training_data
from models.family import Record, get_family
from tuning.config import make_config
from tuning.results import Trial
from tuning.study import SearchStudy, open_study

DO_NOTHING = "benchmarks.do_nothing:DoNothing"
METRIC = "val_distance"


@cache
def images(train_images: int = 64) -> TrainingData:
    return load_training_data(DataOptions(source="digits", train_images=train_images, val_images=16))


def open_by_hand(runs_dir: Path, *, train_images: int = 64, **settings: Any) -> SearchStudy:
    """The study of a search for ``do_nothing``, created or opened again."""
    spec = images(train_images).spec
    wanted: dict[str, Any] = {
        "family": DO_NOTHING,
        "name": "by-hand",
        "runs_dir": str(runs_dir),
        "data": {"source": "digits", "train_images": train_images, "val_images": 16},
        "max_epochs": 3,
        "min_epochs": 1,
        "trials": 20,
        "tracking_uri": "none",
        **settings,
        "set": {"batch_size": 32, **settings.get("set", {})},
    }
    config = make_config(wanted)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    return open_study(config, get_family(config.family), spec)


def optuna_view(study: SearchStudy) -> optuna.Study:
    """The same study, opened with nothing but Optuna."""
    storage = JournalStorage(JournalFileBackend(str(study.config.study_file)))
    return optuna.load_study(study_name=None, storage=storage)


def record(epoch: float, value: float | None, **metrics: float) -> Record:
    """What a trial reports; without an objective where ``value`` is None."""
    told = {**metrics} if value is None else {METRIC: value, **metrics}
    return Record(epoch, int(epoch * 4), told, seconds=epoch * 0.5)


def distance(trial: Trial) -> float:
    """What ``do_nothing`` measures."""
    return float(sum((trial.config[name] - 0.3) ** 2 for name in "abcd"))


def finish(study: SearchStudy, trial: Trial, values: list[float] | None = None) -> Trial:
    """Report the whole curve and end the trial as complete."""
    for epoch, value in enumerate(values or [distance(trial)] * 3, 1):
        study.report(trial.number, record(float(epoch), value))
    study.complete(trial.number)
    return study.trials[trial.number]
