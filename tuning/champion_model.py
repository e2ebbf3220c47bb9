"""The code of a registered champion: MLflow copies this file beside the checkpoint, and runs it to load the model.

Nothing here is pickled: the checkpoint is read with ``weights_only=True``, and latentune has to be installed where the
model is loaded. Not to be imported; :mod:`tuning.champion` names it by its path.
"""

from __future__ import annotations

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from analysis.subject import subject_of
from models.checkpoint import load
from models.family import get_family


class Network:
    """A trained network, asked as MLflow asks."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from the checkpoint among the model's artifacts."""
        settings = context.model_config
        self._default: str = settings["task"]
        self._subject = subject_of(load(context.artifacts["checkpoint"], get_family(settings["family"])))

    # No type hints: MLflow would take them for a signature, which there is already.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """What the network makes of a batch.

        Args:
            model_input: images float32 (N, C, H, W) in [0, 1]; for a model that only samples int64 (N,), the numbers
                of the images to make up.
            params: ``task``, one of those in the model's metadata: ``reconstruct`` gives images like the batch,
                ``encode`` codes (N, L), ``classify`` probabilities (N, classes), ``sample`` as many images as the
                batch is long, each decided by ``seed`` and its number (its place, where the batch is of images).
        """
        given = params or {}
        task, batch = given.get("task", self._default), np.asarray(model_input)
        if task == "reconstruct":
            return self._subject.reconstruct(batch).clip(0, 1)
        if task == "encode":
            return self._subject.encode(batch)
        if task == "classify":
            logits = self._subject.classify(batch)
            odds = np.exp(logits - logits.max(1, keepdims=True))
            return odds / odds.sum(1, keepdims=True)
        if task == "sample":
            numbers = batch if batch.ndim == 1 else np.arange(len(batch))
            seeds = [np.random.SeedSequence([given.get("seed", 0), int(n)]).generate_state(1)[0] for n in numbers]
            return np.concatenate([self._subject.sample(1, int(seed)) for seed in seeds])
        raise ValueError(f"task {task!r}: this model can do what its metadata lists as tasks")


class Champion(Network, PythonModel):
    """The same as MLflow's kind of model; in two classes since MLflow warns of a ``predict`` without type hints."""


set_model(Champion())
