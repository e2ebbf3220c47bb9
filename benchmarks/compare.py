"""Searches beside what one would write with other libraries: same work, time to target, goodput.

    python -m benchmarks.compare --data-dir DIR --workloads autoencoder classifier --seeds 1..5

Every contender runs in a process of its own, one after the other, in an order that each seed begins at another one. A
run that is there already, as a file in ``--results``, is not made again: an aborted comparison goes on, and one run is
measured anew by deleting its file. What is there is summed up in ``summary.json`` and ``summary.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.comparison_report import summarise, write_summary
from benchmarks.contenders import CONTENDERS, PARTS, Run, measure
from benchmarks.machine import write_result
from benchmarks.workloads import WORKLOADS
from models.datasets import DATA_DIR_VARIABLE, DEFAULT_DATA_DIR

RESULTS = Path(__file__).parent / "results" / "comparison"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["classifier"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--seeds", type=seeds_in, default=[1], help="1..5, or 1,3")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get(DATA_DIR_VARIABLE, DEFAULT_DATA_DIR))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the runs' files")
    parser.add_argument("--figures", type=Path, help="folder for a figure a workload (default: that of the results)")
    parser.add_argument("--our-trials", type=int, help="trials of ours in a search, if not as many as the others have")
    parser.add_argument("--only-sum-up", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, which also ends what runs meanwhile
    data_dir = arguments.data_dir.expanduser().absolute()
    results: Path = arguments.results
    results.mkdir(parents=True, exist_ok=True)
    failed = []
    if not arguments.only_sum_up:
        fetch(data_dir)
        contenders = arguments.contenders
        if "syne-tune" in contenders and find_spec("syne_tune") is None:
            print("without Syne Tune, which is not installed: pip install -e '.[bench]'", file=sys.stderr)
            contenders.remove("syne-tune")
        for run in plan(arguments.workloads, arguments.parts, arguments.seeds, contenders):
            path = results / run.file_name
            if path.exists():
                continue
            print(
                f"{run.workload} {run.part}, seed {run.seed}: {run.contender} …", end=" ", file=sys.stderr, flush=True
            )
            with tempfile.TemporaryDirectory(prefix="compare-") as scratch:
                try:
                    more = arguments.our_trials if (run.contender, run.part) == ("latentune", "search") else None
                    result = measure(run, data_dir, Path(scratch), more)
                except RuntimeError as error:  # the others are worth measuring all the same
                    print(f"failed\n{error}", file=sys.stderr)
                    failed.append(run)
                    continue
            write_result(result, path)
            print(f"{result['wall_s']:.1f} s", file=sys.stderr)
    runs = [json.loads(path.read_text()) for path in sorted(results.glob("*-[0-9]*.json"))]
    print(write_summary(summarise(runs), runs, results, arguments.figures or results))
    sys.exit(1 if failed else 0)


def plan(workloads: list[str], parts: list[str], seeds: list[int], contenders: list[str]) -> Iterator[Run]:
    """Seed after seed, so that whatever is aborted has compared something; each seed begins with another contender."""
    for seed in seeds:
        for workload in workloads:
            for part in parts:
                first = seed % len(contenders)
                for contender in (*contenders[first:], *contenders[:first]):
                    yield Run(workload, part, seed, contender)


def seeds_in(text: str) -> list[int]:
    low, dots, high = text.partition("..")
    return list(range(int(low), int(high) + 1)) if dots else [int(part) for part in text.split(",")]


def fetch(data_dir: Path) -> None:
    """Fashion-MNIST in torchvision's layout, before anybody's clock runs."""
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(data_dir), train=True, download=True)


if __name__ == "__main__":
    main()
