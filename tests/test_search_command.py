"""The installed command from one end to the other: a search of the embedded digits, and all that it leaves behind."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import COMMAND, assert_mirrored, assert_told_to_optuna, read_json, run
from mlflow import MlflowClient

from models import checkpoint
from models.datasets import DataOptions, load_training_data
from models.errors import UserError
from tuning import search
from tuning.api import load_search
from tuning.results import PAGE, SearchResult

NAME = "conv_autoencoder-digits-001"
SETTINGS = ("--trials", "4", "--max-epochs", "2", "--train-images", "200", "--report")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("command")


@pytest.fixture(scope="module")
def command(folder: Path) -> subprocess.CompletedProcess[str]:
    """The search, once; the tests look at it from all sides."""
    done: subprocess.CompletedProcess[str] = run("search", "conv_autoencoder", *SETTINGS, "--json", cwd=folder)
    return done


@pytest.fixture(scope="module")
def told(command: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = read_json(command.stdout)
    return found


@pytest.fixture(scope="module")
def result(folder: Path, told: dict[str, Any]) -> SearchResult:
    return load_search(NAME, folder / "runs")


def test_json_on_stdout_is_one_object_that_says_what_the_search_found(
    folder: Path, told: dict[str, Any], result: SearchResult
) -> None:
    best = result.best
    assert best is not None
    assert told == {
        "name": NAME,
        "family": "conv_autoencoder",
        "dataset": "digits",
        "metric": "val_mse",
        "mode": "min",
        "outcome": "finished",
        "trials": {
            "total": 4,
            **{state: sum(t.state == state for t in result.trials) for state in ("complete", "pruned", "failed")},
            "interrupted": 0,
        },
        "best": {
            "number": best.number,
            "value": best.value,
            "epochs": 2.0,
            "config": best.config,
            "checkpoint": str(folder / "runs" / NAME / "trials" / f"{best.number:04d}" / "checkpoint.pt"),
        },
        "epochs_trained": pytest.approx(sum(trial.epochs for trial in result.trials), abs=1e-5),
        "wall_s": told["wall_s"],
        "run_dir": str(folder / "runs" / NAME),
        "mlflow": {
            "tracking_uri": f"sqlite:///{folder / 'runs' / 'mlflow.db'}",
            "experiment": "conv_autoencoder on digits",
            "run_id": told["mlflow"]["run_id"],
        },
    }
    assert told["trials"]["complete"] + told["trials"]["pruned"] == 4
    assert 0 < told["wall_s"] < 600
    assert best.value == min(trial.value for trial in result.trials if trial.state == "complete" and trial.value)


def test_first_trial_is_the_default_config(result: SearchResult) -> None:
    from models.conv_autoencoder import ConvAutoencoderConfig

    assert result.trials[0].config == ConvAutoencoderConfig().model_dump()


def test_run_folder(folder: Path, result: SearchResult) -> None:
    run_dir = result.run_dir
    assert {path.name for path in run_dir.iterdir()} >= {"search.yaml", "study.journal", "trials", "figures"}
    assert {path.name for path in (run_dir / "trials").iterdir()} == {f"{number:04d}" for number in range(4)}
    for picture in ("history.png", "reconstructions.png"):
        assert (run_dir / "figures" / picture).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (folder / "runs").iterdir()} == {NAME, "mlflow.db", "mlartifacts"}
    settings = yaml.safe_load((run_dir / "search.yaml").read_text())
    assert settings["data"]["train_images"] == 200
    assert settings["max_epochs"] == 2
    assert settings["space"]["filters"] == "4,8,16"


def test_best_checkpoint_is_as_good_as_told(result: SearchResult) -> None:
    best = result.best
    assert best is not None
    assert best.checkpoint is not None
    trained = checkpoint.load(best.checkpoint)
    assert trained.config.model_dump() == best.config
    assert {**trained.record.metrics}["val_mse"] == best.value
    images = load_training_data(DataOptions(source="digits", train_images=200)).val.images
    pixels = torch.tensor(images.tolist(), dtype=torch.float64) / 255
    with torch.no_grad():
        error = trained.network.double()(pixels) - pixels
    assert float((error * error).mean()) == pytest.approx(best.value, rel=1e-5)


def test_optuna_knows_all(result: SearchResult) -> None:
    assert_told_to_optuna(result)


def test_mlflow_has_it_all(folder: Path, told: dict[str, Any], result: SearchResult) -> None:
    uri = f"sqlite:///{folder / 'runs' / 'mlflow.db'}"
    parent = assert_mirrored(result, uri)
    assert parent == told["mlflow"]["run_id"]
    client = MlflowClient(uri)
    assert {item.path for item in client.list_artifacts(parent, "figures")} == {
        "figures/history.png",
        "figures/reconstructions.png",
    }
    local = Path(client.download_artifacts(parent, "figures/history.png"))
    assert local.read_bytes() == (result.run_dir / "figures" / "history.png").read_bytes()
    page = Path(client.download_artifacts(parent, f"analysis/report/{PAGE}"))
    assert page.read_bytes() == (result.run_dir / PAGE).read_bytes()
    assert "Hyperparameter search, finished<" in page.read_text(), "written while the search still held its lock"
    known = client.get_run(parent).data
    experiment = client.get_run(parent).info.experiment_id
    link = f"(#/experiments/{experiment}/runs/{parent}/artifacts/analysis/report/{PAGE})"
    assert link in known.tags["mlflow.note.content"]
    assert known.metrics["best_val_mse"] == told["best"]["value"]
    assert known.metrics["trials_complete"] == told["trials"]["complete"]
    assert known.params["data.source"] == "digits"
    assert known.params["seed"] == "0"
    assert {"latentune.version.torch", "latentune.version.latentune"} <= known.tags.keys()


def test_trials_command(folder: Path, result: SearchResult) -> None:
    listed = read_json(run("trials", NAME, "--json", cwd=folder).stdout)
    assert [trial["number"] for trial in listed] == [0, 1, 2, 3]
    for shown, trial in zip(listed, result.trials, strict=True):
        assert shown.keys() == {
            *("number", "state", "value", "epochs", "config", "started_s", "finished_s", "curve", "reason"),
        }
        assert shown == json.loads(json.dumps(trial.to_json()))
        assert shown["value"] == min(value for _, value, _ in shown["curve"])
        assert shown["epochs"] == shown["curve"][-1][0]
        assert shown["started_s"] <= shown["curve"][0][2] <= shown["curve"][-1][2] <= shown["finished_s"]


def test_best_command(folder: Path, told: dict[str, Any]) -> None:
    shown = run("best", NAME, "--json", "--export", "best.pt", cwd=folder)
    assert read_json(shown.stdout) == told["best"]
    assert checkpoint.load(folder / "best.pt").config.model_dump() == told["best"]["config"]


def test_replay_command_gives_the_same_numbers(folder: Path, told: dict[str, Any], result: SearchResult) -> None:
    number = told["best"]["number"]
    again = read_json(run("replay", NAME, str(number), "--json", cwd=folder).stdout)
    assert again == {"number": number, "identical": True, "differences": [0.0] * len(result.trials[number].records)}


def test_replay_command_finds_a_changed_record(folder: Path, result: SearchResult) -> None:
    """The last digit of one number of one record, in the study's file."""
    number, record = next((t.number, t.records[0]) for t in result.trials if t.state == "pruned" or t.number == 3)
    value = record.metrics["val_mse"]
    copy = shutil.copytree(result.run_dir, folder / "tampered" / NAME) / "study.journal"
    lines = copy.read_text().splitlines(keepends=True)
    (place,) = (i for i, line in enumerate(lines) if repr(value) in line and "record:" in line)
    lines[place] = lines[place].replace(repr(value), repr(math.nextafter(value, 1)))
    copy.write_text("".join(lines))
    done = run("replay", NAME, str(number), "--json", "--runs-dir", "tampered", cwd=folder, code=1)
    again = read_json(done.stdout)
    assert not again["identical"]
    assert again["differences"] == [math.nextafter(value, 1) - value] + [0.0] * (len(result.trials[number].records) - 1)
    assert load_search(NAME, folder / "tampered").trials[number].value != value


CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "fixed": ({"set": {"dropout": 0.3}}, ["set.dropout"]),
    "space": ({"space": {"latent_dim": "2..10"}}, ["space.latent_dim"]),
    "epochs": ({"max_epochs": 3}, ["max_epochs"]),
    "images": ({"data": {"train_images": 100}}, ["data.train_images"]),
    "data set": ({"data": {"source": "idx:elsewhere"}}, ["data.source"]),
    "all": (
        {
            "set": {"dropout": 0.3},
            "space": {"lr": "1e-4..1e-2:log"},
            "max_epochs": 3,
            "min_epochs": 0.5,
            "data": {"train_images": 100, "val_images": 20},
            "seed": 7,
            "patience": 2,
        },
        [
            *("set.dropout", "space.lr", "max_epochs", "min_epochs", "data.train_images", "data.val_images", "seed"),
            "patience",
        ],
    ),
}


@pytest.fixture
def unchanged(result: SearchResult) -> Callable[[], bool]:
    files = (result.config.study_file, result.run_dir / "search.yaml")
    before = [path.read_bytes() for path in files]
    return lambda: [path.read_bytes() for path in files] == before


@pytest.mark.parametrize("change", CHANGES)
def test_changed_search_is_refused_with_every_difference(
    change: str, folder: Path, result: SearchResult, unchanged: Callable[[], bool]
) -> None:
    settings, fields = CHANGES[change]
    with pytest.raises(UserError) as caught:
        search("conv_autoencoder", name=NAME, runs_dir=folder / "runs", progress="none", trials=9, **settings)
    told = {problem.field: str(problem) for problem in caught.value.problems}
    assert {field for field, text in told.items() if "choose another name" in text} >= set(fields)
    assert unchanged()


def test_changed_search_is_refused_by_the_command(folder: Path, unchanged: Callable[[], bool]) -> None:
    changed = ("--set", "dropout=0.3", "--max-epochs", "3", "--train-images", "100")
    done = run("search", "conv_autoencoder", "--name", NAME, "--json", *changed, cwd=folder, code=2)
    assert done.stdout == ""
    for words in ("set.dropout: got 0.3", "max_epochs: got 3.0", "has 2.0 there", "data.train_images: got 100"):
        assert words in done.stderr
    assert unchanged()


def test_changed_family_is_refused(folder: Path, unchanged: Callable[[], bool]) -> None:
    with pytest.raises(UserError, match=r"family: got 'sleepy:Sleepy'; the search .* has 'conv_autoencoder' there"):
        search("sleepy:Sleepy", name=NAME, runs_dir=folder / "runs", progress="none")
    assert unchanged()


def test_wrong_names_end_with_code_2(folder: Path, result: SearchResult) -> None:
    done = run("trials", NAME.replace("001", "010"), cwd=folder, code=2)
    assert NAME in done.stderr
    done = run("replay", NAME, "4", cwd=folder, code=2)
    assert "0 to 3" in done.stderr


def test_command_is_the_installed_one() -> None:
    assert COMMAND.is_file()


def test_a_cluster_that_somebody_started_here_is_left_alone(tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        jobs = len(ray._private.state.jobs())
        words = ["search", "conv_autoencoder", "--dataset", "digits", "--train-images", "100", "--max-epochs", "1"]
        words += ["--trials", "1", "--tracking-uri", "none", "--quiet"]
        run(*words, cwd=tmp_path)
        assert len(ray._private.state.jobs()) == jobs, "it has a Ray of its own"
        run(*words, "--address", cluster.address, cwd=tmp_path)
        assert len(ray._private.state.jobs()) > jobs, "the check sees who comes"
    finally:
        ray.shutdown()
        cluster.shutdown()
