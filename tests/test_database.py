"""Studies in PostgreSQL, of a real server: what holds with a journal holds there too, and while the server is away."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from helpers import (
    SLEEPY,
    assert_kept,
    assert_mirrored,
    assert_rule_was_remembered,
    assert_told_to_optuna,
    assert_went_on,
    ended,
    peek,
    ray_for_tests,
    run,
    running,
    states,
    with_test_families,
)
from servers import PASSWORD, Postgres, postgres_server
from studies import finish, open_by_hand, record

from models.errors import LatentuneError, StorageError, UserError
from tuning import database
from tuning.api import list_searches, load_search
from tuning.config import make_config, without_password
from tuning.lock import SearchLockedError
from tuning.results import SearchResult
from tuning.store import is_running
from tuning.study import SearchStudy

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server() as server:
        server.create("studies")
        yield server


@pytest.fixture
def url(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a database that all tests share, as people do; in the environment."""
    address = server.url("studies")
    monkeypatch.setenv("LATENTUNE_STUDY_URL", address)
    return address


@pytest.fixture
def opened(url: str, tmp_path: Path) -> Iterator[SearchStudy]:
    with closing(open_by_hand(tmp_path)) as study:
        yield study


def cut(server: Postgres) -> None:
    """Cut everybody's connection, as a restart of the network does."""
    others = "pid <> pg_backend_pid() AND usename IS NOT NULL"
    server.ask("studies", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")


def test_study_is_kept_in_the_database(opened: SearchStudy, tmp_path: Path) -> None:
    first = opened.propose()
    assert first is not None
    finish(opened, first, [0.4, 0.3, 0.35])
    for state in ("prune", "fail"):
        trial = opened.propose()
        assert trial is not None
        opened.report(trial.number, record(1.0, 0.9))
        getattr(opened, state)(trial.number, "why not")
    trial = opened.propose()
    assert trial is not None
    opened.report(trial.number, record(1.0, 0.5))
    now = load_search("by-hand", tmp_path)
    assert {trial.number: trial for trial in now.trials} == opened.trials
    assert states(now) == ["complete", "pruned", "failed", "running"]
    assert is_running(tmp_path / "by-hand")
    opened.close()
    assert not is_running(tmp_path / "by-hand")
    later = load_search("by-hand", tmp_path)
    assert states(later) == ["complete", "pruned", "failed", "interrupted"]
    assert_told_to_optuna(later)
    again = open_by_hand(tmp_path)
    assert again.trials == opened.trials
    assert again.resume(3).records == opened.trials[3].records
    assert not again.report(3, record(1.0, 0.5)), "it was known"
    again.report(3, record(2.0, 0.2))
    again.complete(3)
    again.close()
    assert load_search("by-hand", tmp_path).trials[3].value == 0.2
    assert not (tmp_path / "by-hand" / "study.journal").exists()


def test_one_driver_a_search(opened: SearchStudy, tmp_path: Path) -> None:
    with pytest.raises(SearchLockedError, match=rf"'by-hand' is already running: process {os.getpid()} of .*, since "):
        open_by_hand(tmp_path)
    open_by_hand(tmp_path, name="another").close()
    opened.close()
    open_by_hand(tmp_path).close()


def test_same_name_in_two_folders_is_two_searches(opened: SearchStudy, tmp_path: Path) -> None:
    finish(opened, opened.trials.get(0) or opened.propose())  # type: ignore[arg-type]
    other = open_by_hand(tmp_path / "colleague")
    assert other.id != opened.id
    assert other.trials == {}
    other.close()
    opened.close()
    shutil.move(tmp_path / "by-hand", tmp_path / "moved" / "by-hand")
    assert list_searches(tmp_path / "moved") == ["by-hand"]
    moved = open_by_hand(tmp_path / "moved")
    assert moved.id == opened.id
    assert moved.trials[0].value == opened.trials[0].value
    moved.close()


@pytest.mark.parametrize("trouble", ["cut", "restart"])
def test_connection_that_is_lost(opened: SearchStudy, server: Postgres, tmp_path: Path, trouble: str) -> None:
    """Between any two steps of a trial's life, without anybody noticing but by the time that it takes."""

    def disturb() -> None:
        if trouble == "cut":
            cut(server)
        else:
            server.stop()
            threading.Timer(1.0, server.start).start()

    trial = opened.propose()
    assert trial is not None
    finish(opened, trial)
    disturb()
    trial = opened.propose()
    assert trial is not None
    disturb()
    opened.report(trial.number, record(1.0, 0.5))
    disturb()
    opened.complete(trial.number)
    with pytest.raises(SearchLockedError):
        open_by_hand(tmp_path)
    opened.close()
    now = load_search("by-hand", tmp_path)
    assert {trial.number: trial for trial in now.trials} == opened.trials
    assert states(now) == ["complete", "complete"]
    assert_told_to_optuna(now)


def test_answer_that_is_lost(opened: SearchStudy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The server has done what it was asked for, but the connection ends before it says so."""
    from optuna.storages import RDBStorage
    from psycopg import OperationalError
    from sqlalchemy.exc import OperationalError as Wrapped

    def lose_answer(name: str) -> None:
        whole = getattr(RDBStorage, name)

        def losing(*args: object, **kwargs: object) -> object:
            whole(*args, **kwargs)
            monkeypatch.setattr(RDBStorage, name, whole)
            raise Wrapped("", {}, OperationalError("server closed the connection unexpectedly"))

        monkeypatch.setattr(RDBStorage, name, losing)

    for name in ("_create_new_trial", "set_trial_state_values", "set_trial_param", "set_trial_user_attr"):
        lose_answer(name)
        trial = opened.propose()
        assert trial is not None
        for lost in ("set_trial_user_attr", "set_trial_intermediate_value"):
            lose_answer(lost)
            opened.report(trial.number, record(1.0 + len(lost) / 100, 0.5))
        lose_answer("set_trial_state_values")
        opened.complete(trial.number)
    now = load_search("by-hand", tmp_path)
    assert {trial.number: trial for trial in now.trials} == opened.trials
    assert states(now) == ["complete"] * 4
    assert_told_to_optuna(now)


def test_server_that_stays_away(
    opened: SearchStudy, server: Postgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(database, "AWAY_S", 1.0)
    trial = opened.propose()
    assert trial is not None
    opened.report(trial.number, record(1.0, 0.5))
    server.stop()
    try:
        with pytest.raises(
            StorageError, match=r"the database postgresql://keeper@127.0.0.1:\d+/studies cannot be used"
        ):
            opened.report(trial.number, record(2.0, 0.4))
        with pytest.raises(LatentuneError, match="cannot be used"):
            load_search("by-hand", tmp_path)
    finally:
        server.start()
    opened.close()
    again = open_by_hand(tmp_path)
    assert again.trials[0].records == (record(1.0, 0.5),)
    again.resume(0)
    again.report(0, record(2.0, 0.4))
    again.complete(0)
    again.close()
    assert states(load_search("by-hand", tmp_path)) == ["complete"]


def test_search_taken_over_while_away(
    opened: SearchStudy, server: Postgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who has lost the lock writes nothing any more."""
    monkeypatch.setattr(database, "AWAY_S", 1.0)
    trial = opened.propose()
    assert trial is not None
    cut(server)
    other = open_by_hand(tmp_path)
    with pytest.raises(SearchLockedError, match="already running"):
        opened.report(trial.number, record(1.0, 0.5))
    assert load_search("by-hand", tmp_path).trials[0].records == ()
    other.close()


def test_other_database(opened: SearchStudy, server: Postgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened.close()
    monkeypatch.setenv("LATENTUNE_STUDY_URL", server.create("empty"))
    message = rf"/empty does not hold the study of 'by-hand', which was begun in .*:{server.port}/studies"
    with pytest.raises(LatentuneError, match=message):
        open_by_hand(tmp_path)
    monkeypatch.setenv("LATENTUNE_STUDY_URL", server.url("studies").replace(PASSWORD, "guessed"))
    with pytest.raises(StorageError, match="password authentication failed") as caught:
        open_by_hand(tmp_path)
    assert "guessed" not in str(caught.value)
    monkeypatch.delenv("LATENTUNE_STUDY_URL")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert load_search("by-hand", tmp_path).counts()["total"] == 0, "the run folder says where the study is"


def test_journal_stays_a_journal(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LATENTUNE_STUDY_URL")
    open_by_hand(tmp_path)
    monkeypatch.setenv("LATENTUNE_STUDY_URL", url)
    assert open_by_hand(tmp_path).config.study_file.exists()
    assert not (tmp_path / "by-hand" / "study.json").exists()
    with pytest.raises(UserError, match=r"--study-url.*has its study in .*study.journal"):
        open_by_hand(tmp_path, study_url=without_password(url))


def test_database_holds_nothing_that_could_be_run(opened: SearchStudy, server: Postgres) -> None:
    """Text, numbers and JSON: no column could hold a pickle."""
    trial = opened.propose()
    assert trial is not None
    finish(opened, trial)
    columns = "SELECT count(*), count(*) FILTER (WHERE data_type = 'bytea') FROM information_schema.columns"
    ((columns_, binary),) = server.ask("studies", f"{columns} WHERE table_schema = 'public'")
    assert isinstance(columns_, int)
    assert columns_ > 20
    assert binary == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("postgresql://me:hidden@host/db", "must not hold a password"),
        ("postgresql://host/db?user=me&password=hidden", "must not hold a password"),
        ("sqlite:///study.db", "must be PostgreSQL"),
        ("mysql://host/db", "must be PostgreSQL"),
    ],
)
def test_addresses_that_are_refused(given: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"study_url: .*{told}") as caught:
        make_config({"family": "conv_autoencoder", "study_url": given})
    assert "hidden" not in str(caught.value)
    if "hidden" not in given:
        monkeypatch.setenv("LATENTUNE_STUDY_URL", given)
        with pytest.raises(UserError, match=rf"LATENTUNE_STUDY_URL: .*{told}"):
            open_by_hand(tmp_path)


SLOW = ("--set", "seconds=0.1", "--max-epochs", "4", "--reduction-factor", "2", "--train-images", "96")
"""Three steps and 0.3 s an epoch, and one rung, at epoch 2."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_searches_and_mlflow_in_one_server(
    server: Postgres, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two drivers at once: one is killed and goes on, then the server is restarted under both. MLflow is there too."""
    tracking = server.create("mlflow")
    printed = []
    with ray_for_tests() as cluster:
        env = {**with_test_families(), "LATENTUNE_STUDY_URL": url, "MLFLOW_TRACKING_URI": tracking}
        words = {
            name: ("search", SLEEPY, "--name", name, "--trials", "6", "--max-concurrent", "1", "--address", cluster)
            for name in ("here", "there")
        }
        with running(*words["here"], *SLOW, "--quiet", cwd=tmp_path, env=env) as here:
            here.wait_until(lambda: begun_and_one_ended(peek(tmp_path, "here")))
            here.kill()
            printed.append(here.stderr)
        left = load_search("here", tmp_path / "runs")
        with (
            running(*words["there"], *SLOW, "--quiet", cwd=tmp_path, env=env) as there,
            running(*words["here"], cwd=tmp_path, env=env) as here,
        ):
            here.wait_until(lambda: "running" in states(peek(tmp_path, "here")))
            second = run(*words["here"], cwd=tmp_path, env=env, code=2)
            assert f"already running: process {here.pid} of " in second.stderr
            commands = [path.read_bytes() for path in commands_running()]
            assert not any(PASSWORD.encode() in command for command in commands)
            there.wait_until(lambda: begun_and_one_ended(peek(tmp_path, "there")))
            server.stop()
            time.sleep(2.0)  # a while in which reports have to wait
            server.start()
            for driver in (here, there):
                done = driver.finish()
                assert done.returncode == 0, done.stderr
                printed += [done.stdout, done.stderr]
    assert "interrupted" in states(left)
    for name in ("here", "there"):
        result = load_search(name, tmp_path / "runs")
        assert len(result.trials) == ended(result) == 6
        assert set(states(result)) <= {"complete", "pruned"}
        assert_went_on(result)
        assert_rule_was_remembered(result)
        assert_told_to_optuna(result)
        assert_mirrored(result, tracking, alone=False)
    assert_kept(left.trials, load_search("here", tmp_path / "runs"))
    assert not any("warning" in text for text in printed)

    # The password is nowhere.
    assert not any(PASSWORD in text for text in printed)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert PASSWORD.encode() not in path.read_bytes(), path
    for name in ("studies", "mlflow"):
        assert PASSWORD not in server.dump(name)


def begun_and_one_ended(result: SearchResult | None) -> bool:
    return result is not None and ended(result) > 0 and any(t.state == "running" and t.records for t in result.trials)


def commands_running() -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)]
