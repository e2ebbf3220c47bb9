"""Measuring a trained model on other images than it was ranked by, and what all analyses have in common."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from helpers import read_json, run
from torch import nn

from analysis import evaluate
from analysis.subject import images_of, subject_of
from models.datasets import DataOptions, load_test_set, load_training_data
from models.errors import CheckpointError, UserError
from tuning import load_search
from tuning.results import SearchResult

OPTIONS = DataOptions(source="digits", train_images=300, val_images=80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the searches ``classes`` and ``codes`` of a trial or two."""
    path = tmp_path_factory.mktemp("evaluated")
    words = ["--dataset", "digits", "--train-images", "300", "--val-images", "80", "--quiet", "--max-epochs", "2"]
    run("search", "mlp_classifier", *words, "--trials", "2", "--name", "classes", cwd=path)
    run("search", "conv_autoencoder", *words, "--trials", "1", "--name", "codes", "--tracking-uri", "none", cwd=path)
    return path


@pytest.fixture
def classes(folder: Path) -> SearchResult:
    return load_search("classes", folder / "runs")


@pytest.fixture
def codes(folder: Path) -> SearchResult:
    return load_search("codes", folder / "runs")


def test_accuracy_is_the_share_of_right_answers(classes: SearchResult) -> None:
    assert classes.best is not None
    result = evaluate(classes.best.load(), OPTIONS)
    test = load_test_set(OPTIONS)
    with torch.no_grad():
        logits = classes.best.load().network(torch.from_numpy(test.images) / 255)
    assert result.images == len(test.labels) == 360
    assert result.metrics["accuracy"] == pytest.approx((logits.argmax(1).numpy() == test.labels).mean())
    right = logits.log_softmax(1).numpy()[np.arange(360), test.labels]
    assert result.metrics["cross_entropy"] == pytest.approx(-right.mean(), rel=1e-4)


def test_error_is_the_mean_over_pixels(codes: SearchResult) -> None:
    assert codes.best is not None
    result = evaluate(codes.best.checkpoint or "", OPTIONS, split="train")
    images = torch.from_numpy(load_training_data(OPTIONS).train.images) / 255
    with torch.no_grad():
        restored = codes.best.load().network(images)
    assert result.metrics["mse"] == pytest.approx(float((restored - images).square().mean()), rel=1e-5)


def test_validation_images_give_what_was_recorded(classes: SearchResult) -> None:
    assert classes.best is not None
    result = evaluate(classes.best.load(), OPTIONS, split="val")
    assert result.metrics == pytest.approx(result.validation, rel=1e-6)
    assert result.metrics["accuracy"] == pytest.approx(classes.best.value)


def test_the_command_keeps_results_apart_and_tells_mlflow(folder: Path, classes: SearchResult) -> None:
    assert classes.best is not None
    number = classes.best.number
    said = read_json(run("evaluate", "classes", "--json", cwd=folder).stdout)
    kept = classes.run_dir / "analysis" / f"trial-{number:04d}" / "evaluate"
    assert Path(said["folder"]) == kept
    assert json.loads((kept / "evaluate.json").read_text())["accuracy"] == said["accuracy"]
    other = read_json(run("evaluate", "classes", "--split", "val", "--json", cwd=folder).stdout)
    assert Path(other["folder"]).name == "evaluate-2"
    again = read_json(run("evaluate", "classes", "--json", cwd=folder).stdout)
    assert again == said, "the same options give the same result at the same place"

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (its_run,) = client.search_runs(experiments, f"tags.`latentune.trial` = '{number}'")
    assert its_run.data.metrics["evaluate.accuracy"] == said["accuracy"]
    assert its_run.data.metrics["evaluate-2.accuracy"] == other["accuracy"]
    artifacts = client.list_artifacts(its_run.info.run_id, "analysis/evaluate")
    assert [artifact.path for artifact in artifacts] == ["analysis/evaluate/evaluate.json"]


def test_a_comparison_lies_with_the_search_itself(folder: Path) -> None:
    said = read_json(run("compare", "classes", "--trials", "0,1", "--json", cwd=folder).stdout)
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (parent,) = (r for r in client.search_runs(experiments) if "mlflow.parentRunId" not in r.data.tags)
    logged = {Path(artifact.path).name for artifact in client.list_artifacts(parent.info.run_id, "analysis/compare")}
    assert logged == set(said["files"])


def test_another_trial_and_a_folder_of_ones_own(folder: Path, classes: SearchResult) -> None:
    said = read_json(run("evaluate", "classes", "--trial", "0", "--out", "mine", "--json", cwd=folder).stdout)
    assert said["accuracy"] == evaluate(classes.trials[0].load(), OPTIONS).metrics["accuracy"]
    refused = run("evaluate", "classes", "--trial", "1", "--split", "val", "--out", "mine", cwd=folder, code=2)
    assert "--out" in refused.stderr
    assert json.loads((folder / "mine" / "evaluate.json").read_text())["accuracy"] == said["accuracy"]


def test_a_checkpoint_file_is_enough(folder: Path, codes: SearchResult, tmp_path: Path) -> None:
    assert codes.best is not None
    assert codes.best.checkpoint is not None
    path = shutil.copy(codes.best.checkpoint, tmp_path / "model.pt")
    said = read_json(run("evaluate", str(path), "--json", cwd=tmp_path).stdout)
    assert said["mse"] == pytest.approx(evaluate(codes.best.load(), OPTIONS).metrics["mse"])


def test_tracking_that_is_down_costs_no_result(folder: Path, classes: SearchResult, tmp_path: Path) -> None:
    copied = tmp_path / "runs"
    shutil.copytree(folder / "runs" / "classes", copied / "classes")
    words = ["--split", "train", "--runs-dir", str(copied), "--out", "kept"]
    done = run("evaluate", "classes", *words, cwd=tmp_path)
    assert "warning: MLflow" in done.stderr, "the copied search has no runs in a new store"
    assert (tmp_path / "kept" / "evaluate.json").is_file()


def test_images_that_do_not_fit_are_told_all_at_once(classes: SearchResult, tmp_path: Path) -> None:
    assert classes.best is not None
    subject = subject_of(classes.best.load())
    digits = load_test_set(OPTIONS)
    wrong = replace(digits, images=digits.images[:, :, :20], class_names=tuple("abcdefghij"))
    with pytest.raises(UserError) as caught:
        images_of(wrong, subject, count=0, classes=True)
    told = str(caught.value)
    for part in ("20x28, grey", "28x28, grey", "a, b, c", "0, 1, 2", "--count"):
        assert part in told
    with pytest.raises(UserError, match="--split"):
        images_of(OPTIONS, subject, split="nothing")  # type: ignore[arg-type]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torch network"):
        subject_of(3)
    with pytest.raises(UserError, match="checkpoint"):
        evaluate(nn.Linear(2, 2), OPTIONS)
    (tmp_path / "bad.pt").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        evaluate(tmp_path / "bad.pt", OPTIONS)
    missing = run("evaluate", "nosuch", cwd=tmp_path, code=2)
    assert "no such search" in missing.stderr


def test_a_network_without_a_search_can_be_a_subject() -> None:
    class Halving(nn.Module):
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

        def decode(self, codes: torch.Tensor) -> torch.Tensor:
            return codes.reshape(-1, 1, 28, 28) / 2

    subject = subject_of(Halving())
    images = load_test_set(OPTIONS).images
    assert subject.capabilities == ("encode", "decode")
    assert np.allclose(subject.reconstruct(images), images / 255 / 2)
    with pytest.raises(UserError, match="sample"):
        subject.require("generate", "sample")
