"""Stock Ray Tune: Tuner, OptunaSearch, ASHAScheduler and a function trainable, as in "Getting Started with Ray Tune".

    python -m benchmarks.peers.ray_tune --workload autoencoder --trials 24 --data-dir DIR --out FILE --scratch DIR

``--reuse`` keeps the workers' processes between trials (``reuse_actors=True``), which is off by default in Ray.
"""

from __future__ import annotations

import argparse
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.peers.tutorial import Task, add_arguments, note, task_of, train
from models.space import Choice, Int, Range


def train_network(config: dict[str, Any], task: Task) -> None:
    trial = tune.get_context().get_trial_id()
    given = config["config"] if task.part == "same-work" else config
    for epoch, value in train(task, given):
        note(task, trial, epoch, value)
        tune.report({task.metric: value})


def domain(known: Range) -> Any:
    """A range in Ray Tune's words."""
    if isinstance(known, Choice):
        return tune.choice(list(known.options))
    if isinstance(known, Int):
        return (tune.lograndint if known.log else tune.randint)(known.low, known.high + 1)
    return (tune.loguniform if known.log else tune.uniform)(known.low, known.high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--reuse", action="store_true")
    arguments = parser.parse_args()
    task = task_of(arguments)
    # Not in a Ray that others have started; and without its dashboard, which takes a core for seconds at the start.
    ray.init(address="local", include_dashboard=False)
    trainable = tune.with_resources(tune.with_parameters(train_network, task=task), {"cpu": 1})
    if task.part == "same-work":
        space: dict[str, Any] = {"config": tune.grid_search(task.configs)}
        config = tune.TuneConfig(metric=task.metric, mode=task.mode, reuse_actors=arguments.reuse)
    else:
        space = {name: domain(known) for name, known in task.work.ranges().items()}
        config = tune.TuneConfig(
            metric=task.metric,
            mode=task.mode,
            search_alg=OptunaSearch(seed=task.seed),
            scheduler=ASHAScheduler(max_t=task.epochs, grace_period=1, reduction_factor=task.work.reduction_factor),
            num_samples=task.trials,
            max_concurrent_trials=int(ray.cluster_resources()["CPU"]),
            reuse_actors=arguments.reuse,
        )
    tuner = tune.Tuner(
        trainable, param_space=space, tune_config=config, run_config=tune.RunConfig(storage_path=task.scratch)
    )
    best = tuner.fit().get_best_result()
    print(best.metrics[task.metric], best.config)


if __name__ == "__main__":
    main()
