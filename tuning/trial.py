"""What runs on a worker: one trial after another in a warm process, each resumed from its checkpoint if it has one."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from ray import tune

from models import checkpoint
from models.datasets import TrainingData
from models.errors import CheckpointError, LatentuneError, StorageError, TrainingFailedError, UserError
from models.family import Record, get_family
from models.memory import keep_freed_memory
from models.numerics import Numerics
from models.places import place
from models.training import Budget, DataOnDevice, Training, fit, start
from tuning.driver import Message

logger = logging.getLogger(__name__)

MESSAGE = "latentune"
"""Key of our message in a Ray Tune result."""

GATHER_S = 0.25
"""Records that a trial makes within this time are told together: nobody could read them faster, and telling one takes
several milliseconds, in which the trial waits."""


@dataclass(frozen=True)
class Assignment:
    """What all trials of a search share.

    Args:
        judged: epochs at which the stopping rule may end a trial, which waits for its verdict there; ``None``: at any.
    """

    family: str
    budget: Budget
    numerics: Numerics
    judged: tuple[float, ...] | None = None


def train_trial(
    assignment: Assignment, data: DataOnDevice, config: dict[str, Any], seed: int, path: Path
) -> Iterator[Message]:
    """Run one trial, yielding a message at each record; the last one says how it ended. Never raises.

    Args:
        config: the family's config, field by field.
        path: the trial's checkpoint; where it exists the trial goes on from it.
    """
    try:
        yield from _run(assignment, data, config, seed, path)
    except StorageError as error:
        yield Message((), "storage", str(error))
    except (TrainingFailedError, UserError, ValidationError) as error:
        yield Message((), "failed", _one_line(error))
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        torch.cuda.empty_cache()
        yield Message((), "failed", f"out of memory: {_one_line(error)}")
    except Exception as error:
        if isinstance(error, RuntimeError) and "CUDA error" in str(error):
            raise  # the device context is broken: only a new process helps
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):  # torch's MemoryError on a CPU
            yield Message((), "failed", f"out of memory: {_one_line(error)}")
            return
        log = path.parent / "error.txt"
        with suppress(LatentuneError):
            checkpoint.write_atomically(log, traceback.format_exc().encode())
        yield Message((), "failed", f"{type(error).__name__}: {_one_line(error)} (traceback: {log})")


def _run(
    assignment: Assignment, data: DataOnDevice, config: dict[str, Any], seed: int, path: Path
) -> Iterator[Message]:
    family = get_family(assignment.family)
    past = _read_past(path, data)
    if past is not None and past["training"] is None:
        # It had ended, and the driver died before it was told.
        yield Message(tuple(Record(**record) for record in past["records"]), "complete")
        return
    training = start(
        family,
        family.Config.model_validate(config),
        data,
        assignment.budget,
        seed=seed,
        numerics=assignment.numerics,
        state=past and past["training"],
    )
    if training.records:  # first of all, as the driver that they were for may have died before it stopped the trial
        yield Message(tuple(training.records), "complete" if training.finished else "running")
    for record in fit(training):
        _save(training, assignment.family, path)
        yield Message((record,), "complete" if training.finished else "running")


def gathered(messages: Iterator[Message], judged: tuple[float, ...] | None) -> Message:
    """The next messages of a trial as one: those of :data:`GATHER_S`, up to the first that the trial may be stopped by.

    No number depends on it: a trial trains no step that it would not have trained.
    """
    records: list[Record] = []
    began = time.monotonic()
    for message in messages:
        records += message.records
        judge = judged is None or any(math.isclose(r.epoch, at, rel_tol=1e-6) for r in message.records for at in judged)
        if message.state != "running" or judge or time.monotonic() - began >= GATHER_S:
            return replace(message, records=tuple(records))
    raise AssertionError("a trial's last message says how it ended")


def _save(training: Training, family: str, path: Path) -> None:
    checkpoint.save(path, training, family=family, resumable=not training.finished)


def _read_past(path: Path, data: DataOnDevice) -> dict[str, Any] | None:
    """The trial's checkpoint, or ``None`` where it begins afresh. A damaged one is set aside, not deleted."""
    try:
        there = path.exists()
    except Exception as error:  # a bucket that does not answer: the trial is not to blame, and not to begin again
        raise StorageError(f"cannot read {path}: {_one_line(error)}") from error
    if not there:
        return None
    try:
        past = checkpoint.read(path)
    except CheckpointError as error:
        logger.warning("starting the trial again: %s", error)
        path.rename(path.with_suffix(".damaged"))
        return None
    if past["data"]["fingerprint"] != data.spec.fingerprint:
        raise UserError.of("--dataset", path.parent.name, "the images are not the ones that this trial began with")
    return past


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """Ray Tune's side of :func:`train_trial`; an actor keeps process and data from one trial to the next."""

    def setup(self, config: dict[str, Any], assignment: Assignment, data: TrainingData) -> None:
        keep_freed_memory()
        self._assignment = assignment
        self._data = DataOnDevice(data, assignment.numerics.device)
        self._messages: Iterator[Message] = iter(())
        self.reset_config(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        self._messages = train_trial(
            self._assignment, self._data, config["config"], config["seed"], place(config["checkpoint"])
        )
        return True

    def step(self) -> dict[str, Any]:
        message = gathered(self._messages, self._assignment.judged)
        return {MESSAGE: message.to_json(), "done": message.state != "running"}

    def cleanup(self) -> None:
        self._messages = iter(())

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial's checkpoint is written at every record, where the search can find it without Ray."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see :meth:`save_checkpoint`."""
