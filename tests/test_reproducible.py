"""Same seed, same search; every sampler and scheduler; grids; trials in trouble. All on one Ray."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    SLEEPY,
    assert_kept,
    assert_rule_was_remembered,
    assert_told_to_optuna,
    assert_went_on,
    ended,
    peek,
    ray_for_tests,
    running,
    states,
    with_test_families,
    without_ray,
)

from models.family import get_family
from tuning import cli, search
from tuning.api import load_search
from tuning.config import space_of
from tuning.results import SearchResult

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

DO_NOTHING = "benchmarks.do_nothing:DoNothing"
QUIET: dict[str, Any] = {"tracking_uri": "none", "progress": "none", "pictures": False}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    """Address of the Ray that all searches here run on."""
    with ray_for_tests() as address:
        yield address


COMBINATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("tpe", "asha", {}),
    ("gp", "hyperband", {}),
    ("random", "median", {}),
    ("qmc", "none", {}),
    ("grid", "asha", {"space": {"a": "0.1,0.3,0.5", "b": "0.1,0.5"}, "set": {"c": 0.3, "d": 0.3, "batch_size": 32}}),
]


@pytest.mark.parametrize(("sampler", "scheduler", "settings"), COMBINATIONS)
def test_every_sampler_and_scheduler_completes_a_search(
    sampler: str, scheduler: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    trials = 6 if sampler == "grid" else 13  # TPE draws at random up to the tenth
    # Ray is not what differs; on it trials run two at a time.
    with nullcontext() if sampler in ("tpe", "gp") else without_ray():
        result = search(
            DO_NOTHING,
            runs_dir=tmp_path,
            trials=trials,
            max_epochs=3,
            data={"train_images": 40},
            sampler=sampler,
            scheduler=scheduler,
            **settings,
            **QUIET,
        )
    assert isinstance(result, SearchResult)
    assert (result.outcome, len(result.trials), ended(result)) == ("finished", trials, trials)
    assert result.name == "DoNothing-digits-001"
    assert {t.state for t in result.trials} <= ({"complete"} if scheduler == "none" else {"complete", "pruned"})
    assert len({str(trial.params) for trial in result.trials}) == trials
    default = result.trials[0].config
    assert (default["a"], default["b"]) == (0.5, 0.5)
    for trial in result.trials:
        distance = sum((trial.config[name] - 0.3) ** 2 for name in "abcd")
        assert trial.value == pytest.approx(distance, abs=1e-6)
    assert result.best is not None
    assert result.best.value == min(t.value for t in result.trials if t.state == "complete" and t.value is not None)
    assert_told_to_optuna(result)
    assert_rule_was_remembered(result)
    if sampler == "grid":
        assert_covers_grid(result)


def test_search_stays_a_function() -> None:
    """Modules of the package must not take its place once they are imported."""
    import tuning

    assert tuning.search is search
    assert callable(tuning.load_search)
    assert callable(tuning.replay)


def test_seed_decides_everything(tmp_path: Path) -> None:
    def outline(name: str, seed: int) -> list[object]:
        result = search(
            SLEEPY,
            name=name,
            runs_dir=tmp_path,
            seed=seed,
            trials=4,
            max_epochs=2,
            max_concurrent=1,
            data={"train_images": 64},
            **QUIET,
        )
        return [(t.state, t.params, t.seed, [r.metrics for r in t.records]) for t in result.trials]

    first = outline("first", 1)
    with without_ray():
        assert outline("again", 1) == first
        other = outline("other", 2)
    assert all(a != b for a, b in zip(first, other, strict=True))


def assert_covers_grid(result: SearchResult) -> None:
    """Every point of the grid is one trial, and there are no others."""
    points = [str(sorted(point.items())) for point in space_of(result.config, get_family(result.config.family)).grid()]
    assert sorted(str(sorted(trial.params.items())) for trial in result.trials) == sorted(points)


@pytest.mark.slow
def test_grid_is_covered_exactly_once(tmp_path: Path, cluster: str) -> None:
    """Killed half-way, continued with fewer trials than the grid has, and then with more than that."""
    settings = ("--sampler", "grid", "--scheduler", "none", "--set", "lr=0.5", "--set", "seconds=0.1")
    small = ("--max-epochs", "2", "--train-images", "96", "--tracking-uri", "none", "--address", cluster)
    with running(
        "search", SLEEPY, "--name", "grid", *settings, *small, cwd=tmp_path, env=with_test_families()
    ) as driver:
        driver.wait_until(
            lambda: (
                ended(now := peek(tmp_path, "grid")) >= 1
                and now is not None
                and any(trial.state == "running" and trial.records for trial in now.trials)
            )
        )
        driver.kill()
    left = load_search("grid", tmp_path / "runs")
    assert 1 < len(left.trials) < 5
    assert "interrupted" in states(left)
    fewer = search(name="grid", runs_dir=tmp_path / "runs", trials=5, **QUIET)
    assert (fewer.outcome, len(fewer.trials), ended(fewer)) == ("finished", 5, 5)
    assert_kept(left.trials, fewer)
    with without_ray():
        result = search(name="grid", runs_dir=tmp_path / "runs", trials=100, **QUIET)
    assert_kept(fewer.trials, result)
    assert set(states(result)) == {"complete"}
    assert len(result.trials) == 6, "kind (2) x latent_dim (2), and noise (2) only where noisy"
    assert_covers_grid(result)
    assert_went_on(result)
    assert [trial.params for trial in result.trials].count({"kind": "plain", "latent_dim": 2}) == 1, "the default"


TROUBLE: dict[str, tuple[str, str]] = {
    "none": ("complete", ""),
    "not_a_number": ("failed", r"train_loss became nan by epoch 2"),
    "minus_infinity": ("failed", r"val_mse became -inf"),
    "raise": ("failed", r"RuntimeError: the third wheel came off \(traceback: .*error\.txt\)"),
    "kill": ("complete", ""),
}


def test_trials_in_trouble_leave_the_others_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "killed"
    result = search(
        SLEEPY,
        name="trouble",
        runs_dir=tmp_path,
        sampler="grid",
        scheduler="none",
        max_epochs=3,
        data={"train_images": 64},
        space={"trouble": ",".join(TROUBLE)},
        set={"kind": "plain", "latent_dim": 2, "lr": 0.5, "marker": str(marker)},
        **QUIET,
    )
    assert (result.outcome, len(result.trials)) == ("finished", len(TROUBLE))
    by_trouble = {trial.config["trouble"]: trial for trial in result.trials}
    for trouble, (state, reason) in TROUBLE.items():
        trial = by_trouble[trouble]
        assert trial.state == state, f"{trouble}: {trial.reason}"
        assert bool(trial.reason) == (state == "failed")
        assert trial.reason is None or re.search(reason, trial.reason), trial.reason
    assert [len(by_trouble[trouble].records) for trouble in TROUBLE] == [3, 1, 0, 1, 3]
    assert result.best is not None
    assert result.best.config["trouble"] in ("none", "kill")
    assert marker.exists(), "no worker was killed"
    assert capfd.readouterr().out == "", "what Ray says of dead workers would stand between results"
    # Went on from its checkpoint: the history in it begins with what was reported before its process died.
    assert_went_on(result)
    assert_told_to_optuna(result)
    assert "the third wheel came off" in (tmp_path / "trouble" / "trials" / "0003" / "error.txt").read_text()


def test_search_without_any_success_ends_with_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--trials", "2", "--max-epochs", "2", "--scheduler", "none", "--tracking-uri", "none"]
    trouble = ["--train-images", "64", "--set", "trouble=raise"]
    monkeypatch.setattr(sys, "argv", ["latentune", "search", SLEEPY, "--name", "lost", *trouble, *options])
    with without_ray(), pytest.raises(SystemExit) as stop:
        cli.run()
    assert stop.value.code == 1
    told = capfd.readouterr()
    assert "the third wheel came off" in told.out
    assert states(load_search("lost", "runs")) == ["failed", "failed"]


@pytest.mark.slow
def test_worker_that_always_dies_is_given_up(tmp_path: Path) -> None:
    result = search(
        SLEEPY,
        runs_dir=tmp_path,
        sampler="grid",
        scheduler="none",
        max_epochs=2,
        data={"train_images": 64},
        space={"trouble": "none,kill"},
        set={"kind": "plain", "latent_dim": 2, "lr": 0.5, "marker": os.devnull + "/x"},
        **QUIET,
    )
    assert sorted(states(result)) == ["complete", "failed"]
    (lost,) = (trial for trial in result.trials if trial.state == "failed")
    assert lost.reason is not None
    assert lost.reason.startswith("its worker died 4 times")
