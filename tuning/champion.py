"""The best model of a search as a registered model of MLflow, under the alias ``champion``."""

from __future__ import annotations

import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.errors import LatentuneError
from models.family import get_family
from models.places import local_copy

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from models.checkpoint import Trained
    from models.datasets import TrainingData
    from tuning.results import Trial

ALIAS = "champion"
CODE = Path(__file__).with_name("champion_model.py")


def tasks_of(capabilities: tuple[str, ...]) -> list[str]:
    """What ``predict`` can be asked to do, by what a network can; the first is done unasked."""
    able = set(capabilities)
    needed = {"classify": {"classify"}, "reconstruct": {"encode", "decode"}, "encode": {"encode"}, "sample": {"sample"}}
    return [task for task, of in needed.items() if of <= able]


def crown(
    client: MlflowClient,
    name: str,
    search_id: str,
    experiment_id: str,
    run_id: str,
    trial: Trial,
    images: TrainingData | None,
) -> str | None:
    """Register a search's best trial as its champion, unless that stands already or a better one does.

    May be called again at any time: what an earlier call has done is found and not done twice.

    Args:
        name: of the search, and of the registered model; where another search has a model of that name, a part of
            ``search_id`` goes behind it.
        run_id: of the trial.
        images: where the model's input example is taken from.

    Returns:
        ``models:/NAME@champion``; ``None`` where there is nothing to use the model for.

    Raises:
        LatentuneError: the trial's checkpoint cannot be used.
        Exception: whatever MLflow raises.
    """
    tasks = tasks_of(get_family(trial.family).capabilities())
    if not tasks or trial.value is None:
        return None
    name = _model_of(client, name, search_id, trial)
    standing = _versions(client, name)
    crowned = client.get_registered_model(name).aliases.get(ALIAS)
    current = standing.get(str(crowned))
    value = None if current is None else float(current.tags["latentune.value"])
    if not trial.objective.better(trial.value, value):
        return f"models:/{name}@{ALIAS}"
    made = [found for found in standing.values() if found.tags.get("latentune.trial") == str(trial.number)]
    new = made[0] if made else _add_version(client, name, experiment_id, run_id, trial, tasks, images)
    client.set_registered_model_alias(name, ALIAS, new.version)
    return f"models:/{name}@{ALIAS}"


def _model_of(client: MlflowClient, name: str, search_id: str, trial: Trial) -> str:
    """The registered model of a search, made where there is none."""
    from mlflow.exceptions import MlflowException

    for wanted in (name, f"{name}-{search_id[:8]}"):
        try:
            there = client.get_registered_model(wanted)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            tags = {"latentune.search": search_id, "latentune.family": trial.family}
            client.create_registered_model(
                wanted, tags, f"The best trials of the search {name}; see the alias {ALIAS}."
            )
            return wanted
        if there.tags.get("latentune.search") == search_id:
            return wanted
    raise LatentuneError(f"other searches have the registered models {name} and {wanted}")


def _versions(client: MlflowClient, name: str) -> dict[str, ModelVersion]:
    return {str(found.version): found for found in client.search_model_versions(f"name = '{name}'")}


def _add_version(
    client: MlflowClient,
    name: str,
    experiment_id: str,
    run_id: str,
    trial: Trial,
    tasks: list[str],
    images: TrainingData | None,
) -> ModelVersion:
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    trained = trial.load()
    metric = trial.objective.metric
    model = client.create_logged_model(
        experiment_id,
        name=name,
        source_run_id=run_id,
        tags={"latentune.trial": str(trial.number)},
        params={field: str(value)[:250] for field, value in trial.config.items()},
        model_type=trial.family,
    )
    with tempfile.TemporaryDirectory() as folder:
        described = Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id)
        _save(Path(folder) / "model", described, trial, trained, tasks, images)
        client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, int(trial.epochs))])
    return client.create_model_version(
        name,
        model.artifact_location,  # "models:/…" would be looked up in this process's default store
        run_id,
        tags={
            "latentune.trial": str(trial.number),
            "latentune.value": repr(trial.value),
            "latentune.metric": metric,
            "latentune.tasks": ", ".join(tasks),
        },
        description=f"Trial {trial.number}: {metric} {trial.value:.6g}.",
        model_id=model.model_id,
    )


def _save(
    folder: Path, described: Any, trial: Trial, trained: Trained, tasks: list[str], images: TrainingData | None
) -> None:
    """The model as a folder: code, checkpoint, signature, example, requirements."""
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    assert trial.checkpoint is not None
    shape = trained.spec.shape
    if tasks == ["sample"]:
        batch: Any = np.arange(2)
    else:
        shown = np.zeros((2, *shape), np.uint8) if images is None else images.val.images[:2]
        batch = shown.astype(np.float32) / np.float32(255)
    shapes = {
        "classify": (-1, len(trained.spec.class_names)),
        "encode": (-1, -1),
        "reconstruct": (-1, *shape),
        "sample": (-1, *shape),
    }
    params = [ParamSpec("task", "string", tasks[0])]
    if "sample" in tasks:
        params.append(ParamSpec("seed", "long", 0))
    signature = ModelSignature(
        Schema([TensorSpec(batch.dtype, (-1, *batch.shape[1:]))]),
        Schema([TensorSpec(np.dtype(np.float32), shapes[tasks[0]])]),
        ParamSchema(params),
    )
    with local_copy(trial.checkpoint) as checkpoint:
        save_model(
            str(folder),
            mlflow_model=described,
            python_model=str(CODE),
            artifacts={"checkpoint": str(checkpoint)},
            model_config={"family": trial.family, "task": tasks[0]},
            signature=signature,
            input_example=batch,
            pip_requirements=_requirements(),
            metadata={
                "tasks": tasks,
                "family": trial.family,
                "class_names": list(trained.spec.class_names),
                "objective": f"{trial.objective.metric} ({trial.objective.mode})",
            },
        )


def _requirements() -> list[str]:
    found = []
    for package in ("latentune", "torch", "numpy"):
        try:
            found.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:  # run from a source tree
            continue
    return found
