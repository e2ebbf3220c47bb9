"""Trials and searches as they are seen from outside: plain, immutable, free of Ray and Optuna."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.errors import UserError
from models.family import Objective, Record, get_family

if TYPE_CHECKING:
    import pandas as pd

    from models.checkpoint import Trained
    from tuning.config import SearchConfig

State = Literal["queued", "running", "interrupted", "complete", "pruned", "failed"]
Outcome = Literal["finished", "time budget", "interrupted"]

PAGE = "report.html"
"""A search's report, in its folder."""

ENDED: tuple[State, ...] = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class Trial:
    """One trial as the study knows it.

    Args:
        number: from 0, in the order of proposal.
        state: ``complete`` used its full budget; ``pruned`` was stopped at a rung; ``failed`` crashed or became
            non-finite; ``interrupted`` goes on when the search is continued.
        config: the family's config, field by field, defaults and fixed values included.
        params: the part of it that was proposed.
        numerics: device, precision and threads that it was trained with.
        fingerprint: of the images that it was trained on.
        records: everything reported, in order of epochs.
        times: for each record, seconds since the search began.
        reason: why it was pruned or failed.
        started_s, finished_s: seconds since the search began.
    """

    number: int
    state: State
    family: str
    objective: Objective
    config: dict[str, Any]
    params: dict[str, Any]
    seed: int
    numerics: dict[str, Any]
    fingerprint: str
    records: tuple[Record, ...] = ()
    times: tuple[float, ...] = ()
    reason: str | None = None
    started_s: float | None = None
    finished_s: float | None = None
    checkpoint: Path | None = None

    @property
    def curve(self) -> list[tuple[float, float, float]]:
        """(epoch, objective, seconds since the search began) of each record that has an objective."""
        metric = self.objective.metric
        return [
            (r.epoch, r.metrics[metric], at)
            for r, at in zip(self.records, self.times, strict=True)
            if metric in r.metrics
        ]

    @property
    def value(self) -> float | None:
        """The best objective on the curve; its weights are the ones in the checkpoint."""
        best: float | None = None
        for _, value, _ in self.curve:
            best = value if self.objective.better(value, best) else best
        return best

    @property
    def epochs(self) -> float:
        """Epochs trained and reported."""
        return self.records[-1].epoch if self.records else 0.0

    @property
    def seconds(self) -> float | None:
        """From its start to its end, pauses of the search included; ``None`` before that."""
        return None if self.started_s is None or self.finished_s is None else self.finished_s - self.started_s

    def load(self) -> Trained:
        """The trained network, with the weights of the trial's best record.

        Raises:
            CheckpointError: the trial has no checkpoint yet, or its file is damaged.
        """
        from models.checkpoint import load
        from models.errors import CheckpointError

        if self.checkpoint is None:
            raise CheckpointError(f"trial {self.number} ({self.state}) has no checkpoint")
        return load(self.checkpoint, family=get_family(self.family))

    def _repr_html_(self) -> str:
        from tuning.notebook import trial_html

        return trial_html(self)

    def to_json(self) -> dict[str, Any]:
        """The object that ``latentune trials --json`` prints."""
        return {
            "number": self.number,
            "state": self.state,
            "value": self.value,
            "epochs": self.epochs,
            "config": self.config,
            "started_s": self.started_s,
            "finished_s": self.finished_s,
            "curve": [list(point) for point in self.curve],
            "reason": self.reason,
        }


@dataclass(frozen=True)
class SearchResult:
    """A search as it stands: finished, or to be continued.

    Args:
        outcome: how this run of it ended; ``finished`` for one that was only loaded.
        signal: the signal that interrupted it.
        wall_s: seconds that this run took; 0 where it was only loaded.
        warnings: what the user should know, such as runs that MLflow has not received yet.
    """

    config: SearchConfig
    objective: Objective
    trials: tuple[Trial, ...]
    outcome: Outcome = "finished"
    signal: int | None = None
    wall_s: float = 0.0
    mlflow_run: dict[str, str] | None = None
    pictures: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def run_dir(self) -> Path:
        return self.config.run_dir

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best objective; pruned and failed trials never win."""
        ranked = self.leaderboard()
        return ranked[0] if ranked else None

    def leaderboard(self) -> list[Trial]:
        """Complete trials, best first."""
        complete = [trial for trial in self.trials if trial.state == "complete" and trial.value is not None]
        sign = 1 if self.objective.mode == "min" else -1
        return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))

    def trial(self, number: int) -> Trial:
        """The trial of that number.

        Raises:
            UserError: there is none.
        """
        for trial in self.trials:
            if trial.number == number:
                return trial
        raise UserError.of("TRIAL", number, f"{self.name} has the trials 0 to {len(self.trials) - 1}")

    def counts(self) -> dict[str, int]:
        """How many trials are in each state that occurs, and ``total``."""
        return {"total": len(self.trials), **Counter(trial.state for trial in self.trials)}

    def table(self) -> pd.DataFrame:
        """A row for each trial, indexed by its number: ``state``, the objective's best value under its own name,
        ``epochs``, ``seconds``, a column for each searched field (missing where a trial had none), ``reason``.
        """
        from tuning.notebook import table

        return table(self)

    def _repr_html_(self) -> str:
        from tuning.notebook import result_html

        return result_html(self)

    def to_json(self) -> dict[str, Any]:
        """The object that ``latentune search --json`` ends with."""
        best, counts = self.best, self.counts()
        return {
            "name": self.name,
            "family": self.config.family,
            "dataset": self.config.data.source,
            "metric": self.objective.metric,
            "mode": self.objective.mode,
            "outcome": self.outcome,
            "trials": {key: counts.get(key, 0) for key in ("total", *ENDED, "interrupted")},
            "best": best
            and {
                "number": best.number,
                "value": best.value,
                "epochs": best.epochs,
                "config": best.config,
                "checkpoint": None if best.checkpoint is None else str(best.checkpoint),
            },
            "epochs_trained": round(sum(trial.epochs for trial in self.trials), 6),
            "wall_s": round(self.wall_s, 3),
            "run_dir": str(self.run_dir),
            "mlflow": self.mlflow_run,
        }
