"""Arithmetic on traces: who had which value when, and what that makes in ratios.

A trace is what a contender reported: seconds since its process was started, the trial, the epoch, and the objective, or
``None`` where that was not finite. What is never reached takes infinitely long; it is counted, never left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from models.family import Objective

Trace = Sequence[tuple[float, str, float, float | None]]


class Spread(TypedDict):
    """Ratios over seeds; 0 where ours never got there."""

    median: float
    low: float
    high: float
    seeds: int


def best_so_far(trace: Trace, objective: Objective) -> list[tuple[float, float]]:
    """(seconds, value) at each moment when the best value became better, in order."""
    steps: list[tuple[float, float]] = []
    for seconds, _, _, value in sorted(trace, key=lambda point: point[0]):
        if value is not None and objective.better(value, steps[-1][1] if steps else None):
            steps.append((seconds, value))
    return steps


def best(trace: Trace, objective: Objective) -> float | None:
    """The value that a contender has at its end."""
    steps = best_so_far(trace, objective)
    return steps[-1][1] if steps else None


def time_to(trace: Trace, target: float, objective: Objective) -> float:
    """Seconds until a value was at least as good as ``target``; infinite where none was."""
    return next(
        (at for at, value in best_so_far(trace, objective) if not objective.better(target, value)),
        math.inf,
    )


def without_trial(trace: Trace, trial: str) -> Trace:
    """As if that trial's reports had not been made, at the times that they took nevertheless."""
    return [point for point in trace if point[1] != trial]


def ratio(theirs: float, ours: float) -> float:
    """How many times sooner ours was: 0 where it never was."""
    return 0.0 if math.isinf(ours) else theirs / ours


def spread(ratios: Sequence[float]) -> Spread:
    return Spread(median=statistics.median(ratios), low=min(ratios), high=max(ratios), seeds=len(ratios))


def compare_to_target(ours: Mapping[int, Trace], theirs: Mapping[int, Trace], objective: Objective) -> dict[str, Any]:
    """Time to the value that the other has at its end, over the seeds that both have.

    ``seconds_ours`` and ``seconds_theirs`` are medians from process start to that value. ``without_first`` are the
    ratios of ours without its trial 0, which is the family's default config and no proposal of a sampler.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    targets = {seed: target for seed in seeds if (target := best(theirs[seed], objective)) is not None}
    their_times = [time_to(theirs[seed], target, objective) for seed, target in targets.items()]
    our_times = [time_to(ours[seed], target, objective) for seed, target in targets.items()]
    later = [time_to(without_trial(ours[seed], "0"), target, objective) for seed, target in targets.items()]
    return {
        "seeds": list(targets),
        "target": statistics.median(targets.values()),
        "seconds_theirs": statistics.median(their_times),
        "seconds_ours": statistics.median(our_times),
        "ratios": [ratio(*pair) for pair in zip(their_times, our_times, strict=True)],
        "ratio": spread([ratio(*pair) for pair in zip(their_times, our_times, strict=True)]),
        "never": sum(map(math.isinf, our_times)),
        "without_first": spread([ratio(*pair) for pair in zip(their_times, later, strict=True)]),
        "never_without_first": sum(map(math.isinf, later)),
    }


def compare_walls(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any]:
    """Wall time of whole processes, over the seeds that both have."""
    seeds = sorted(ours.keys() & theirs.keys())
    ratios = [theirs[seed] / ours[seed] for seed in seeds]
    return {
        "seeds": seeds,
        "seconds_theirs": statistics.median(theirs[seed] for seed in seeds),
        "seconds_ours": statistics.median(ours[seed] for seed in seeds),
        "ratios": ratios,
        "ratio": spread(ratios),
    }


def goodput(
    busy_s: float, cores: int, wall_s: float, started_s: Iterable[float], finished_s: Iterable[float]
) -> dict[str, float]:
    """Share of the cores' time that workers spent on training steps and on validating what they gave.

    Args:
        busy_s: seconds inside the training loop, as the workers' own clocks say, of all trials together. Not in it:
            starting processes, waiting for a trial, writing checkpoints, reporting.
        wall_s: of the whole process, its start and its end included.
        started_s, finished_s: of the trials; between the first start and the last end cores could be busy.
    """
    return {
        "whole_process": busy_s / (cores * wall_s),
        "while_searching": busy_s / (cores * (max(finished_s) - min(started_s))),
    }
