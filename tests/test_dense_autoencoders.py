"""Dense and stacked autoencoders, layer by layer, and what their penalties, noise and phases do."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from arithmetic import (
    GREY,
    Doubles,
    array,
    batch_of,
    linear,
    logistic,
    loss_of,
    noise,
    only_update,
    parameters,
    spec_of,
    weights_of,
)
from torch import Tensor, nn

from models.dense_autoencoder import (
    DenseAutoencoder,
    DenseAutoencoderConfig,
    DenseAutoencoderFamily,
    activity_penalty,
    add_noise,
    sparseness,
)
from models.family import Batch
from models.stacked_autoencoder import (
    StackedAutoencoder,
    StackedAutoencoderConfig,
    StackedAutoencoderFamily,
    reconstruction,
)
from models.training import Budget, fit, start

pytestmark = pytest.mark.usefixtures("seeded")


DENSE = DenseAutoencoderFamily()


def dense(shape: tuple[int, int, int] = (2, 3, 4), **settings: Any) -> tuple[DenseAutoencoderConfig, DenseAutoencoder]:
    config = DenseAutoencoderConfig.model_validate({"hidden_units": 6, **settings})
    return config, DenseAutoencoder(config, shape)


@pytest.mark.parametrize("units", [128, 256, 512, 1024])
def test_dense_parameters(units: int) -> None:
    """Report E's one-layer autoencoders, then deeper ones and tied ones."""
    _, one = dense(GREY, hidden_units=units)
    assert parameters(one) == linear(784, units) + linear(units, 784)
    _, three = dense(GREY, hidden_units=units, hidden_layers=3)
    assert parameters(three) == linear(784, units) + 4 * linear(units, units) + linear(units, 784)
    _, tied = dense(GREY, hidden_units=units, tied_weights=True)
    assert parameters(tied) == 784 * units + units + 784
    _, tied = dense(GREY, hidden_units=units, hidden_layers=3, tied_weights=True)
    assert parameters(tied) == 784 * units + 2 * units * units + 3 * units + 2 * units + 784


NON_LINEAR: dict[str, Callable[[Doubles], Doubles]] = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": logistic,
    "tanh": np.tanh,
}


@pytest.mark.parametrize("tied", [False, True], ids=["free", "tied"])
@pytest.mark.parametrize("activation", NON_LINEAR)
@pytest.mark.parametrize("output", ["sigmoid", "linear"])
def test_dense_layer_by_layer(tied: bool, activation: str, output: str) -> None:
    _, network = dense(hidden_layers=2, tied_weights=tied, activation=activation, output=output)
    act, images = NON_LINEAR[activation], torch.rand(5, 2, 3, 4)
    for bias in network.biases:
        nn.init.normal_(bias)
    (w1, b1), (w2, b2) = map(weights_of, network.encoder)
    codes = act(act(array(images).reshape(5, 24) @ w1.T + b1) @ w2.T + b2)
    if tied:
        c2, c1 = map(array, network.biases)
        made = act(codes @ w2 + c2) @ w1 + c1
    else:
        (v2, c2), (v1, c1) = map(weights_of, network.decoder)
        made = act(codes @ v2.T + c2) @ v1.T + c1
    np.testing.assert_allclose(array(network.encode(images)), codes, atol=1e-5)
    made = logistic(made) if output == "sigmoid" else made
    np.testing.assert_allclose(array(network(images)), made.reshape(5, 2, 3, 4), atol=1e-5)


def test_tied_weights_stay_tied_in_training() -> None:
    """One step of SGD moves the shared matrix by both halves' gradients."""
    config, network = dense(tied_weights=True, optimizer="sgd", lr=0.5, momentum=0, weight_decay=0, activation="tanh")
    batch = batch_of((2, 3, 4))
    layer: Any = network.encoder[0]
    encoder, decoder = layer.weight.detach().clone(), layer.weight.detach().T.clone()
    encoder.requires_grad_()
    decoder.requires_grad_()
    codes = torch.tanh(batch.images.flatten(1) @ encoder.T + layer.bias.detach())
    made = torch.sigmoid(codes @ decoder.T + network.biases[0].detach())
    torch.square(made - batch.images.flatten(1)).mean().backward()
    update = only_update(DENSE, config, network)
    loss = update.loss(batch)
    assert isinstance(loss, Tensor)
    loss.backward()
    update.optimizer.step()
    assert encoder.grad is not None
    assert decoder.grad is not None
    torch.testing.assert_close(layer.weight.detach(), encoder.detach() - 0.5 * (encoder.grad + decoder.grad.T))


@pytest.mark.parametrize("kind", ["none", "l1", "l2"])
def test_activity_penalty(kind: str) -> None:
    """λ·Σ|h| or λ·Σh² of an image, averaged over images, on top of the error."""
    config, network = dense(activity_penalty=kind, activity_weight=0.03, activation="tanh")
    batch = batch_of((2, 3, 4))
    hidden = network.encode(batch.images).detach()
    codes = array(hidden)
    assert codes.min() < 0
    summed = {"none": np.zeros(6), "l1": np.abs(codes).sum(1), "l2": (codes**2).sum(1)}[kind]
    assert float(activity_penalty(hidden, config)) == pytest.approx(0.03 * summed.mean(), rel=1e-5)
    error = ((array(network(batch.images)) - array(batch.images)) ** 2).mean()
    loss, _ = loss_of(only_update(DENSE, config, network), batch)
    assert loss == pytest.approx(error + 0.03 * summed.mean(), rel=1e-5)
    # Trials are ranked by the error alone.
    assert DENSE.measure(config, network, batch)["mse"].mean().item() == pytest.approx(error, rel=1e-5)


def hoyer(codes: Doubles) -> Doubles:
    n = codes.shape[1]
    made: Doubles = (np.sqrt(n) - np.abs(codes).sum(1) / np.sqrt((codes**2).sum(1))) / (np.sqrt(n) - 1)
    return made


def test_sparseness() -> None:
    codes = torch.randn(20, 9) * torch.rand(20, 9).round()
    codes[:, 0] = 1e-3  # none of them is all zeros
    np.testing.assert_allclose(array(sparseness(codes)), hoyer(array(codes)), atol=1e-5)
    torch.testing.assert_close(sparseness(100 * codes), sparseness(codes), rtol=1e-4, atol=1e-4)
    limits = torch.tensor([[0, -3.0, 0, 0], [2.0, 2, 2, 2], [0, 0, 0, 0], [1.0, -1, 1, -1], [1.0, 1, 0, 0]])
    half = (2 - math.sqrt(2)) / (2 - 1)
    assert sparseness(limits).tolist() == pytest.approx([1, 0, 1, 0, half], abs=1e-6)
    assert sparseness(torch.tensor([[0.0], [2.0]])).tolist() == [1, 1]
    config, network = dense(hidden_layers=2, activation="tanh")
    images = torch.rand(5, 2, 3, 4)
    measured = DENSE.measure(config, network, Batch(images, torch.zeros(5)))["sparseness"]
    np.testing.assert_allclose(array(measured), hoyer(array(network.encode(images))), atol=1e-5)


@pytest.mark.parametrize("level", [0.05, 0.3, 0.5])
def test_masking_noise_blackens_its_share_of_the_pixels(level: float) -> None:
    images = torch.rand(40, 3, 28, 28) + 0.1
    noisy = add_noise(images, DenseAutoencoderConfig(noise="masking", noise_level=level))
    black = noisy == 0
    count = black.numel()
    assert float(black.double().mean()) == pytest.approx(level, abs=5 * math.sqrt(level * (1 - level) / count))
    assert torch.equal(noisy[~black], images[~black])
    # Each pixel of each image and channel by itself: two of them are both black by chance only.
    for one, other in ((black[:-1], black[1:]), (black[:, :-1], black[:, 1:]), (black[..., :-1], black[..., 1:])):
        assert float((one & other).double().mean()) == pytest.approx(level**2, abs=5 * level / math.sqrt(count / 2))


@pytest.mark.parametrize("level", [0.1, 0.3])
def test_gaussian_noise_has_its_standard_deviation_and_is_not_cut_off(level: float) -> None:
    images = torch.rand(100, 1, 28, 28)
    noisy = add_noise(images, DenseAutoencoderConfig(noise="gaussian", noise_level=level))
    added = array(noisy - images)
    assert added.std() == pytest.approx(level, rel=0.02)
    assert added.mean() == pytest.approx(0, abs=5 * level / math.sqrt(added.size))
    assert noisy.min() < 0
    assert noisy.max() > 1
    assert add_noise(images, DenseAutoencoderConfig(noise="none", noise_level=level)) is images


@pytest.mark.parametrize("kind", ["gaussian", "masking"])
def test_noise_is_on_the_input_in_training_only(kind: str) -> None:
    config, network = dense(noise=kind, noise_level=0.4)
    batch = batch_of((2, 3, 4))
    for _ in range(2):
        mse = array(DENSE.measure(config, network, batch)["mse"])
        expected = (array(network(batch.images)) - array(batch.images)) ** 2
        np.testing.assert_allclose(mse, expected.mean((1, 2, 3)), rtol=1e-5)
    update = only_update(DENSE, config, network)
    torch.manual_seed(5)
    loss, _ = loss_of(update, batch)
    torch.manual_seed(5)
    made = network(add_noise(batch.images, config))
    # What has to come out is the clean image.
    assert loss == pytest.approx(((array(made) - array(batch.images)) ** 2).mean(), rel=1e-5)
    assert loss != pytest.approx(expected.mean(), rel=1e-3)


STACKED = StackedAutoencoderFamily()


@pytest.mark.parametrize("std", [0.05, 0.2])
def test_stacked_begins_with_small_normal_weights(std: float) -> None:
    network = StackedAutoencoder(StackedAutoencoderConfig(init_std=std, hidden_layers=3), spec_of(GREY))
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 3 + 3 + 1
    for layer in linears:
        weights, biases = weights_of(layer)
        assert not biases.any()
        assert weights.std() == pytest.approx(std, rel=5 / math.sqrt(2 * weights.size))
        assert weights.mean() == pytest.approx(0, abs=5 * std / math.sqrt(weights.size))
        # As normal numbers, 4.55 % of them are off by more than two standard deviations.
        outside = (np.abs(weights) > 2 * std).mean()
        assert outside == pytest.approx(0.0455, abs=5 * math.sqrt(0.0455 * 0.9545 / weights.size))


@pytest.mark.parametrize("units", [128, 256, 512])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_stacked_of_report_e(units: int, layers: int) -> None:
    """Every size in its table, with its optimizer; batch norm goes with ReLU."""
    for activation, normed in (("relu", True), ("sigmoid", False)):
        given = {"hidden_units": units, "hidden_layers": layers, "activation": activation, "batch_norm": normed}
        config = StackedAutoencoderConfig.model_validate({**given, "weight_decay": 0})
        assert (config.optimizer, config.lr, config.momentum, config.init_std) == ("sgd", 0.1, 0.9, 0.05)
        assert config.pretrain_tolerance == 1e-6
        network = STACKED.build(config, spec_of(GREY))
        widths = [784, *[units] * layers, 10]
        used = sum(linear(a, b) for a, b in pairwise(widths)) + normed * 2 * units * layers
        spare = sum(linear(b, a) for a, b in pairwise(widths[:-1]))
        assert parameters(network) == used + spare
        assert parameters(network.decoders) == spare
        updates = [update for phase in STACKED.phases(config, network) for update in phase.updates]
        assert len(updates) == layers + 1
        for update in updates:
            (group,) = update.optimizer.param_groups
            assert isinstance(update.optimizer, torch.optim.SGD)
            assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 0)


def test_each_phase_trains_its_own_layer() -> None:
    """Three layers, a step an epoch: three epochs of pre-training, one a layer, then three of fine-tuning."""
    config = StackedAutoencoderConfig(
        hidden_layers=3, hidden_units=5, pretrain_share=0.5, pretrain_patience=1000, batch_size=8, weight_decay=0.01
    )
    training = start(STACKED, config, noise((1, 4, 4)), Budget(6), seed=0)
    before = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    parts = {f"layers.{i}": f"decoders.{i}" for i in range(3)}
    for epoch, record in enumerate(fit(training), 1):
        now = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
        changed = {name for name in now if not torch.equal(now[name], before[name])}
        pretrained = parts if epoch > 3 else dict([[*parts.items()][epoch - 1]])
        expected = {name for name in now if name.startswith(tuple(pretrained))}
        if epoch > 3:
            expected |= {"head.weight", "head.bias"}
            assert {"train_loss", "val_accuracy"} <= record.metrics.keys()
        else:
            expected |= {f"{decoder}.{kind}" for decoder in pretrained.values() for kind in ("weight", "bias")}
            assert [name for name in record.metrics if name.startswith("train")] == [f"train_layer{epoch}_loss"]
            assert "val_accuracy" not in record.metrics
            assert "val_cross_entropy" in record.metrics
            assert training.best is None
        # Batch norm's statistics too; a hidden layer's bias in front of it has no gradient but is decayed, from 0.
        unmoved = {name for name in expected if name.endswith(".0.bias") and name.startswith("layers")}
        assert changed - unmoved == expected - unmoved
        before = now
    assert training.best is not None


def test_pretraining_restores_what_the_layers_below_give() -> None:
    config = StackedAutoencoderConfig(hidden_layers=2, hidden_units=5, activation="relu", init_std=0.5)
    network = StackedAutoencoder(config, spec_of((1, 3, 4)))
    first: Any = network.layers[0]
    second: Any = network.layers[1]
    with torch.no_grad():
        first[1].running_mean.normal_()
        first[1].running_var.uniform_(0.5, 2)
        first[1].bias.normal_()
    batch = batch_of((1, 3, 4))
    pixels = array(batch.images).reshape(6, 12)

    def normalised(x: Doubles, norm: Any, mean: Doubles, variance: Doubles) -> Doubles:
        y: Doubles = (x - mean) / np.sqrt(variance + norm.eps) * array(norm.weight) + array(norm.bias)
        return np.maximum(y, 0)

    def times(x: Doubles, layer: Any) -> Doubles:
        weights, biases = weights_of(layer)
        made: Doubles = x @ weights.T + biases
        return made

    x = times(pixels, first[0])
    restored = logistic(times(normalised(x, first[1], x.mean(0), x.var(0)), network.decoders[0]))
    network.train()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert reconstruction(network, 0)(batch).item() == pytest.approx(((restored - pixels) ** 2).mean(), rel=1e-4)

    network.load_state_dict(state)  # the first layer's statistics have moved
    given = normalised(x, first[1], array(first[1].running_mean), array(first[1].running_var))
    y = times(given, second[0])
    restored = times(normalised(y, second[1], y.mean(0), y.var(0)), network.decoders[1])
    network.train()
    assert reconstruction(network, 1)(batch).item() == pytest.approx(((restored - given) ** 2).mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("layers", "share", "shares"),
    [(2, 0.5, [0.25, 0.25, 0.5]), (3, 0.75, [0.25, 0.25, 0.25, 0.25]), (2, 0.0, [1]), (0, 0.25, [1])],
)
def test_shares_of_pretraining_and_fine_tuning(layers: int, share: float, shares: list[float]) -> None:
    config = StackedAutoencoderConfig(
        hidden_layers=layers, hidden_units=4, pretrain_share=share, pretrain_patience=7, pretrain_tolerance=0.25
    )
    phases = STACKED.phases(config, STACKED.build(config, spec_of((1, 3, 3))))
    assert [phase.share for phase in phases] == pytest.approx(shares)
    assert [phase.ranks for phase in phases] == [False] * (len(shares) - 1) + [True]
    assert [(phase.patience, phase.tolerance) for phase in phases] == [(7, 0.25)] * (len(shares) - 1) + [(None, 0)]


def test_pretraining_that_does_not_get_better_ends_early() -> None:
    """At a rate of next to nothing the second epoch of a layer is no better than the first, and its last."""
    settings = {"hidden_layers": 2, "hidden_units": 4, "pretrain_share": 0.8, "batch_size": 8, "momentum": 0.0}
    config = StackedAutoencoderConfig.model_validate({**settings, "lr": 1e-12, "batch_norm": False})

    def losses(config: StackedAutoencoderConfig) -> str:
        training = start(STACKED, config, noise((1, 4, 4)), Budget(10), seed=0)
        names = [[name for name in record.metrics if name.startswith("train")] for record in fit(training)]
        return "".join({"train_layer1_loss": "1", "train_layer2_loss": "2", "train_loss": "f"}[n] for (n,) in names)

    assert losses(config) == "1122ffffff"
    assert losses(config.model_copy(update={"pretrain_patience": 2})) == "111222ffff"
    # A layer has four epochs of ten at most, so patience of four never ends one.
    assert losses(config.model_copy(update={"pretrain_patience": 4})) == "11112222ff"


def test_without_hidden_layers_it_is_logistic_regression() -> None:
    """Two steps of softmax regression with momentum and weight decay, in NumPy."""
    settings = {"hidden_layers": 0, "batch_size": 20, "lr": 0.3, "momentum": 0.8, "weight_decay": 0.01}
    config = StackedAutoencoderConfig.model_validate(settings)
    data = noise((1, 5, 6), train=20)
    training = start(STACKED, config, data, Budget(2), seed=0)
    assert parameters(training.network) == 30 * 10 + 10
    x = array(data.train.batch(slice(None)).images).reshape(20, 30)
    wanted = np.eye(10)[data.train.labels.numpy()]
    w, b = weights_of(training.network.head)
    velocity_w, velocity_b = np.zeros_like(w), np.zeros_like(b)
    losses = []
    for _ in range(2):
        scores = np.exp(x @ w.T + b)
        p = scores / scores.sum(1, keepdims=True)
        losses.append(-np.log((p * wanted).sum(1)).mean())
        velocity_w = 0.8 * velocity_w + (p - wanted).T @ x / 20 + 0.01 * w
        velocity_b = 0.8 * velocity_b + (p - wanted).mean(0) + 0.01 * b
        w, b = w - 0.3 * velocity_w, b - 0.3 * velocity_b
    records = list(fit(training))
    assert [record.metrics["train_loss"] for record in records] == pytest.approx(losses, rel=1e-5)
    trained_w, trained_b = weights_of(training.network.head)
    np.testing.assert_allclose(trained_w, w, atol=1e-5)
    np.testing.assert_allclose(trained_b, b, atol=1e-5)
