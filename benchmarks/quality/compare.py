"""The searches that are compared, and their figures at several budgets."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.quality.curves import Problem, Synthetic, random_configs, recorded
from benchmarks.quality.promotion import Promotion
from benchmarks.quality.searches import Ours, RayPair, ToldComplete, tpe
from benchmarks.quality.simulation import Search, simulate

WORKERS = 2
EPOCHS = 108
"""The largest budget, unless told otherwise: 12 whole trainings; ASHA makes 25 to 40 trials of it."""

PARTS = (1 / 12, 1 / 6, 1 / 4, 1 / 3, 5 / 12, 5 / 9, 25 / 36, 5 / 6, 1)
"""Budgets in epochs trained, as parts of the largest."""

SHARES = (0.25, 0.5, 0.75)
"""Budgets in time: shares of what the largest budget in epochs takes with random configs."""

PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "steady": partial(Synthetic, peaked=False),
    "peaked": partial(Synthetic, peaked=True),
    "recorded": lambda seed: recorded(),
}

METHODS: dict[str, Callable[[Problem, int], Search]] = {
    "latentune": Ours,
    "told COMPLETE": partial(Ours, kind=ToldComplete),
    "rungs 1, 3": partial(Ours, min_epochs=1.0),
    "Ray's pair": RayPair,
    "Ray's pair, default first": partial(RayPair, default_first=True),
    "random + ASHA": partial(Ours, sampler="random"),
    "promotion": partial(Promotion, paused="running"),
    "promotion, paused as PRUNED": partial(Promotion, paused="pruned"),
    "random + promotion": partial(Promotion, paused="running", sampler="random"),
    "TPE, no stopping": partial(Ours, scheduler="none"),
    "random + promotion, default whole": partial(Promotion, paused="running", first_whole=True, sampler="random"),
    "promotion, paused as PRUNED, default whole": partial(Promotion, paused="pruned", first_whole=True),
    "rung 3": partial(Ours, min_epochs=3.0),
    "no constant liar": partial(Ours, make=tpe(constant_liar=False)),
    "not multivariate": partial(Ours, make=tpe(multivariate=False, group=False)),
    "5 random trials first": partial(Ours, make=tpe(n_startup_trials=5)),
}
COMPARED = list(METHODS)[:-6]
"""What is compared by default: the others are the service with other settings."""


def run(kind: str, method: str, seed: int, epochs: tuple[float, ...], limit_s: float) -> dict[str, Any]:
    """One search: values at the budgets, and how many trials it began."""
    problem = PROBLEMS[kind](seed)
    course = simulate(
        METHODS[method](problem, seed), problem, seed=seed, epochs=epochs[-1], seconds=limit_s, workers=WORKERS
    )
    return {
        "epochs": course.at(epochs, course.epochs),
        "seconds": course.at([limit_s * share / SHARES[-1] for share in SHARES], course.seconds),
        "trials": course.trials,
        "least": float(np.min(course.values)),
    }


def time_limit(kind: str, epochs: float) -> float:
    """Simulated seconds of the largest budget in time."""
    problem = PROBLEMS[kind](0)
    pace = np.mean([problem.seconds(config) for config in random_configs(problem, 500, seed=0)])
    return float(SHARES[-1] * epochs * pace / WORKERS)


def compare(
    kind: str, methods: list[str], seeds: int, epochs: tuple[float, ...], pool: ProcessPoolExecutor
) -> dict[str, Any]:
    """Excess in percent of the best value known of each seed's problem, by method, budget and seed."""
    limit = time_limit(kind, epochs[-1])
    tasks = [(kind, method, seed, epochs, limit) for method in methods for seed in range(seeds)]
    runs = iter(pool.map(run, *zip(*tasks, strict=True), chunksize=5))
    found: dict[str, list[dict[str, Any]]] = {}
    for method in methods:
        found[method] = list(islice(runs, seeds))
        print(f"{kind}: {method} done", file=sys.stderr)
    best = []
    for seed in range(seeds):
        problem = PROBLEMS[kind](seed)
        drawn = min(problem.curve(config).min() for config in random_configs(problem, 500, seed=seed))
        best.append(min(drawn, *(found[method][seed]["least"] for method in methods)))
    if PROBLEMS[kind](0) is PROBLEMS[kind](1):
        best = [min(best)] * seeds

    def excess(method: str, axis: str) -> list[list[float | None]]:
        values = np.array([run[axis] for run in found[method]]) / np.array(best)[:, None] - 1
        return [[round(100 * v, 2) if np.isfinite(v) else None for v in row] for row in values.T]

    return {
        "seconds": [round(limit * share / SHARES[-1], 1) for share in SHARES],
        "methods": {
            method: {
                "by_epochs": excess(method, "epochs"),
                "by_seconds": excess(method, "seconds"),
                "trials": [run["trials"] for run in found[method]],
            }
            for method in methods
        },
    }
