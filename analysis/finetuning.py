"""A classifier made of a trained encoder, beside the same network from scratch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.figure import Figure
from pydantic import ValidationError

from analysis.classification import Classification, class_table, classified, confusion_table, plot_confusion
from analysis.finetuning_pictures import plot_curves, plot_time
from analysis.result import Columns, Result
from analysis.subject import Model, Subject, images_of, subject_of
from models.checkpoint import Trained, save
from models.data_sources import ImageSet, Progress, silent
from models.datasets import DataOptions, TrainingData, load_training_data
from models.errors import ProblemCollector, UserError
from models.family import FAMILIES, Family, Record, get_family
from models.finetuned_classifier import FinetunedClassifierConfig, FinetunedClassifierFamily
from models.numerics import Numerics
from models.places import place
from models.space import parse_value
from models.training import Budget, DataOnDevice, Training, fit, start, steps_per_epoch

EARLY = (0.05, 0.1, 0.25, 0.5, 0.75, 1.5)
"""Epochs, besides the whole ones, at which accuracy is measured: a pretrained encoder is ahead in the first steps."""

CHECKPOINT_FILE = "finetuned.pt"


@dataclass(frozen=True, eq=False)
class Run:
    """One training.

    Args:
        name: ``fine-tuned`` or ``from scratch``.
        test: what the weights with the best validation accuracy make of the test images.
        trained_parameters: how many numbers were trained.
        training: at its end, with those weights.
    """

    name: str
    test: Classification
    trained_parameters: int
    training: Training = field(repr=False)

    @property
    def records(self) -> tuple[Record, ...]:
        """Losses and accuracies by epoch; ``seconds`` are of training and validation."""
        return tuple(self.training.records)

    @property
    def best(self) -> Record:
        """The record with the highest validation accuracy."""
        assert self.training.best is not None
        return self.training.best

    def seconds_to(self, accuracy: float) -> float | None:
        """Seconds until the first record whose validation accuracy is at least that; ``None`` where none is."""
        reached = (record.seconds for record in self.records if record.metrics["val_accuracy"] >= accuracy)
        return next(reached, None)


@dataclass(frozen=True, eq=False)
class Finetuning(Result):
    """Test accuracy and how it was reached.

    Args:
        scratch: the same network, loop and budget, begun with fresh weights, with nothing frozen; where wanted.
        target_accuracy: on the validation images, which the time to accuracy is measured to.
        family: what loads the checkpoint: ``models.checkpoint.load(path, family=…)`` where the model is not of a
            built-in family.
        known_as: the family's name in the checkpoint.
    """

    name: ClassVar[str] = "finetune"
    finetuned: Run
    scratch: Run | None
    target_accuracy: float
    images: tuple[int, int, int]
    family: Family[Any] = field(repr=False)
    known_as: str

    @property
    def runs(self) -> tuple[Run, ...]:
        """The one or two trainings."""
        return (self.finetuned,) if self.scratch is None else (self.finetuned, self.scratch)

    @property
    def trained(self) -> Trained:
        """The fine-tuned classifier, as :func:`models.checkpoint.load` would give it."""
        run = self.finetuned.training
        return Trained(self.family, run.config, run.data.spec, run.seed, self.finetuned.best, run.network.cpu().eval())

    def summary(self) -> dict[str, Any]:
        config = self.finetuned.training.config
        assert isinstance(config, FinetunedClassifierConfig)
        told: dict[str, Any] = {"head": config.head, "frozen": config.frozen}
        told |= dict(zip(("train_images", "val_images", "test_images"), self.images, strict=True))
        told["target_val_accuracy"] = self.target_accuracy
        for run, prefix in zip(self.runs, ("", "scratch_"), strict=False):
            told |= {
                f"{prefix}test_accuracy": run.test.accuracy,
                f"{prefix}val_accuracy": run.best.metrics["val_accuracy"],
                f"{prefix}train_loss": run.best.metrics["train_loss"],
                f"{prefix}val_cross_entropy": run.best.metrics["val_cross_entropy"],
                f"{prefix}best_epoch": run.best.epoch,
                f"{prefix}epochs": run.records[-1].epoch,
                f"{prefix}seconds": run.records[-1].seconds,
                f"{prefix}seconds_to_target": run.seconds_to(self.target_accuracy),
                f"{prefix}trained_parameters": run.trained_parameters,
            }
        return told

    def tables(self) -> dict[str, Columns]:
        tests = [(run.name, run.test) for run in self.runs]
        records = [(run.name, record) for run in self.runs for record in run.records]
        metrics = ("train_loss", "train_accuracy", "val_cross_entropy", "val_accuracy")
        curves = {
            "run": [name for name, _ in records],
            "epoch": [record.epoch for _, record in records],
            "seconds": [record.seconds for _, record in records],
            **{metric: [record.metrics[metric] for _, record in records] for metric in metrics},
        }
        return {"classes": class_table(tests), "confusion": confusion_table(tests), "curves": curves}

    def figures(self) -> dict[str, Figure]:
        told = [(run.name, run.records, run.best) for run in self.runs]
        figures = {
            f"confusion-{run.name.replace(' ', '-')}": plot_confusion(
                run.test, f"{run.name}: test accuracy {100 * run.test.accuracy:.2f} %"
            )
            for run in self.runs
        }
        return {"curves": plot_curves(told), "accuracy-by-time": plot_time(told, self.target_accuracy), **figures}

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """As every result, and the fine-tuned classifier's checkpoint."""
        paths = super().save(folder)
        path = place(folder) / CHECKPOINT_FILE
        save(path, self.finetuned.training, family=self.known_as, resumable=False)
        return (*paths, path)


def finetune(
    model: Model,
    data: DataOptions | TrainingData | str,
    *,
    head: str = "linear",
    frozen: str = "nothing",
    epochs: float = 12,
    patience: int | None = 3,
    settings: Mapping[str, Any] | None = None,
    from_scratch: bool = True,
    target_share: float = 0.95,
    test: ImageSet | None = None,
    seed: int = 0,
    numerics: Numerics | None = None,
    on_progress: Progress = silent,
) -> Finetuning:
    """Train a classifier on a trained encoder, and the same network from scratch, and measure both on the test images.

    Both train with the project's one loop, batches in the same order, the same budget, and stop early by validation
    accuracy. The seconds are of this machine, and do not count what the encoder's own training took.

    Args:
        model: with ``encode``; for the head ``cnn`` also with ``decode``. It is left as it is.
        head: ``linear``, or ``mlp`` with a hidden layer, on the code; ``cnn``, a convolutional classifier on the
            reconstruction (Guatto 2022).
        frozen: ``convs`` (convolutions and their batch norms, as Bottaro 2020), ``encoder`` (all below the head) or
            ``nothing``.
        epochs: at most so many.
        patience: stop after so many whole epochs without a better validation accuracy; ``None`` never.
        settings: further fields of :class:`models.finetuned_classifier.FinetunedClassifierConfig`, such as ``lr``,
            ``encoder_lr`` or ``batch_size``; values, or words as on the command line.
        from_scratch: train the network with fresh weights too.
        target_share: time is measured to this share of the best validation accuracy from scratch (or else of its own).
        test: the test images, where ``data`` is loaded already.
        seed: of head, order of images and dropout.
        numerics: device and threads; by default one core.

    Raises:
        UserError: the model cannot encode, images do not fit it, or a setting is wrong; all that is wrong at once.
        CheckpointError: the file is not a usable checkpoint.
        NonFiniteError: the loss became NaN or infinite, as with a learning rate that is too high.
    """
    subject = subject_of(model)
    subject.require("fine-tuning", *(("encode", "decode") if head == "cnn" else ("encode",)))
    family, given, known_as = _family_of(subject)
    if isinstance(model, str | Path):
        given["checkpoint"] = str(model)
    config = _config({**given, **(settings or {}), "head": head, "frozen": frozen}, epochs, patience, target_share)
    loaded = data if isinstance(data, TrainingData) else load_training_data(_options(data))
    images = test if test is not None else images_of(data, subject, split="test")
    if (images.shape, images.class_names) != (loaded.train.shape, loaded.train.class_names):
        raise UserError.of("test", images.shape, f"must have shape and classes of the others, {loaded.train.shape}")
    numerics = numerics or Numerics()
    on_device = DataOnDevice(loaded, numerics.device)
    configs = [config, config.model_copy(update={"pretrained": False})][: 1 + from_scratch]
    for each in configs:
        family.check(each, loaded.spec)
    budget = Budget(epochs, _early(epochs, len(loaded.train.labels), config.batch_size), patience)
    runs: list[Run] = []
    for name, each in zip(("fine-tuned", "from scratch"), configs, strict=False):
        training, done = start(family, each, on_device, budget, seed=seed, numerics=numerics), len(runs) * epochs
        for record in fit(training):
            text = f"{name}: validation accuracy {record.metrics['val_accuracy']:.3f}"
            on_progress(text, round(100 * (done + record.epoch)), round(100 * len(configs) * epochs))
        runs.append(_measured(name, training, images))
    reference = max(record.metrics["val_accuracy"] for record in runs[-1].records)
    sizes = (len(loaded.train.labels), len(loaded.val.labels), len(images.labels))
    scratch = runs[1] if from_scratch else None
    return Finetuning(runs[0], scratch, target_share * reference, sizes, family, known_as)


def _early(epochs: float, images: int, batch_size: int) -> tuple[float, ...]:
    """The early points with steps of their own: between two records at the same step nothing would be trained."""
    per_epoch = steps_per_epoch(images, batch_size)
    taken = {max(1, round(point * per_epoch)) for point in Budget(epochs).report_points()}
    kept = []
    for point in EARLY:
        step = max(1, round(point * per_epoch))
        if step not in taken:
            kept.append(point)
            taken.add(step)
    return tuple(kept)


def _options(data: DataOptions | str) -> DataOptions:
    return DataOptions(source=data) if isinstance(data, str) else data


def _family_of(subject: Subject) -> tuple[FinetunedClassifierFamily, dict[str, Any], str]:
    """The family that begins with this network, the fields that describe it, and its name in a checkpoint."""
    built_in, trained = FinetunedClassifierFamily.name, subject.trained
    if trained is None:
        return FinetunedClassifierFamily(subject.network), {}, f"{built_in} of {subject.name}"
    name = trained.family.name
    told = {"config": trained.config.model_dump(mode="json"), "data": trained.spec.model_dump(mode="json")}
    given = {"encoder": json.dumps({"family": name, **told})}
    if name in list(FAMILIES) and type(get_family(name)) is type(trained.family):
        return FinetunedClassifierFamily(subject.network), given, built_in
    return FinetunedClassifierFamily(subject.network, own={name: trained.family}), given, f"{built_in} of {name}"


def _config(
    values: Mapping[str, Any], epochs: float, patience: int | None, target_share: float
) -> FinetunedClassifierConfig:
    problems = ProblemCollector()
    if not 0 < epochs <= 100_000:
        problems.add("epochs", epochs, "must be above 0")
    if patience is not None and patience < 1:
        problems.add("patience", patience, "must be at least 1")
    if not 0 < target_share <= 1:
        problems.add("target_share", target_share, "must be above 0 and at most 1")
    read = {}
    for name, value in values.items():
        with problems.gather():
            read[name] = value if name == "encoder" else parse_value(FinetunedClassifierConfig, name, value, label=name)
    problems.raise_if_any()
    try:
        return FinetunedClassifierConfig.model_validate(read)
    except ValidationError as error:
        raise UserError.from_validation(error) from error


def _measured(name: str, training: Training, images: ImageSet) -> Run:
    training.network.load_state_dict(training.best_weights)
    with training.numerics.applied():
        logits = Subject(training.network).classify(images.images)
    trained = sum(parameter.numel() for parameter in training.network.parameters() if parameter.requires_grad)
    return Run(name, classified(images.class_names, images.labels, logits), trained, training)
