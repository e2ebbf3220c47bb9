"""Which parameters of a search matter, how far that can be trusted, and pictures of how its trials went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from analysis import history
from analysis.anova import DRAWS, METHODS, Floats, Method, Weights, weigh
from analysis.axes import Parameter
from analysis.course import Course, plot_curves, plot_rungs
from analysis.course import compute as compute_course
from analysis.result import Columns, Result
from analysis.trials import SearchView, TrialView
from models.data_sources import Progress
from models.errors import LatentuneError, UserError
from models.space import Range

LEAST = 5
"""Values below which no importance is told."""

Values = Literal["rung", "complete"]


@dataclass(frozen=True, eq=False)
class Points:
    """The trials that are compared with each other: N of them, with P parameters.

    Args:
        numbers: int64 (N,).
        complete: bool (N,), whether a trial used its full budget.
        values: float64 (N,), the objective, finite.
        positions: float64 (N, P) on the axes of the parameters; of one that was not searched in a trial, that of the
            value it had.
        active: bool (N, P), whether it was searched.
        failed: float64 (F, P), positions of the failed trials that have no such value; NaN where not searched.
        epoch: at which the values were reported; ``None``: the best value of each.
    """

    parameters: tuple[Parameter, ...]
    numbers: npt.NDArray[np.int64]
    complete: npt.NDArray[np.bool_]
    values: Floats
    positions: Floats
    active: npt.NDArray[np.bool_]
    failed: Floats
    epoch: float | None
    metric: str
    mode: Literal["min", "max"]

    @property
    def label(self) -> str:
        """What the values are."""
        return self.metric if self.epoch is None else f"{self.metric} at epoch {self.epoch:.3g}"


@dataclass(frozen=True)
class Importance(Result):
    """How much each parameter matters.

    Trials that were stopped early have seen fewer epochs, so their values are not to be compared with others'. All
    values here are from one epoch, or all from complete trials.

    Args:
        points: the trials used, and their values.
        weights: by method; empty where :attr:`refusal` says why.
        refusal: why no importance is told; empty where it is.
        agreement: Spearman's rank correlation between the shares of the two methods; NaN below three parameters.
        foretells: Spearman's rank correlation, over the complete trials, between the values used and the final ones:
            how far an early importance speaks of the end. NaN below five complete trials.
        left_out: trials that have begun but have no such value.
    """

    name: ClassVar[str] = "importance"
    points: Points
    weights: Mapping[Method, Weights]
    refusal: str
    agreement: float
    foretells: float
    left_out: int
    history: history.History
    course: Course

    @property
    def order(self) -> list[int]:
        """Indices of the parameters, the most important first by the mean of both methods."""
        if not self.weights:
            return list(range(len(self.points.parameters)))
        mean = np.mean([weights.share for weights in self.weights.values()], axis=0)
        return [int(i) for i in np.argsort(-mean, kind="stable")]

    @property
    def pair(self) -> tuple[int, int]:
        """Indices of the two most important parameters that were searched in at least half of the trials."""
        common = self.points.active.mean(axis=0) >= 0.5
        first, second, *_ = sorted(self.order, key=lambda i: not common[i])
        return first, second

    @property
    def above_chance(self) -> tuple[str, ...]:
        """Parameters that both methods put above what chance gives, the most important first."""
        names = []
        for i in self.order:
            if self.weights and all(weights.share[i] > weights.chance[i] for weights in self.weights.values()):
                names.append(self.points.parameters[i].name)
        return tuple(names)

    def summary(self) -> dict[str, Any]:
        """Shares by method, most important first, and what they rest on."""
        points = self.points
        told: dict[str, Any] = {
            "trials_used": len(points.numbers),
            "trials_left_out": self.left_out,
            "complete": int(points.complete.sum()),
            "values": f"{points.label}, the best of each complete trial" if points.epoch is None else points.label,
        }
        if self.refusal:
            return {**told, "refused": self.refusal}
        for method, weights in self.weights.items():
            told[method] = {points.parameters[i].name: round(float(weights.share[i]), 4) for i in self.order}
        told["above_chance"] = list(self.above_chance)
        told["agreement"] = self.agreement
        told["foretells_final_order"] = self.foretells
        return told

    def tables(self) -> dict[str, Columns]:
        """``importance``: a row a parameter and method; ``values``: a row a trial used, with positions on the axes."""
        points = self.points
        names = [parameter.name for parameter in points.parameters]
        rows = [(method, weights, i) for method, weights in self.weights.items() for i in self.order]
        importance: Columns = {
            "method": [method for method, _, _ in rows],
            "parameter": [names[i] for _, _, i in rows],
            **{
                column: np.array([getattr(weights, column)[i] for _, weights, i in rows], dtype=np.float64)
                for column in ("share", "low", "high", "chance")
            },
        }
        searched = np.where(points.active, points.positions, math.nan)
        values: Columns = {
            "trial": points.numbers,
            "complete": points.complete,
            "value": points.values,
            **{f"position.{name}": searched[:, i] for i, name in enumerate(names)},
        }
        return {**({"importance": importance} if rows else {}), "values": values}

    def figures(self) -> dict[str, Figure]:
        """History, rungs and curves; importance, slices, parallel coordinates and contour where there is enough."""
        from analysis.parameter_pictures import plot_contour, plot_importance, plot_parallel, plot_slices

        made = {
            "history": history.plot(self.history, self.points.metric),
            "rungs": plot_rungs(self.course),
            "curves": plot_curves(self.course),
        }
        if self.weights:
            made["importance"] = plot_importance(self)
        order = [i for i in self.order if self.points.active[:, i].any()]
        if len(self.points.numbers) >= 2 and order:
            made["slices"] = plot_slices(self.points, order)
            if len(order) >= 2:
                made["parallel"] = plot_parallel(self.points, order)
        if self.weights and len(self.points.parameters) >= 2:
            made["contour"] = plot_contour(self.points, *self.pair)
        return made


def weigh_parameters(
    search: SearchView,
    ranges: Mapping[str, Range],
    *,
    values: Values = "rung",
    rungs: Sequence[float] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Importance:
    """How much each parameter of a search matters, by fANOVA and PED-ANOVA.

    Args:
        ranges: what was searched: field → range.
        values: ``rung`` compares trials at the highest epoch that all complete and pruned ones reached, which takes
            in those that were stopped early and says which parameters decide that early. ``complete`` compares the
            best values of complete trials alone: few, and all of them good ones.
        rungs: epochs at which trials were compared, for the picture of them.
        seed: of resampling, shuffling and forests.

    Raises:
        UserError: ``values`` is neither.
        LatentuneError: no trial has begun.
    """
    if values not in ("rung", "complete"):
        raise UserError.of("--values", values, "must be rung or complete")
    begun = [trial for trial in search.trials if trial.state != "queued"]
    if not begun:
        raise LatentuneError(f"{search.name} has no trial yet")
    parameters = tuple(p for name, known in ranges.items() if (p := Parameter(name, known)).varies)
    points = _points(search, begun, parameters, values)
    refusal = _refusal(points)
    weights: dict[Method, Weights] = {}
    if not refusal:
        steps = sum(2 * DRAWS[method] + 1 for method in METHODS)
        done = 0

        def told() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress("weighing parameters", done, steps)

        for method in METHODS:
            weights[method] = weigh(
                method,
                parameters,
                points.positions,
                points.active,
                points.values,
                points.mode,
                seed=seed,
                told=told,
            )
    shares = [weights[method].share for method in METHODS if method in weights]
    final = {trial.number: trial.value for trial in begun if trial.state == "complete" and trial.value is not None}
    both = [
        (value, final[number]) for number, value in zip(points.numbers, points.values, strict=True) if number in final
    ]
    objective = search.objective
    return Importance(
        points=points,
        weights=weights,
        refusal=refusal,
        agreement=_spearman(*shares) if len(shares) == 2 and len(parameters) >= 3 else math.nan,
        foretells=_spearman(*np.array(both).T) if points.epoch is not None and len(both) >= LEAST else math.nan,
        left_out=len(begun) - len(points.numbers),
        history=history.compute(
            [trial.number for trial in begun],
            [trial.state for trial in begun],
            [trial.value for trial in begun],
            objective.mode,
        ),
        course=compute_course(search, rungs),
    )


def _points(
    search: SearchView, begun: Sequence[TrialView], parameters: tuple[Parameter, ...], values: Values
) -> Points:
    at: dict[int, float | None]
    epoch = None
    if values == "rung":
        epoch = _common_epoch(begun)
        at = {trial.number: _value_at(trial, epoch) for trial in begun}
    else:
        at = {trial.number: trial.value for trial in begun if trial.state == "complete"}
    used = [trial for trial in begun if (value := at.get(trial.number)) is not None and math.isfinite(value)]
    failed = [trial for trial in begun if trial.state == "failed" and trial not in used]

    def position(trial: TrialView, parameter: Parameter) -> float:
        given = trial.params.get(parameter.name, trial.config.get(parameter.name))
        return parameter.position(parameter.known.nearest(given))

    shape = (-1, len(parameters))
    return Points(
        parameters,
        np.array([trial.number for trial in used], dtype=np.int64),
        np.array([trial.state == "complete" for trial in used], dtype=np.bool_),
        np.array([at[trial.number] for trial in used], dtype=np.float64),
        np.array([[position(t, p) for p in parameters] for t in used], dtype=np.float64).reshape(len(used), shape[1]),
        np.array([[p.name in t.params for p in parameters] for t in used], dtype=np.bool_).reshape(len(used), shape[1]),
        np.array(
            [[position(t, p) if p.name in t.params else math.nan for p in parameters] for t in failed],
            dtype=np.float64,
        ).reshape(len(failed), shape[1]),
        epoch,
        search.objective.metric,
        search.objective.mode,
    )


def _common_epoch(begun: Sequence[TrialView]) -> float:
    """The highest epoch at which every complete and pruned trial that reported anything reported; else the first."""
    reports = [
        {round(epoch, 6) for epoch, value, _ in trial.curve if math.isfinite(value)}
        for trial in begun
        if trial.state in ("complete", "pruned")
    ]
    reports = [epochs for epochs in reports if epochs]
    if not reports:
        first = [round(trial.curve[0][0], 6) for trial in begun if trial.curve]
        return min(first, default=0.0)
    common = set.intersection(*reports)
    return max(common) if common else min(min(epochs) for epochs in reports)


def _value_at(trial: TrialView, epoch: float) -> float | None:
    found = [value for at, value, _ in trial.curve if round(at, 6) == epoch]
    return found[0] if found else None


def _refusal(points: Points) -> str:
    if not points.parameters:
        return "nothing was searched: every field is fixed"
    if len(points.parameters) == 1:
        return f"only {points.parameters[0].name} was searched: there is nothing to weigh it against"
    if len(points.values) < LEAST:
        of = "complete trials" if points.epoch is None else "trials with a value at the same epoch"
        return f"importance needs at least {LEAST} {of}; there {'is' if len(points.values) == 1 else 'are'} " + str(
            len(points.values)
        )
    if np.ptp(points.values) == 0:
        return "all trials have the same value"
    return ""


def _spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    first, second = np.asarray(first), np.asarray(second)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(spearmanr(first, second).statistic)
