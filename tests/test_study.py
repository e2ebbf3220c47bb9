"""The memory of a search by hand: what is told stands in the Optuna study, and comes back when it is opened again."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from studies import DO_NOTHING, METRIC, distance, finish, images, open_by_hand, optuna_view, record

from models.errors import LatentuneError, StorageError, UserError
from models.family import get_family
from models.numerics import derive_seed
from tuning.api import list_searches, load_search
from tuning.driver import Driver, Message
from tuning.results import Trial
from tuning.samplers import make_sampler
from tuning.study import SearchStudy, load_study, open_study
from tuning.tpe import Memory

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def proposed(study: SearchStudy) -> Trial:
    trial = study.propose()
    assert trial is not None
    return trial


def told(study: SearchStudy) -> list[optuna.trial.FrozenTrial]:
    return optuna_view(study).get_trials()


# --- proposing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_first_trial_is_the_default_config(tmp_path: Path, sampler: str) -> None:
    study = open_by_hand(tmp_path, sampler=sampler, set={"c": 0.25}, space={"d": "0.6..0.9"})
    trial = proposed(study)
    assert trial.number == 0
    assert trial.params == {"a": 0.5, "b": 0.5, "d": 0.6}, "d moves to the nearest end of its range"
    assert trial.config == {"batch_size": 32, "a": 0.5, "b": 0.5, "c": 0.25, "d": 0.6}
    assert trial.state == "running"
    assert trial.seed == derive_seed(0, "trial", 0)
    assert trial.fingerprint == images().spec.fingerprint
    (frozen,) = told(study)
    assert frozen.state == TrialState.RUNNING
    assert frozen.params == trial.params


def test_proposals_stay_inside_the_space_and_end_at_the_total(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path, trials=5, space={"a": "0.1..0.2", "b": "0.3,0.4", "c": "0..1:step=0.5"})
    for number in range(5):
        trial = proposed(study)
        assert trial.number == number
        assert set(trial.params) == {"a", "b", "c", "d"}
        assert 0.1 <= trial.params["a"] <= 0.2
        assert trial.params["b"] in (0.3, 0.4)
        assert trial.params["c"] in (0.0, 0.5, 1.0)
        finish(study, trial)
    assert study.propose() is None
    again = open_by_hand(tmp_path, trials=5, space={"a": "0.1..0.2", "b": "0.3,0.4", "c": "0..1:step=0.5"})
    assert again.propose() is None
    more = open_by_hand(tmp_path, trials=6, space={"a": "0.1..0.2", "b": "0.3,0.4", "c": "0..1:step=0.5"})
    assert proposed(more).number == 5
    assert more.propose() is None


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_proposals_depend_on_the_study_alone(tmp_path: Path, sampler: str) -> None:
    """Opened again before every trial, a search proposes what it would have proposed without that."""
    straight = open_by_hand(tmp_path / "straight", sampler=sampler, seed=3)
    for number in range(12):  # Optuna's samplers learn from the tenth on
        one = proposed(straight)
        broken = open_by_hand(tmp_path / "broken", sampler=sampler, seed=3)
        other = proposed(broken)
        assert (other.number, other.params, other.seed) == (number, one.params, one.seed)
        finish(straight, one)
        finish(broken, other)
    assert len({tuple(trial.params.values()) for trial in straight.ordered()}) == 12, "each proposal is a new one"
    different = open_by_hand(tmp_path / "different", sampler=sampler, seed=4)
    finish(different, proposed(different))
    assert proposed(different).params != straight.trials[1].params


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
@pytest.mark.parametrize("history", [1, 12])
@pytest.mark.parametrize("suggested", [0, 2])
def test_crash_between_asking_and_the_last_parameter(
    tmp_path: Path, sampler: str, history: int, suggested: int
) -> None:
    """The trial is there once. What was drawn stays; where that was nothing, it gets what it would have got."""
    whole, crashed = (open_by_hand(tmp_path / name, sampler=sampler) for name in ("whole", "crashed"))
    for study in (whole, crashed):
        for _ in range(history):
            finish(study, proposed(study))
    wanted = proposed(whole)
    bare = optuna_view(crashed)
    bare.sampler = make_sampler(sampler, 0, history, Memory())
    handle = bare.ask()
    for name in "abcd"[:suggested]:
        assert handle.suggest_float(name, 0.0, 1.0) == wanted.params[name]

    again = open_by_hand(tmp_path / "crashed", sampler=sampler)
    (left,) = again.unfinished()
    assert left.number == history
    resumed = again.resume(history)
    kept = set("abcd"[:suggested] or "abcd")
    assert {name: resumed.params[name] for name in kept} == {name: wanted.params[name] for name in kept}
    assert set(resumed.params) == set("abcd")
    assert all(0 <= value <= 1 for value in resumed.params.values())
    assert resumed.config == {"batch_size": 32, **resumed.params}
    assert resumed.seed == wanted.seed
    finish(again, resumed)
    assert proposed(again).number == history + 1
    assert [frozen.params for frozen in told(again)] == [trial.params for trial in again.ordered()]


def test_crash_after_queueing_the_default(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    optuna_view(study).enqueue_trial(study.space.default())
    again = open_by_hand(tmp_path)
    assert [trial.state for trial in again.ordered()] == ["queued"]
    assert again.unfinished() == []
    assert again.total == 20
    trial = proposed(again)
    assert (trial.number, trial.params) == (0, again.space.default())
    assert proposed(again).number == 1
    assert len(told(again)) == 2


def test_unfinished_trial_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    finish(study, proposed(study))
    trial = proposed(study)
    study.report(1, record(1.0, 0.4))
    again = open_by_hand(tmp_path)
    assert [left.number for left in again.unfinished()] == [1]
    resumed = again.resume(1)
    assert resumed == study.trials[1]
    assert again.report(1, record(1.0, 0.4)) == ()
    assert again.report(1, record(1.0, 0.4), record(2.0, 0.3)) == (record(2.0, 0.3),)
    finish_of_it = again.trials[1]
    assert [r.epoch for r in finish_of_it.records] == [1.0, 2.0]
    assert finish_of_it.started_s == pytest.approx(trial.started_s)
    assert proposed(again).number == 2, "numbers go on"


def test_records_that_come_together_are_as_far_apart_as_they_were_made(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    proposed(study)
    records = [replace(record(epoch, 1 / epoch), seconds=at) for epoch, at in ((1.0, 5.0), (1.5, 5.0), (2.0, 5.5))]
    assert study.report(0, *records) == tuple(records)
    first, second, last = study.trials[0].times
    assert last == pytest.approx(study.now(), abs=1)
    assert (last - second, second - first) == pytest.approx((0.5, 0.002))
    assert open_by_hand(tmp_path).trials[0].times == study.trials[0].times


# --- telling ---------------------------------------------------------------------------------------------------------


def test_complete_trial_in_optuna(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    trial = finish(study, proposed(study), [0.5, 0.2, 0.3])
    (frozen,) = told(study)
    assert frozen.state == TrialState.COMPLETE
    assert frozen.value == 0.2, "the best of the curve, whose weights are kept"
    assert frozen.intermediate_values == {1000: 0.5, 2000: 0.2, 3000: 0.3}
    assert (trial.state, trial.value, trial.epochs, trial.reason) == ("complete", 0.2, 3.0, None)
    assert [(epoch, value) for epoch, value, _ in trial.curve] == [(1.0, 0.5), (2.0, 0.2), (3.0, 0.3)]
    assert trial.started_s is not None
    assert trial.finished_s is not None
    assert 0 <= trial.started_s <= trial.times[0] <= trial.times[-1] <= trial.finished_s


def test_stopped_trial_is_pruned_with_every_value(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    proposed(study)
    for epoch, value in ((1 / 3, 0.9), (1.0, 0.8), (1.5, 0.85)):
        study.report(0, record(epoch, value, train_loss=0.1))
    study.prune(0, "rung 1.5: worse")
    (frozen,) = told(study)
    assert frozen.state == TrialState.PRUNED
    assert frozen.intermediate_values == {333: 0.9, 1000: 0.8, 1500: 0.85}
    assert frozen.user_attrs["reason"] == "rung 1.5: worse"
    trial = study.trials[0]
    assert (trial.state, trial.value, trial.reason) == ("pruned", 0.8, "rung 1.5: worse")
    assert load_search("by-hand", tmp_path).best is None, "a stopped trial never wins"


def test_failed_trial_keeps_curve_and_reason(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    proposed(study)
    study.report(0, record(1.0, 0.01))
    study.fail(0, "val_distance became nan")
    (frozen,) = told(study)
    assert frozen.state == TrialState.FAIL
    assert frozen.intermediate_values == {1000: 0.01}
    assert frozen.user_attrs["reason"] == "val_distance became nan"
    finish(study, proposed(study), [0.5, 0.5, 0.5])
    result = load_search("by-hand", tmp_path)
    assert result.best is not None
    assert result.best.number == 1, "a failed trial never wins, however good it looked"
    assert result.counts() == {"total": 2, "failed": 1, "complete": 1}


def test_trial_that_never_reported_its_objective_has_failed(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    proposed(study)
    study.report(0, record(3.0, None, train_loss=0.1))
    study.complete(0)
    assert study.trials[0].state == "failed"
    assert study.trials[0].reason == f"ended without reporting {METRIC}"
    assert told(study)[0].state == TrialState.FAIL
    assert told(study)[0].intermediate_values == {}
    assert [r.metrics for r in open_by_hand(tmp_path).trials[0].records] == [{"train_loss": 0.1}]


def test_maximised_objective_keeps_the_highest_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.do_nothing import DoNothing
    from models.family import Objective

    monkeypatch.setattr(DoNothing, "objective", Objective(METRIC, "max"))
    study = open_by_hand(tmp_path)
    assert optuna_view(study).direction == optuna.study.StudyDirection.MAXIMIZE
    finish(study, proposed(study), [0.2, 0.9, 0.5])
    finish(study, proposed(study), [0.2, 0.8, 0.85])
    assert [frozen.value for frozen in told(study)] == [0.9, 0.85]
    assert [trial.number for trial in load_search("by-hand", tmp_path).leaderboard()] == [0, 1]


def test_known_records_are_ignored(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    proposed(study)
    assert study.report(0, record(1.0, 0.5))
    before = study.config.study_file.read_bytes()
    for epoch, value in ((1.0, 0.7), (0.5, 0.1), (1.0, 0.5)):
        assert not study.report(0, record(epoch, value))
    assert study.config.study_file.read_bytes() == before
    assert len(study.trials[0].records) == 1


def test_records_that_lie_close_together_are_all_kept(tmp_path: Path) -> None:
    """``--max-epochs 27.01`` has rungs at 1.00037 and 3.0011, next to whole epochs."""
    study = open_by_hand(tmp_path, max_epochs=27.01)
    proposed(study)
    epochs = [1.0, 27.01 / 27, 2.0, 3.0, 27.01 / 9]
    for epoch in epochs:
        assert study.report(0, record(epoch, 1 / epoch))
    study.prune(0, "rung 3.0011: worse")
    again = open_by_hand(tmp_path, max_epochs=27.01)
    assert [r.epoch for r in again.trials[0].records] == epochs
    assert again.trials == study.trials
    assert list(told(study)[0].intermediate_values.values()) == [1 / epoch for epoch in epochs]


# --- opening again ---------------------------------------------------------------------------------------------------


def life(study: SearchStudy) -> None:
    """One trial of every kind."""
    finish(study, proposed(study), [0.1 + 0.2, 1e-17, 1 / 3])
    proposed(study)
    study.report(1, record(1.0, 0.9, train_loss=float("inf"), other=1e300))
    study.prune(1, "rung 1: ünwürdig [/] \n“quoted”")
    proposed(study)
    study.fail(2, "RuntimeError: " + "x" * 500)
    proposed(study)
    study.report(3, record(1 / 3, 0.123456789012345678))
    proposed(study)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_everything_is_there_when_opened_again(tmp_path: Path, sampler: str) -> None:
    study = open_by_hand(tmp_path, sampler=sampler, set={"b": 0.125})
    life(study)
    again = open_by_hand(tmp_path, sampler=sampler, set={"b": 0.125})
    assert again.trials == study.trials
    assert (again.id, again.began) == (study.id, study.began)
    assert [trial.number for trial in again.unfinished()] == [3, 4]
    loaded = load_search("by-hand", tmp_path)
    assert loaded.config == study.config
    assert [trial.state for trial in loaded.trials] == ["complete", "pruned", "failed", "interrupted", "interrupted"]
    assert [vars(trial) | {"state": ""} for trial in loaded.trials] == [
        vars(trial) | {"state": ""} for trial in study.ordered()
    ]


def test_folder_that_was_moved(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path / "old")
    finish(study, proposed(study))
    known = study.id
    (tmp_path / "old").rename(tmp_path / "new")
    loaded = load_search("by-hand", tmp_path / "new")
    assert loaded.run_dir == tmp_path / "new" / "by-hand"
    again = open_by_hand(tmp_path / "new")
    assert again.id == known
    assert proposed(again).number == 1


@pytest.mark.parametrize("kind", ["link", "file"])
def test_lock_of_a_killed_driver_delays_nobody(tmp_path: Path, kind: str) -> None:
    study = open_by_hand(tmp_path)
    finish(study, proposed(study))
    lock = Path(f"{study.config.study_file}.lock")
    lock.symlink_to(study.config.study_file) if kind == "link" else lock.touch()
    began = time.monotonic()
    again = open_by_hand(tmp_path)
    finish(again, proposed(again))
    assert time.monotonic() - began < 10, "Optuna's own patience is 30 s"
    assert len(told(again)) == 2


@pytest.mark.parametrize("torn", ['{"op_code":5,"worker_id":"x","tri', "\x00" * 40, '{"op_code": 8, "trial_id": 1}'])
def test_last_line_that_was_cut_off(tmp_path: Path, torn: str) -> None:
    study = open_by_hand(tmp_path)
    life(study)
    whole = study.config.study_file.read_bytes()
    with study.config.study_file.open("a") as file:
        file.write(torn)
    assert load_search("by-hand", tmp_path).counts()["total"] == 5, "can be looked at before it goes on"
    again = open_by_hand(tmp_path)
    assert again.trials == study.trials
    assert study.config.study_file.read_bytes().startswith(whole)
    again.resume(3)
    again.report(3, record(2.0, 0.5))
    again.prune(3, "rung 2")
    assert proposed(again).number == 5
    assert open_by_hand(tmp_path).trials == again.trials


def test_entry_that_was_cut_off_loses_nothing_but_itself(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    finish(study, proposed(study))
    proposed(study)
    study.report(1, record(1.0, 0.4))
    before = study.trials[1]
    study.report(1, record(2.0, 0.3))
    content = study.config.study_file.read_bytes()
    study.config.study_file.write_bytes(content[:-7])  # inside the entry of the value at epoch 2
    again = open_by_hand(tmp_path)
    assert again.trials[0] == study.trials[0]
    assert again.trials[1].records[:1] == before.records
    again.resume(1)
    again.report(1, record(2.0, 0.3))
    again.report(1, record(3.0, 0.2))
    again.complete(1)
    assert told(again)[1].value == 0.2
    assert open_by_hand(tmp_path).trials == again.trials


def test_other_images_are_refused(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    finish(study, proposed(study))
    with pytest.raises(UserError, match=r"--dataset.*was begun with other images") as caught:
        open_study(study.config, get_family(DO_NOTHING), images(65).spec)
    assert images(65).spec.fingerprint[:12] in str(caught.value)
    assert images().spec.fingerprint[:12] in str(caught.value)


def write_foreign(path: Path) -> None:
    optuna.create_study(storage=JournalStorage(JournalFileBackend(str(path))), study_name="theirs").ask()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "holds no search"),
        (Path.touch, "holds no search"),
        (lambda path: path.write_text("not\njson\nat all\n"), "cannot be read as a study"),
        (write_foreign, "that latentune did not make"),
    ],
)
def test_what_is_no_search(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    path = tmp_path / "theirs" / "study.journal"
    path.parent.mkdir()
    make(path)
    with pytest.raises(LatentuneError, match=message):
        load_study(path.parent)


def test_journal_that_cannot_be_written(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    path = study.config.study_file
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*study.journal"):
        open_study(study.config, study.family, study.spec)


def test_searches_of_a_folder_are_listed(tmp_path: Path) -> None:
    assert list_searches(tmp_path / "nothing") == []
    for name in ("b", "a", "c"):
        open_by_hand(tmp_path, name=name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "mlflow.db").touch()
    assert list_searches(tmp_path) == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"NAME: got 'aa'; no such search in .*; did you mean 'a'\? allowed: a, b, c"):
        load_search("aa", tmp_path)
    with pytest.raises(UserError, match="there are none"):
        load_search("a", tmp_path / "nothing")


# --- grid ------------------------------------------------------------------------------------------------------------

GRID: dict[str, Any] = {
    "sampler": "grid",
    "trials": None,
    "set": {"d": 0.5},
    "space": {"a": "0,0.5", "b": "0.5,1", "c": "0..1:step=0.5"},
}


def test_grid_is_covered_exactly_once_across_interruptions(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path, **GRID)
    assert study.total == 12
    first = finish(study, proposed(study))
    assert first.params == {"a": 0.5, "b": 0.5, "c": 0.5}, "the default is one of its points"
    finish(study, proposed(study))
    proposed(study)
    study.fail(2, "a failed point is done too")
    proposed(study)
    study = open_by_hand(tmp_path, **GRID)
    assert study.total == 12
    finish(study, study.resume(3))
    # Killed between queueing a point and asking for it.
    optuna_view(study).enqueue_trial({"a": 0.0, "b": 1.0, "c": 1.0})
    study = open_by_hand(tmp_path, **GRID)
    assert study.total == 12
    while (trial := study.propose()) is not None:
        finish(study, trial)
    points = [tuple(frozen.params.values()) for frozen in told(study)]
    assert len(points) == len(set(points)) == 12
    assert set(points) == {(a, b, c) for a in (0.0, 0.5) for b in (0.5, 1.0) for c in (0.0, 0.5, 1.0)}


def test_grid_of_fewer_trials_can_be_extended(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path, **{**GRID, "trials": 5})
    assert study.total == 5
    while (trial := study.propose()) is not None:
        finish(study, trial)
    study = open_by_hand(tmp_path, **{**GRID, "trials": 100})
    assert study.total == 12
    while (trial := study.propose()) is not None:
        finish(study, trial)
    assert len({tuple(frozen.params.values()) for frozen in told(study)}) == len(told(study)) == 12


# --- the driver over it ----------------------------------------------------------------------------------------------


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.changes: list[tuple[int, str, int]] = []

    def trial_changed(self, trial: Trial) -> None:
        self.changes.append((trial.number, trial.state, len(trial.records)))


def driver_of(study: SearchStudy, **more: Any) -> tuple[Driver, Heard]:
    heard = Heard()
    return Driver(study, [heard], **{"max_concurrent": 2, "deadline": None, **more}), heard


def start(driver: Driver) -> int:
    trial = driver.next_trial()
    assert trial is not None
    return trial.number


def test_messages_survive_the_way() -> None:
    for message in (
        Message(()),
        Message((record(1 / 3, 0.1, loss=1e-300), record(1.0, None)), "complete"),
        Message((), "failed", "because of [/] and “this”\n"),
    ):
        assert Message.from_json(message.to_json()) == message


def test_driver_stops_at_rungs_and_tells_all(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path, trials=3)
    driver, heard = driver_of(study)
    assert start(driver) == 0
    assert not driver.full
    assert start(driver) == 1
    assert driver.full
    assert driver.receive(0, Message((record(1.0, 0.2),))) is False
    assert driver.receive(1, Message((record(1.0, 0.3),))) is True
    assert study.trials[1].state == "pruned"
    assert study.trials[1].reason == "rung 1: 0.3 is above 0.2, the best 1/3 of 1"
    assert told(study)[1].intermediate_values == {1000: 0.3}
    assert driver.receive(1, Message((record(2.0, 0.0),))) is True, "it is over, whatever still comes"
    assert len(study.trials[1].records) == 1
    assert driver.receive(0, Message((record(2.0, 0.2), record(3.0, 0.1)), "complete")) is True
    assert not driver.finished
    assert start(driver) == 2
    assert driver.receive(2, Message((), "failed", "it broke")) is True
    assert driver.finished
    assert driver.outcome == "finished"
    assert driver.next_trial() is None
    assert heard.changes == [
        *[(0, "running", 0), (1, "running", 0), (0, "running", 1), (1, "pruned", 1)],
        *[(0, "complete", 3), (2, "running", 0), (2, "failed", 0)],
    ]


def test_trial_at_its_end_is_complete_even_where_the_rung_would_stop_it(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    driver, _ = driver_of(study)
    start(driver)
    start(driver)
    driver.receive(0, Message((record(1.0, 0.1),)))
    assert driver.receive(1, Message((record(1.0, 0.5),), "complete")) is True
    assert study.trials[1].state == "complete"


def test_driver_that_comes_after_a_crash_remembers_rungs_and_trials(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path, trials=4)
    driver, _ = driver_of(study)
    start(driver)
    driver.receive(0, Message((record(1.0, 0.2),)))
    start(driver)
    again = open_by_hand(tmp_path, trials=4)
    driver, _ = driver_of(again)
    assert not driver.finished
    assert [start(driver), start(driver)] == [0, 1], "first what was left"
    assert driver.receive(0, Message((record(1.0, 0.2), record(2.0, 0.2)))) is False, "not its own peer"
    assert driver.receive(1, Message((record(1.0, 0.21),))) is True
    assert study.trials[0].records == again.trials[0].records[:1]
    assert start(driver) == 2


def test_bad_disk_and_end_of_time_leave_trials_to_be_continued(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    driver, _ = driver_of(study)
    start(driver)
    driver.receive(0, Message((record(1.0, 0.2),)))
    assert driver.receive(0, Message((), "storage", "cannot write x: No space left on device")) is True
    assert driver.stopping
    assert isinstance(driver.error, StorageError)
    assert driver.next_trial() is None
    driver.lost(0, "its worker died")
    assert study.trials[0].state == "running", "the disk is to blame, not the trial"
    assert driver.receive(0, Message((record(2.0, 0.1),))) is True, "nothing more is written"
    assert [trial.number for trial in open_by_hand(tmp_path).unfinished()] == [0]

    late, _ = driver_of(open_by_hand(tmp_path), deadline=time.monotonic() - 1)
    assert late.stopping
    assert late.next_trial() is None
    assert late.outcome == "time budget"
    stopped, _ = driver_of(open_by_hand(tmp_path))
    stopped.interrupt(2)
    assert stopped.stopping
    assert stopped.outcome == "interrupted"


def test_journal_on_a_full_disk_ends_the_run_and_keeps_what_was_told(tmp_path: Path) -> None:
    """The file may grow by half an entry and no more; then there is room again."""
    from tuning.ray_tune import TuneScheduler

    study = open_by_hand(tmp_path, trials=2)
    driver, _ = driver_of(study)
    start(driver)
    driver.receive(0, Message((record(1.0, 0.2),)))
    before = study.config.study_file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 30, limits[1]))
    trial = SimpleNamespace(config={"number": 0})
    message = {"latentune": Message((record(2.0, 0.1),)).to_json()}
    try:
        assert TuneScheduler(driver).on_trial_result(None, trial, message) == "STOP"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(driver.error) == f"cannot write {study.config.study_file}: File too large"
    assert isinstance(driver.error, StorageError)
    assert driver.stopping
    with pytest.raises(StorageError, match="File too large"):  # memory knows of what the file does not
        study.complete(0)
    assert study.config.study_file.read_bytes() == before

    assert load_search("by-hand", tmp_path).trials[0].epochs == 1.0
    again = open_by_hand(tmp_path, trials=2)
    driver, _ = driver_of(again)
    assert start(driver) == 0
    driver.receive(0, Message((record(1.0, 0.2), record(2.0, 0.1), record(3.0, 0.15)), "complete"))
    assert [(epoch, value) for epoch, value, _ in open_by_hand(tmp_path, trials=2).trials[0].curve] == [
        *[(1.0, 0.2), (2.0, 0.1), (3.0, 0.15)],
    ]


def test_lost_workers_fail_a_trial_once_there_are_too_many(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path, trials=2)
    assert study.config.max_failures == 3
    driver, _ = driver_of(study)
    start(driver)
    for counts in (True, True, False, False, True):  # a lost node is nobody's fault
        driver.lost(0, "killed", counts=counts)
        assert (study.trials[0].state, driver.finished) == ("running", False)
        assert start(driver) == 0, "it goes on before a new trial begins"
    driver.lost(0, "killed")
    driver.lost(0, "again")
    assert (study.trials[0].state, study.trials[0].reason) == ("failed", "its worker died 4 times: killed")
    finish_number = start(driver)
    assert finish_number == 1
    driver.receive(finish_number, Message((record(3.0, distance(study.trials[1])),), "complete"))
    assert driver.finished


def test_journal_holds_plain_json(tmp_path: Path) -> None:
    study = open_by_hand(tmp_path)
    life(study)
    lines = study.config.study_file.read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
