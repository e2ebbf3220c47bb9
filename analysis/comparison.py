"""Trials side by side: what differs between them, how they learnt, and how far training and validation are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from matplotlib.figure import Figure

from analysis.comparison_pictures import plot_errors, plot_learning
from analysis.evaluation import evaluate
from analysis.result import Columns, Result
from analysis.subject import Model, subject_of
from analysis.trials import TrialView
from models.checkpoint import Trained
from models.data_sources import Progress, silent
from models.datasets import DataOptions
from models.errors import Problem, UserError
from models.family import Objective


@dataclass(frozen=True)
class Candidate:
    """A trial to be compared.

    Args:
        label: tells it from the others.
        model: with the weights of the trial's best record.
        data: what it was trained on.
    """

    label: str
    trial: TrialView
    model: Model
    data: DataOptions


@dataclass(frozen=True)
class Row:
    """One trial among others.

    Args:
        curve: (epoch, value of the compared metric on the validation images, seconds trained) of each record with one.
        train, validation: metrics by name, both at the weights of the checkpoint and in evaluation mode.
        seconds: of training and validation.
        parameters: numbers in the network.
    """

    label: str
    family: str
    state: str
    objective: Objective
    config: Mapping[str, Any]
    curve: tuple[tuple[float, float, float], ...]
    train: Mapping[str, float]
    validation: Mapping[str, float]
    best_epoch: float
    epochs: float
    seconds: float
    parameters: int

    def gap(self, metric: str) -> float:
        """Generalisation gap: validation - training.

        Above 0 where an error or a loss is larger on new images; below 0 where an accuracy or a bound is smaller.
        """
        return self.validation[metric] - self.train[metric]


@dataclass(frozen=True)
class Comparison(Result):
    """Trials side by side.

    Args:
        metric: compared, without ``val_``.
        mode: whether less (``min``) or more (``max``) of it is better; ``None`` where it ranks none of the trials.
    """

    name: ClassVar[str] = "compare"
    metric: str
    mode: str | None
    rows: tuple[Row, ...]

    @property
    def differing(self) -> tuple[str, ...]:
        """Fields of the configs that are not the same in all; those of other families' configs included."""
        names = dict.fromkeys(name for row in self.rows for name in row.config)
        return tuple(
            name
            for name in names
            if any(name not in row.config or row.config[name] != self.rows[0].config.get(name) for row in self.rows)
        )

    def summary(self) -> dict[str, Any]:
        return {"metric": self.metric, "gap": "validation - training", "trials": [self._told(row) for row in self.rows]}

    def _told(self, row: Row) -> dict[str, Any]:
        return {
            "label": row.label,
            "family": row.family,
            f"train_{self.metric}": row.train[self.metric],
            f"val_{self.metric}": row.validation[self.metric],
            "gap": row.gap(self.metric),
            "best_epoch": row.best_epoch,
            "epochs": row.epochs,
            "seconds": row.seconds,
            "parameters": row.parameters,
        }

    def tables(self) -> dict[str, Columns]:
        told = [self._told(row) for row in self.rows]
        columns: dict[str, Any] = {name: [each[name] for each in told] for name in told[0]}
        columns["state"] = [row.state for row in self.rows]
        # A column has one type: a field that is not a number everywhere is told in words.
        for name in self.differing:
            values = [row.config.get(name) for row in self.rows]
            plain = all(
                value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values
            )
            kind = float if plain else str
            columns[f"config_{name}"] = [None if value is None else kind(value) for value in values]
        metrics = [
            (row.label, name, row.train[name], value, row.gap(name))
            for row in self.rows
            for name, value in row.validation.items()
            if name in row.train
        ]
        names = ("label", "metric", "train", "validation", "gap")
        points = [(row.label, *point) for row in self.rows for point in row.curve]
        return {
            "trials": columns,
            "metrics": dict(zip(names, zip(*metrics, strict=True), strict=True)),
            "curves": {
                name: [p[i] for p in points] for i, name in enumerate(("label", "epoch", "validation", "seconds"))
            },
        }

    def figures(self) -> dict[str, Figure]:
        labels = [row.label for row in self.rows]
        pairs = [(row.train[self.metric], row.validation[self.metric]) for row in self.rows]
        return {
            "learning": plot_learning(labels, [row.curve for row in self.rows], self.metric, self.mode),
            "errors": plot_errors(labels, pairs, self.metric, self.mode),
        }


def compare(
    candidates: Sequence[Candidate], *, metric: str | None = None, on_progress: Progress = silent
) -> Comparison:
    """Trials of one search or of several, side by side.

    Training metrics are measured anew, on all training images, with the checkpoint's weights: what a run reports of its
    training is averaged while the weights change, with dropout and noise.

    Args:
        metric: by default the objective that the trials share, or else the first metric that all of them have.

    Raises:
        UserError: fewer than two trials, labels that are not distinct, no metric in common, or one is no checkpoint's.
        CheckpointError: a file is not a usable checkpoint.
    """
    if len(candidates) < 2:
        raise UserError.of("--trials", len(candidates), "name at least two trials to compare")
    labels = [candidate.label for candidate in candidates]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UserError.of("--trials", twice, "name each trial once")
    loaded = [subject_of(candidate.model) for candidate in candidates]
    problems = [
        Problem("model", subject.name, "must come from a checkpoint, which says how to measure it")
        for subject in loaded
        if not isinstance(subject.trained, Trained)
    ]
    if problems:
        raise UserError(*problems)
    trained = [subject.trained for subject in loaded if subject.trained is not None]
    metric = _metric(labels, trained, metric)
    rows = []
    for done, (candidate, model) in enumerate(zip(candidates, trained, strict=True)):
        on_progress(f"measuring {candidate.label} on its training images", done, len(candidates))
        rows.append(_row(candidate, model, metric))
    modes = {row.objective.mode for row in rows if row.objective.metric == f"val_{metric}"}
    return Comparison(metric, modes.pop() if len(modes) == 1 else None, tuple(rows))


def _metric(labels: Sequence[str], trained: Sequence[Trained], wanted: str | None) -> str:
    known = [[name.removeprefix("val_") for name in each.record.metrics if name.startswith("val_")] for each in trained]
    common = [name for name in known[0] if all(name in names for names in known)]
    if wanted is not None:
        wanted = wanted.removeprefix("val_")
        if wanted not in common:
            raise UserError.of("--metric", wanted, f"all of them have: {', '.join(common) or 'none'}")
        return wanted
    objectives = {each.family.objective.metric.removeprefix("val_") for each in trained}
    if len(objectives) == 1:
        return objectives.pop()
    ranking = [name for name in common if name in objectives] or common
    if not ranking:
        told = "; ".join(f"{label}: {', '.join(names)}" for label, names in zip(labels, known, strict=True))
        raise UserError.of("--metric", None, f"they have no metric in common ({told})")
    return ranking[0]


def _row(candidate: Candidate, model: Trained, metric: str) -> Row:
    trial, measured = candidate.trial, evaluate(model, candidate.data, split="train")
    key = f"val_{metric}"
    return Row(
        label=candidate.label,
        family=model.family.name,
        state=trial.state,
        objective=model.family.objective,
        config=trial.config,
        curve=tuple((r.epoch, r.metrics[key], r.seconds) for r in trial.records if key in r.metrics),
        train=measured.metrics,
        validation=measured.validation,
        best_epoch=model.record.epoch,
        epochs=trial.epochs,
        seconds=trial.records[-1].seconds if trial.records else 0.0,
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
    )
