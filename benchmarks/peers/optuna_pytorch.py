"""Stock Optuna: its own PyTorch example with a pruner, in as many processes as there are cores.

    python -m benchmarks.peers.optuna_pytorch --workload autoencoder --trials 24 --data-dir DIR --out FILE --scratch DIR

The processes share a study in a journal file, as "Easy Parallelization" in Optuna's tutorial has it for one machine;
threads (``n_jobs``) would wait for each other in the ``DataLoader``.
"""

from __future__ import annotations

import argparse
import os
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

from benchmarks.peers.tutorial import Task, add_arguments, note, task_of, train
from models.space import Choice, Int, Range

STARTED = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def suggest(trial: optuna.Trial, name: str, known: Range) -> Any:
    """A range in Optuna's words."""
    if isinstance(known, Choice):
        return trial.suggest_categorical(name, known.options)
    if isinstance(known, Int):
        return trial.suggest_int(name, known.low, known.high, log=known.log)
    return trial.suggest_float(name, known.low, known.high, log=known.log)


def objective(trial: optuna.Trial, task: Task) -> float:
    if task.part == "same-work":
        config = task.configs[trial.suggest_int("config", 0, len(task.configs) - 1)]
    else:
        config = {name: suggest(trial, name, known) for name, known in task.work.ranges().items()}
    value = float("nan")
    for epoch, value in train(task, config):
        note(task, str(trial.number), epoch, value)
        trial.report(value, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value


def storage_of(task: Task) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(Path(task.scratch, "study.journal"))))


def optimize(task: Task, worker: int) -> None:
    torch.set_num_threads(1)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if task.part == "search":
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=task.work.reduction_factor)
    study = optuna.load_study(
        study_name="study",
        storage=storage_of(task),
        sampler=optuna.samplers.TPESampler(seed=1000 * task.seed + worker),
        pruner=pruner,
    )
    study.optimize(lambda trial: objective(trial, task), callbacks=[MaxTrialsCallback(task.trials, states=STARTED)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    task = task_of(parser.parse_args())
    direction = {"min": "minimize", "max": "maximize"}[task.mode]
    study = optuna.create_study(study_name="study", storage=storage_of(task), direction=direction)
    if task.part == "same-work":
        for index in range(len(task.configs)):
            study.enqueue_trial({"config": index})
    workers = len(os.sched_getaffinity(0))
    with Pool(workers) as pool:
        pool.starmap(optimize, [(task, worker) for worker in range(workers)], chunksize=1)
    print(study.best_value, study.best_params)


if __name__ == "__main__":
    main()
