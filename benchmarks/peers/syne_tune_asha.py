"""Syne Tune's ASHA with its local backend: a process a trial, as in "Getting Started" of Syne Tune.

python -m benchmarks.peers.syne_tune_asha --workload autoencoder --trials 24 --data-dir DIR --out FILE --scratch DIR
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend import LocalBackend
from syne_tune.config_space import choice, lograndint, loguniform, randint, uniform
from syne_tune.optimizer.baselines import ASHA, RandomSearch

from benchmarks.peers.tutorial import add_arguments, task_of
from models.space import Choice, Int, Range

POLL_S = 0.1
"""Between two looks at the trials; Syne Tune's default of 5 s would leave the cores without work after every trial."""


def domain(known: Range) -> Any:
    """A range in Syne Tune's words."""
    if isinstance(known, Choice):
        return choice(list(known.options))
    if isinstance(known, Int):
        return (lograndint if known.log else randint)(known.low, known.high)
    return (loguniform if known.log else uniform)(known.low, known.high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    task = task_of(parser.parse_args())
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # of the trials' processes
    os.environ["SYNETUNE_FOLDER"] = task.scratch
    task_file = Path(task.scratch, "task.json")
    task_file.write_text(json.dumps(asdict(task)))
    minimize = task.mode == "min"
    if task.part == "same-work":
        configs = [{"config": index} for index in range(len(task.configs))]
        scheduler: Any = RandomSearch(
            {"config": randint(0, len(configs) - 1), "task": str(task_file)},
            metrics=[task.metric],
            do_minimize=minimize,
            points_to_evaluate=configs,
            random_seed=task.seed,
        )
    else:
        scheduler = ASHA(
            {**{name: domain(known) for name, known in task.work.ranges().items()}, "task": str(task_file)},
            metric=task.metric,
            do_minimize=minimize,
            time_attr="epoch",
            max_t=task.epochs,
            grace_period=1,
            reduction_factor=task.work.reduction_factor,
            random_seed=task.seed,
        )
    tuner = Tuner(
        trial_backend=LocalBackend(
            entry_point=str(Path(__file__).with_name("syne_tune_trial.py")),
            rotate_gpus=False,  # there are none; looking for them would leave a file in the working directory
        ),
        scheduler=scheduler,
        stop_criterion=StoppingCriterion(max_num_trials_started=task.trials - 1),  # it stops after one more
        n_workers=len(os.sched_getaffinity(0)),
        sleep_time=POLL_S,
        wait_trial_completion_when_stopping=True,
        trial_backend_path=str(Path(task.scratch, "trials")),
    )
    tuner.run()


if __name__ == "__main__":
    main()
