"""What the steps of an experiment do: each kind by the same functions that everybody else calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.data_sources import Progress
from models.datasets import DataOptions
from models.errors import LatentuneError
from models.family import get_family
from models.space import ranges_of
from tuning import experiment as kinds
from tuning.results import SearchResult, Trial

if TYPE_CHECKING:
    from analysis.result import Result


@dataclass(frozen=True)
class Source:
    """A step that others work on.

    Args:
        name: of the step.
    """

    name: str
    search: SearchResult

    def chosen(self, which: str) -> list[Trial]:
        """The best trial, or all complete ones by number.

        Raises:
            LatentuneError: there is none.
        """
        board = self.search.leaderboard()
        if not board:
            raise LatentuneError(f"{self.name} has no complete trial")
        return board[:1] if which == "best" else sorted(board, key=lambda trial: trial.number)


def settings_of(step: kinds.Training, data: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The settings with which :func:`tuning.search` does a step: what is not in its space is held."""
    given = step.model_dump(exclude={"do", "data", "like"}, exclude_none=True, by_alias=True)
    given.setdefault("space", {})
    family = get_family(step.family)
    for name in ranges_of(family.Config):
        if name not in given["space"] and name not in given["set"]:
            given["set"][name] = family.Config.model_fields[name].get_default(call_default_factory=True)
    return {**given, "data": dict(data), "seed": seed}


def analyse(
    step: kinds.Step, sources: Sequence[Source], data: Mapping[str, Any], seed: int, told: Progress
) -> list[tuple[Trial | None, Result]]:
    """The results of a step, each with the trial that it is of; one of several trials together has none.

    Args:
        data: the options of the images, without ``otherwise``.

    Raises:
        LatentuneError: it cannot be done with these trials.
    """
    options = DataOptions.model_validate(dict(data))
    if isinstance(step, kinds.Importance):
        from tuning.search_page import weigh

        return [(None, weigh(sources[0].search, step.values, seed, told))]
    if isinstance(step, kinds.Compare):
        return [(None, _compare(step, sources, told))]
    assert isinstance(step, kinds.Analysis)
    run = _RUNS[type(step)]
    return [(trial, run(step, sources[0], trial, options, seed, told)) for trial in sources[0].chosen(step.trials)]


def _compare(step: kinds.Compare, sources: Sequence[Source], told: Progress) -> Result:
    from analysis import Candidate, compare

    candidates = [
        Candidate(_label(source, trial), trial, trial.load(), source.search.config.data)
        for source in sources
        for trial in source.chosen(step.trials)
    ]
    return compare(candidates, metric=step.metric, on_progress=told)


def _label(source: Source, trial: Trial) -> str:
    """The step's name, and what was proposed: ``optimizers/sgd``."""
    return "/".join(
        (source.name, *(f"{value:g}" if isinstance(value, float) else str(value) for value in trial.params.values()))
    )


def _evaluate(
    step: kinds.Evaluate, source: Source, trial: Trial, data: DataOptions, seed: int, told: Progress
) -> Result:
    from analysis import evaluate

    return evaluate(trial.load(), data, split=step.split)


def _reconstruct(
    step: kinds.Reconstruct, source: Source, trial: Trial, data: DataOptions, seed: int, told: Progress
) -> Result:
    from analysis import reconstruct
    from tuning.analysing import Target, follow_trial

    followed = None
    if step.epochs is not None:
        target = Target(trial.load(), data, source.search.run_dir, source.name, source.search, trial)
        followed = follow_trial(target, step.split, min(step.count, 10), step.epochs, told)
    result = reconstruct(trial.load(), data, split=step.split, count=step.count, on_progress=told)
    return replace(result, evolution=followed)


def _embed(step: kinds.Embed, source: Source, trial: Trial, data: DataOptions, seed: int, told: Progress) -> Result:
    from analysis import embed

    return embed(
        trial.load(), data, split=step.split, count=step.count, methods=step.methods, seed=seed, on_progress=told
    )


def _finetune(
    step: kinds.Finetune, source: Source, trial: Trial, data: DataOptions, seed: int, told: Progress
) -> Result:
    from analysis import finetune

    return finetune(
        trial.load(),
        data,
        head=step.head,
        frozen=step.frozen,
        epochs=step.epochs,
        patience=step.patience,
        settings=step.fixed,
        from_scratch=step.from_scratch,
        seed=seed,
        on_progress=told,
    )


def _generate(
    step: kinds.Generate, source: Source, trial: Trial, data: DataOptions, seed: int, told: Progress
) -> Result:
    from analysis import generate

    return generate(trial.load(), data, what=step.what, split=step.split, count=step.count, seed=seed, on_progress=told)


def _robustness(
    step: kinds.Robustness, source: Source, trial: Trial, data: DataOptions, seed: int, told: Progress
) -> Result:
    from analysis import measure_robustness

    return measure_robustness(trial.load(), data, split=step.split, count=step.count, seed=seed, on_progress=told)


def _filters(step: kinds.Filters, source: Source, trial: Trial, data: DataOptions, seed: int, told: Progress) -> Result:
    from analysis import inspect_filters

    return inspect_filters(
        trial.load(),
        data,
        layer=step.layer,
        count=step.count,
        threshold=step.threshold,
        split=step.split,
        on_progress=told,
    )


_RUNS: dict[type[kinds.Step], Callable[..., Result]] = {
    kinds.Evaluate: _evaluate,
    kinds.Reconstruct: _reconstruct,
    kinds.Embed: _embed,
    kinds.Finetune: _finetune,
    kinds.Generate: _generate,
    kinds.Robustness: _robustness,
    kinds.Filters: _filters,
}


def summary_of(search: SearchResult) -> dict[str, Any]:
    """What rows may ask of a search: its trials with their metrics at the record whose weights are kept."""
    best = search.best
    trials = [_trial_summary(trial, search) for trial in search.trials]
    return {
        "metric": search.objective.metric,
        "mode": search.objective.mode,
        "counts": search.counts(),
        "best": None if best is None else next(t for t in trials if t["number"] == best.number),
        "trials": trials,
    }


def _trial_summary(trial: Trial, search: SearchResult) -> dict[str, Any]:
    metric = search.objective.metric
    kept = next((r for r in trial.records if metric in r.metrics and r.metrics[metric] == trial.value), None)
    return {
        "number": trial.number,
        "state": trial.state,
        "reason": trial.reason,
        "value": trial.value if trial.state == "complete" else None,
        "config": trial.config,
        "params": trial.params,
        "epochs": trial.epochs,
        "seconds": trial.records[-1].seconds if trial.records else None,
        "best_epoch": None if kept is None else kept.epoch,
        **({} if kept is None or trial.state != "complete" else kept.metrics),
        "records": [{"epoch": record.epoch, **record.metrics} for record in trial.records],
    }


def pictures_of(search: SearchResult, folder: Path) -> None:
    """``learning.png``: losses and metrics of the best trial by epoch; the search has its others in its own folder."""
    from analysis.figures import save
    from analysis.learning import plot_records

    best = search.best
    if best is not None:
        title = f"{best.family} on {search.config.data.source}, trial {best.number}"
        save(plot_records([(r.epoch, r.metrics) for r in best.records], title), folder / "learning.png")
