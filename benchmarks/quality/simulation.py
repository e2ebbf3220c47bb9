"""Workers that train nothing: a search meets a problem's curves in the order in which workers would report them."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import numpy as np

from benchmarks.quality.curves import POINTS, Problem, reported


@dataclass(frozen=True)
class Job:
    """A trial for a worker.

    Args:
        after: epochs that it was trained before, without being paid again.
    """

    number: int
    config: Mapping[str, Any]
    after: float = 0.0


class Search(Protocol):
    """What proposes trials and stops them.

    Attributes:
        points: epochs at which its trials report, of :data:`POINTS`.
    """

    points: Sequence[float]

    def next(self) -> Job:
        """What a free worker does next."""

    def report(self, number: int, epoch: float, value: float) -> bool:
        """Take a trial's report; whether its worker is free now."""


@dataclass
class Course:
    """What a search found, report by report.

    Args:
        epochs: trained by all workers so far.
        seconds: simulated time.
        values: objective without noise of the trial and epoch whose *reported* value was the best so far.
        trials: trials begun.
    """

    epochs: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    trials: int = 0

    def at(self, budgets: Sequence[float], of: Sequence[float]) -> np.ndarray:
        """The values at budgets ``of`` epochs or seconds; infinite before the first report."""
        places = np.searchsorted(of, budgets, side="right")
        return np.concatenate([[np.inf], self.values])[places]


def simulate(search: Search, problem: Problem, *, seed: int, epochs: float, seconds: float, workers: int = 2) -> Course:
    """Let ``search`` use up both budgets.

    Resuming, proposing and reporting take no simulated time.
    """
    course, order = Course(), count()
    truths: dict[int, np.ndarray] = {}
    told: dict[int, np.ndarray] = {}
    pace: dict[int, float] = {}
    best = np.inf
    events: list[tuple[float, int, int, int, float]] = []

    def begin(at: float) -> None:
        job = search.next()
        if job.number not in truths:
            truths[job.number], pace[job.number] = problem.curve(job.config), problem.seconds(job.config)
            told[job.number] = reported(problem, job.config, seed)
        train(at, job.number, job.after)

    def train(at: float, number: int, done: float) -> None:
        """On to the trial's next report."""
        point = next(i for i, epoch in enumerate(POINTS) if epoch > done and epoch in search.points)
        heapq.heappush(events, (at + (POINTS[point] - done) * pace[number], next(order), number, point, done))

    for _ in range(workers):
        begin(0.0)
    trained = 0.0
    while True:
        now, _, number, point, done = heapq.heappop(events)
        trained += POINTS[point] - done
        value = float(told[number][point])
        truth = float(truths[number][point])
        if value < best:
            best = value
        else:
            truth = course.values[-1]
        course.epochs.append(trained)
        course.seconds.append(now)
        course.values.append(truth)
        if trained >= epochs and now >= seconds:
            course.trials = len(truths)
            return course
        if search.report(number, POINTS[point], value):
            begin(now)
        else:
            train(now, number, POINTS[point])
