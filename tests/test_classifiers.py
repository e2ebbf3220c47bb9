"""Classifiers: their sizes, and their numbers against scikit-learn's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from arithmetic import (
    GREY,
    array,
    conv,
    linear,
    maps,
    noise,
    parameters,
    spec_of,
)
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from models.classifiers import CnnClassifierConfig, CnnClassifierFamily, MlpClassifierConfig, MlpClassifierFamily
from models.errors import UserError
from models.family import Family
from models.stacked_autoencoder import (
    StackedAutoencoderFamily,
)
from models.training import Budget, fit, start

pytestmark = pytest.mark.usefixtures("seeded")


def test_parameters_of_the_multilayer_perceptron() -> None:
    family = MlpClassifierFamily()
    two = family.build(MlpClassifierConfig(hidden_layers=2, hidden_units=64, dropout=0.2), spec_of(GREY))
    assert parameters(two) == linear(784, 64) + linear(64, 64) + linear(64, 10)
    normed = family.build(MlpClassifierConfig(hidden_layers=3, hidden_units=16, batch_norm=True), spec_of((3, 4, 5)))
    assert parameters(normed) == linear(60, 16) + 2 * linear(16, 16) + 3 * 2 * 16 + linear(16, 10)
    assert parameters(family.build(MlpClassifierConfig(hidden_layers=0), spec_of(GREY, "ab"))) == linear(784, 2)


def test_parameters_and_maps_of_the_convolutional_classifier() -> None:
    family, config = CnnClassifierFamily(), CnnClassifierConfig(filters=16, hidden_units=128)
    network = family.build(config, spec_of(GREY))
    assert parameters(network) == conv(3, 1, 16) + conv(3, 16, 32) + linear(32 * 7 * 7, 128) + linear(128, 10)
    shapes = maps(network, torch.rand(1, *GREY), (nn.Conv2d, nn.MaxPool2d))
    assert shapes == [(16, 28, 28), (16, 14, 14), (32, 14, 14), (32, 7, 7)]
    normed = family.build(config.model_copy(update={"batch_norm": True}), spec_of((3, 13, 30)))
    features = 32 * 3 * 7
    counts = conv(3, 3, 16) + conv(3, 16, 32) + linear(features, 128) + linear(128, 10)
    assert parameters(normed) == counts + 2 * (16 + 32 + 128)


@pytest.mark.parametrize("family", [MlpClassifierFamily(), CnnClassifierFamily(), StackedAutoencoderFamily()])
def test_accuracy_and_cross_entropy_are_scikit_learns(family: Family[Any]) -> None:
    data = noise((1, 8, 8), train=64, val=530)  # more than a validation step takes
    training = start(
        family, family.Config.model_validate({"batch_size": 32, "hidden_units": 64}), data, Budget(4), seed=0
    )
    record = list(fit(training))[-1]
    network: Any = training.network.eval()
    with torch.inference_mode():
        probabilities = array(torch.softmax(network.classify(data.val.batch(slice(None)).images).double(), 1))
    labels = data.val.labels.numpy()
    assert record.metrics["val_accuracy"] == pytest.approx(accuracy_score(labels, probabilities.argmax(1)))
    assert record.metrics["val_cross_entropy"] == pytest.approx(log_loss(labels, probabilities), rel=1e-5)
    assert 0 < record.metrics["val_accuracy"] < 1
    assert family.objective.metric == "val_accuracy"
    assert family.objective.mode == "max"


@pytest.mark.parametrize("family", [MlpClassifierFamily(), CnnClassifierFamily(), StackedAutoencoderFamily()])
@pytest.mark.parametrize("classes", [[], ["all"]], ids=["none", "one"])
def test_a_classifier_needs_two_classes(family: Family[Any], classes: list[str]) -> None:
    with pytest.raises(UserError, match="at least two classes") as caught:
        family.check(family.Config(), spec_of(GREY, classes))
    assert [problem.field for problem in caught.value.problems] == ["--dataset"]
    assert family.name in str(caught.value)
    family.check(family.Config(), spec_of(GREY, ["one", "two"]))
