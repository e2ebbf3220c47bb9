"""Trials as a table with a line for each, whatever the width: what finds no room is left out and named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from models.family import Objective
from tuning.progress import STYLE, number
from tuning.results import Trial

GAP = 2
"""Blanks between two columns."""

SHORT = 8
"""Characters of a column's name where room is scarce."""

Column = tuple[str, list[str]]
"""A name, and a cell for each trial."""


def trial_table(
    trials: Sequence[Trial], objective: Objective, width: int, *, ranked: bool = False
) -> tuple[Table, list[str]]:
    """A table of that width with a line for each trial: how it did, then the parameters that differ between trials.

    Names are shortened where they do not fit as they are.

    Args:
        ranked: the trials are a leaderboard: with places, and no states.

    Returns:
        The table, and the names of the parameters that found no room in it.
    """
    first: list[Column] = [("trial", [str(trial.number) for trial in trials])]
    if ranked:
        first.insert(0, ("", [str(place) for place in range(1, len(trials) + 1)]))
    else:
        first.append(("state", [trial.state for trial in trials]))
    first.append((objective.metric, [number(trial.value) for trial in trials]))
    first.append(("epochs", [f"{trial.epochs:.3g}" for trial in trials]))
    seconds: Column = ("seconds", ["" if t.seconds is None else f"{t.seconds:.1f}" for t in trials])
    params: list[Column] = [(name, [short(t.params.get(name)) for t in trials]) for name in varying(trials)]
    if _width([*first, seconds, *params]) <= width:
        first.append(seconds)
    elif _width([*first, *params]) > width:
        params = [(abbreviated(name), cells) for name, cells in params]
    names, left = varying(trials), len(params)
    while left and _width([*first, *params[:left]]) > width:
        left -= 1
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    shown = [*first, *params[:left]]
    for name, cells in shown:
        words = name == "state" or not all(_is_number(cell) for cell in cells)
        table.add_column(name, justify="left" if words else "right", no_wrap=True)
    for row in zip(*(cells for _, cells in shown), strict=True):
        table.add_row(*(Text(cell, style=STYLE.get(cell, "") if i == 1 else "") for i, cell in enumerate(row)))
    return table, names[left:]


def varying(trials: Sequence[Trial]) -> list[str]:
    """Names of the parameters that differ between trials (all of a single trial's): fractions, whole numbers, words."""
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for name in trial.params:
            values.setdefault(name, [other.params.get(name) for other in trials])
    differing = [name for name, found in values.items() if len(trials) < 2 or len(set(map(repr, found))) > 1]
    kinds = {float: 0, int: 1}
    return sorted(
        differing, key=lambda name: max(kinds.get(type(value), 2) for value in values[name] if value is not None)
    )


def short(value: Any) -> str:
    """A value in few characters: three significant digits, ``yes`` and ``no``."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def abbreviated(name: str) -> str:
    """A field's name in at most :data:`SHORT` characters.

    >>> abbreviated("weight_decay"), abbreviated("latent_dim"), abbreviated("activation"), abbreviated("lr")
    ('w_decay', 'l_dim', 'activat…', 'lr')
    """
    if len(name) <= SHORT:
        return name
    *before, last = name.split("_")
    name = "_".join([*(part[:1] for part in before), last])
    return name if len(name) <= SHORT else f"{name[: SHORT - 1]}…"


def _width(columns: Sequence[Column]) -> int:
    return sum(max(len(name), *map(len, cells)) + GAP for name, cells in columns) - GAP


def _is_number(cell: str) -> bool:
    try:
        float(cell or "0")
    except ValueError:
        return cell == "–"
    return True
