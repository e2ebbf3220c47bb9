"""Trials side by side: numbers against NumPy, refusals, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from helpers import without_ray
from typer.testing import CliRunner, Result

from analysis import Candidate, compare
from models.datasets import load_training_data
from models.errors import LatentuneError, UserError
from tuning import cli
from tuning.api import load_search, search
from tuning.results import SearchResult

DATA = {"source": "digits", "train_images": 200, "val_images": 50}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three searches: two families that share a metric, and one that has none in common with them."""
    folder = tmp_path_factory.mktemp("runs")
    settings: dict[str, Any] = {"data": DATA, "runs_dir": str(folder), "tracking_uri": "none", "progress": "none"}
    settings |= {"pictures": False, "scheduler": "none"}
    with without_ray():
        search("conv_autoencoder", name="cae", trials=3, max_epochs=2, set={"dropout": 0.5}, **settings)
        search("vae", name="vae", trials=1, max_epochs=1, **settings)
        search("mlp_classifier", name="mlp", trials=1, max_epochs=1, **settings)
    return folder


@pytest.fixture(scope="module")
def cae(runs: Path) -> SearchResult:
    return load_search("cae", runs)


def candidates(result: SearchResult) -> list[Candidate]:
    return [Candidate(f"trial {t.number}", t, t.load(), result.config.data) for t in result.trials]


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words), env={"COLUMNS": "200", "TERM": "dumb"})


def test_errors_and_gap_are_what_numpy_computes(cae: SearchResult) -> None:
    data = load_training_data(cae.config.data)
    result = compare(candidates(cae))
    assert (result.metric, result.mode) == ("mse", "min")
    for trial, row in zip(cae.trials, result.rows, strict=True):
        network: Any = trial.load().network
        errors = []
        for part in (data.train, data.val):
            images = part.images.astype(np.float32) / 255
            with torch.no_grad():
                errors.append(np.square(network(torch.from_numpy(images)).numpy() - images).mean())
        assert row.train["mse"] == pytest.approx(errors[0], rel=1e-4)
        assert row.validation["mse"] == pytest.approx(errors[1], rel=1e-4)
        assert row.gap("mse") == pytest.approx(errors[1] - errors[0], abs=1e-6)
        assert row.validation["mse"] == trial.value
        assert row.train["mse"] != trial.records[-1].metrics["train_loss"], (
            "that one is of changing weights, with dropout"
        )
        assert row.parameters == sum(parameter.numel() for parameter in network.parameters())
        assert row.seconds == trial.records[-1].seconds
        assert [(epoch, value) for epoch, value, _ in row.curve] == [(e, v) for e, v, _ in trial.curve]


def test_differing_fields_are_those_that_differ(cae: SearchResult) -> None:
    result = compare(candidates(cae))
    configs = [trial.config for trial in cae.trials]
    assert set(result.differing) == {name for name in configs[0] if len({str(c[name]) for c in configs}) > 1}
    assert "dropout" not in result.differing
    table = result.tables()["trials"]
    assert table["config_lr"] == [config["lr"] for config in configs]


def test_files(cae: SearchResult, tmp_path: Path) -> None:
    files = compare(candidates(cae)).save(tmp_path)
    assert {file.name for file in files} >= {"compare.json", "learning.png", "errors.png", "trials.parquet"}
    curves = pyarrow.parquet.read_table(tmp_path / "curves.parquet").to_pydict()
    assert curves["epoch"] == [1.0, 2.0] * 3 or len(curves["epoch"]) > 6
    metrics = pyarrow.parquet.read_table(tmp_path / "metrics.parquet").to_pydict()
    np.testing.assert_allclose(metrics["gap"], np.subtract(metrics["validation"], metrics["train"]))


def test_bests_of_searches_are_compared_by_what_they_share(runs: Path) -> None:
    done = invoke("compare", "cae", "vae", "--runs-dir", str(runs), "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["metric"] == "mse"
    assert [trial["family"] for trial in told["trials"]] == ["conv_autoencoder", "vae"]
    assert [trial["val_mse"] - trial["train_mse"] for trial in told["trials"]] == [t["gap"] for t in told["trials"]]
    with pytest.raises(UserError, match="no metric in common"):
        invoke_or_raise("compare", "cae", "mlp", "--runs-dir", str(runs))


def test_the_commands_table_and_folder(runs: Path) -> None:
    done = invoke("compare", "cae", "--runs-dir", str(runs), "--trials", "2,0")
    assert done.exit_code == 0, done.output
    assert done.stdout.index("trial 2") < done.stdout.index("trial 0")
    assert "gap is validation - training" in done.stdout
    assert (runs / "cae" / "analysis" / "compare" / "errors.png").is_file()


def invoke_or_raise(*words: str) -> None:
    done = invoke(*words)
    assert done.exception is not None, done.output
    raise done.exception


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cae", "--trials", "0"], "at least two"),
        (["cae", "--trials", "0,0"], "name each trial once"),
        (["cae", "--trials", "0,x"], "write numbers with commas"),
        (["cae", "--trials", "0,9"], "cae has the trials 0 to 2"),
        (["cae", "vae", "--trials", "0,1"], "goes with one search"),
        (["cae", "cea"], "no such search"),
        (["cae", "--metric", "elbo"], "all of them have: mse"),
        (["cae", "cae"], "name each trial once"),
    ],
)
def test_mistakes(runs: Path, words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        invoke_or_raise("compare", *words, "--runs-dir", str(runs))


def test_what_has_no_checkpoint_is_refused(cae: SearchResult) -> None:
    first, second, _ = candidates(cae)
    with pytest.raises(UserError, match="must come from a checkpoint"):
        compare([first, replace(second, model=second.trial.load().network)])  # type: ignore[attr-defined]
    with pytest.raises(LatentuneError, match="no such file"):
        compare([first, replace(second, model="no.pt")])
