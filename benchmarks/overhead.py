"""What a trial costs beside its training: a do-nothing family, with study, MLflow and progress on.

    python benchmarks/overhead.py [--trials 200] [--concurrent 2]

Prints one JSON object. ``seconds_a_trial`` is the median time from one trial's end to the next one's, of which Ray's
start and the first imports of the workers are not part; ``wall_s`` is the whole run with them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from tuning import search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--concurrent", type=int, default=2)
    arguments = parser.parse_args()
    os.chdir(Path(__file__).parents[1])  # where the import path of the family begins
    with tempfile.TemporaryDirectory() as runs_dir:
        began = time.perf_counter()
        result = search(
            "benchmarks.do_nothing:DoNothing",
            data={"source": "digits", "train_images": 32, "val_images": 8},
            name="overhead",
            runs_dir=runs_dir,
            trials=arguments.trials,
            max_epochs=3,
            min_epochs=1,
            scheduler="none",
            max_concurrent=arguments.concurrent,
            pictures=False,
            progress="lines",
        )
        wall = time.perf_counter() - began
    ends = sorted(trial.finished_s for trial in result.trials if trial.finished_s is not None)
    gaps = [later - earlier for earlier, later in pairwise(ends)]
    print(
        json.dumps(
            {
                "trials": len(ends),
                "reports": sum(len(trial.records) for trial in result.trials),
                "concurrent": arguments.concurrent,
                "seconds_a_trial": round(statistics.median(gaps), 4),
                "mean_seconds_a_trial": round((ends[-1] - ends[0]) / (len(ends) - 1), 4),
                "last_tenth": round(statistics.mean(gaps[-len(gaps) // 10 :]), 4),
                "wall_s": round(wall, 2),
                "warnings": list(result.warnings),
            }
        )
    )


if __name__ == "__main__":
    main()
