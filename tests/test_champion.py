"""The best model of a search in MLflow's registry, loaded as anybody would load it, and pictures on its way there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from helpers import environment, without_ray
from mlflow import MlflowClient
from test_tracking import Server
from trials_by_hand import trial

from models.datasets import load_training_data
from models.family import Objective, get_family
from tuning import search
from tuning.champion import tasks_of
from tuning.mirror import Milestones
from tuning.pictures import snapshot
from tuning.results import SearchResult, Trial

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SMALL: dict[str, Any] = {"dataset": "digits", "data": {"train_images": 128, "val_images": 32}, "max_epochs": 3}
QUIET: dict[str, Any] = {"progress": "none", "pictures": False}


@pytest.fixture(autouse=True)
def _default_store() -> Iterator[None]:
    yield
    mlflow.set_tracking_uri(None)


def run(tmp_path: Path, family: str = "conv_autoencoder", **settings: Any) -> SearchResult:
    with without_ray():
        wanted = {**SMALL, "trials": 2, "name": "small", **settings}
        result = search(family, runs_dir=tmp_path, **QUIET, **wanted)
    assert result.warnings == ()
    return result


def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def load(tmp_path: Path, name: str = "small") -> Any:
    mlflow.set_tracking_uri(store(tmp_path))
    return mlflow.pyfunc.load_model(f"models:/{name}@champion")


def champions(tmp_path: Path, name: str = "small") -> list[tuple[str, bool]]:
    """(trial, whether it is the champion now) of each version, in order."""
    client = MlflowClient(store(tmp_path))
    current = client.get_model_version_by_alias(name, "champion").version
    versions = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda found: int(found.version))
    return [(found.tags["latentune.trial"], found.version == current) for found in versions]


def batch(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random((3, *shape), dtype=np.float32)


def test_champion_changes_only_when_a_better_trial_exists(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert first.best is not None
    model = load(tmp_path)
    images = batch((1, 28, 28))
    network: Any = first.best.load().network
    with torch.inference_mode():
        codes = network.encode(torch.from_numpy(images))
        decoded = network.decode(codes)
    np.testing.assert_allclose(model.predict(images), decoded.clamp(0, 1), atol=1e-6)
    np.testing.assert_allclose(model.predict(images, params={"task": "encode"}), codes, atol=1e-5)
    assert model.input_example.shape == (2, 1, 28, 28)
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 1, 28, 28)
    assert list(tmp_path.rglob("*.pkl")) == []
    versions = champions(tmp_path)
    assert versions == [(str(first.best.number), True)]

    run(tmp_path)  # nothing to do
    assert champions(tmp_path) == versions
    more = run(tmp_path, trials=6)
    assert more.best is not None
    if more.best.number != first.best.number:
        versions = [(versions[0][0], False), (str(more.best.number), True)]
    assert champions(tmp_path) == versions
    client = MlflowClient(store(tmp_path))
    (parent,) = client.search_runs(["1"], "tags.`latentune.state` = 'finished'")
    assert "models:/small@champion" in parent.data.tags["mlflow.note.content"]


def test_a_model_of_the_same_name_is_left_alone(tmp_path: Path) -> None:
    client = MlflowClient(store(tmp_path))
    client.create_registered_model("small", {"whose": "mine"})
    run(tmp_path)
    assert client.get_registered_model("small").aliases == {}
    (other,) = (found for found in client.search_registered_models() if found.name != "small")
    assert other.name.startswith("small-")
    assert champions(tmp_path, other.name)


def test_champion_whose_alias_was_not_set_is_not_registered_again(tmp_path: Path) -> None:
    run(tmp_path)
    before = champions(tmp_path)
    client = MlflowClient(store(tmp_path))
    client.delete_registered_model_alias("small", "champion")
    run(tmp_path)
    assert champions(tmp_path) == before


@pytest.mark.parametrize(
    ("family", "task", "shape"),
    [("mlp_classifier", "classify", (3, 10)), ("vae", "sample", (3, 1, 28, 28)), ("gan", "sample", (3, 1, 28, 28))],
)
def test_what_a_family_can_do_is_what_its_champion_does(
    tmp_path: Path, family: str, task: str, shape: tuple[int, ...]
) -> None:
    run(tmp_path, family, trials=1, max_epochs=1)
    model = load(tmp_path)
    given = np.array([4, 0, 4]) if family == "gan" else batch((1, 28, 28))
    made = model.predict(given, params={"task": task})
    assert made.shape == shape
    np.testing.assert_array_equal(made, model.predict(given, params={"task": task}))
    if task == "classify":
        np.testing.assert_allclose(made.sum(1), 1, rtol=1e-5)
    else:
        assert np.abs(made - model.predict(given, params={"task": task, "seed": 1})).max() > 0
    if family == "gan":
        np.testing.assert_array_equal(made[0], made[2])  # decided by their numbers
        assert np.abs(made[0] - made[1]).max() > 0


@pytest.mark.slow
def test_a_server_has_the_champion_and_the_pictures_too(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start()
    try:
        server.wait()
        result = run(tmp_path, tracking_uri=server.url)
        assert result.best is not None
        mlflow.set_tracking_uri(server.url)
        model = mlflow.pyfunc.load_model("models:/small@champion")
        assert model.predict(batch((1, 28, 28))).shape == (3, 1, 28, 28)
        client = MlflowClient(server.url)
        (best,) = client.search_runs(["1"], f"tags.`latentune.trial` = '{result.best.number}'")
        assert client.list_artifacts(best.info.run_id, "images")
    finally:
        server.kill()


def test_loading_says_nothing(tmp_path: Path) -> None:
    run(tmp_path, trials=1, max_epochs=1)
    program = (
        f"import mlflow; mlflow.set_tracking_uri({store(tmp_path)!r})\n"
        "model = mlflow.pyfunc.load_model('models:/small@champion')\n"
        "print(model.predict(model.input_example).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert done.stdout == "(2, 1, 28, 28)\n"
    noise = [line for line in done.stderr.splitlines() if "Downloading artifacts" not in line]  # a bar of MLflow's own
    assert noise == []


def test_the_first_tasks_are_the_ones_done_unasked() -> None:
    assert tasks_of(("encode", "decode", "sample")) == ["reconstruct", "encode", "sample"]
    assert tasks_of(("encode", "classify"))[0] == "classify"
    assert tasks_of(()) == []


# --- pictures --------------------------------------------------------------------------------------------------------


def test_best_trials_have_pictures_with_the_epoch_as_step(tmp_path: Path) -> None:
    result = run(tmp_path, trials=3)
    assert result.best is not None
    client = MlflowClient(store(tmp_path))
    runs = client.search_runs(["1"], f"tags.`latentune.trial` = '{result.best.number}'")
    files = [item.path for item in client.list_artifacts(runs[0].info.run_id, "images")]
    steps = {int(file.split("+")[2]) for file in files}
    assert int(result.best.load().record.epoch) in steps
    assert len(files) == 2 * len(steps), "a picture and its preview at each step, once"
    assert runs[0].data.tags["mlflow.loggedImages"] == "True"


def test_a_snapshot_shows_images_above_what_becomes_of_them(tmp_path: Path) -> None:
    result = run(tmp_path, trials=1, data={"train_images": 30, "val_images": 6})
    images = load_training_data(result.config.data)
    (one,) = result.trials
    assert one.checkpoint is not None
    made = snapshot(one.checkpoint, get_family(one.family), images)
    assert made is not None
    name, epoch, pixels = made
    assert (name, epoch) == ("reconstructions", int(one.load().record.epoch))
    assert pixels.shape == (4 * 56, 4 * 56, 3)
    cells = pixels[::2, ::2, 0].reshape(4, 28, 4, 28).transpose(0, 2, 1, 3)  # each pixel is two by two
    decoded = (one.load().network.eval(), torch.from_numpy(images.val.images).float() / 255)
    with torch.inference_mode():
        network: Any = decoded[0]
        restored = (network.decode(network.encode(decoded[1])) * 255).round().numpy()
    for number, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (0, 3), (2, 0), (2, 1)]):
        np.testing.assert_array_equal(cells[row, column], images.val.images[number, 0])
        np.testing.assert_allclose(cells[row + 1, column], restored[number, 0], atol=1)
    assert not cells[2:, 2:].any(), "places of which there are no images"


def test_milestones_are_few() -> None:
    rungs, objective = (1.0, 3.0), Objective("val_mse", "min")
    milestones = Milestones(rungs, objective)

    def passed(number: int, state: Any, *curve: tuple[float, float], known: int = 0) -> bool:
        made: Trial = trial(number, state, curve)
        return milestones.passed(made, known)

    assert passed(0, "running", (1, 0.5))
    assert not passed(0, "running", (1, 0.5), (2, 0.1), known=1), "no rung"
    assert passed(0, "running", (1, 0.5), (2, 0.1), (3, 0.4), known=2)
    assert not passed(1, "pruned", (1, 0.6))
    assert passed(2, "running", (1, 0.4))
    assert passed(0, "complete", (1, 0.5), (2, 0.1), (3, 0.4), (9, 0.3), known=3)
    assert not passed(2, "complete", (1, 0.4), (9, 0.31), known=1)
