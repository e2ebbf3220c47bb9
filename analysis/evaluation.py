"""A trained model's metrics on any part of its data set, the test images too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from analysis.result import Result
from analysis.subject import Model, Split, images_of, subject_of
from models.checkpoint import Trained
from models.datasets import DataOptions, load_training_data
from models.errors import UserError
from models.numerics import Numerics
from models.training import DataOnDevice, measure


@dataclass(frozen=True)
class Evaluation(Result):
    """Metrics as the family measures them.

    Args:
        split: the images measured on.
        images: how many there were.
        metrics: name (``mse``, ``accuracy``, …) → value.
        validation: what was recorded in training for the weights in the checkpoint, by the same names.
    """

    name: ClassVar[str] = "evaluate"
    split: Split
    images: int
    metrics: dict[str, float]
    validation: dict[str, float]

    def summary(self) -> dict[str, Any]:
        return {"split": self.split, "images": self.images, **self.metrics, "validation": self.validation}


def evaluate(model: Model, data: DataOptions, *, split: Split = "test") -> Evaluation:
    """The family's own metrics of a checkpoint's model on a part of a data set.

    Args:
        data: the options that it was trained with: the training images are needed too, since a Fréchet distance is
            measured in features that were learnt on them.
        split: ``val`` gives the recorded values once more.

    Raises:
        UserError: the model comes from no checkpoint, or the images do not fit it.
    """
    subject = subject_of(model)
    trained = subject.trained
    if not isinstance(trained, Trained):
        raise UserError.of("model", subject.name, "must come from a checkpoint, which says how to measure it")
    needs_classes = "classify" in subject.capabilities
    images = images_of(data, subject, split=split, classes=needs_classes)
    with_split = DataOnDevice(replace(load_training_data(data), val=images))
    numerics = Numerics()
    with numerics.applied():
        metrics = measure(
            trained.family, trained.config, trained.network, with_split, seed=trained.seed, numerics=numerics
        )
    recorded = {k.removeprefix("val_"): v for k, v in trained.record.metrics.items() if k.startswith("val_")}
    return Evaluation(split, len(images.labels), metrics, recorded)
