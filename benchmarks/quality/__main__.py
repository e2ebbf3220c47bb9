"""How good searches are for their budget, without training: the service, Ray Tune's stock pair, random search.

    python -m benchmarks.quality [--seeds 50] [--sets steady peaked recorded] [--json FILE] [--figure FILE]

Prints tables in Markdown; what they mean stands in ``benchmarks/README.md``. Takes minutes of one core.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.quality.compare import COMPARED, EPOCHS, METHODS, PARTS, PROBLEMS, WORKERS, compare
from benchmarks.quality.curves import recorded
from benchmarks.quality.report import draw, tables, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--sets", nargs="*", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=COMPARED)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="largest budget")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path, help="raw figures")
    parser.add_argument("--figure", type=Path, help="PNG")
    arguments = parser.parse_args()
    epochs = tuple(round(arguments.epochs * part) for part in PARTS)
    result: dict[str, Any] = {
        "part": "search quality",
        "machine": machine(),
        "seeds": arguments.seeds,
        "workers": WORKERS,
        "epochs": epochs,
        "recorded": recorded().fidelity if "recorded" in arguments.sets else None,
        "sets": {},
    }
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        for kind in arguments.sets:
            result["sets"][kind] = compare(kind, arguments.methods, arguments.seeds, epochs, pool)
            if arguments.json is not None:
                write(result, arguments.json)  # after each set: all of it takes minutes
    print(tables(result))
    if arguments.figure is not None:
        draw(result, arguments.figure)


if __name__ == "__main__":
    main()
