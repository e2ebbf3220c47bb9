"""A driver may die between any two of its writes, or in the middle of one: the journal up to there is what is left.

Without Ray: trials are trained here, one after the other, by the function that workers run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SLEEPY, assert_kept, assert_rule_was_remembered, assert_told_to_optuna, without_ray
from optuna.storages.journal import JournalFileBackend
from PIL import Image

from models.errors import UserError
from tuning import search
from tuning.api import load_search
from tuning.journal import OneWriter
from tuning.results import ENDED, SearchResult


@pytest.fixture(autouse=True)
def _without_ray() -> Iterator[None]:
    with without_ray():
        yield


pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SETTINGS: dict[str, dict[str, Any]] = {
    # Stopped trials, failed ones and complete ones.
    "tpe": {"trials": 4, "space": {"trouble": "none,raise"}},
    "grid": {"sampler": "grid", "scheduler": "none", "set": {"lr": 0.5, "latent_dim": 2}},
}


def go(runs: Path, sampler: str) -> SearchResult:
    settings = {"max_epochs": 3, "reduction_factor": 3, "data": {"train_images": 64}, "seed": 1, **SETTINGS[sampler]}
    return search(SLEEPY, name="it", runs_dir=runs, tracking_uri="none", progress="none", pictures=False, **settings)


def outline(result: SearchResult) -> list[object]:
    """What an interruption must not change."""
    return [(t.number, t.state, t.params, t.value, [r.metrics for r in t.records]) for t in result.trials]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SearchResult]:
    """The same searches, never interrupted."""
    with without_ray():
        return {sampler: go(tmp_path_factory.mktemp(sampler), sampler) for sampler in SETTINGS}


@pytest.mark.parametrize("writes", [*range(1, 8), 12])
def test_killed_while_the_search_is_made(
    writes: int, wholes: dict[str, SearchResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    done = 0

    def counted(write: Callable[..., None]) -> Callable[..., None]:
        def counting(*args: Any) -> None:
            nonlocal done
            done += 1
            if done >= writes:
                raise Killed
            write(*args)

        return counting

    with monkeypatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", counted(JournalFileBackend.append_logs))
        patch.setattr(OneWriter, "_write", counted(OneWriter._write))
        with pytest.raises(Killed):
            go(tmp_path, "tpe")
    assert outline(go(tmp_path, "tpe")) == outline(wholes["tpe"])


@pytest.mark.parametrize("sampler", SETTINGS)
def test_killed_between_any_two_writes(sampler: str, wholes: dict[str, SearchResult], tmp_path: Path) -> None:
    whole = wholes[sampler]
    assert {trial.state for trial in whole.trials} == (
        {"complete", "pruned", "failed"} if sampler == "tpe" else {"complete"}
    )
    lines = whole.config.study_file.read_bytes().splitlines(keepends=True)
    made = next(number for number, line in enumerate(lines) if b'"config"' in line) + 1
    for kept in range(made, len(lines)):
        runs = tmp_path / str(kept)
        journal = runs / "it" / "study.journal"
        journal.parent.mkdir(parents=True)
        # Every other time in the middle of a line; and an unfinished trial's checkpoint is ahead of the study, or lost.
        torn = lines[kept][: len(lines[kept]) // 2] if kept % 2 else b""
        journal.write_bytes(b"".join(lines[:kept]) + torn)
        for trial in load_search("it", runs).trials:
            if trial.state in ENDED or kept % 4 < 2:
                folder = f"trials/{trial.number:04d}"
                shutil.copytree(whole.run_dir / folder, journal.parent / folder)
        before = load_search("it", runs)
        again = go(runs, sampler)
        assert_kept(before.trials, again)
        # In the middle of a proposal (milliseconds) what was drawn so far stays; what is drawn anew may be different.
        half_drawn = any(trial.started_s is None and trial.params for trial in before.trials) and sampler == "tpe"
        assert half_drawn or outline(again) == outline(whole), f"after {kept} lines"
        assert_told_to_optuna(again)
        assert_rule_was_remembered(again)
        shutil.rmtree(runs)
    assert kept > 40


def test_other_images_under_the_same_name_are_refused(tmp_path: Path) -> None:
    """The settings are the same, but one pixel of the pictures is not."""

    def paint(value: int) -> None:
        for label in "ab":
            for number in range(8):
                path = tmp_path / "pictures" / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full((28, 28), 10 * number + ord(label), dtype=np.uint8)
                pixels[0, 0] = value
                Image.fromarray(pixels).save(path)

    def go_on() -> SearchResult:
        settings: dict[str, Any] = {"tracking_uri": "none", "progress": "none", "pictures": False}
        source = f"images:{tmp_path / 'pictures'}"
        return search(SLEEPY, dataset=source, name="it", runs_dir=tmp_path, trials=1, max_epochs=2, **settings)

    paint(3)
    before = go_on()
    assert go_on().trials == before.trials
    paint(4)
    journal = before.config.study_file.read_bytes()
    with pytest.raises(UserError, match="was begun with other images"):
        go_on()
    assert before.config.study_file.read_bytes() == journal
