"""Adversarial networks: losses, who trains what, sizes, and how a collapse shows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arithmetic import (
    CLASSES,
    DCGAN,
    GAN,
    GREY,
    RGB,
    SMALL,
    array,
    batch_of,
    conv,
    linear,
    logistic,
    loss_of,
    maps,
    noise,
    parameters,
    spec_of,
)
from torch import Tensor, nn

from models.checkpoint import load, save
from models.dcgan import DcganConfig, start_size
from models.errors import TrainingFailedError, UserError
from models.family import Family, Update
from models.gan import Adversaries, GanConfig, discriminator_loss, generator_loss
from models.training import Budget, fit, start

pytestmark = pytest.mark.usefixtures("seeded", "feature_cache")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_adversarial_losses(smoothing: float) -> None:
    real, fake = torch.randn(7, 1) * 2, torch.randn(7, 1) * 2
    d_real, d_fake = logistic(array(real)), logistic(array(fake))
    # The target for real images is 1 - smoothing; for samples it stays 0.
    bce = -((1 - smoothing) * np.log(d_real) + smoothing * np.log(1 - d_real)).mean() - np.log(1 - d_fake).mean()
    hinge = np.maximum(0, 1 - array(real)).mean() + np.maximum(0, 1 + array(fake)).mean()
    by_hand = {
        "non_saturating": (bce, -np.log(d_fake).mean()),
        "minimax": (bce, np.log(1 - d_fake).mean()),
        "hinge": (hinge, -array(fake).mean()),
    }
    for name, (d_loss, g_loss) in by_hand.items():
        config = GanConfig.model_validate({"loss": name, "label_smoothing": smoothing})
        assert float(discriminator_loss(config, real, fake)) == pytest.approx(d_loss, rel=1e-5)
        assert float(generator_loss(config, fake)) == pytest.approx(g_loss, rel=1e-5)


@pytest.mark.parametrize("loss", ["non_saturating", "minimax", "hinge"])
@pytest.mark.parametrize("family", [GAN, DCGAN], ids=["gan", "dcgan"])
def test_each_update_moves_its_own_network(family: Family[Any], loss: str) -> None:
    config = family.Config.model_validate({"loss": loss, "latent_dim": 3, "dropout": 0.0})
    network = family.build(config, spec_of((1, 12, 12)))
    assert isinstance(network, Adversaries)
    (phase,) = family.phases(config, network)
    assert [update.name for update in phase.updates] == ["d_loss", "g_loss"]
    batch = batch_of((1, 12, 12))
    for update, moved, still in zip(
        phase.updates,
        (network.discriminator, network.generator),
        (network.generator, network.discriminator),
        strict=True,
    ):
        network.zero_grad()
        before = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
        given = update.loss(batch)
        (given[0] if isinstance(given, tuple) else given).backward()
        update.optimizer.step()
        changed = {name for name, tensor in network.named_parameters() if not torch.equal(tensor, before[name])}
        prefix = "discriminator." if moved is network.discriminator else "generator."
        assert all(name.startswith(prefix) for name in changed)
        # But for biases in front of batch norm, which have no gradient to speak of, everything moves.
        assert {name for name in before if name.startswith(prefix) and name.endswith("weight")} <= changed
        in_optimizer = {id(p) for group in update.optimizer.param_groups for p in group["params"]}
        assert in_optimizer == {id(parameter) for parameter in moved.parameters()}
        assert not in_optimizer & {id(parameter) for parameter in still.parameters()}
        if moved is network.discriminator:
            assert all(parameter.grad is None for parameter in still.parameters())


@pytest.mark.parametrize("loss", ["non_saturating", "minimax", "hinge"])
def test_each_network_plays_its_own_side(loss: str) -> None:
    """A step of the discriminator tells real images and samples further apart, one of the generator raises D(G(z))."""
    settings = {**SMALL, "loss": loss, "dropout": 0.0, "batch_norm": False, "beta1": 0.0}
    config = GanConfig.model_validate(settings)
    network = GAN.build(config, spec_of((1, 4, 4)))
    batch = batch_of((1, 4, 4), 64)

    def opinions() -> tuple[float, float]:
        torch.manual_seed(1)
        real, fake = 2 * batch.images - 1, network.generator(network.noise(64))
        with torch.no_grad():
            return float(network.discriminator(real).mean()), float(network.discriminator(fake).mean())

    def step(update: Update) -> None:
        torch.manual_seed(1)
        update.optimizer.zero_grad()
        given = update.loss(batch)
        (given[0] if isinstance(given, tuple) else given).backward()
        update.optimizer.step()

    d_update, g_update = GAN.phases(config, network)[0].updates
    began = opinions()
    step(d_update)
    judged = opinions()
    assert judged[0] - judged[1] > began[0] - began[1]
    step(g_update)
    pleased = opinions()
    assert pleased[0] == judged[0]
    assert pleased[1] > judged[1]


@pytest.mark.parametrize("family", [GAN, DCGAN], ids=["gan", "dcgan"])
def test_images_are_in_minus_one_to_one_inside(family: Family[Any]) -> None:
    config = family.Config.model_validate({"latent_dim": 3})
    network = family.build(config, spec_of((3, 12, 12)))
    assert isinstance(network, Adversaries)
    with torch.no_grad():  # far ends, both of them
        for parameter in network.generator.parameters():
            parameter.mul_(30)
    judged: list[Tensor] = []
    network.discriminator.register_forward_pre_hook(lambda _, given: judged.append(given[0].detach()))
    (phase,) = family.phases(config, network)
    batch = batch_of((3, 12, 12), 40)
    d_update, g_update = phase.updates
    _, others = loss_of(d_update, batch)
    loss_of(g_update, batch)
    real, fakes, for_generator = judged
    torch.testing.assert_close(real, batch.images * 2 - 1)
    for made in (fakes, for_generator):
        assert made.shape == (40, 3, 12, 12)
        assert made.min() < -0.9
        assert made.max() > 0.9
        assert made.abs().max() <= 1
    network.eval()
    with torch.inference_mode():
        torch.manual_seed(4)
        images = network.sample(40)
        torch.manual_seed(4)
        inside = network.generator(torch.randn(40, 3))
    torch.testing.assert_close(images, (inside + 1) / 2)
    assert images.min() >= 0
    assert images.max() <= 1
    assert others.keys() == {"d_real", "d_fake"}


def test_opinions_of_the_discriminator_are_reported_as_probabilities() -> None:
    config = GanConfig.model_validate({**SMALL, "dropout": 0.0})
    network = GAN.build(config, spec_of((1, 4, 4)))
    batch, logits = batch_of((1, 4, 4)), []
    network.discriminator.register_forward_hook(lambda _, __, out: logits.append(array(out)))
    _, others = loss_of(GAN.phases(config, network)[0].updates[0], batch)
    real, fake = logits
    assert others == pytest.approx({"d_real": logistic(real).mean(), "d_fake": logistic(fake).mean()}, rel=1e-5)
    record = next(fit(start(GAN, config, noise((1, 8, 8)), Budget(1), seed=0)))
    assert {"train_d_loss", "train_g_loss", "train_d_real", "train_d_fake"} <= record.metrics.keys()


@pytest.mark.parametrize("family", [GAN, DCGAN], ids=["gan", "dcgan"])
def test_learning_rates_of_both_networks(family: Family[Any]) -> None:
    config = family.Config.model_validate({"lr": 2e-3, "lr_ratio": 0.25, "beta1": 0.3})
    network = family.build(config, spec_of((1, 12, 12)))
    d_update, g_update = family.phases(config, network)[0].updates
    for update, lr in ((g_update, 2e-3), (d_update, 5e-4)):
        (group,) = update.optimizer.param_groups
        assert isinstance(update.optimizer, torch.optim.Adam)
        assert group["lr"] == pytest.approx(lr)
        assert group["betas"] == (0.3, 0.999)


def test_gan_of_report_b() -> None:
    """100 numbers, four linear layers each, ReLU, tanh at the end, dropout 0.3 in the discriminator."""
    config = GanConfig(activation="relu", batch_norm=False, dropout=0.3, lr=1e-4, hidden_units=128)
    network = GAN.build(config, spec_of(GREY))
    generator = linear(100, 128) + linear(128, 256) + linear(256, 512) + linear(512, 784)
    discriminator = linear(784, 512) + linear(512, 256) + linear(256, 128) + linear(128, 1)
    assert parameters(network.generator) == generator
    assert parameters(network.discriminator) == discriminator
    kinds = [[type(module).__name__ for module in part.children()] for part in network.children()]
    assert kinds[0] == ["Linear", "ReLU"] * 3 + ["Linear", "Tanh", "Unflatten"]
    assert kinds[1] == ["Flatten", *["Linear", "ReLU", "Dropout"] * 3, "Linear"]
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} == {0.3}
    normed = GAN.build(config.model_copy(update={"batch_norm": True}), spec_of(GREY))
    assert parameters(normed.generator) == generator + 2 * (128 + 256 + 512)
    assert parameters(normed.discriminator) == discriminator


@pytest.mark.parametrize(
    ("height", "width", "first", "doublings"),
    [(28, 28, (7, 7), 2), (64, 64, (4, 4), 4), (12, 12, (3, 3), 2), (32, 64, (4, 8), 3), (20, 28, (5, 7), 2)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_dcgan_sizes(channels: int, height: int, width: int, first: tuple[int, int], doublings: int) -> None:
    config = DcganConfig(filters=2, latent_dim=3)
    spec = spec_of((channels, height, width))
    DCGAN.check(config, spec)
    assert start_size(spec) == (first, doublings)
    network = DCGAN.build(config, spec)
    sides = [(first[0] * 2**i, first[1] * 2**i) for i in range(doublings + 1)]
    filters = [2 * 2**i for i in reversed(range(doublings))]  # halved where the side doubles
    grown = maps(network.generator, torch.randn(2, 3), (nn.Unflatten, nn.ConvTranspose2d))
    expected = [(count, *side) for count, side in zip([*filters, channels], sides, strict=True)]
    assert grown == expected
    shrunk = maps(network.discriminator, torch.rand(2, channels, height, width), (nn.Conv2d,))
    assert shrunk == expected[-2::-1]


def test_dcgan_parameters() -> None:
    """Report C's size, 64×64 in colour. Batch norm has two numbers a map, and stands in for the bias before it."""
    network = DCGAN.build(DcganConfig(filters=64, latent_dim=100), spec_of(RGB))
    generator = 100 * 512 * 4 * 4 + 2 * 512
    generator += 16 * 512 * 256 + 2 * 256 + 16 * 256 * 128 + 2 * 128 + 16 * 128 * 64 + 2 * 64 + conv(4, 64, 3)
    discriminator = conv(4, 3, 64) + 16 * 64 * 128 + 2 * 128 + 16 * 128 * 256 + 2 * 256 + 16 * 256 * 512 + 2 * 512
    discriminator += linear(512 * 4 * 4, 1)
    assert parameters(network.generator) == generator
    assert parameters(network.discriminator) == discriminator
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            weights = array(module.weight)
            assert weights.std() == pytest.approx(0.02, rel=5 / math.sqrt(2 * weights.size))
            assert weights.mean() == pytest.approx(0, abs=5 * 0.02 / math.sqrt(weights.size))
        elif isinstance(module, nn.BatchNorm2d):
            assert float(module.weight.mean()) == pytest.approx(1, abs=0.02)
            assert float(module.weight.std()) == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize("size", [(27, 28), (28, 27), (30, 30), (8, 8), (36, 36), (28, 64), (11, 11)])
def test_sizes_that_the_dcgan_cannot_mirror(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]}.*28, 64") as caught:
        start(DCGAN, DcganConfig(), noise((1, *size)), Budget(1), seed=0)
    assert [problem.field for problem in caught.value.problems] == ["--image-size"]


@pytest.mark.parametrize("family", [GAN, DCGAN], ids=["gan", "dcgan"])
def test_one_validation_image_has_no_covariance(family: Family[Any]) -> None:
    with pytest.raises(UserError, match=r"got 1; .*two at least") as caught:
        start(family, family.Config(), noise((1, 12, 12), val=1), Budget(1), seed=0)
    assert [problem.field for problem in caught.value.problems] == ["--val-images"]


class Switched(nn.Module):
    """A generator whose samples vary by ``scale`` of what uniform noise does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, noise_BN: Tensor) -> Tensor:
        return self.scale * (2 * torch.rand(len(noise_BN), 1, 8, 8) - 1)


def test_a_generator_that_varied_and_then_does_not_has_collapsed() -> None:
    data, config = noise((1, 8, 8), train=100, val=100), GanConfig()
    generator = Switched()
    network = Adversaries(generator, nn.Linear(1, 1), 3)

    generator.scale = 0.0
    metrics = GAN.evaluate(config, network, data)  # it has not begun to vary: no collapse, but no good either
    assert metrics["spread"] == pytest.approx(0, abs=1e-3)
    assert metrics["features_trained"] == 1
    constant = metrics["frechet"]

    generator.scale = 1.0
    metrics = GAN.evaluate(config, network, data)
    assert metrics["spread"] == pytest.approx(1, abs=0.3)
    assert metrics["frechet"] < constant / 4
    assert float(network.most_spread) == pytest.approx(metrics["spread"])

    generator.scale = 0.2
    less = GAN.evaluate(config, network, data)["spread"]  # less than before is no collapse
    assert 0.01 < less < 0.5
    assert float(network.most_spread) == pytest.approx(metrics["spread"])

    generator.scale = 0.0
    with pytest.raises(TrainingFailedError, match="collapsed"):
        GAN.evaluate(config, network, data)
    # What it once could is kept with the weights, so that a run that goes on knows it.
    resumed = Adversaries(generator, nn.Linear(1, 1), 3)
    resumed.load_state_dict(network.state_dict())
    with pytest.raises(TrainingFailedError, match="collapsed"):
        GAN.evaluate(config, resumed, data)


def test_a_collapse_ends_the_run() -> None:
    config = GanConfig.model_validate(SMALL)
    training = start(GAN, config, noise((1, 8, 8), train=50, val=50), Budget(3), seed=0)
    records = fit(training)
    next(records)
    training.network.get_buffer("most_spread").fill_(0.5)
    with torch.no_grad():
        for parameter in training.network.get_submodule("generator").parameters():
            parameter.zero_()
    training.phases = [
        type(phase)(phase.name, [update for update in phase.updates if update.name == "d_loss"])
        for phase in training.phases
    ]
    with pytest.raises(TrainingFailedError, match="collapsed"):
        next(records)
    assert len(training.records) == 1


def test_a_gans_checkpoint_loads_and_samples(tmp_path: Path) -> None:
    config = GanConfig.model_validate(SMALL)
    training = start(GAN, config, noise((1, 8, 8)), Budget(1), seed=0)
    list(fit(training))
    save(tmp_path / "gan.pt", training, family="gan", resumable=False)
    trained = load(tmp_path / "gan.pt")
    network: Any = trained.network
    with torch.inference_mode():
        assert network.sample(3).shape == (3, 1, 8, 8)
    assert trained.spec.class_names == CLASSES
    assert float(network.most_spread) > 0
