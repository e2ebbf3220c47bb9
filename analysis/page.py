"""A search on one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from analysis.importance import Importance
from analysis.kept import MOST_BYTES, Picture, drawn, kept_results, shown
from analysis.trials import SearchView, TrialView
from models.space import Range

STATES = ("complete", "pruned", "failed", "interrupted", "running", "queued")

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """What only the service knows of a search, in words.

    Args:
        family, dataset: what was searched on what.
        standing: ``finished``, ``running`` or ``not finished``.
        planned: trials that it is to have.
        budget: epochs of a full trial.
        default: number of the trial with the family's default config; ``None`` where there is none.
        settings: (label, value) of how it was searched.
        fixed: (field, value) held.
        command, yaml: how to train the best config again; empty where there is none.
        commands: (what for, command).
        reproducibility: (label, value).
        written: when, as people write it.
    """

    family: str
    dataset: str
    standing: str
    planned: int
    budget: float
    default: int | None
    settings: Pairs
    fixed: Pairs
    command: str
    yaml: str
    commands: Pairs
    reproducibility: Pairs
    written: str


@dataclass(frozen=True)
class Headline:
    """A number that matters, what it is, and what else belongs to it."""

    label: str
    value: str
    note: str


def render_report(
    search: SearchView,
    ranges: Mapping[str, Range],
    facts: Facts,
    importance: Importance,
    run_dir: Path | None = None,
) -> str:
    """The page, as HTML: with the figures of ``importance``, and with what other analyses left in ``run_dir``.

    Args:
        ranges: what was searched: field → range.
        importance: of this search.
    """
    pictures = _pictures(importance)
    room = MOST_BYTES - sum(len(picture.uri) for picture in pictures.values())
    best = search.best
    kept = () if run_dir is None else kept_results(run_dir, None if best is None else best.number, room)
    return fill(
        "report.html",
        search=search,
        facts=facts,
        best=best,
        headlines=_headlines(search, facts),
        counts=_counts(search),
        ranges=[(name, str(known), _condition(known)) for name, known in ranges.items()],
        importance=importance,
        weights=_weights(importance),
        pictures=pictures,
        kept=kept,
        names=list(ranges),
        trials=[_row(trial, list(ranges)) for trial in search.trials],
    )


def fill(template: str, **values: Any) -> str:
    """A page from one of the templates beside this file, everything in it escaped, with the look of all our pages.

    Args:
        values: what the template shows, besides style and script.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    parts = {name: files("analysis").joinpath("templates", name).read_text() for name in ("report.css", "report.js")}
    html: str = environment.get_template(template).render(
        **values,
        # Files of ours, which must not be escaped; their hashes are all that the page's policy lets run.
        style=Markup(parts["report.css"]),  # noqa: S704
        script=Markup(parts["report.js"]),  # noqa: S704
        style_hash=_hash(parts["report.css"]),
        script_hash=_hash(parts["report.js"]),
    )
    return html.lstrip()


def _headlines(search: SearchView, facts: Facts) -> list[Headline]:
    """The four numbers that matter."""
    best, counts = search.best, _counts(search)
    begun = [trial for trial in search.trials if trial.state != "queued"]
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    epochs = sum(trial.epochs for trial in begun)
    full = sum(max(trial.epochs, facts.budget) if trial.state == "pruned" else trial.epochs for trial in begun)
    saved = f"{full:.4g} without pruning: {100 * (1 - epochs / full):.0f} % saved" if full > epochs else "none saved"
    sign = "lower" if search.objective.mode == "min" else "higher"
    return [
        Headline(
            f"Best {search.objective.metric}",
            "–" if best is None else shown(best.value),
            "no trial is complete" if best is None else f"trial {best.number}; {sign} is better",
        ),
        _against_default(search, facts),
        Headline("Trials", f"{len(begun)} of {max(facts.planned, len(begun))}", states or "none yet"),
        Headline("Epochs trained", f"{epochs:.4g}", f"{saved}; {_duration(begun)}"),
    ]


def _against_default(search: SearchView, facts: Facts) -> Headline:
    label, best = "Against the default config", search.best
    default = next((trial for trial in search.trials if trial.number == facts.default), None)
    if default is None:
        return Headline(label, "–", "it was not among the trials")
    if default.value is None or not math.isfinite(default.value):
        return Headline(label, "–", f"trial {default.number}, {default.state}, has no value")
    told = f"{shown(default.value)} in trial {default.number}"
    if default.state != "complete":
        told += f", {default.state} at epoch {default.epochs:.3g}"
    if best is None or best.value is None:
        return Headline(label, "–", told)
    if best.number == default.number:
        return Headline(label, "the same", f"the default config, trial {default.number}, is the best")
    if default.value == 0:
        return Headline(label, "–", told)
    change = 100 * (best.value - default.value) / abs(default.value)
    return Headline(label, f"{change:+.3g} %".replace("-", "−"), told)


def _duration(trials: Sequence[TrialView]) -> str:
    """From the first start to the last that was heard."""
    ends = [at for trial in trials for at in (trial.finished_s, *trial.times[-1:]) if at is not None]
    starts = [trial.started_s for trial in trials if trial.started_s is not None]
    if not ends or not starts:
        return "no time recorded"
    seconds = max(ends) - min(starts)
    if seconds < 120:
        return f"over {seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"over {hours} h {minutes} min" if hours else f"over {minutes} min"


def _counts(search: SearchView) -> dict[str, int]:
    states = [trial.state for trial in search.trials]
    return {state: states.count(state) for state in STATES if state in states}


def _condition(known: Range) -> str:
    return " and ".join(f"{name} is {' or '.join(map(str, among))}" for name, among in known.when.items())


def _weights(importance: Importance) -> list[tuple[str, list[str]]]:
    """For each parameter, the most important first: share, spread and chance of each method, in per cent."""
    rows = []
    for i in importance.order if importance.weights else []:
        cells = []
        for weights in importance.weights.values():
            spread = f"{100 * weights.low[i]:.0f}–{100 * weights.high[i]:.0f}"
            cells += [f"{100 * weights.share[i]:.1f} %", f"{spread} %", f"{100 * weights.chance[i]:.0f} %"]
        rows.append((importance.points.parameters[i].name, cells))
    return rows


def _pictures(importance: Importance) -> dict[str, Picture]:
    """The figures of a search, each with words for those who cannot see it."""
    course, points = importance.course, importance.points
    states = ", ".join(f"{(course.states == s).sum()} {s}" for s in STATES if (course.states == s).any())
    stops = "; ".join(
        f"epoch {rung:.3g}: {reached} came, {stopped} stopped"
        for rung, reached, stopped in zip(course.rungs, course.reached, course.stopped, strict=True)
    )
    order = ", ".join(points.parameters[i].name for i in importance.order)
    words = {
        "history": ("Values by trial", f"The value of each trial in order, {states}, and the best so far."),
        "rungs": ("Where trials stopped", f"Epochs that each trial was trained. {stops}."),
        "curves": ("Learning curves", f"{course.metric} over epochs for each trial: {states}."),
        "importance": ("Importance", f"Bars of importance by two methods; from most to least: {order}."),
        "slices": ("Along each parameter", f"{points.label} against each parameter in a panel of its own: {order}."),
        "parallel": ("All parameters at once", f"Parallel coordinates of {len(points.numbers)} trials over {order}."),
        "contour": ("The two most important", f"{points.label} over the two most important parameters: {order}."),
    }
    return {name: drawn(figure, *words[name]) for name, figure in importance.figures().items()}


def _row(trial: TrialView, names: Sequence[str]) -> dict[str, Any]:
    """A trial as a row: each cell with what is shown and, where it is a number, what it is sorted by."""
    end = trial.finished_s if trial.finished_s is not None else next(iter(trial.times[-1:]), None)
    seconds = None if end is None or trial.started_s is None else end - trial.started_s
    return {
        "number": trial.number,
        "state": trial.state,
        "cells": [
            _cell(trial.value),
            _cell(trial.epochs),
            _cell(seconds, None if seconds is None else f"{seconds:.1f}"),
            *(_cell(trial.params.get(name)) for name in names),
        ],
        "reason": trial.reason or "",
    }


def _cell(value: Any, text: str | None = None) -> dict[str, Any]:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return {"text": text or shown(value), "sort": repr(float(value)) if number else None, "missing": value is None}


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
