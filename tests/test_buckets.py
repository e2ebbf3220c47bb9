"""Run folders in a bucket of an S3-compatible server, with the study in PostgreSQL: everything works as in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    SLEEPY,
    assert_kept,
    assert_mirrored,
    assert_told_to_optuna,
    assert_went_on,
    ended,
    ray_for_tests,
    read_json,
    run,
    running,
    states,
    with_test_families,
    without_ray,
)
from servers import PASSWORD, Bucket, Postgres, postgres_server, s3_server

from models.errors import CheckpointError, UserError
from models.numerics import Numerics
from models.places import place
from models.training import Budget, DataOnDevice
from tuning import replay, search
from tuning.api import list_searches, load_search
from tuning.results import SearchResult
from tuning.trial import Assignment, train_trial
from tuning.ui import serve

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SMALL: dict[str, Any] = {
    "data": {"source": "digits", "train_images": 96, "val_images": 32},
    "max_epochs": 2,
    "reduction_factor": 2,
    "max_concurrent": 1,
    "progress": "none",
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """In the environment too, where this process and those that it starts find it."""
    with s3_server() as bucket, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        yield bucket


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTUNE_STUDY_URL", server.create("studies"))
        yield server


def test_what_a_bucket_cannot_hold(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, and nothing is left there."""
    monkeypatch.delenv("LATENTUNE_STUDY_URL", raising=False)
    runs = f"{bucket.url}/refused"
    with pytest.raises(UserError) as caught:
        search(SLEEPY, name="it", runs_dir=runs, **SMALL)
    told = {problem.field: problem.allowed for problem in caught.value.problems}
    assert told.keys() == {"--study-url", "--tracking-uri"}
    assert told["--study-url"].endswith("a bucket can hold neither the study nor its lock")
    assert told["--tracking-uri"].startswith("must be given with runs in a bucket")
    assert not list(place(bucket.url).rglob("*"))
    assert list_searches(runs) == []
    with pytest.raises(UserError, match="--tracking-uri: must be given, or MLFLOW_TRACKING_URI: a bucket holds no"):
        serve(runs, None, "127.0.0.1", 5000, print)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nothing://bucket/runs", "a URL that fsspec knows"),
        ("memory://bucket/runs", "a URL that other processes reach"),
        ("file:///tmp/runs", "a URL that other processes reach"),
        ("s3://no-such-bucket-of-ours/runs", "must be writable"),
        ("s3://me:hidden@bucket/runs", "must not hold a password"),
    ],
)
def test_urls_that_are_refused(bucket: Bucket, given: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        search(SLEEPY, name="it", runs_dir=given, tracking_uri="none", study_url="postgresql://127.0.0.1/x", **SMALL)
    assert told in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.slow
def test_damaged_objects(bucket: Bucket, database: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    """A finished trial's is told by whoever wants it; an unfinished one's is set aside, and the trial begins again."""
    runs = f"{bucket.url}/damaged"
    settings = {"name": "it", "runs_dir": runs, "tracking_uri": "none", "pictures": False, **SMALL}
    with without_ray():
        result = search(SLEEPY, trials=2, **settings)
        assert states(result)[0] == "complete"
        again = load_search("it", runs)
        assert again.trials == result.trials
        trial = again.trials[0]
        assert trial.checkpoint is not None
        assert str(trial.checkpoint) == f"{runs}/it/trials/0000/checkpoint.pt"
        content = trial.checkpoint.read_bytes()
        trial.checkpoint.write_bytes(content[: len(content) // 2])
        with pytest.raises(
            CheckpointError, match=r"s3://.*/0000/checkpoint.pt: not a latentune checkpoint, or damaged"
        ):
            trial.load()
        (place(runs) / "it" / "trials" / "0002" / "checkpoint.pt").write_bytes(b"half of")
        result = search(SLEEPY, trials=3, **settings)
    assert result.trials[2].state in ("complete", "pruned")
    assert "starting the trial again" in caplog.text
    assert (place(runs) / "it" / "trials" / "0002" / "checkpoint.damaged").read_bytes() == b"half of"
    trial.checkpoint.unlink()
    assert load_search("it", runs).trials[0].checkpoint is None


def test_bucket_that_refuses(bucket: Bucket, digits: DataOnDevice) -> None:
    """The trial is not to blame: it stays unfinished, and the search ends."""
    path = place("s3://no-such-bucket-of-ours/runs/it/trials/0000/checkpoint.pt")
    config = {"filters": 4, "latent_dim": 2}
    (message,) = train_trial(Assignment("conv_autoencoder", Budget(1), Numerics()), digits, config, 0, path)
    assert message.state == "storage"
    assert message.reason is not None
    assert message.reason.startswith(f"cannot write {path}: ")
    assert not message.records, "what is not kept is not told"


def peek(runs: str, name: str) -> SearchResult | None:
    try:
        return load_search(name, runs)
    except Exception:  # the study is being made
        return None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_search_in_a_bucket(bucket: Bucket, database: Postgres, tmp_path: Path) -> None:
    """Two workers; killed, continued, extended; then every command that looks at it."""
    runs, tracking = f"{bucket.url}/runs", database.create("mlflow")
    slow = ("--set", "seconds=0.3", "--max-epochs", "4", "--reduction-factor", "2", "--train-images", "96")
    command = ("search", SLEEPY, "--dataset", "digits", "--name", "far", "--quiet")
    with ray_for_tests() as cluster:
        env = {
            **with_test_families(),
            "LATENTUNE_RUNS_DIR": runs,
            "LATENTUNE_STUDY_URL": os.environ["LATENTUNE_STUDY_URL"],
            "PGPASSWORD": PASSWORD,  # for MLflow; of its address the search remembers the rest
        }
        options = ("--trials", "4", "--address", cluster, "--tracking-uri", "none")
        with running(*command, *slow, *options, cwd=tmp_path, env=env) as driver:
            driver.wait_until(
                lambda: (
                    (now := peek(runs, "far")) is not None
                    and any(trial.state == "running" and trial.records for trial in now.trials)
                )
            )
            driver.kill()
        left = load_search("far", runs)
        assert "interrupted" in states(left)
        assert list_searches(runs) == ["far"]
        for trials in ("4", "5"):
            options = ("--trials", trials, "--address", cluster, "--tracking-uri", tracking.replace(f":{PASSWORD}", ""))
            done = run(*command, *options, cwd=tmp_path, env=env)
            assert "warning" not in done.stderr
    result = load_search("far", runs)
    assert ended(result) == len(result.trials) == 5
    assert_kept(left.trials, result)
    assert_went_on(result)
    assert_told_to_optuna(result)

    run("best", "far", "--export", "best.pt", cwd=tmp_path, env=env)
    best = result.best
    assert best is not None
    assert best.checkpoint is not None
    assert (tmp_path / "best.pt").read_bytes() == best.checkpoint.read_bytes()
    told = read_json(run("evaluate", "far", "--json", cwd=tmp_path, env=env).stdout)
    assert told["folder"] == f"{runs}/far/analysis/trial-{best.number:04d}/evaluate"
    assert "not take the results" not in json.dumps(told)
    run("report", "far", cwd=tmp_path, env=env)
    page = (place(runs) / "far" / "report.html").read_text()
    assert f"latentune search {SLEEPY} --name far --runs-dir {runs}" in page
    assert "Evaluate of trial" in page
    assert replay("far", best.number, runs).identical
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "something went into the working directory"
    assert_mirrored(result, tracking)
