"""How far each trial of a search came: its learning curve, the rung where it was stopped, and what was saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from analysis.axes import range_shown, scale_values
from analysis.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, WIDTH, style
from analysis.history import MARKERS
from analysis.trials import SearchView

Floats = npt.NDArray[np.float64]

COLOURS = {"complete": BLUE, "pruned": GREY, "interrupted": ORANGE, "running": PINK, "failed": RED}
MOST_LABELS = 6


@dataclass(frozen=True, eq=False)
class Course:
    """The T trials of a search that have begun, in the order of their numbers.

    Args:
        numbers: int64 (T,).
        states: str (T,).
        epochs: float64 (T,), how far each one was trained.
        curves: T arrays float64 (R, 2) of epoch and objective, both finite; empty where nothing was reported.
        best: number of the best complete trial.
        rungs: float64 (K,), ascending: the epochs at which trials were compared.
        reached, stopped: int64 (K,), how many trials came to a rung, and how many of them were pruned there.
    """

    numbers: npt.NDArray[np.int64]
    states: npt.NDArray[np.str_]
    epochs: Floats
    curves: tuple[Floats, ...]
    best: int | None
    rungs: Floats
    reached: npt.NDArray[np.int64]
    stopped: npt.NDArray[np.int64]
    metric: str
    mode: Literal["min", "max"]

    def saved(self, budget: float) -> float:
        """Epochs that the pruned trials would have been trained on if each had had its full ``budget``."""
        pruned = self.states == "pruned"
        return float(np.maximum(budget - self.epochs[pruned], 0).sum())


def compute(search: SearchView, rungs: Sequence[float] = ()) -> Course:
    """The course of a search; queued trials are left out.

    Args:
        rungs: epochs at which trials were compared; by default those at which some were pruned.
    """
    begun = [trial for trial in search.trials if trial.state != "queued"]
    states = np.array([trial.state for trial in begun], dtype=np.str_)
    epochs = np.array([trial.epochs for trial in begun], dtype=np.float64)
    pruned_at = epochs[states == "pruned"]
    at: Floats = np.unique(np.asarray(rungs if len(rungs) else pruned_at, dtype=np.float64).round(6))
    curves = [
        np.array([(e, v) for e, v, _ in trial.curve if math.isfinite(v)], dtype=np.float64).reshape(-1, 2)
        for trial in begun
    ]
    best = search.best
    return Course(
        np.array([trial.number for trial in begun], dtype=np.int64),
        states,
        epochs,
        tuple(curves),
        None if best is None else best.number,
        at,
        np.array([(epochs >= rung * (1 - 1e-6)).sum() for rung in at], dtype=np.int64),
        np.array([np.isclose(pruned_at, rung, rtol=1e-6).sum() for rung in at], dtype=np.int64),
        search.objective.metric,
        search.objective.mode,
    )


@style()
def plot_rungs(course: Course) -> Figure:
    """A line for each trial as high as the epochs it was trained, its mark its state; beside each rung, how many came
    there and how many were stopped."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.add_subplot()
    top = max(float(course.epochs.max(initial=0)), float(course.rungs.max(initial=0)), 1e-3)
    lowest = min(course.epochs[course.epochs > 0].min(initial=top), course.rungs.min(initial=top))
    floor = 0.0
    if len(course.rungs) and top > 4 * lowest:  # rungs grow by a factor, and should stand apart
        floor = lowest / 2
        axes.set_yscale("log")
    width = float(np.clip(220 / max(len(course.numbers), 1), 0.6, 3))
    for state, look in MARKERS.items():
        mine = course.states == state
        if mine.any():
            heights = np.maximum(course.epochs[mine], floor)
            axes.vlines(course.numbers[mine], floor, heights, color=COLOURS[state], linewidth=width, alpha=0.55)
            label = f"{state} ({mine.sum()})"
            axes.scatter(course.numbers[mine], heights, **look, label=label, zorder=3, clip_on=False)
    shown = _apart(course.rungs, top, floor > 0)
    for rung, reached, stopped in zip(course.rungs, course.reached, course.stopped, strict=True):
        axes.axhline(rung, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        if rung in shown:
            text = f"{rung:.3g}: {reached} came,\n{stopped} stopped"
            axes.annotate(
                text,
                (1.01, rung),
                xycoords=axes.get_yaxis_transform(),
                fontsize=9,
                va="center",
                linespacing=1.15,
            )
    axes.set_ylim(floor, top * (1.25 if floor else 1.06))
    if floor:
        epochs = [rung for rung in course.rungs if rung in shown] + [top]
        axes.yaxis.set_major_locator(FixedLocator(sorted({round(epoch, 6) for epoch in epochs})))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="trial", ylabel="epochs trained" + (" (log)" if floor else ""))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.margins(x=0.02)
    total = f"{course.epochs.sum():.4g} epochs in {len(course.numbers)} trial{'s' if len(course.numbers) != 1 else ''}"
    axes.set_title(f"where trials stopped: {total}")
    if len(course.numbers):
        figure.legend(loc="outside lower center", ncols=5, frameon=False, columnspacing=1.4, handletextpad=0.5)
    return figure


def _apart(rungs: Floats, top: float, log: bool) -> list[float]:
    """The rungs whose labels do not touch each other, from the highest one down."""
    shown: list[float] = []
    for rung in rungs[::-1]:
        far = not shown or ((shown[-1] / rung > 1.5) if log else (shown[-1] - rung > 0.13 * top))
        if far and len(shown) < MOST_LABELS:
            shown.append(float(rung))
    return shown


@style()
def plot_curves(course: Course) -> Figure:
    """The objective of every trial over its epochs; the best one stands out, and ends are marked by state.

    Values far worse than the others are cut off.
    """
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.add_subplot()
    alpha = float(np.clip(12 / max(len(course.curves), 1) ** 0.6, 0.25, 0.9))
    order = ["pruned", "failed", "interrupted", "running", "complete"]
    for state in order:
        mine = np.flatnonzero((course.states == state) & np.array([len(curve) > 0 for curve in course.curves], bool))
        for i in mine:
            axes.plot(*course.curves[i].T, color=COLOURS[state], linewidth=1.1, alpha=alpha, zorder=2)
        if len(mine):
            ends = np.array([course.curves[i][-1] for i in mine])
            axes.scatter(*ends.T, **MARKERS[state], zorder=3, label=f"{state} ({len(mine)})")
    for i in np.flatnonzero(course.numbers == course.best) if course.best is not None else ():
        curve = course.curves[i]
        point = "o" if len(curve) < 30 else None
        axes.plot(
            *curve.T, color=GREEN, linewidth=2.4, marker=point, ms=4, zorder=5, label=f"best, trial {course.best}"
        )
    ends = np.array([curve[-1, 1] for curve in course.curves if len(curve)])
    beyond = 0
    if len(ends):
        values = np.concatenate([curve[:, 1] for curve in course.curves])
        low, high = range_shown(values, course.mode)
        beyond = int(((ends < low) | (ends > high)).sum())
        scale_values(axes, low, high)
    else:
        axes.set(ylim=(0, 1), yticks=[])
    axes.set_xlim(0, max(float(course.epochs.max(initial=0)), 1e-3) * 1.03)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{course.metric} ({'lower' if course.mode == 'min' else 'higher'} is better)")
    axes.grid(axis="y")
    silent = len(course.curves) - len(ends)
    title = "learning curves" if len(ends) else "no trial has reported a value"
    title += f" of {len(ends)} trials; {silent} reported no value" if silent and len(ends) else ""
    axes.set_title(title + (f"; {beyond} end beyond the axis" if beyond else ""))
    if len(ends):
        figure.legend(loc="outside lower center", ncols=6, frameon=False, columnspacing=1.4, handletextpad=0.5)
    return figure
