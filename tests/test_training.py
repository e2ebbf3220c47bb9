"""The training loop, with toy families whose numbers can be worked out by hand."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models import training as training_module
from models.conv_autoencoder import ConvAutoencoderConfig, ConvAutoencoderFamily
from models.datasets import DataSpec, ImageSet, TrainingData
from models.errors import NonFiniteError, TrainingFailedError
from models.family import Batch, Family, FamilyConfig, Objective, Phase, Record, Update
from models.numerics import Numerics
from models.training import LOOK_EVERY, VALIDATION_BATCH, Budget, DataOnDevice, Training, fit, start

ROOT = Path(__file__).resolve().parent.parent


def made(train: int, val: int = 1) -> TrainingData:
    """Images of 2x2 pixels whose values and label are their number."""

    def images(count: int) -> ImageSet:
        labels = np.arange(count, dtype=np.int64)
        return ImageSet(np.repeat(labels, 4).reshape(count, 1, 2, 2).astype(np.uint8), labels, ("any",))

    spec = DataSpec(
        source="made",
        channels=1,
        height=2,
        width=2,
        class_names=("any",),
        train_images=train,
        val_images=val,
        fingerprint="",
    )
    return TrainingData(images(train), images(val), spec)


class ToyConfig(FamilyConfig):
    batch_size: int = 4
    script: tuple[float, ...] = ()


class Toy(nn.Module):
    """``w`` grows by one a step; ``steps`` counts them too, as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


class ToyFamily(Family[ToyConfig]):
    """Its objective after step n is the n-th of the config's script; what its loss sees is kept in ``seen``."""

    name = "toy"
    title = "a toy"
    Config = ToyConfig
    Network: ClassVar[type[nn.Module]] = Toy
    objective = Objective("val_score", "min")

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def build(self, config: ToyConfig, spec: DataSpec) -> nn.Module:
        return Toy()

    def phases(self, config: ToyConfig, network: nn.Module) -> Sequence[Phase]:
        def loss(batch: Batch) -> Tensor:
            assert isinstance(network, Toy)
            assert isinstance(network.steps, Tensor)
            self.seen.append(batch)
            network.steps += 1
            return -network.w

        return [Phase("only", [Update(torch.optim.SGD(network.parameters(), lr=1.0), loss)])]

    def measure(self, config: ToyConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        assert isinstance(network, Toy)
        assert isinstance(network.steps, Tensor)
        score = config.script[int(network.steps) - 1] if config.script else 1.0
        return {"score": torch.full((len(batch.labels),), score, dtype=torch.float64)}

    def ids(self) -> list[list[int]]:
        """The images of each batch so far."""
        return [batch.labels.tolist() for batch in self.seen]


def toy_run(
    script: Sequence[float] = (), *, images: int = 4, family: ToyFamily | None = None, **budget: Any
) -> Training:
    """With four images an epoch is one step."""
    config = ToyConfig(script=tuple(script))
    limits = Budget(**{"max_epochs": len(script), **budget})
    return start(family or ToyFamily(), config, DataOnDevice(made(images)), limits, seed=0)


DROPOUT = ConvAutoencoderConfig(filters=2, hidden_units=8, latent_dim=2, dropout=0.4, batch_norm=True, batch_size=32)


def conv_run(digits: DataOnDevice, budget: Budget, seed: int = 0, **more: Any) -> Training:
    """A run that draws random numbers for its initial weights, the order of images and at each step."""
    return start(ConvAutoencoderFamily(), DROPOUT, digits, budget, seed=seed, **more)


def numbers(records: list[Record]) -> list[tuple[float, int, dict[str, float]]]:
    return [(record.epoch, record.step, record.metrics) for record in records]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


# --- report points ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "points"),
    [
        (Budget(3), (1, 2, 3)),
        (Budget(9, rungs=(1 / 3, 1, 3)), (1 / 3, 1, 2, 3, 4, 5, 6, 7, 8, 9)),
        (Budget(2.5, rungs=(5, 0.5, 0.5, 2)), (0.5, 1, 2, 2.5)),
        (Budget(0.4), (0.4,)),
        (Budget(0.4, rungs=(0.1, 0.4, 1)), (0.1, 0.4)),
        (Budget(2, rungs=(2, 1)), (1, 2)),
    ],
)
def test_report_points(budget: Budget, points: tuple[float, ...]) -> None:
    assert budget.report_points() == points


@given(st.floats(0.01, 30), st.lists(st.floats(0.01, 40), max_size=6))
def test_report_points_are_ordered_once_and_end_with_the_budget(max_epochs: float, rungs: list[float]) -> None:
    points = Budget(max_epochs, tuple(rungs)).report_points()
    assert all(one < next_ for one, next_ in itertools.pairwise(points))
    assert points[-1] == max_epochs
    wanted = {rung for rung in rungs if rung <= max_epochs} | {max_epochs}
    wanted |= {epoch for epoch in range(1, 31) if epoch <= max_epochs}
    assert set(points) == wanted


def test_records_at_rungs_inside_the_first_epoch() -> None:
    family = ToyFamily()
    training = toy_run(images=40, family=family, max_epochs=2, rungs=(0.01, 0.25, 0.5, 1.7))
    seen = [(record.epoch, record.step, len(family.seen)) for record in fit(training)]
    # Ten batches an epoch; even the lowest rung is one step.
    assert seen == [(0.01, 1, 1), (0.25, 2, 2), (0.5, 5, 5), (1.0, 10, 10), (1.7, 17, 17), (2.0, 20, 20)]
    assert training.finished
    assert list(fit(training)) == []


def test_two_rungs_at_the_same_step() -> None:
    records = list(fit(toy_run(images=40, max_epochs=0.2, rungs=(0.1, 0.11))))
    assert [record.step for record in records] == [1, 1, 2]
    assert [sorted(record.metrics) for record in records] == [
        ["train_loss", "val_score"],
        ["val_score"],
        ["train_loss", "val_score"],
    ]


def test_training_metrics_are_means_since_the_last_record() -> None:
    records = list(fit(toy_run(images=40, max_epochs=1, rungs=(0.3,))))
    # The loss at step n, counted from 0, is -n.
    assert [record.metrics["train_loss"] for record in records] == [-(0 + 1 + 2) / 3, -(3 + 4 + 5 + 6 + 7 + 8 + 9) / 7]


def test_a_consumer_may_stop_asking_and_ask_again() -> None:
    training, whole = toy_run([3, 2, 1, 4]), toy_run([3, 2, 1, 4])
    for _ in fit(training):
        break
    assert not training.finished
    list(fit(training))
    list(fit(whole))
    assert numbers(training.records) == numbers(whole.records)


def test_seconds_count_training_and_not_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr(training_module, "time", SimpleNamespace(perf_counter=clock))
    seconds = []
    for record in fit(toy_run([1, 1, 1])):
        seconds.append(record.seconds)
        now[0] += 1000
    assert seconds == [1, 2, 3]


# --- the best record, patience ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "best"), [("min", 3), ("max", 2)])
def test_best_weights_are_those_of_the_best_record(mode: str, best: int) -> None:
    class Family(ToyFamily):
        objective = Objective("val_score", mode)  # type: ignore[arg-type]

    training = toy_run([3, 9, 1, 1, 5], family=Family())
    list(fit(training))
    assert training.best is training.records[best - 1]
    # w is the number of steps; in the network it went on.
    assert training.best_weights["w"] == training.best_weights["steps"] == best
    assert training.network.state_dict()["w"] == 5


def early_stop_by_hand(script: list[int], patience: int) -> int:
    """Epochs trained: the first after which the best is ``patience`` epochs old."""
    for epoch in range(1, len(script) + 1):
        best_at = script[:epoch].index(min(script[:epoch])) + 1
        if epoch - best_at == patience:
            return epoch
    return len(script)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 4))
def test_patience(script: list[int], patience: int) -> None:
    training = toy_run(script, patience=patience)
    epochs = [record.epoch for record in fit(training)]
    assert epochs == list(range(1, early_stop_by_hand(script, patience) + 1))
    assert training.finished
    assert training.step == len(epochs)


def test_patience_counts_whole_epochs_only() -> None:
    # Two steps an epoch: records at 0.5, 1, 1.5, … of which the best is at 0.5.
    training = toy_run([1, 9, 9, 9, 9, 9, 9, 9], images=8, max_epochs=4, rungs=(0.5, 1.5, 2.5), patience=2)
    assert [record.epoch for record in fit(training)] == [0.5, 1, 1.5, 2]
    later = toy_run([9, 9, 1, 9, 9, 9, 9, 9], images=8, max_epochs=4, rungs=(0.5, 1.5, 2.5), patience=2)
    assert [record.epoch for record in fit(later)] == [0.5, 1, 1.5, 2, 2.5, 3]


def test_patience_goes_on_after_a_resume() -> None:
    script = [5, 4, 6, 7, 3, 8, 8]
    whole = toy_run(script, patience=2)
    list(fit(whole))
    assert len(whole.records) == 4
    half = toy_run(script, patience=2)
    for record in fit(half):
        if record.epoch == 3:
            break
    resumed = start(half.family, half.config, half.data, half.budget, seed=0, state=half.state_dict())
    list(fit(resumed))
    assert numbers(resumed.records) == numbers(whole.records)


def test_no_patience_without_a_limit_or_an_objective() -> None:
    class Silent(ToyFamily):
        def measure(self, config: ToyConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
            return {"other": torch.zeros(len(batch.labels))}

    assert len(list(fit(toy_run([1, 2, 3, 4, 5])))) == 5
    training = toy_run([1, 2, 3], family=Silent(), patience=1)
    assert len(list(fit(training))) == 3
    assert training.best is None
    assert training.value_of(training.records[0]) is None


# --- phases and updates -----------------------------------------------------------------------------------------------


class Several(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(count))


class PhasesFamily(ToyFamily):
    """A phase for each share; the i-th adds one to the i-th weight at each step."""

    Network = Several
    shares: tuple[float, ...] = (1, 3)

    def build(self, config: ToyConfig, spec: DataSpec) -> nn.Module:
        return Several(len(self.shares))

    def phases(self, config: ToyConfig, network: nn.Module) -> Sequence[Phase]:
        def loss_of(index: int) -> Callable[[Batch], Tensor]:
            assert isinstance(network, Several)
            weights = network.w
            return lambda batch: -weights[index]

        return [
            Phase(str(i), [Update(torch.optim.SGD(network.parameters(), lr=1.0), loss_of(i), f"loss_{i}")], share)
            for i, share in enumerate(self.shares)
        ]

    def measure(self, config: ToyConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        assert isinstance(network, Several)
        return {"score": torch.zeros(len(batch.labels)), **{f"w{i}": w.expand(1) for i, w in enumerate(network.w)}}


def test_the_first_quarter_trains_the_first_phase_only() -> None:
    training = toy_run(images=8, family=PhasesFamily(), max_epochs=8, rungs=(0.5, 1.5, 2.5))
    steps = {r.epoch: (r.metrics["val_w0"], r.metrics["val_w1"], r.step) for r in fit(training)}
    assert steps[0.5] == (1, 0, 1)
    assert steps[1.5] == (3, 0, 3)
    assert steps[2] == (4, 0, 4)
    assert steps[2.5] == (4, 1, 5)
    assert steps[8] == (4, 12, 16)
    losses = [sorted(name for name in r.metrics if name.startswith("train")) for r in training.records]
    assert losses[0] == ["train_loss_0"]
    assert losses[-1] == ["train_loss_1"]


@pytest.mark.parametrize(
    ("shares", "steps"), [((1, 1, 1), (10, 10, 10)), ((2, 1), (20, 10)), ((0.5, 0.25, 0.25), (15, 8, 7)), ((7,), (30,))]
)
def test_phases_divide_the_steps_by_their_shares(shares: tuple[float, ...], steps: tuple[float, ...]) -> None:
    family = PhasesFamily()
    family.shares = shares
    training = toy_run(images=12, family=family, max_epochs=10)
    list(fit(training))
    assert tuple(training.network.state_dict()["w"].tolist()) == steps


def test_a_resumed_run_is_in_its_phase() -> None:
    training = toy_run(images=8, family=PhasesFamily(), max_epochs=8)
    for record in fit(training):
        if record.epoch in (1, 3):
            state = training.state_dict()
            training = start(training.family, training.config, training.data, training.budget, seed=0, state=state)
            break
    list(fit(training))
    assert training.network.state_dict()["w"].tolist() == [4, 12]


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))


class PairFamily(ToyFamily):
    """Two updates on each batch, as a GAN has: the second sees what the first has changed."""

    Network = Pair

    def build(self, config: ToyConfig, spec: DataSpec) -> nn.Module:
        return Pair()

    def phases(self, config: ToyConfig, network: nn.Module) -> Sequence[Phase]:
        assert isinstance(network, Pair)
        a, b = network.a, network.b
        self.calls: list[tuple[str, list[int]]] = []

        def first(batch: Batch) -> Tensor:
            self.calls.append(("first", batch.labels.tolist()))
            return (a - b) ** 2 / 2

        def second(batch: Batch) -> Tensor:
            self.calls.append(("second", batch.labels.tolist()))
            return a * b

        return [
            Phase(
                "adversarial",
                [
                    Update(torch.optim.SGD([a], lr=0.25), first, "first"),
                    Update(torch.optim.SGD([b], lr=0.5), second, "second"),
                ],
            )
        ]

    def measure(self, config: ToyConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        assert isinstance(network, Pair)
        return {"score": torch.ones(1), "a": network.a.expand(1), "b": network.b.expand(1)}


def test_two_updates_run_one_after_the_other_on_each_batch() -> None:
    family = PairFamily()
    (record,) = fit(toy_run(images=12, family=family, max_epochs=1))
    assert [name for name, _ in family.calls] == ["first", "second"] * 3
    assert [ids for _, ids in family.calls[::2]] == [ids for _, ids in family.calls[1::2]]
    a, b, losses = 1.0, 2.0, []
    for _ in range(3):
        losses.append(((a - b) ** 2 / 2, 0.0))
        a -= 0.25 * (a - b)
        losses[-1] = (losses[-1][0], a * b)
        b -= 0.5 * a
    assert record.metrics == pytest.approx(
        {
            "val_score": 1,
            "val_a": a,
            "val_b": b,
            "train_first": sum(first for first, _ in losses) / 3,
            "train_second": sum(second for _, second in losses) / 3,
        },
        rel=1e-6,
    )


# --- phases that do not rank, phases that end early, further numbers -------------------------------------------------


class ScriptedFamily(ToyFamily):
    """Its i-th phase gives the losses of its script one after the other; ``log`` says which phase made each step."""

    losses: tuple[tuple[float, ...], ...] = ((1,),)
    shares: tuple[float, ...] = (1,)
    patience: tuple[int | None, ...] = (None,)
    tolerance: float = 0.0
    ranking: tuple[bool, ...] | None = None

    def phases(self, config: ToyConfig, network: nn.Module) -> Sequence[Phase]:
        self.log: list[int] = []

        def loss_of(index: int) -> Callable[[Batch], Tensor]:
            def loss(batch: Batch) -> Tensor:
                assert isinstance(network, Toy)
                assert isinstance(network.steps, Tensor)
                step = self.log.count(index)
                self.log.append(index)
                network.steps += 1
                return self.losses[index][min(step, len(self.losses[index]) - 1)] + 0 * network.w

            return loss

        return [
            Phase(
                str(i),
                [Update(torch.optim.SGD(network.parameters(), lr=1.0), loss_of(i))],
                share,
                ranks=True if self.ranking is None else self.ranking[i],
                patience=self.patience[i],
                tolerance=self.tolerance,
            )
            for i, share in enumerate(self.shares)
        ]


def scripted(epochs: float, **settings: Any) -> tuple[str, Training]:
    """Which phase made each step, as digits. A step an epoch unless ``images`` says otherwise."""
    family, budget = ScriptedFamily(), {key: settings.pop(key) for key in ("images", "rungs") if key in settings}
    for name, value in settings.items():
        setattr(family, name, value)
    training = toy_run(family=family, max_epochs=epochs, **budget)
    list(fit(training))
    return "".join(map(str, family.log)), training


BETTER, SAME = (9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0), (5.0,)


@pytest.mark.parametrize(
    ("losses", "patience", "steps"),
    [
        ((BETTER, BETTER, SAME), (1, 1, None), "000111222222"),  # nothing ends early: a quarter, a quarter, a half
        # Ends after its second epoch; of the ten that are left a third is 3.3, which the fourth step reaches into.
        ((SAME, BETTER, SAME), (1, 1, None), "001111222222"),
        ((SAME, SAME, SAME), (1, 1, None), "001122222222"),
        ((BETTER, SAME, SAME), (1, 1, None), "000112222222"),
        ((SAME, SAME, SAME), (2, 1, None), "000112222222"),
        ((SAME, SAME, SAME), (3, 3, None), "000111222222"),  # patience as long as the share
        ((SAME, SAME, SAME), (None, 1, None), "000112222222"),
        (((5.0, 6.0), (5.0, 4.0, 6.0), SAME), (1, 1, None), "001112222222"),
        ((SAME, SAME, SAME), (1, 1, 1), "001122222222"),  # the last one goes on: nothing is left to go on with
    ],
)
def test_a_phase_that_does_not_get_better_gives_the_rest_to_the_later_ones(
    losses: tuple[tuple[float, ...], ...], patience: tuple[int | None, ...], steps: str
) -> None:
    made_steps, training = scripted(12, losses=losses, shares=(1, 1, 2), patience=patience)
    assert made_steps == steps
    assert training.finished


@pytest.mark.parametrize(
    ("tolerance", "steps"),
    [(0.0, "000000001111"), (0.2, "000000001111"), (0.25, "001111111111"), (1.0, "001111111111")],
)
def test_tolerance_is_what_an_improvement_has_to_exceed(tolerance: float, steps: str) -> None:
    falling = tuple(4 - 0.25 * i for i in range(8))
    assert scripted(12, losses=(falling, SAME), shares=(2, 1), patience=(1, None), tolerance=tolerance)[0] == steps


def test_improvements_are_counted_from_the_best_and_not_from_the_last() -> None:
    slowly = (5.0, 4.9, 4.8, 4.7, 4.6, 4.5, 4.4, 4.3)  # together more than the tolerance, after three epochs
    assert scripted(12, losses=(slowly, SAME), shares=(2, 1), patience=(3, None), tolerance=0.25)[0] == "000000001111"
    assert scripted(12, losses=(slowly, SAME), shares=(2, 1), patience=(2, None), tolerance=0.25)[0] == "000111111111"


def test_patience_of_a_phase_counts_whole_epochs_only() -> None:
    # Two steps an epoch, with a record after each of them.
    settings: dict[str, Any] = {"images": 8, "rungs": (0.5, 1.5, 2.5, 3.5), "shares": (3, 1), "patience": (1, None)}
    steps, training = scripted(4, losses=(SAME, SAME), **settings)
    assert steps == "00001111"
    assert [record.epoch for record in training.records] == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]


def test_a_resumed_run_knows_how_long_its_phase_has_waited() -> None:
    whole = scripted(9, losses=(SAME, SAME), shares=(2, 1), patience=(3, None))[1]
    half = whole.family
    training = start(half, whole.config, whole.data, whole.budget, seed=0)
    steps = ""
    while not training.finished:
        next(fit(training))
        steps += str(training.family.log[-1])  # type: ignore[attr-defined]
        training = start(half, whole.config, whole.data, whole.budget, seed=0, state=training.state_dict())
    assert steps == "000011111"


def test_a_phase_that_does_not_rank_has_no_objective() -> None:
    script = (1.0, math.nan, 5.0, 4.0, 6.0)
    family = ScriptedFamily()
    family.losses, family.shares, family.patience, family.ranking = (
        (BETTER, BETTER),
        (2, 3),
        (None, None),
        (False, True),
    )
    training = toy_run(script, family=family, patience=1)
    records = list(fit(training))
    # The first two would have been the best one, and one that ends the run.
    assert [record.metrics.get("val_score") for record in records] == [None, None, 5, 4, 6]
    assert [training.value_of(record) for record in records] == [None, None, 5, 4, 6]
    assert all("train_loss" in record.metrics for record in records)
    assert training.best is records[3]
    assert training.best_weights["steps"] == 4


def test_nothing_ranks_until_the_last_phase_has_begun() -> None:
    settings: dict[str, Any] = {"losses": (BETTER, BETTER), "shares": (1, 1), "ranking": (False, True)}
    training = scripted(2, images=12, rungs=(0.5, 1.5), patience=(None, None), **settings)[1]
    ranked = {record.epoch: "val_score" in record.metrics for record in training.records}
    assert ranked == {0.5: False, 1: False, 1.5: True, 2: True}


class Reporting(ToyFamily):
    """Reports further numbers beside its loss, one of them at even steps only."""

    def phases(self, config: ToyConfig, network: nn.Module) -> Sequence[Phase]:
        def loss(batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            assert isinstance(network, Toy)
            assert isinstance(network.steps, Tensor)
            step = network.steps.clone()
            network.steps += 1
            others = {"always": 10.0 * step + network.w, **({"even": 100.0 * step} if step % 2 == 0 else {})}
            return -network.w, others

        def second(batch: Batch) -> Tensor:
            return 0 * network.get_parameter("w") + 7

        first, other = (torch.optim.SGD(network.parameters(), lr=lr) for lr in (1.0, 1.0))
        return [Phase("only", [Update(first, loss), Update(other, second, "second")])]


def test_further_numbers_of_a_loss_are_means_over_their_own_steps() -> None:
    records = list(fit(toy_run(images=40, family=Reporting(), max_epochs=1, rungs=(0.3,))))
    # Before step n, counted from 0, w is n.
    assert [record.metrics["train_always"] for record in records] == [11 * 1, pytest.approx(11 * 6)]
    assert [record.metrics["train_even"] for record in records] == [(0 + 200) / 2, (400 + 600 + 800) / 3]
    assert [record.metrics["train_loss"] for record in records] == [-1, -6]
    assert [record.metrics["train_second"] for record in records] == [7, 7]


def test_a_further_number_that_is_not_finite_ends_the_run() -> None:
    class Bad(ToyFamily):
        def phases(self, config: ToyConfig, network: nn.Module) -> Sequence[Phase]:
            (phase,) = super().phases(config, network)
            (update,) = phase.updates
            return [
                Phase("only", [Update(update.optimizer, lambda b: (update.loss(b), {"other": torch.tensor(math.inf)}))])
            ]

    with pytest.raises(NonFiniteError, match="train_other became inf"):
        list(fit(toy_run([1, 1], family=Bad())))


def test_summarise_turns_means_over_all_images_into_metrics() -> None:
    given_: list[Mapping[str, Tensor]] = []

    class Summing(ToyFamily):
        def measure(self, config: ToyConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
            number = batch.labels.double()
            return {"number": number, "powers": torch.stack([number, number**2, number**3], 1)}

        def summarise(self, means: Mapping[str, Tensor]) -> dict[str, float]:
            given_.append(means)
            mean, square, _ = means["powers"]
            return {"score": float(square - mean**2), "number": float(means["number"])}

    count = VALIDATION_BATCH + 9
    (record,) = fit(start(Summing(), ToyConfig(), DataOnDevice(made(4, count)), Budget(1), seed=0))
    labels = np.arange(count)
    assert record.metrics["val_score"] == pytest.approx(labels.var())
    assert record.metrics["val_number"] == labels.mean()
    assert "val_powers" not in record.metrics
    (means,) = given_
    np.testing.assert_allclose(means["powers"].numpy(), [(labels.astype(float) ** k).mean() for k in (1, 2, 3)])


def test_evaluate_sees_the_data_as_a_whole_and_may_train_something() -> None:
    class Evaluating(ToyFamily):
        objective = Objective("val_whole", "max")

        def evaluate(self, config: ToyConfig, network: nn.Module, data: DataOnDevice) -> dict[str, float]:
            assert not network.training
            assert not torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            probe = data.memo.setdefault("probe", nn.Linear(1, 1))
            with torch.enable_grad():
                probe(data.val.batch(slice(0, 2)).images[:, 0, 0, :1]).sum().backward()
            return {"whole": float(network.get_parameter("w")) + len(data.val) + len(data.train) / 1000}

    data = DataOnDevice(made(4, 3))
    training = start(Evaluating(), ToyConfig(), data, Budget(3), seed=0)
    records = list(fit(training))
    assert [record.metrics["val_whole"] for record in records] == pytest.approx([4.004, 5.004, 6.004])
    assert all(record.metrics["val_score"] == 1 for record in records)  # what is measured is there as well
    assert training.best is records[-1]
    assert isinstance(data.memo["probe"], nn.Linear)


def test_evaluate_may_fail_the_trial() -> None:
    class Collapsing(ToyFamily):
        def evaluate(self, config: ToyConfig, network: nn.Module, data: DataOnDevice) -> dict[str, float]:
            if float(network.get_parameter("w")) == 3:
                raise TrainingFailedError("it has collapsed")
            return {}

    training = toy_run([5, 4, 3, 2], family=Collapsing())
    with pytest.raises(TrainingFailedError, match="it has collapsed"):
        list(fit(training))
    assert len(training.records) == 2


def test_evaluate_draws_the_same_numbers_at_every_record() -> None:
    class Drawing(ToyFamily):
        def evaluate(self, config: ToyConfig, network: nn.Module, data: DataOnDevice) -> dict[str, float]:
            return {"drawn": float(torch.rand(()))}

    drawn = [record.metrics["val_drawn"] for record in fit(toy_run([1, 1, 1], family=Drawing()))]
    assert drawn[0] == drawn[1] == drawn[2]


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "sizes"), [(12, [4, 4, 4]), (10, [4, 4, 2]), (9, [4, 4]), (3, [3]), (1, [1]), (5, [4])]
)
def test_every_image_once_an_epoch(images: int, sizes: list[int]) -> None:
    family = ToyFamily()
    training = toy_run(images=images, family=family, max_epochs=3)
    list(fit(training))
    batches = family.ids()
    assert [len(batch) for batch in batches] == sizes * 3
    assert training.steps_per_epoch == len(sizes)
    epochs = [[*itertools.chain(*batches[i * len(sizes) : (i + 1) * len(sizes)])] for i in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == sum(sizes)
        assert set(epoch) <= set(range(images))
    if images > 5:
        assert epochs[0] != epochs[1] != epochs[2]
        assert epochs[0] != sorted(epochs[0])


def test_the_order_of_images_depends_on_the_seed() -> None:
    orders = []
    for seed in (0, 0, 1):
        family = ToyFamily()
        list(fit(start(family, ToyConfig(), DataOnDevice(made(40)), Budget(1), seed=seed)))
        orders.append(family.ids())
    assert orders[0] == orders[1] != orders[2]


def test_order_goes_on_inside_an_epoch_after_a_resume() -> None:
    whole, halves = ToyFamily(), ToyFamily()
    list(fit(toy_run(images=40, family=whole, max_epochs=2)))
    training = toy_run(images=40, family=halves, max_epochs=2, rungs=(0.3, 1.6))
    while not training.finished:
        next(fit(training))
        training = start(halves, training.config, training.data, training.budget, seed=0, state=training.state_dict())
    assert halves.ids() == whole.ids()


def test_a_batch_holds_the_images_of_its_labels_in_0_1() -> None:
    family = ToyFamily()
    list(fit(toy_run(images=200, family=family, max_epochs=1)))
    for batch in family.seen:
        assert batch.images.dtype == torch.float32
        assert batch.images.shape == (4, 1, 2, 2)
        assert batch.labels.dtype == torch.int64
        expected = batch.labels.numpy().astype(np.float32)[:, None, None, None] / np.float32(255)
        np.testing.assert_array_equal(batch.images.numpy(), np.broadcast_to(expected, (4, 1, 2, 2)))


@pytest.mark.parametrize("index", [slice(0, 3), torch.tensor([0, 1, 2])], ids=["slice", "indices"])
def test_images_stay_bytes_and_batches_are_copies(index: slice | Tensor) -> None:
    source = made(4, 4)
    for array in (source.train.images, source.train.labels, source.val.images, source.val.labels):
        array.flags.writeable = False  # as shared memory is
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = DataOnDevice(source)
    assert data.train.images.dtype == data.val.images.dtype == torch.uint8
    assert len(data.train) == len(data.val) == 4
    assert data.train.images.data_ptr() == source.train.images.ctypes.data  # no copy where none is needed
    for part, original in ((data.train, source.train), (data.val, source.val)):
        # Compared with numbers from elsewhere: a write into read-only memory shows in both.
        batch = part.batch(index)
        batch.images.fill_(7)
        batch.labels.fill_(7)
        np.testing.assert_array_equal(part.images.numpy()[:, 0, 0, 0], [0, 1, 2, 3])
        np.testing.assert_array_equal(original.labels, [0, 1, 2, 3])


def test_strides_of_the_source_do_not_matter() -> None:
    """Those of a dimension of size 1 are arbitrary and change on a way through Ray, but torch picks kernels by them."""
    source = made(6, 3)
    odd = np.lib.stride_tricks.as_strided(source.train.images, strides=(4, 1, 2, 1))
    assert odd.flags.c_contiguous
    other = TrainingData(ImageSet(odd, source.train.labels, ("any",)), source.val, source.spec)
    plain, strange = DataOnDevice(source).train.images, DataOnDevice(other).train.images
    assert torch.equal(plain, strange)
    assert plain.stride() == strange.stride() == (4, 4, 2, 1)


def test_validation_is_the_mean_over_all_images_in_batches_of_one_size() -> None:
    sizes = []

    class Labels(ToyFamily):
        def measure(self, config: ToyConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
            assert not network.training
            assert torch.is_inference_mode_enabled()
            sizes.append(len(batch.labels))
            return {"score": batch.labels.float()}

        def phases(self, config: ToyConfig, network: nn.Module) -> Sequence[Phase]:
            (phase,) = super().phases(config, network)
            (update,) = phase.updates

            def loss(batch: Batch) -> Tensor:
                assert network.training
                return update.loss(batch)

            return [Phase("only", [Update(update.optimizer, loss)])]

    count = VALIDATION_BATCH + 7
    training = start(Labels(), ToyConfig(), DataOnDevice(made(8, count)), Budget(2), seed=0)
    assert [record.metrics["val_score"] for record in fit(training)] == [(count - 1) / 2] * 2
    assert sizes == [VALIDATION_BATCH, 7] * 2


# --- non-finite numbers -----------------------------------------------------------------------------------------------


class FailingFamily(ToyFamily):
    """Its loss is NaN at one step, its validation as scripted."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def phases(self, config: ToyConfig, network: nn.Module) -> Sequence[Phase]:
        (phase,) = super().phases(config, network)
        (update,) = phase.updates
        return [
            Phase(
                "only",
                [Update(update.optimizer, lambda b: update.loss(b) * (math.nan if len(self.seen) == self.at else 1))],
            )
        ]


@pytest.mark.parametrize("at", [1, 60, LOOK_EVERY + 1])
def test_a_loss_that_is_not_finite_ends_the_run_soon(at: int) -> None:
    training = toy_run(images=4 * 200, family=FailingFamily(at), max_epochs=1)
    with pytest.raises(NonFiniteError, match="train_loss became nan"):
        list(fit(training))
    assert training.records == []
    assert at <= training.step < at + LOOK_EVERY


def test_a_loss_that_is_not_finite_at_the_very_end() -> None:
    with pytest.raises(NonFiniteError, match="train_loss"):
        list(fit(toy_run(images=4 * 7, family=FailingFamily(7), max_epochs=1)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_objective_that_is_not_finite_ends_the_run(value: float) -> None:
    training = toy_run([2, 1, value, 0])
    with pytest.raises(NonFiniteError, match=rf"val_score became {value} by epoch 3.00 \(step 3\)"):
        list(fit(training))
    assert [record.epoch for record in training.records] == [1, 2]
    assert training.best_weights["w"] == 2


def test_objective_compares() -> None:
    low, high = Objective("val_x", "min"), Objective("val_x", "max")
    assert low.better(1, 2)
    assert not low.better(2, 1)
    assert not low.better(1, 1)
    assert high.better(2, 1)
    assert not high.better(1, 2)
    for objective in (low, high):
        assert objective.better(1, None)
        assert not objective.better(math.nan, None)
        assert not objective.better(math.nan, 1)


# --- random state, threads --------------------------------------------------------------------------------------------


def global_state() -> list[Any]:
    numpy: Any = np.random.get_state(legacy=True)
    return [
        random.getstate(),
        [numpy[1].tolist(), *numpy[2:]],
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ]


@pytest.fixture(params=[(False, False), (True, True), (True, False)], ids=["free", "warn only", "strict"])
def surroundings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two threads, a way of being deterministic and random generators in the middle of something; then put back."""
    for _ in range(3):
        random.gauss(0, 1)
        np.random.randn()
        torch.rand(3)
    threads, enabled = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(request.param[0], warn_only=request.param[1])
    yield
    torch.use_deterministic_algorithms(enabled)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("surroundings")
def test_the_process_is_left_as_it_was(digits: DataOnDevice) -> None:
    before = global_state()
    training = conv_run(digits, Budget(1, rungs=(0.2,)))
    assert global_state() == before
    for _ in fit(training):
        assert global_state() == before
    assert global_state() == before
    with pytest.raises(NonFiniteError):
        list(fit(toy_run([math.nan])))
    with pytest.raises(NonFiniteError):
        list(fit(toy_run([1], family=FailingFamily(1))))
    assert global_state() == before


@pytest.mark.usefixtures("surroundings")
def test_threads_and_determinism_inside() -> None:
    inside: list[tuple[int, bool, bool]] = []

    class Looking(ToyFamily):
        def look(self) -> None:
            warns = torch.is_deterministic_algorithms_warn_only_enabled()
            inside.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), warns))

        def build(self, config: ToyConfig, spec: DataSpec) -> Toy:
            self.look()
            return Toy()

        def measure(self, config: ToyConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
            self.look()
            return super().measure(config, network, batch)

    for threads in (1, 2):
        inside.clear()
        numerics = Numerics(threads=threads)
        list(fit(start(Looking(), ToyConfig(), DataOnDevice(made(4)), Budget(1), seed=0, numerics=numerics)))
        assert inside == [(threads, True, False)] * 2


def run_alone(digits: DataOnDevice, budget: Budget, seed: int) -> Training:
    training = conv_run(digits, budget, seed)
    list(fit(training))
    return training


def test_a_consumer_that_draws_random_numbers_changes_nothing(digits: DataOnDevice) -> None:
    budget = Budget(2, rungs=(0.3,))
    random.seed(5)
    torch.manual_seed(5)
    training = conv_run(digits, budget)
    for _ in fit(training):
        random.random()
        np.random.rand(7)
        torch.rand(3)
        torch.manual_seed(11)
    quiet = run_alone(digits, budget, 0)
    assert numbers(training.records) == numbers(quiet.records)
    assert same_weights(training.network, quiet.network)


def test_two_runs_in_turns_give_the_numbers_of_each_alone(digits: DataOnDevice) -> None:
    budget = Budget(2, rungs=(0.3, 1.5))
    pair = [conv_run(digits, budget, seed) for seed in (0, 1)]
    for _ in zip(*map(fit, pair), strict=True):
        pass
    for seed, training in enumerate(pair):
        alone = run_alone(digits, budget, seed)
        assert numbers(training.records) == numbers(alone.records)
        assert same_weights(training.network, alone.network)
    assert not same_weights(pair[0].network, pair[1].network)


def test_numbers_do_not_depend_on_what_is_reported(digits: DataOnDevice) -> None:
    plain = run_alone(digits, Budget(2), 0)
    for rungs in ((0.1, 0.55, 1.3), (0.5, 1.0, 1.9)):
        other = run_alone(digits, Budget(2, rungs), 0)
        whole = {record.epoch: record for record in other.records}
        for record in plain.records:
            same = whole[record.epoch]
            assert (same.step, same.metrics["val_mse"]) == (record.step, record.metrics["val_mse"])
        assert same_weights(plain.network, other.network)


def test_validation_draws_the_same_numbers_at_every_record() -> None:
    drawn: list[tuple[float, float, float]] = []

    class Drawing(ToyFamily):
        def measure(self, config: ToyConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
            drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
            return {"score": torch.zeros(len(batch.labels))}

    for seed in (0, 1):
        list(fit(start(Drawing(), ToyConfig(), DataOnDevice(made(4)), Budget(2), seed=seed)))
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


def test_python_and_numpy_numbers_go_on_after_a_resume() -> None:
    class Drawing(ToyFamily):
        def phases(self, config: ToyConfig, network: nn.Module) -> Sequence[Phase]:
            (phase,) = super().phases(config, network)
            (update,) = phase.updates

            def loss(batch: Batch) -> Tensor:
                noise = random.random() + random.gauss(0, 1) + float(np.random.randn()) + float(torch.randn(()))
                return update.loss(batch) * noise

            return [Phase("only", [Update(update.optimizer, loss)])]

    whole = toy_run([1, 1, 1, 1], family=Drawing())
    list(fit(whole))
    halves = toy_run([1, 1, 1, 1], family=Drawing())
    while not halves.finished:
        next(fit(halves))
        halves = start(halves.family, halves.config, halves.data, halves.budget, seed=0, state=halves.state_dict())
    assert numbers(halves.records) == numbers(whole.records)
    assert same_weights(whole.network, halves.network)


def test_half_precision_is_close_and_not_the_same(digits: DataOnDevice) -> None:
    full = run_alone(digits, Budget(1), 0)
    half = conv_run(digits, Budget(1), numerics=Numerics(precision="bfloat16"))
    list(fit(half))
    one, other = full.records[-1].metrics, half.records[-1].metrics
    for name in ("val_mse", "train_loss"):
        assert one[name] != other[name]
        assert one[name] == pytest.approx(other[name], rel=0.05)
    assert all(tensor.dtype != torch.bfloat16 for tensor in half.network.state_dict().values())


# --- what is imported -------------------------------------------------------------------------------------------------


def loaded_by(code: str, watched: Sequence[str]) -> list[str]:
    """Which of the ``watched`` packages a fresh process has after ``code``."""
    program = (
        f"{code}\nimport sys, json\nprint(json.dumps([name for name in {list(watched)!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def test_names_and_spaces_need_no_torch() -> None:
    code = "import models.family, models.space, models.errors\nfrom models.family import FAMILIES, FamilyConfig"
    assert loaded_by(code, ["torch", "ray", "mlflow", "optuna", "sklearn"]) == []


def test_models_know_nothing_of_the_search() -> None:
    code = """
import importlib, pkgutil, models
names = [item.name for item in pkgutil.walk_packages(models.__path__, "models.")]
assert len(names) > 8, names
for name in names:
    importlib.import_module(name)
"""
    assert loaded_by(code, ["torch", "ray", "mlflow", "optuna", "tuning", "analysis"]) == ["torch"]
