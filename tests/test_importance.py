"""Importance of parameters: the numbers, what they rest on, what is refused, and the pictures of a search."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from optuna.distributions import FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from studies import METRIC, distance, finish, open_by_hand, record
from trials_by_hand import RUNGS, WIDE, Search, bowl, search, trial
from typer.testing import CliRunner

from analysis import Importance, weigh_parameters
from analysis.axes import Parameter
from analysis.course import compute as compute_course
from models.errors import LatentuneError, UserError
from models.family import Objective
from models.space import Choice, Float, Int, Range
from tuning.cli import app
from tuning.tracking import make_tracker

FIGURES = {"history", "rungs", "curves", "importance", "slices", "parallel", "contour"}
LINES: dict[str, Range] = {"a": Float(0, 1), "b": Float(1e-6, 1e-1, log=True), "c": Float(0, 1)}


def height(params: dict[str, Any], name: str) -> float:
    """Where a value stands in its range, from 0 to 1, as :data:`LINES` draws it: evenly."""
    return (math.log10(params[name]) + 6) / 5 if name == "b" else float(params[name])


@pytest.fixture(scope="module")
def wide() -> Importance:
    """Forty trials over eight parameters of every kind, two of them failed."""
    return weigh_parameters(search(WIDE, 40, bowl, failed=(7, 21)), WIDE, rungs=RUNGS)


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [60, 400], ids=["all", "drawn"])
def test_fanova_gives_the_parts_of_the_variance(trials: int) -> None:
    # Of a sum of independent lines over even draws the variance of each is slope^2 / 12, so the parts are 9 : 1.
    made = search(LINES, trials, lambda p: 1 + 3 * height(p, "b") + height(p, "a"), pruning=False)
    found = weigh_parameters(made, LINES).summary()
    assert found["fanova"] == pytest.approx({"b": 0.9, "a": 0.1, "c": 0.0}, abs=0.07)
    assert list(found["fanova"]) == list(found["ped_anova"]) == ["b", "a", "c"]
    assert found["agreement"] == 1.0
    assert found["above_chance"][0] == "b"


def test_ped_anova_is_optunas_on_the_values_as_they_are() -> None:
    made = search(LINES, 50, lambda p: (height(p, "b") - 0.4) ** 2 + 0.1 * height(p, "a"), pruning=False)
    study = optuna.create_study()
    known = {
        "a": FloatDistribution(0, 1),
        "b": FloatDistribution(1e-6, 1e-1, log=True),
        "c": FloatDistribution(0, 1),
    }
    for one in made.trials:
        study.add_trial(optuna.trial.create_trial(params=one.params, distributions=known, value=one.value))
    expected = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=0.1))
    found = weigh_parameters(made, LINES).summary()["ped_anova"]
    assert found == pytest.approx(expected, abs=0.01)


def test_what_is_noise_is_told_as_such() -> None:
    random = np.random.default_rng(3)
    ranges: dict[str, Range] = {name: Float(0, 1) for name in "abcdefgh"}
    found = weigh_parameters(search(ranges, 16, lambda _: float(random.uniform(1, 2)), pruning=False), ranges)
    assert len(found.above_chance) <= 1
    assert all((weights.low <= weights.high).all() for weights in found.weights.values())


def test_a_condition_is_not_mistaken_for_its_parameter(wide: Importance) -> None:
    ranges: dict[str, Range] = {
        "optimizer": Choice("sgd", "adam"),
        "momentum": Float(0, 0.98, when={"optimizer": ("sgd",)}),
    }
    made = search(ranges, 80, lambda p: 2.0 if p["optimizer"] == "sgd" else 1.0, pruning=False)
    found = weigh_parameters(made, ranges)
    assert found.above_chance == ("optimizer",)
    assert found.summary()["fanova"]["momentum"] < 0.1
    assert found.summary()["ped_anova"]["momentum"] < 0.1


def test_more_is_better_where_it_is() -> None:
    ranges: dict[str, Range] = {"a": Float(0, 1), "b": Float(0, 1)}
    found = weigh_parameters(
        search(ranges, 60, lambda p: 0.5 + 0.4 * p["a"], mode="max", metric="val_accuracy"), ranges
    )
    assert found.above_chance == ("a",)
    assert found.points.mode == "max"


def test_the_same_seed_gives_the_same_numbers() -> None:
    ranges: dict[str, Range] = {"a": Float(0, 1), "b": Float(0, 1)}
    made = search(ranges, 6, lambda p: float(p["a"]))
    first, again, other = (weigh_parameters(made, ranges, seed=seed).tables()["importance"] for seed in (0, 0, 1))
    for column in ("share", "low", "high", "chance"):
        assert (first[column] == again[column]).all()
    assert (first["low"] != other["low"]).any()


# --- what they rest on ------------------------------------------------------------------------------------------------


def stopped_early() -> Search:
    """Three complete trials, four pruned, one failed after the first rung and one before; one still queued."""
    curves: list[tuple[Any, list[tuple[float, float]]]] = [
        ("complete", [(1, 0.50), (3, 0.40), (9, 0.30)]),
        ("complete", [(1, 0.52), (3, 0.44), (9, 0.35)]),
        ("pruned", [(1, 0.90)]),
        ("pruned", [(1, 0.80)]),
        ("complete", [(1, 0.49), (3, 0.30), (9, 0.31)]),
        ("pruned", [(1, 0.51), (3, 0.46)]),
        ("failed", [(1, 0.70)]),
        ("failed", []),
        ("pruned", [(1, math.nan)]),
        ("queued", []),
    ]
    params = [{"a": i / 10, "b": 1e-3} for i in range(len(curves))]
    trials = tuple(trial(i, state, curve, params[i]) for i, (state, curve) in enumerate(curves))
    return Search("early", Objective("val_mse", "min"), trials)


def test_values_are_from_one_epoch() -> None:
    found = weigh_parameters(stopped_early(), {"a": Float(0, 1), "b": Float(1e-5, 1e-1, log=True)})
    assert found.points.epoch == 1
    assert found.points.numbers.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert found.points.values.tolist() == [0.5, 0.52, 0.9, 0.8, 0.49, 0.51, 0.7]
    assert found.points.complete.tolist() == [True, True, False, False, True, False, False]
    assert found.points.failed[:, 0].tolist() == [0.7]
    told = found.summary()
    assert (told["trials_used"], told["trials_left_out"], told["complete"]) == (7, 2, 3)
    assert told["values"] == "val_mse at epoch 1"


def test_or_of_complete_trials_alone() -> None:
    found = weigh_parameters(stopped_early(), {"a": Float(0, 1), "b": Float(0, 1)}, values="complete")
    assert found.points.values.tolist() == [0.30, 0.35, 0.30]  # the best of each
    assert found.points.epoch is None
    assert found.summary()["refused"] == "importance needs at least 5 complete trials; there are 3"


def test_without_pruning_they_are_the_final_values() -> None:
    made = search(LINES, 8, lambda p: height(p, "a"), pruning=False)
    found = weigh_parameters(made, LINES)
    assert found.points.epoch == 9
    assert found.points.values.tolist() == [one.curve[-1][1] for one in made.trials]


def test_foretells_is_the_rank_correlation_of_early_and_final_values() -> None:
    early, final = [3.0, 1.0, 2.0, 5.0, 4.0, 9.0], [0.3, 0.2, 0.1, 0.4, 0.5, 0.6]
    complete = [
        trial(i, "complete", [(1, e), (9, f)], {"a": i / 9, "b": 0.5})
        for i, (e, f) in enumerate(zip(early, final, strict=True))
    ]
    made = Search("s", Objective("val_mse", "min"), (*complete, trial(6, "pruned", [(1, 10)], {"a": 0.9, "b": 0.1})))
    by_hand = 1 - 6 * (0 + 1 + 1 + 1 + 1 + 0) / (6 * 35)  # of the ranks 3 1 2 5 4 6 and 3 2 1 4 5 6
    assert weigh_parameters(made, {"a": Float(0, 1), "b": Float(0, 1)}).foretells == pytest.approx(by_hand)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_too_little_is_refused_and_still_drawn() -> None:
    for count, drawn in ((1, {"history", "rungs", "curves"}), (4, FIGURES - {"importance", "contour"})):
        found = weigh_parameters(search(WIDE, count, bowl, pruning=False), WIDE)
        verb = "is" if count == 1 else "are"
        expected = f"importance needs at least 5 trials with a value at the same epoch; there {verb} {count}"
        assert found.summary()["refused"] == expected
        assert set(found.figures()) == drawn


@pytest.mark.parametrize(
    ("ranges", "final", "refused"),
    [
        ({"a": Float(0, 1), "b": Float(0.5, 0.5)}, 1.0, "only a was searched: there is nothing to weigh it against"),
        ({"a": Choice("x")}, 1.0, "nothing was searched: every field is fixed"),
        ({"a": Float(0, 1), "b": Float(0, 1)}, 1.0, "all trials have the same value"),
    ],
)
def test_nothing_to_compare(ranges: dict[str, Range], final: float, refused: str) -> None:
    assert weigh_parameters(search(ranges, 9, lambda _: final, pruning=False), ranges).summary()["refused"] == refused


def test_a_search_without_trials() -> None:
    with pytest.raises(LatentuneError, match="s has no trial yet"):
        weigh_parameters(Search("s", Objective("val_mse", "min"), (trial(0, "queued"),)), WIDE)
    with pytest.raises(UserError, match="--values: got 'final'; must be rung or complete"):
        weigh_parameters(stopped_early(), WIDE, values="final")  # type: ignore[arg-type]


# --- rungs ------------------------------------------------------------------------------------------------------------


def test_rungs_are_counted() -> None:
    course = compute_course(stopped_early(), (1, 3))
    assert course.reached.tolist() == [8, 4]  # one failed before the first
    assert course.stopped.tolist() == [3, 1]
    assert course.saved(9) == 8 + 8 + 8 + 6
    assert course.best == 0
    # Where nobody says which rungs there were, they are where trials were stopped.
    assert compute_course(stopped_early()).rungs.tolist() == [1, 3]


# --- axes -------------------------------------------------------------------------------------------------------------

ranges_strategy = st.one_of(
    st.tuples(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3)).map(lambda ends: Float(ends[0], ends[0] + ends[1])),
    st.tuples(st.floats(1e-9, 1), st.floats(1.1, 1e6)).map(lambda ends: Float(ends[0], ends[0] * ends[1], log=True)),
    st.tuples(st.integers(-50, 50), st.integers(1, 300)).map(lambda ends: Int(ends[0], ends[0] + ends[1])),
    st.tuples(st.integers(1, 50), st.integers(2, 300)).map(lambda ends: Int(ends[0], ends[0] * ends[1], log=True)),
    st.lists(st.text(max_size=30), min_size=2, max_size=6, unique=True).map(lambda words: Choice(*words)),
)


@given(known=ranges_strategy)
def test_ticks_stand_within_the_range(known: Range) -> None:
    parameter = Parameter("p", known)
    low, high = parameter.limits
    at, labels = parameter.ticks()
    assert 1 <= len(at) == len(labels)
    assert len(at) <= 10
    assert all(low - 1e-3 * (high - low) - 1e-9 <= tick <= high + 1e-3 * (high - low) + 1e-9 for tick in at)
    assert parameter.position(known.nearest(known.options[-1] if isinstance(known, Choice) else known.high)) == (
        pytest.approx(high)
    )


def test_true_is_not_one() -> None:
    parameter = Parameter("p", Choice(1, True))
    assert (parameter.position(1), parameter.position(True)) == (0, 1)
    assert math.isnan(parameter.position("1"))


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_everything_is_drawn(wide: Importance, tmp_path: Path) -> None:
    saved = wide.save(tmp_path)
    assert {path.stem for path in saved if path.suffix == ".png"} == FIGURES
    table = pyarrow.parquet.read_table(tmp_path / "values.parquet").to_pydict()
    used = wide.points.numbers.tolist()
    assert table["trial"] == used
    assert len(table["position.lr"]) == len(used) == 38
    momentum = np.array(table["position.momentum"])
    assert np.isnan(momentum).sum() == 38 - wide.points.active[:, list(WIDE).index("momentum")].sum()
    shares = pyarrow.parquet.read_table(tmp_path / "importance.parquet").to_pydict()
    assert shares["parameter"][0] == "lr"
    assert sum(shares["share"]) == pytest.approx(2)


CASES: dict[str, tuple[dict[str, Range], int, dict[str, Any]]] = {
    "one trial": (WIDE, 1, {}),
    "all failed": (WIDE, 6, {"failed": range(6)}),
    "choices alone": ({"optimizer": WIDE["optimizer"], "batch_norm": WIDE["batch_norm"]}, 12, {}),
    "one parameter": ({"lr": WIDE["lr"]}, 9, {}),
    "two numbers": ({"lr": WIDE["lr"], "latent_dim": WIDE["latent_dim"]}, 9, {"pruning": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_unusual_searches_are_drawn_without_a_warning(case: str, tmp_path: Path) -> None:
    ranges, count, options = CASES[case]
    made = search(ranges, count, lambda p: bowl({"lr": 1e-3, **p}) + 0.01 * bool(p.get("batch_norm")), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = weigh_parameters(made, ranges, rungs=RUNGS)
        for figure in found.figures().values():
            figure.savefig(tmp_path / "figure.png", dpi=50)


def test_a_picture_shows_every_trial(wide: Importance) -> None:
    curves = wide.figures()["curves"].axes[0]
    assert len(curves.lines) == 38 + 1  # the best one twice, the second time thicker
    rungs = wide.figures()["rungs"].axes[0]
    assert sum(len(marks.get_offsets()) for marks in rungs.collections if hasattr(marks, "get_paths")) >= 40


# --- the command ------------------------------------------------------------------------------------------------------


def by_hand(folder: Path, **settings: Any) -> Any:
    """A search on disk: four complete trials, three that were stopped at the first rung, one failed."""
    study = open_by_hand(folder, **settings)
    for _ in range(8):
        one = study.propose()
        assert one is not None
        if one.number == 3:
            study.fail(3, "loss is nan")
        elif one.number % 2:
            study.report(one.number, record(1.0, distance(one)))
            study.prune(one.number, "rung 1: above")
        else:
            finish(study, one)
    return study


def test_the_command_saves_and_tells(tmp_path: Path) -> None:
    by_hand(tmp_path)
    done = CliRunner().invoke(app, ["importance", "by-hand", "--runs-dir", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "by-hand" / "analysis" / "importance"
    assert {path.stem for path in folder.glob("*.png")} == FIGURES
    assert f"{METRIC} at epoch 1" in done.output
    assert "trials used" in done.output
    again = CliRunner().invoke(
        app, ["importance", "by-hand", "--values", "complete", "--runs-dir", str(tmp_path)], catch_exceptions=False
    )
    assert "importance-2" in again.output
    assert "there are 4" in again.output


def test_mlflow_gets_it_in_the_run_of_the_search(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    study = by_hand(tmp_path, tracking_uri=store)
    assert make_tracker(study).close(study.ordered(), ()) == []
    words = ["importance", "by-hand", "--json", "--runs-dir", str(tmp_path)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "warning" not in done.output
    client = MlflowClient(store)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (parent,) = [run for run in client.search_runs(ids) if "latentune.trial" not in run.data.tags]
    assert {file.path for file in client.list_artifacts(parent.info.run_id, "analysis/importance")} >= {
        f"analysis/importance/{name}.png" for name in FIGURES
    }
    assert parent.data.metrics["importance.trials_used"] == 7
