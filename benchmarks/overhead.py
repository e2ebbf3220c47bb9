"""What a trial costs beside its training: a do-nothing family, with study, MLflow and progress on.

    python benchmarks/overhead.py                                       # 500 trials of 3 reports
    python benchmarks/overhead.py --trials 5000                         # does a trial cost more after thousands?
    python benchmarks/overhead.py --trials 2000 --nodes 2               # on two nodes of one core each

One JSON object, to stdout or a file. Ray's start and the workers' first imports are in ``wall_s`` alone. A trial's
seconds and cores are given over all trials and for the first and the last tenth of them, each without the trials that
the workers' start delays (:data:`WARM_UP`); ``growth`` is the last tenth against the first:

``wall_s``
    from one trial's end to the next one's. ``median_s`` leaves out what else a busy machine did.
``driver_cpu_s``, ``others_cpu_s``
    processor time of the driver, and of what it started (workers, Ray's own processes).
``driver_mb``
    resident memory of the driver at the tenth's end, in MiB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from machine import machine, write_result

from tuning import search
from tuning.study import load_study

ROOT = Path(__file__).parents[1]

WARM_UP = 20
"""Trials at the beginning that are not counted: workers start one after the other, and import."""


@dataclass(frozen=True)
class Sample:
    """The driver at one moment.

    Args:
        at: UTC seconds.
        driver_cpu, others_cpu: processor seconds used so far by it, and by the processes that it started.
        memory: resident bytes.
    """

    at: float
    driver_cpu: float
    others_cpu: float
    memory: int


class Watch:
    """Looks at this process and its children twice a second, in a thread, while it is open."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._used: dict[int, float] = {}  # by process: those that ended keep what they used
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        driver = psutil.Process()
        while not self._over.wait(0.5):
            for child in driver.children(recursive=True):
                try:
                    self._used[child.pid] = _cpu(child)
                except psutil.Error:  # ended a moment ago
                    continue
            others = sum(self._used.values())
            self.samples.append(Sample(time.time(), _cpu(driver), others, driver.memory_info().rss))

    def between(self, begin: float, end: float) -> tuple[Sample, Sample]:
        """The last samples before two moments, at least one apart."""
        times = [sample.at for sample in self.samples]
        first = min(max(0, bisect_left(times, begin) - 1), len(times) - 2)
        return self.samples[first], self.samples[max(first + 1, bisect_left(times, end) - 1)]


def _cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


@contextmanager
def cluster(nodes: int) -> Iterator[dict[str, Any]]:
    """Where to search: a Ray of the search's own, or a cluster of nodes of one core each on this machine."""
    if nodes == 1:
        yield {}
        return
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(ROOT)  # for the workers that the nodes start
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            made.add_node(num_cpus=1)
        yield {"address": made.address}
    finally:
        made.shutdown()


def part(ends: Sequence[float], watch: Watch) -> dict[str, float]:
    """What the trials cost that ended at those moments, but for the first, which only begins the time."""
    count, gaps = len(ends) - 1, [later - earlier for earlier, later in pairwise(ends)]
    begin, end = watch.between(ends[0], ends[-1])
    trials = bisect_left(ends, end.at) - bisect_left(ends, begin.at) or count  # as samples are not at trials' ends
    return {
        "wall_s": round(sum(gaps) / count, 4),
        "median_s": round(statistics.median(gaps), 4),
        "driver_cpu_s": round((end.driver_cpu - begin.driver_cpu) / trials, 4),
        "others_cpu_s": round((end.others_cpu - begin.others_cpu) / trials, 4),
        "driver_mb": round(end.memory / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--nodes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--tracking-uri", help="none: without MLflow; by default its database in the runs folder")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    if arguments.trials < 3 * WARM_UP:
        parser.error(f"--trials must be at least {3 * WARM_UP}: a tenth of fewer says nothing")
    os.chdir(ROOT)  # where the import path of the family begins
    before = machine()
    tracking = {} if arguments.tracking_uri is None else {"tracking_uri": arguments.tracking_uri}
    with tempfile.TemporaryDirectory() as runs_dir, Watch() as watch, cluster(arguments.nodes) as where:
        result = search(
            "benchmarks.do_nothing:DoNothing",
            data={"source": "digits", "train_images": 32, "val_images": 8},
            name="overhead",
            runs_dir=runs_dir,
            trials=arguments.trials,
            max_epochs=3,
            min_epochs=1,
            scheduler="none",
            sampler=arguments.sampler,
            max_concurrent=arguments.concurrent,
            pictures=False,
            progress="lines",
            **where,
            **tracking,
        )
        began = load_study(result.run_dir).user_attrs["began"]
    ends = sorted(began + trial.finished_s for trial in result.trials if trial.finished_s is not None)
    reports = sum(len(trial.records) for trial in result.trials)
    ends = ends[WARM_UP:]
    tenth = max(2, len(ends) // 10)
    whole, first, last = part(ends, watch), part(ends[: tenth + 1], watch), part(ends[-tenth - 1 :], watch)
    growth = {name: round(last[name] / first[name], 2) for name in first if name != "driver_mb" and first[name]}
    write_result(
        {
            "machine": {**before, "load_average_after": machine()["load_average"]},
            "trials": len(result.trials),
            "reports": reports,
            "results_a_second": round(reports / len(result.trials) / whole["wall_s"], 1),
            "nodes": arguments.nodes,
            "concurrent": arguments.concurrent,
            "sampler": arguments.sampler,
            "wall_s": round(result.wall_s, 1),
            "a_trial": whole,
            "first_tenth": first,
            "last_tenth": last,
            "growth": {**growth, "driver_mb": round(last["driver_mb"] - first["driver_mb"], 1)},
            "warnings": list(result.warnings),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
