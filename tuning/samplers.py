"""Optuna's samplers by our names, seeded for one trial at a time."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from models.numerics import derive_seed

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from tuning.tpe import Memory


def make_sampler(name: str, seed: int, number: int, memory: Memory) -> BaseSampler:
    """The sampler that proposes trial ``number`` of a search with this ``seed``.

    A sampler's own random state is lost when its process ends. Seeding it from the trial's number makes a proposal
    depend on the study alone, so that a search that was interrupted goes on as it would have.

    Args:
        memory: of this search; saves time, and changes nothing.
    """
    import optuna.samplers as samplers

    from tuning.tpe import QuickTPESampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)  # `group` and QMC are marked experimental
        warnings.simplefilter("ignore", category=FutureWarning)
        trial_seed = derive_seed(seed, "sampler", number)
        if name == "tpe":
            # `group`: fields that are searched only under a condition are modelled where they are active.
            return QuickTPESampler(memory, multivariate=True, group=True, constant_liar=True, seed=trial_seed)
        if name == "gp":
            return samplers.GPSampler(seed=trial_seed)
        if name == "qmc":
            # The sequence is one for the whole search; which of its points comes next stands in the study.
            return samplers.QMCSampler(
                scramble=True,
                seed=seed,
                independent_sampler=samplers.RandomSampler(trial_seed),
                warn_independent_sampling=False,
            )
        # A grid's points are queued one by one; nothing is left to sample.
        return samplers.RandomSampler(trial_seed)
