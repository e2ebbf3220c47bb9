"""How a search went: the value of each trial, and the best one so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.axes import range_shown, scale_values
from analysis.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, WIDTH, style

HEIGHT = 4.2

MARKERS: dict[str, dict[str, Any]] = {
    "complete": {"marker": "o", "s": 34, "color": BLUE},
    "pruned": {"marker": "o", "s": 26, "facecolors": "white", "edgecolors": GREY, "linewidths": 1.2},
    "interrupted": {"marker": "D", "s": 26, "facecolors": "white", "edgecolors": ORANGE, "linewidths": 1.4},
    "running": {"marker": "^", "s": 34, "facecolors": "white", "edgecolors": PINK, "linewidths": 1.4},
    "failed": {"marker": "x", "s": 36, "color": RED, "linewidths": 1.8},
}
"""The states, in the order of the legend."""


@dataclass(frozen=True, eq=False)
class History:
    """The trials of a search in the order of their numbers.

    Args:
        numbers: int64 (T,), ascending.
        values: float64 (T,), the objective; NaN where a trial has none that is finite.
        states: str (T,), each one of complete, pruned, failed, interrupted and running.
        best_so_far: float64 (T,), best value of the complete trials up to and including this number; NaN before the
            first of them.
        mode: whether less (``min``) or more (``max``) is better.
    """

    numbers: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    states: npt.NDArray[np.str_]
    best_so_far: npt.NDArray[np.float64]
    mode: Literal["min", "max"]


def compute(
    numbers: Sequence[int], states: Sequence[str], values: Sequence[float | None], mode: Literal["min", "max"]
) -> History:
    """The history of trials given in any order; the three sequences have one entry a trial.

    Raises:
        ValueError: the sequences differ in length, or a state is not known.
    """
    if not len(numbers) == len(states) == len(values):
        raise ValueError(f"must be of one length: {len(numbers)} numbers, {len(states)} states, {len(values)} values")
    unknown = sorted(set(states) - set(MARKERS))
    if unknown:
        raise ValueError(f"states must be of {', '.join(MARKERS)}, but got {', '.join(unknown)}")
    order = np.argsort(np.asarray(numbers, dtype=np.int64), kind="stable")
    sorted_values = np.array([math.nan if value is None else value for value in values], dtype=np.float64)[order]
    sorted_values[~np.isfinite(sorted_values)] = math.nan
    sorted_states = np.array(states, dtype=np.str_)[order]
    best = np.fmin if mode == "min" else np.fmax  # both pass over NaN
    best_so_far = best.accumulate(np.where(sorted_states == "complete", sorted_values, math.nan))
    return History(np.asarray(numbers, dtype=np.int64)[order], sorted_values, sorted_states, best_so_far, mode)


@style()
def plot(result: History, metric: str) -> Figure:
    """A mark for each trial and a line for the best complete one so far.

    Failed trials, and those without a value, stand on the lower axis. A value far worse than the others is an arrow at
    the edge, so that it does not squeeze what matters. The axis is logarithmic where the values shown are positive and
    span more than a factor of 10.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    numbers, values, states = result.numbers, result.values, result.states
    valued = np.isfinite(values) & (states != "failed")
    low, high = range_shown(values[valued], result.mode)
    if np.isfinite(result.best_so_far).any():  # in view even where pruned trials were far better
        low, high = min(low, result.best_so_far[-1]), max(high, result.best_so_far[-1])
    beyond = valued & ((values > high) if result.mode == "min" else (values < low))
    on_axis = axes.get_xaxis_transform()  # x of the data, y from 0 at the lower axis to 1 at the top

    first, last = (numbers[0], numbers[-1]) if len(numbers) else (0, 0)
    margin = max(0.6, 0.015 * (last - first))
    if np.isfinite(result.best_so_far).any():
        line = np.append(numbers, last + margin), np.append(result.best_so_far, result.best_so_far[-1])
        axes.step(*line, where="post", color=GREEN, linewidth=2, label="best so far")
    for state, look in MARKERS.items():
        mine = states == state
        if not mine.any():
            continue
        axes.scatter([], [], **look, label=f"{state} ({mine.sum()})")  # for the legend alone
        inside, without = mine & valued & ~beyond, mine & ~valued
        axes.scatter(numbers[inside], values[inside], **look, zorder=4 if state == "complete" else 3)
        axes.scatter(numbers[without], np.zeros(without.sum()), **look, zorder=5, transform=on_axis, clip_on=False)
    if beyond.any():
        marker, height = ("^", 0.97) if result.mode == "min" else ("v", 0.03)
        heights = np.full(beyond.sum(), height)
        label = f"beyond the axis ({beyond.sum()})"
        axes.scatter(numbers[beyond], heights, marker=marker, s=30, color=BLACK, transform=on_axis, label=label)

    if valued.any():
        scale_values(axes, low, high)
    else:
        axes.set(ylim=(0, 1), yticks=[])
    axes.set(xlim=(first - margin, last + margin), xlabel="trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_ylabel(f"{metric} ({'lower' if result.mode == 'min' else 'higher'} is better)")
    axes.grid(axis="y")
    axes.set_title(_title(result, metric))
    entries = len(axes.get_legend_handles_labels()[1])
    if entries:
        figure.legend(
            loc="outside lower center",
            ncols=entries if entries <= 5 else -(-entries // 2),  # more do not fit into one row
            frameon=False,
            columnspacing=1.4,
            handletextpad=0.5,
            scatteryoffsets=[0.5],
        )
    return figure


def _title(result: History, metric: str) -> str:
    complete = np.flatnonzero((result.states == "complete") & np.isfinite(result.values))
    if not len(complete):
        return "no trial is complete" if len(result.numbers) else "no trials"
    best = complete[result.values[complete] == result.best_so_far[-1]][0]  # the first of equals
    return f"best {metric}: {result.values[best]:.4g} in trial {result.numbers[best]}"
