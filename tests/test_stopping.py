"""Stopping rules against computations of their own, and the rungs at which they look."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models.family import Objective, Record
from tuning.config import FEW_IMAGES, RUNG_IMAGES, SearchConfig
from tuning.results import Trial
from tuning.stopping import MEDIAN_NEEDS, MedianStopping, NeverStop, StoppingRule, SuccessiveHalving, make_rule

Mode = Literal["min", "max"]
LOW, HIGH = Objective("val_mse", "min"), Objective("val_accuracy", "max")
RUNGS = (1 / 3, 1.0, 3.0)


def objective(mode: Mode) -> Objective:
    return LOW if mode == "min" else HIGH


def by_hand(seen: Sequence[float], eta: int, mode: Mode) -> float:
    """The value that the best 1/η of ``seen`` reach: a quantile between order statistics, counted from the best."""
    ranked = sorted(seen, reverse=mode == "max")
    place = (len(ranked) - 1) / eta
    below, above = ranked[math.floor(place)], ranked[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def config(**settings: Any) -> SearchConfig:
    return SearchConfig.model_validate({"family": "toy", "min_epochs": 1 / 3, **settings})


def trials_of(reports: Sequence[tuple[int, float, float]], kind: Objective = LOW) -> list[Trial]:
    """Trials that made these reports (number, epoch, value) at the seconds 0, 1, 2, …"""
    records: dict[int, list[tuple[float, Record]]] = defaultdict(list)
    for second, (number, epoch, value) in enumerate(reports):
        records[number].append((float(second), Record(epoch, 0, {kind.metric: value})))
    return [
        Trial(
            number=number,
            state="running",
            family="toy",
            objective=kind,
            config={},
            params={},
            seed=0,
            numerics={},
            fingerprint="",
            records=tuple(record for _, record in mine),
            times=tuple(at for at, _ in mine),
        )
        for number, mine in records.items()
    ]


def verdicts(rule: StoppingRule, reports: Sequence[tuple[int, float, float]]) -> list[str | None]:
    return [rule.observe(*report) for report in reports]


# --- successive halving ----------------------------------------------------------------------------------------------


def test_first_trial_passes_and_one_peer_is_enough() -> None:
    rule = SuccessiveHalving(LOW, RUNGS, 3)
    assert rule.observe(0, 1.0, 0.5) is None
    assert rule.observe(1, 1.0, 0.5) is None, "as good as the only peer"
    reason = rule.observe(2, 1.0, 0.50001)
    assert reason == "rung 1: 0.50001 is above 0.5, the best 1/3 of 2"


def test_decisions_of_a_short_search_by_hand() -> None:
    rule = SuccessiveHalving(LOW, RUNGS, 3)
    # Quantile 1/3 of what was there before: -, .4, .3333, .2667 (of .2 .4 .4→), …
    values = [0.4, 0.3, 0.2, 0.25, 0.9]
    #   before: []      [.4]   [.3 .4]      [.2 .3 .4]      [.2 .25 .3 .4]
    #   cutoff: none    .4     .3333        .2667           .25 (place 1)
    told = [rule.observe(number, 1.0, value) for number, value in enumerate(values)]
    assert told[:4] == [None] * 4
    assert told[4] is not None
    assert "0.25" in told[4]
    # A stopped trial's value counts too.
    assert rule.observe(5, 1.0, 0.27) is not None, "cutoff .2667, at place 4/3 of .2 .25 .3 .4 .9"
    assert rule.observe(6, 1.0, 0.26) is None


def test_higher_can_be_better() -> None:
    rule = SuccessiveHalving(HIGH, RUNGS, 2)
    assert [rule.observe(n, 1.0, value) for n, value in enumerate([0.5, 0.7, 0.9])] == [None] * 3
    reason = rule.observe(3, 1.0, 0.6)
    assert reason == "rung 1: 0.6 is below 0.7, the best 1/2 of 3"
    assert rule.observe(4, 1.0, 0.65) is None, "the median of .5 .6 .7 .9 is .65"


@given(
    values=st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=1, max_size=40),
    eta=st.integers(2, 6),
    mode=st.sampled_from(["min", "max"]),
)
def test_stops_what_is_worse_than_the_best_share_before_it(values: list[float], eta: int, mode: Mode) -> None:
    rule = SuccessiveHalving(objective(mode), RUNGS, eta)
    seen: list[float] = []
    for number, value in enumerate(values):
        stopped = rule.observe(number, 1.0, value) is not None
        if seen:
            cutoff = by_hand(seen, eta, mode)
            near = abs(value - cutoff) < 1e-6  # the interpolation's last digit is nobody's business
            assert near or stopped == (value > cutoff if mode == "min" else value < cutoff)
        else:
            assert not stopped
        seen.append(value)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("eta", [2, 3, 4])
def test_equal_values_are_never_stopped(mode: Mode, eta: int) -> None:
    rule = SuccessiveHalving(objective(mode), RUNGS, eta)
    told = [rule.observe(number, 1.0, 0.1) for number in range(50)]
    assert told == [None] * 50


def test_rungs_do_not_see_each_other() -> None:
    rule = SuccessiveHalving(LOW, RUNGS, 3)
    assert rule.observe(0, 1 / 3, 0.1) is None
    assert rule.observe(1, 1.0, 0.9) is None, "first at its rung"
    assert rule.observe(2, 1 / 3, 0.2) is not None
    assert rule.observe(3, 1.0, 0.8) is None
    assert rule.observe(4, 3.0, 7.0) is None, "first at its rung"


def test_epochs_that_are_no_rung_are_ignored_and_not_remembered() -> None:
    rule = SuccessiveHalving(LOW, RUNGS, 3)
    assert rule.observe(0, 1.0, 0.9) is None
    for epoch in (0.5, 0.9999, 1.0001, 2.0, 9.0):
        assert rule.observe(0, epoch, 0.0) is None
    assert rule.observe(1, 1.0, 0.8) is None, "only 0.9 was seen at rung 1"
    assert rule.observe(1, 9.0, 1e9) is None, "at its end nothing is left to save"


def test_rung_is_found_whatever_the_rounding() -> None:
    rungs = config(max_epochs=9).rungs()
    rule = SuccessiveHalving(LOW, rungs, 3)
    assert rule.observe(0, 1 / 3, 0.1) is None
    assert rule.observe(1, 9 / 27, 0.2) is not None
    assert rule.observe(2, 0.333333, 0.2) is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_values_that_are_not_finite_never_become_a_cutoff(mode: Mode, bad: float) -> None:
    """Such a trial fails by other means; here it must neither stop the others nor let them all pass."""
    good = [0.5, 0.4, 0.6, 0.55, 0.45, 0.7]
    clean, dirty = (SuccessiveHalving(objective(mode), RUNGS, 3) for _ in range(2))
    for number, value in enumerate(good):
        dirty.observe(100 + number, 1.0, bad)
        assert dirty.observe(number, 1.0, value) == clean.observe(number, 1.0, value)


# --- brackets --------------------------------------------------------------------------------------------------------


def test_bracket_depends_on_seed_and_number_alone() -> None:
    first, again, other = (SuccessiveHalving(LOW, RUNGS, 3, brackets=4, seed=seed) for seed in (5, 5, 6))
    numbers = list(range(200))
    backwards = [again.bracket(number) for number in reversed(numbers)]
    assert [first.bracket(number) for number in numbers] == backwards[::-1]
    assert [other.bracket(number) for number in numbers] != backwards[::-1]


@pytest.mark.parametrize("eta", [2, 3])
def test_brackets_get_shares_like_powers_of_eta(eta: int) -> None:
    rule = SuccessiveHalving(LOW, RUNGS, eta, brackets=4, seed=1)
    draws = 6000
    counts = Counter(rule.bracket(number) for number in range(draws))
    assert set(counts) == {0, 1, 2, 3}
    whole = sum(float(eta) ** -s for s in range(4))
    for s in range(4):
        share = float(eta) ** -s / whole
        spread = math.sqrt(draws * share * (1 - share))
        assert abs(counts[s] - draws * share) < 4.5 * spread


def test_one_bracket_holds_everyone() -> None:
    rule = SuccessiveHalving(LOW, RUNGS, 3)
    assert {rule.bracket(number) for number in range(100)} == {0}


def test_bracket_leaves_out_its_lowest_rungs_and_compares_with_its_own() -> None:
    rule = make_rule(config(scheduler="hyperband", max_epochs=9), LOW, [])
    assert isinstance(rule, SuccessiveHalving)
    of: dict[int, list[int]] = defaultdict(list)
    for number in range(400):
        of[rule.bracket(number)].append(number)
    assert sorted(of) == [0, 1, 2, 3], "three rungs, and a bracket that is never stopped"
    for bracket, members in of.items():
        first, second = members[:2]
        for place, rung in enumerate((1 / 3, 1.0, 3.0)):
            good = 0.1 + bracket
            assert rule.observe(first, rung, good) is None, "the first of its bracket, whatever others reported"
            stopped = rule.observe(second, rung, good + 0.1) is not None
            assert stopped == (place >= bracket)


# --- median ----------------------------------------------------------------------------------------------------------


def test_median_by_hand() -> None:
    rule = MedianStopping(LOW, min_epochs=1.0)
    for number, value in enumerate([0.1, 0.2, 0.3]):
        assert rule.observe(number, 1.0, value) is None
    assert rule.observe(3, 1.0, 9.0) is None, f"only three others; the rule waits for {MEDIAN_NEEDS}"
    assert rule.observe(4, 1.0, 0.25) is None, "the median of .1 .2 .3 9 is .25"
    reason = rule.observe(5, 1.0, 0.26)
    assert reason == "epoch 1: best 0.26 is worse than the median 0.25 of 5"


def test_median_looks_at_the_best_value_so_far() -> None:
    rule = MedianStopping(LOW, min_epochs=0.0)
    for number, value in enumerate([0.3, 0.3, 0.3, 0.3, 0.2]):
        rule.observe(number, 1.0, value)
    for number, value in enumerate([0.25, 0.25, 0.25, 0.25, 0.9]):
        told = rule.observe(number, 2.0, value)
    assert told is None, "trial 4 had 0.2 before it rose to 0.9"
    for number in range(4):
        rule.observe(number, 3.0, 0.1)
    assert rule.observe(4, 3.0, 0.15) is not None


def test_median_when_higher_is_better() -> None:
    rule = MedianStopping(HIGH, min_epochs=1.0)
    for number, value in enumerate([0.5, 0.6, 0.7, 0.8]):
        assert rule.observe(number, 1.0, value) is None
    assert rule.observe(4, 1.0, 0.66) is None
    assert rule.observe(5, 1.0, 0.65) is not None, "the median of .5 .6 .66 .7 .8 is .66"


def test_median_waits_for_the_lowest_rung() -> None:
    rule = MedianStopping(LOW, min_epochs=1.0)
    for number in range(6):
        assert rule.observe(number, 0.5, float(number)) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_median_takes_no_notice_of_values_that_are_not_finite(bad: float) -> None:
    clean, dirty = MedianStopping(LOW, 1.0), MedianStopping(LOW, 1.0)
    for number, value in enumerate([0.5, 0.4, 0.6, 0.55, 0.45, 0.7, 0.3]):
        dirty.observe(100 + number, 1.0, bad)
        assert dirty.observe(number, 1.0, value) == clean.observe(number, 1.0, value)


# --- memory ----------------------------------------------------------------------------------------------------------


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[int, float, float]]:
    """Reports of several trials in turns, each trial's own in the order of epochs."""
    epochs = (1 / 3, 1.0, 2.0, 3.0, 9.0)
    turns = draw(st.lists(st.integers(0, 9), min_size=1, max_size=40))
    done: Counter[int] = Counter()
    reports: list[tuple[int, float, float]] = []
    for number in turns:
        if done[number] < len(epochs):
            value = draw(st.floats(0, 1, allow_nan=False) | st.integers(0, 3).map(float))
            reports.append((number, epochs[done[number]], value))
            done[number] += 1
    return reports


@given(
    reports=streams(),
    cut=st.integers(0, 40),
    scheduler=st.sampled_from(["asha", "hyperband", "median", "none"]),
    mode=st.sampled_from(["min", "max"]),
    eta=st.integers(2, 4),
)
def test_rule_that_was_rebuilt_decides_as_one_that_never_stopped(
    reports: list[tuple[int, float, float]], cut: int, scheduler: str, mode: Mode, eta: int
) -> None:
    assume(cut <= len(reports))
    kind, asked = objective(mode), config(scheduler=scheduler, reduction_factor=eta, seed=3)
    whole = verdicts(make_rule(asked, kind, []), reports)
    rebuilt = make_rule(asked, kind, trials_of(reports[:cut], kind))
    assert verdicts(rebuilt, reports[cut:]) == whole[cut:]


def test_memory_is_rebuilt_in_the_order_of_time_and_not_of_trials() -> None:
    # Trial 1 was first at the rung; for the median, what each had been at the time decides.
    reports = [(1, 1.0, 0.2), (0, 1.0, 0.1), (2, 1.0, 0.3), (3, 1.0, 0.4), (1, 3.0, 0.15)]
    shuffled = sorted(trials_of(reports), key=lambda trial: -trial.number)
    for scheduler in ("asha", "median"):
        straight = make_rule(config(scheduler=scheduler), LOW, [])
        verdicts(straight, reports)
        rebuilt = make_rule(config(scheduler=scheduler), LOW, shuffled)
        more = [(4, 1.0, 0.2), (5, 1.0, 0.35), (5, 3.0, 0.3)]
        assert verdicts(rebuilt, more) == verdicts(straight, more)


@given(reports=streams(), scheduler=st.sampled_from(["asha", "hyperband", "median"]))
def test_rebuilding_tells_what_was_said_to_the_last_report_of_each_trial(
    reports: list[tuple[int, float, float]], scheduler: str
) -> None:
    """A driver may die between a report and what follows from it."""
    asked = config(scheduler=scheduler, seed=3)
    said = dict(zip([number for number, _, _ in reports], verdicts(make_rule(asked, LOW, []), reports), strict=True))
    again: dict[int, str | None] = {}
    make_rule(asked, LOW, sorted(trials_of(reports), key=lambda trial: -trial.number), again)
    assert again == said


def test_records_without_an_objective_are_no_reports() -> None:
    (trial,) = trials_of([(0, 1.0, 0.1)])
    other = Trial(**{**vars(trial), "number": 1, "records": (Record(1.0, 0, {"train_loss": 0.0}),), "times": (0.5,)})
    rule = make_rule(config(), LOW, [trial, other])
    assert rule.observe(2, 1.0, 0.09) is None
    assert rule.observe(3, 1.0, 0.1) is not None


def test_rule_is_the_one_that_was_asked_for() -> None:
    assert isinstance(make_rule(config(scheduler="none"), LOW, []), NeverStop)
    assert isinstance(make_rule(config(scheduler="median"), LOW, []), MedianStopping)
    asha = make_rule(config(scheduler="asha"), LOW, [])
    assert isinstance(asha, SuccessiveHalving)
    assert {asha.bracket(number) for number in range(50)} == {0}
    assert NeverStop().observe(0, 1.0, math.inf) is None


# --- rungs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "rungs"),
    [
        ({"max_epochs": 9, "min_epochs": 1 / 3}, (0.333333, 1, 3)),
        ({"max_epochs": 9, "min_epochs": 1}, (1, 3)),
        ({"max_epochs": 9, "min_epochs": 1.001}, (3,)),
        ({"max_epochs": 9, "min_epochs": 3}, (3,)),
        ({"max_epochs": 9, "min_epochs": 3.001}, ()),
        ({"max_epochs": 9, "min_epochs": 9}, ()),
        ({"max_epochs": 1, "min_epochs": 0.1, "reduction_factor": 4}, (0.25,)),
        ({"max_epochs": 0.5, "min_epochs": 0.02, "reduction_factor": 2}, (0.03125, 0.0625, 0.125, 0.25)),
        ({"max_epochs": 100, "min_epochs": 1, "reduction_factor": 10}, (1, 10)),
    ],
)
def test_rungs_are_powers_of_eta_below_the_budget(settings: dict[str, Any], rungs: tuple[float, ...]) -> None:
    assert config(**settings).rungs() == pytest.approx(rungs, abs=1e-6)
    points = config(**settings).budget().report_points()
    assert set(config(**settings).rungs()) <= set(points), "a trial reports at every rung"


@pytest.mark.parametrize(
    ("images", "lowest", "rungs"),
    [
        (60_000, 1 / 3, (0.333333, 1, 3)),
        (10_000, 0.5, (1, 3)),
        (RUNG_IMAGES, 1.0, (1, 3)),
        (2000, 1.0, (1, 3)),  # not 2.5, which leaves one rung
        (FEW_IMAGES, 1.0, (1, 3)),
        (FEW_IMAGES - 1, 3.0, (3,)),  # never above the first rung below the budget
        (1, 3.0, (3,)),
    ],
)
def test_lowest_rung_follows_the_number_of_images(images: int, lowest: float, rungs: tuple[float, ...]) -> None:
    decided = config(max_epochs=9, min_epochs=None).with_lowest_rung(images)
    assert decided.min_epochs == pytest.approx(lowest)
    assert decided.rungs() == pytest.approx(rungs, abs=1e-6)


def test_lowest_rung_that_was_given_stays() -> None:
    given_one = config(min_epochs=2.0)
    assert given_one.with_lowest_rung(5) is given_one


@given(
    max_epochs=st.floats(0.05, 1000),
    eta=st.integers(2, 16),
    images=st.integers(1, 10_000_000),
)
def test_there_is_always_a_rung_and_all_lie_below_the_budget(max_epochs: float, eta: int, images: int) -> None:
    decided = config(max_epochs=max_epochs, reduction_factor=eta, min_epochs=None).with_lowest_rung(images)
    rungs = decided.rungs()
    assert rungs
    assert list(rungs) == sorted(set(rungs))
    assert all(0 < rung < max_epochs for rung in rungs)
    assert rungs[-1] == pytest.approx(max_epochs / eta, abs=1e-6)
    for lower, higher in pairwise(rungs):
        assert higher / lower == pytest.approx(eta, rel=1e-2)
