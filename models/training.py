"""The one training loop: ``start`` → ``fit`` → records. Ray, MLflow and tests are consumers of what it yields.

A :class:`Training` is everything that a run is at one moment. ``fit`` advances it from record to record; between two
records its ``state_dict`` can be stored, and a run that goes on from there gives the same numbers as one that never
stopped.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.datasets import DataSpec, ImageSet, TrainingData
from models.errors import NonFiniteError
from models.family import Batch, Family, FamilyConfig, Phase, Record
from models.numerics import Numerics, RandomStream, derive_seed, placed

VALIDATION_BATCH = 512
"""Images a validation step. The same for every config, so that it cannot change a trial's rank."""

LOOK_EVERY = 50
"""Steps between two looks at whether the loss is still finite; looking makes a GPU wait."""


@dataclass(frozen=True)
class Budget:
    """How long a trial trains and when it reports.

    Args:
        max_epochs: above 0; may be a fraction.
        rungs: epochs at which a scheduler compares trials; those above ``max_epochs`` are ignored.
        patience: stop after this many whole epochs without a better objective; ``None`` never.
    """

    max_epochs: float
    rungs: tuple[float, ...] = ()
    patience: int | None = None

    def report_points(self) -> tuple[float, ...]:
        """Epochs at which a record is made: rungs, whole epochs and the end, in order."""
        whole = range(1, math.floor(self.max_epochs) + 1)
        return tuple(sorted({float(p) for p in (*self.rungs, *whole, self.max_epochs) if p <= self.max_epochs}))


class ImagesOnDevice:
    """Images as they stay between trials: uint8, where the training is; batches become float there."""

    def __init__(self, images: ImageSet, device: str) -> None:
        with warnings.catch_warnings():
            # Shared memory is read-only, which torch warns of; batches are copies, and nothing else is ever written.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            # Flat and back: strides of dimensions of size 1 pick between kernels whose last digits differ, and they are
            # other ones after a way through Ray.
            self.images = torch.from_numpy(images.images).reshape(-1).view(images.images.shape).to(device)
            self.labels = torch.from_numpy(images.labels).to(device)
        self._rows = self.images.view(len(self.labels), -1)  # copied row by row: a third of the time of four dimensions

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor | slice) -> Batch:
        """Float images in [0, 1] and labels at ``index``, copies of their own."""
        if isinstance(index, slice):
            return Batch(torch.div(self.images[index], 255), self.labels[index].clone())
        rows = torch.div(self._rows.index_select(0, index), 255)
        return Batch(rows.view(-1, *self.images.shape[1:]), self.labels.index_select(0, index))


class DataOnDevice:
    """Training and validation images on one device, made once and used by one trial after another."""

    def __init__(self, data: TrainingData, device: str = "cpu") -> None:
        self.spec: DataSpec = data.spec
        self.device = device
        self.memo: dict[str, Any] = {}
        """What a family derives from the data once, for all trials of a process."""
        self.train = ImagesOnDevice(data.train, device)
        self.val = ImagesOnDevice(data.val, device)


@dataclass
class Training:
    """A run at one moment. Make one with :func:`start`."""

    family: Family[Any]
    config: FamilyConfig
    data: DataOnDevice
    budget: Budget
    seed: int
    numerics: Numerics
    network: nn.Module
    phases: Sequence[Phase]
    random: RandomStream
    step: int = 0
    phase: int = 0
    phase_began: int = 0
    seconds: float = 0.0
    records: list[Record] = field(default_factory=list)
    best: Record | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.data.train), self.config.batch_size)

    @property
    def finished(self) -> bool:
        """Whether the whole budget was used, or patience ran out."""
        if not self.records:
            return False
        return self.records[-1].epoch >= self.budget.max_epochs or self._out_of_patience()

    def value_of(self, record: Record) -> float | None:
        """The objective in a record; ``None`` where the phase has none yet."""
        return record.metrics.get(self.family.objective.metric)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, as tensors and JSON values."""
        return {
            "step": self.step,
            "phase": self.phase,
            "phase_began": self.phase_began,
            "seconds": self.seconds,
            "records": [record.to_json() for record in self.records],
            "best": None if self.best is None else self.best.to_json(),
            "best_weights": self.best_weights,
            "network": self.network.state_dict(),
            "optimizers": [[update.optimizer.state_dict() for update in phase.updates] for phase in self.phases],
            "random": self.random.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of the same family, config and data."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.phase, self.phase_began = state["phase"], state["phase_began"]
        self.records = [Record(**record) for record in state["records"]]
        self.best = None if state["best"] is None else Record(**state["best"])
        self.best_weights = state["best_weights"]
        self.network.load_state_dict(state["network"])
        for phase, optimizers in zip(self.phases, state["optimizers"], strict=True):
            for update, optimizer in zip(phase.updates, optimizers, strict=True):
                update.optimizer.load_state_dict(optimizer)
        self.random.load_state_dict(state["random"])

    def _out_of_patience(self) -> bool:
        if self.budget.patience is None or self.best is None:
            return False
        whole = [record for record in self.records if record.epoch == int(record.epoch) > self.best.epoch]
        return len(whole) >= self.budget.patience


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches that cover the training set once; a last batch of a single image is left out, for batch norm."""
    full, rest = divmod(images, batch_size)
    return max(1, full + (rest > 1))


def start(
    family: Family[Any],
    config: FamilyConfig,
    data: DataOnDevice,
    budget: Budget,
    *,
    seed: int,
    numerics: Numerics | None = None,
    state: dict[str, Any] | None = None,
) -> Training:
    """A run at its beginning, or where ``state`` (of :meth:`Training.state_dict`) left off.

    Raises:
        UserError: the config cannot work on this data, or the weights to begin with are gone.
    """
    numerics = numerics or Numerics(device=data.device)
    family.check(config, data.spec)
    random = RandomStream(seed, data.device)
    with numerics.applied(), random:
        network = family.build(config, data.spec)
        if state is None:
            family.initialise(config, network)
        network = placed(network, data.device)
        phases = family.phases(config, network)
    training = Training(family, config, data, budget, seed, numerics, network, phases, random)
    if state is not None:
        training.load_state_dict(state)
    return training


def fit(training: Training) -> Iterator[Record]:
    """Train, yielding a record at every rung and whole epoch that is still ahead.

    Between two records nothing runs: a consumer stores, compares or simply stops asking.

    Raises:
        NonFiniteError: a loss or the objective became NaN or infinite.
    """
    done = training.records[-1].epoch if training.records else 0.0
    for point in training.budget.report_points():
        if point <= done:
            continue
        if training.finished:
            return
        began = time.perf_counter()
        with training.numerics.applied():
            with training.random:
                train_metrics = _train(training, until=max(1, round(point * training.steps_per_epoch)))
            val_metrics = validate(training)
        if not training.phases[training.phase].ranks:
            val_metrics.pop(training.family.objective.metric, None)
        training.seconds += time.perf_counter() - began
        record = Record(point, training.step, {**val_metrics, **train_metrics}, training.seconds)
        _keep(training, record)
        if _settled(training):
            _next_phase(training)
        yield record


def validate(training: Training) -> dict[str, float]:
    """Validation metrics as the family measures them, named ``val_…``. Leaves the run as it is.

    A family that draws random numbers here draws the same ones at every record, so that records compare.
    """
    network, seed = training.network, training.seed
    metrics = measure(training.family, training.config, network, training.data, seed=seed, numerics=training.numerics)
    return {f"val_{name}": value for name, value in metrics.items()}


def measure(
    family: Family[Any],
    config: FamilyConfig,
    network: nn.Module,
    data: DataOnDevice,
    *,
    seed: int,
    numerics: Numerics,
) -> dict[str, float]:
    """The family's metrics of a network, over all of ``data.val``."""
    sums: dict[str, Tensor] = {}
    network.eval()
    with RandomStream(derive_seed(seed, "validate"), data.device):
        with torch.inference_mode():
            for first in range(0, len(data.val), VALIDATION_BATCH):
                batch = data.val.batch(slice(first, first + VALIDATION_BATCH))
                with numerics.autocast():
                    measured = family.measure(config, network, batch)
                for name, values in measured.items():
                    total = values.double().sum(0)
                    sums[name] = sums[name] + total if name in sums else total
            metrics = family.summarise({name: (total / len(data.val)).cpu() for name, total in sums.items()})
        with torch.no_grad():  # what is made here may be kept, and trained
            metrics |= family.evaluate(config, network, data)
    return metrics


def _train(training: Training, until: int) -> dict[str, float]:
    """Steps up to ``until``; the means of each update's loss, and of what it reports besides, over its steps."""
    batch_size, per_epoch = training.config.batch_size, training.steps_per_epoch
    means = _Means()
    order, order_of, phase = None, -1, None
    while training.step < until:
        if phase is not (phase := _phase(training)):
            training.network.train()  # a phase may have put parts of it to rest
        epoch, position = divmod(training.step, per_epoch)
        if epoch != order_of:
            order, order_of = _order(training, epoch), epoch
        assert order is not None
        batch = training.data.train.batch(order[position * batch_size : (position + 1) * batch_size])
        for update in phase.updates:
            update.optimizer.zero_grad(set_to_none=True)
            with training.numerics.autocast():
                given = update.loss(batch)
            loss, others = given if isinstance(given, tuple) else (given, {})
            loss.backward()  # type: ignore[no-untyped-call]
            update.optimizer.step()
            means.add({update.name: loss, **others})
        training.step += 1
        if training.step % LOOK_EVERY == 0 or training.step == until:
            _check_finite(training, means.take())
    return means.take()


class _Means:
    """Running means of scalars that stay on their device until somebody looks."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        return {f"train_{name}": float(total) / self._counts[name] for name, total in self._sums.items()}


def _order(training: Training, epoch: int) -> Tensor:
    """The order of the training images in an epoch: depends on seed and epoch alone, so a run can start inside it."""
    order = np.random.default_rng(derive_seed(training.seed, "order", epoch)).permutation(len(training.data.train))
    return torch.from_numpy(order).to(training.data.device)


def _phase(training: Training) -> Phase:
    """The phase of the next step. A phase's share is of the steps that the phases before it have left."""
    total = round(training.steps_per_epoch * training.budget.max_epochs)
    while training.phase < len(training.phases) - 1:
        left = training.phases[training.phase :]
        share = left[0].share / sum(phase.share for phase in left)
        if training.step < training.phase_began + share * (total - training.phase_began):
            break
        _next_phase(training)
    return training.phases[training.phase]


def _next_phase(training: Training) -> None:
    training.phase, training.phase_began = training.phase + 1, training.step


def _settled(training: Training) -> bool:
    """Whether the current phase has run out of patience, and there is another one to go on with."""
    phase = training.phases[training.phase]
    if phase.patience is None or training.phase == len(training.phases) - 1:
        return False
    name, best, waited = f"train_{phase.updates[0].name}", math.inf, 0
    for record in training.records:
        value = record.metrics.get(name)
        # A record that the phase began in holds its first steps only; the next one is compared with it all the same.
        if value is None or record.step <= training.phase_began or record.epoch != int(record.epoch):
            continue
        best, waited = (value, 0) if value < best - phase.tolerance else (best, waited + 1)
    return waited >= phase.patience


def _keep(training: Training, record: Record) -> None:
    """Append the record, and remember the weights of the best one."""
    value = training.value_of(record)
    if value is not None:
        _check_finite(training, {training.family.objective.metric: value})
        if training.family.objective.better(value, training.value_of(training.best) if training.best else None):
            training.best = record
            training.best_weights = {name: t.detach().clone() for name, t in training.network.state_dict().items()}
    training.records.append(record)


def _check_finite(training: Training, values: dict[str, float]) -> None:
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if bad:
        epoch = training.step / training.steps_per_epoch
        what = ", ".join(f"{name} became {value}" for name, value in bad.items())
        raise NonFiniteError(f"{what} by epoch {epoch:.2f} (step {training.step})")
