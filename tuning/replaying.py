"""Train a trial again from what the study keeps of it, and compare every number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.family import Record
from tuning.api import load_images, load_search


@dataclass(frozen=True)
class Replay:
    """A trial's records, as stored and as trained again.

    Attributes:
        differences: for each record, the largest absolute difference of any metric; 0 where all are the same.
    """

    number: int
    stored: tuple[Record, ...]
    again: tuple[Record, ...]
    differences: tuple[float, ...]

    @property
    def identical(self) -> bool:
        """Whether every metric of every record came out the same to the last bit."""
        return len(self.stored) == len(self.again) and not any(self.differences)


def replay(name: str, number: int, runs_dir: str | Path = "runs", data_dir: str | Path | None = None) -> Replay:
    """Train trial ``number`` of a search again, as far as it went, without Ray.

    The numbers are the same on the same kind of CPU; on another kind, or on a GPU of another kind, they may differ in
    the last digits.

    Args:
        data_dir: where the data set's files are now, if not where they were.

    Raises:
        UserError: no such search or trial, no records to compare with, or other images than it was trained on.
    """
    from models.family import get_family
    from models.numerics import Numerics
    from models.training import DataOnDevice, fit, start

    result = load_search(name, runs_dir)
    trial = result.trial(number)
    if not trial.records:
        raise UserError.of("TRIAL", number, f"has reported nothing that could be compared ({trial.state})")
    config = result.config
    if data_dir is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"data_dir": str(data_dir)})})
    images = load_images(config)
    if images.spec.fingerprint != trial.fingerprint:
        raise UserError.of("--data-dir", config.data.data_dir, "holds other images than the trial was trained on")
    family = get_family(trial.family)
    numerics = Numerics(**trial.numerics)
    training = start(
        family,
        family.Config.model_validate(trial.config),
        DataOnDevice(images, numerics.device),
        config.budget(),
        seed=trial.seed,
        numerics=numerics,
    )
    again: list[Record] = []
    for record in fit(training):
        again.append(record)
        if len(again) == len(trial.records):
            break
    pairs = zip(trial.records, again, strict=False)
    return Replay(number, trial.records, tuple(again), tuple(_difference(a.metrics, b.metrics) for a, b in pairs))


def _difference(stored: dict[str, Any], again: dict[str, Any]) -> float:
    """The largest absolute difference; infinite where the metrics are not even the same ones."""
    if stored.keys() != again.keys():
        return math.inf
    return max((abs(value - again[name]) for name, value in stored.items()), default=0.0)
