"""The contract that every family keeps, and what is particular to each."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, relu

from models.conv_autoencoder import ConvAutoencoder, ConvAutoencoderConfig, ConvAutoencoderFamily
from models.datasets import DataOptions, DataSpec, ImageSet, TrainingData, load_training_data
from models.errors import NonFiniteError, UserError
from models.family import CAPABILITIES, FAMILIES, Batch, Family, Record, get_family
from models.space import Choice, Float, Range, Space, bounds_text, ranges_of
from models.training import VALIDATION_BATCH, Budget, DataOnDevice, Training, fit, start, validate

SHAPES = {"digits": (1, 28, 28), "colour": (3, 28, 28), "odd": (1, 29, 31), "odd colour": (3, 32, 27)}
LARGEST_SIDE = 64
CLASSES = tuple("0123456789")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Networks built outside a run have the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def spec_of(shape: tuple[int, int, int]) -> DataSpec:
    channels, height, width = shape
    return DataSpec(
        source="made",
        channels=channels,
        height=height,
        width=width,
        class_names=CLASSES,
        train_images=32,
        val_images=16,
        fingerprint="",
    )


def noise(shape: tuple[int, int, int], train: int = 32, val: int = 16) -> DataOnDevice:
    """Images of random pixels with random labels."""
    rng = np.random.default_rng(0)

    def images(count: int) -> ImageSet:
        pixels = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        return ImageSet(pixels, rng.integers(0, len(CLASSES), count), CLASSES)

    return DataOnDevice(TrainingData(images(train), images(val), spec_of(shape)))


def small(digits: DataOnDevice, train: int = 96, val: int = 32) -> DataOnDevice:
    """The first few of the digits."""

    def first(part: Any, count: int) -> ImageSet:
        return ImageSet(part.images[:count].numpy(), part.labels[:count].numpy(), CLASSES)

    return DataOnDevice(TrainingData(first(digits.train, train), first(digits.val, val), spec_of(SHAPES["digits"])))


def batch_of(shape: tuple[int, int, int], count: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.rand(count, *shape, generator=generator), torch.arange(count) % len(CLASSES))


def accepts(family: Family[Any], shape: tuple[int, int, int]) -> bool:
    try:
        family.check(family.Config(), spec_of(shape))
    except UserError:
        return False
    return True


def draw(rng: random.Random, known: Range) -> Any:
    """A member of a range, evenly (in the logarithm where it says so)."""
    if isinstance(known, Choice):
        return rng.choice(known.options)
    if known.log:
        return known.nearest(math.exp(rng.uniform(math.log(known.low), math.log(known.high))))
    values = known.values()
    return known.nearest(rng.uniform(known.low, known.high)) if values is None else rng.choice(values)


def drawn(family: Family[Any], seed: int, **fixed: Any) -> Any:
    """A random config from the family's own space."""
    rng, space = random.Random(seed), Space.of(family.Config, fixed)
    return family.Config.model_validate({**space.fixed, **space.walk(lambda _, known: draw(rng, known))})


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def numbers(records: list[Record]) -> list[tuple[float, int, dict[str, float]]]:
    """All of the records but their times."""
    return [(record.epoch, record.step, record.metrics) for record in records]


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    """Equal bit for bit, through dicts and lists."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key != "seconds":
                assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    else:
        assert one == other, where


def assert_resumes(family: Family[Any], config: Any, data: DataOnDevice, budget: Budget) -> None:
    """From the state at each record, the rest of the run is as if it had never stopped."""
    whole = start(family, config, data, budget, seed=3)
    states = [through_a_file(whole.state_dict()) for _ in fit(whole)]
    assert len(states) == len(budget.report_points())
    for done, state in enumerate(states, 1):
        resumed = start(family, config, data, budget, seed=3, state=state)
        assert numbers(resumed.records) == numbers(whole.records[:done])
        rest = list(fit(resumed))
        assert numbers(rest) == numbers(whole.records[done:])
        assert_same(resumed.state_dict(), whole.state_dict())
        assert resumed.finished


# --- the contract: config ---------------------------------------------------------------------------------------------


def test_names_and_objective(family: Family[Any]) -> None:
    assert FAMILIES[family.name].endswith(f":{type(family).__name__}")
    assert "\n" not in family.title
    assert family.title
    assert family.objective.metric.startswith("val_")
    assert family.objective.mode in ("min", "max")


def test_every_field_has_help_a_default_and_told_bounds(family: Family[Any]) -> None:
    for name, info in family.Config.model_fields.items():
        assert info.description, name
        assert "\n" not in info.description
        assert not info.is_required(), name
        assert bounds_text(family.Config, name), name
    assert family.Config.model_validate(family.Config().model_dump(mode="json")) == family.Config()


def test_ranges_lie_inside_the_fields_bounds(family: Family[Any]) -> None:
    ranges = ranges_of(family.Config)
    assert ranges
    for name, known in ranges.items():
        for value in known.options if isinstance(known, Choice) else (known.low, known.high):
            read = getattr(family.Config.model_validate({name: value}), name)
            assert read == value
            assert type(read) is type(value), name
        for other, wanted in known.when.items():
            for value in wanted:
                family.Config.model_validate({other: value})


def test_config_is_frozen_and_refuses_unknown_fields(family: Family[Any]) -> None:
    config = family.Config()
    with pytest.raises(ValidationError):
        setattr(config, "batch_size", 64)  # noqa: B010
    with pytest.raises(ValidationError):
        family.Config.model_validate({"no_such_field": 1})
    assert hash(config) == hash(family.Config())


# --- the contract: network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_default_config_builds_and_does_what_it_says(family: Family[Any], shape: tuple[int, int, int]) -> None:
    if not accepts(family, shape):
        assert shape != SHAPES["digits"]
        pytest.skip(f"{family.name} does not take images of {shape}")
    check_network(family, family.Config(), shape)


def check_network(family: Family[Any], config: Any, shape: tuple[int, int, int]) -> None:
    network, batch = family.build(config, spec_of(shape)), batch_of(shape)
    assert family.objective.metric in validate(start(family, config, noise(shape), Budget(1), seed=0))
    assert isinstance(network, family.Network)
    assert set(family.capabilities()) <= set(CAPABILITIES)
    network.eval()
    with torch.inference_mode():
        measured = family.measure(config, network, batch)
        assert all(len(values) == 5 and values.isfinite().all() for values in measured.values())
        able: Any = network
        if "encode" in family.capabilities():
            codes = able.encode(batch.images)
            assert codes.shape == (5, codes.shape[1])
            assert codes.shape[1] == getattr(config, "latent_dim", codes.shape[1])
            assert able.encode(batch.images[:2]).shape == (2, codes.shape[1])
            assert not torch.equal(codes[0], codes[1])
            if "decode" in family.capabilities():
                assert_images(able.decode(codes), 5, shape)
        if "decode" in family.capabilities():
            width = getattr(config, "latent_dim", getattr(config, "hidden_units", None))
            assert_images(able.decode(torch.randn(4, width)), 4, shape)
        if "sample" in family.capabilities():
            assert_images(able.sample(3), 3, shape)
        if "classify" in family.capabilities():
            assert able.classify(batch.images).shape == (5, len(CLASSES))


def assert_images(images: Tensor, count: int, shape: tuple[int, int, int]) -> None:
    assert images.shape == (count, *shape)
    assert images.min() >= 0
    assert images.max() <= 1


def test_smallest_images_train_and_smaller_ones_are_refused(family: Family[Any]) -> None:
    smallest = next(side for side in range(1, LARGEST_SIDE + 1) if accepts(family, (1, side, side)))
    shapes = [(1, smallest, smallest), (3, smallest, smallest + 7), (1, smallest + 6, smallest)]
    for shape in (shape for shape in shapes if accepts(family, shape)):
        check_network(family, family.Config(), shape)
        records = list(fit(start(family, family.Config(), noise(shape), Budget(8), seed=0)))
        assert math.isfinite(records[-1].metrics[family.objective.metric])
    for shape in ((1, smallest - 1, smallest - 1), (3, smallest - 1, 40), (1, 40, smallest - 1)):
        if smallest > 1:
            with pytest.raises(UserError, match=rf"{shape[1]}x{shape[2]}.*\b{smallest}\b"):
                start(family, family.Config(), noise(shape), Budget(1), seed=0)


def test_build_depends_on_torchs_random_state_alone(family: Family[Any]) -> None:
    def built(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return family.build(family.Config(), spec_of(SHAPES["digits"])).state_dict()

    one, same, other = built(0), built(0), built(1)
    assert_same(one, same)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_runs_seed_decides_its_first_weights(family: Family[Any], digits: DataOnDevice) -> None:
    def begun(seed: int) -> dict[str, Tensor]:
        return start(family, family.Config(), digits, Budget(1), seed=seed).network.state_dict()

    one, same, other = begun(0), begun(0), begun(1)
    assert_same(one, same)
    assert any(not torch.equal(one[name], other[name]) for name in one)


# --- the contract: training -------------------------------------------------------------------------------------------


def test_random_configs_of_the_space_survive_a_step(family: Family[Any], digits: DataOnDevice) -> None:
    data, diverged, seen = small(digits, 32, 16), 0, set()
    for seed in range(200):
        config = drawn(family, seed, batch_size=32)
        seen.add(config)
        training = start(family, config, data, Budget(1), seed=seed)
        try:
            (record,) = fit(training)
        except NonFiniteError:
            diverged += 1
            continue
        assert record.step == 1
        value = training.value_of(record)
        assert math.isfinite(value) if value is not None else not training.phases[training.phase].ranks
    assert len(seen) > 150
    # One that diverges at once is a failed trial, which a search survives; many would mean that the ranges are wrong.
    assert diverged <= 5


def test_objective_improves_on_real_images(family: Family[Any], digits: DataOnDevice) -> None:
    training = start(family, family.Config(batch_size=32), digits, Budget(8), seed=0)
    values = [training.value_of(record) for record in fit(training)]
    ranked = [value for value in values if value is not None]  # a phase may have no objective yet
    assert len(ranked) >= 2
    assert family.objective.better(ranked[-1], ranked[0])


def test_same_seed_same_numbers_other_seed_others(family: Family[Any], digits: DataOnDevice) -> None:
    def run(seed: int) -> Training:
        training = start(family, drawn(family, 0, batch_size=32), small(digits), Budget(2), seed=seed)
        list(fit(training))
        return training

    one, same, other = run(0), run(0), run(1)
    assert_same(one.state_dict(), same.state_dict())
    assert numbers(one.records)[0] != numbers(other.records)[0]


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_resumed_run_equals_uninterrupted_one(family: Family[Any], digits: DataOnDevice, seed: int | None) -> None:
    config = family.Config(batch_size=32) if seed is None else drawn(family, seed, batch_size=32)
    assert_resumes(family, config, small(digits), Budget(2.0, rungs=(1 / 3, 1.5)))


def test_non_finite_weights_are_noticed(family: Family[Any], digits: DataOnDevice) -> None:
    training = start(family, family.Config(batch_size=32), small(digits), Budget(2), seed=0)
    records = fit(training)
    next(records)
    with torch.no_grad():
        for parameter in training.network.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="became nan"):
        next(records)
    assert len(training.records) == 1


# --- the convolutional autoencoder ------------------------------------------------------------------------------------

CONV = ConvAutoencoderFamily()
REPORT_A = ConvAutoencoderConfig(filters=8, hidden_units=128, latent_dim=2, output="linear")


def layers(network: nn.Module, kind: type[nn.Module]) -> Iterator[Any]:
    return (module for module in network.modules() if isinstance(module, kind))


def test_layers_of_report_a() -> None:
    network = ConvAutoencoder(REPORT_A, (1, 28, 28))
    convs = [
        (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        for layer in layers(network, nn.Conv2d)
    ]
    assert convs == [
        (1, 8, (3, 3), (2, 2), (1, 1)),
        (8, 16, (3, 3), (2, 2), (1, 1)),
        (16, 32, (3, 3), (2, 2), (0, 0)),
    ]
    linears = [(layer.in_features, layer.out_features) for layer in layers(network, nn.Linear)]
    assert linears == [(288, 128), (128, 2), (2, 128), (128, 288)]
    deconvs = [
        (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.output_padding)
        for layer in layers(network, nn.ConvTranspose2d)
    ]
    assert deconvs == [
        (32, 16, (3, 3), (2, 2), (0, 0), (0, 0)),
        (16, 8, (3, 3), (2, 2), (1, 1), (1, 1)),
        (8, 1, (3, 3), (2, 2), (1, 1), (1, 1)),
    ]


def test_parameters_of_report_a() -> None:
    """Weights and biases, layer by layer: kernel × inputs × outputs + outputs."""
    encoder = [9 * 1 * 8 + 8, 9 * 8 * 16 + 16, 9 * 16 * 32 + 32, 288 * 128 + 128, 128 * 2 + 2]
    decoder = [2 * 128 + 128, 128 * 288 + 288, 9 * 32 * 16 + 16, 9 * 16 * 8 + 8, 9 * 8 * 1 + 1]
    network = ConvAutoencoder(REPORT_A, (1, 28, 28))
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(encoder) + sum(decoder) == 86_531
    normed = ConvAutoencoder(REPORT_A.model_copy(update={"batch_norm": True}), (1, 28, 28))
    # A scale and a shift for each filter, except for the image that comes out.
    assert sum(parameter.numel() for parameter in normed.parameters()) == 86_531 + 2 * (8 + 16 + 32 + 16 + 8)


def test_forward_of_report_a_layer_by_layer() -> None:
    network, images = ConvAutoencoder(REPORT_A, (1, 28, 28)).eval(), batch_of((1, 28, 28)).images
    convs, linears = list(layers(network, nn.Conv2d)), list(layers(network, nn.Linear))
    deconvs = list(layers(network, nn.ConvTranspose2d))
    x, sides = images, []
    for layer, padding in zip(convs, (1, 1, 0), strict=True):
        x = relu(conv2d(x, layer.weight, layer.bias, stride=2, padding=padding))
        sides.append(x.shape[-1])
    assert sides == [14, 7, 3]
    codes = linears[1](relu(linears[0](x.reshape(5, 288))))
    x = relu(linears[3](relu(linears[2](codes)))).reshape(5, 32, 3, 3)
    x = relu(conv_transpose2d(x, deconvs[0].weight, deconvs[0].bias, stride=2))
    x = relu(conv_transpose2d(x, deconvs[1].weight, deconvs[1].bias, stride=2, padding=1, output_padding=1))
    x = conv_transpose2d(x, deconvs[2].weight, deconvs[2].bias, stride=2, padding=1, output_padding=1)
    torch.testing.assert_close(network.encode(images), codes)
    torch.testing.assert_close(network(images), x)
    sigmoid = ConvAutoencoder(REPORT_A.model_copy(update={"output": "sigmoid"}), (1, 28, 28)).eval()
    sigmoid.load_state_dict(network.state_dict())
    torch.testing.assert_close(sigmoid(images), torch.sigmoid(x))


@settings(max_examples=40)
@given(st.integers(9, 40), st.integers(9, 40), st.sampled_from([1, 3]), st.booleans())
def test_any_size_is_mirrored(height: int, width: int, channels: int, batch_norm: bool) -> None:
    shape = (channels, height, width)
    config = ConvAutoencoderConfig(filters=2, hidden_units=4, latent_dim=3, batch_norm=batch_norm)
    network = CONV.build(config, spec_of(shape))
    images = batch_of(shape, 2).images
    assert network.decode(network.encode(images)).shape == images.shape
    for layer in layers(network, nn.ConvTranspose2d):
        assert all(padding in (0, 1) for padding in layer.output_padding)


def test_objective_is_the_mean_squared_error_of_all_pixels() -> None:
    data = DataOnDevice(load_training_data(DataOptions(train_images=128, val_images=VALIDATION_BATCH + 88)))
    training = start(CONV, ConvAutoencoderConfig(dropout=0.4, batch_norm=True), data, Budget(1), seed=0)
    (record,) = fit(training)
    assert CONV.objective.metric == "val_mse"
    assert CONV.objective.mode == "min"
    network = training.network.eval()
    pixels = data.val.images.numpy().astype(np.float32) / np.float32(255)
    with torch.inference_mode():
        made = network(torch.from_numpy(pixels)).numpy()
    errors = (made.astype(np.float64) - pixels.astype(np.float64)) ** 2
    assert record.metrics["val_mse"] == pytest.approx(errors.mean(), rel=1e-5)
    measured = CONV.measure(ConvAutoencoderConfig(), network, data.val.batch(slice(0, 50)))
    np.testing.assert_allclose(measured["mse"].detach().numpy(), errors[:50].mean(axis=(1, 2, 3)), rtol=1e-4)
    assert validate(training) == {"val_mse": record.metrics["val_mse"]}


def test_training_loss_is_the_same_error() -> None:
    data = noise((1, 12, 12), train=6)
    training = start(CONV, ConvAutoencoderConfig(batch_size=6, optimizer="sgd", lr=1e-9), data, Budget(1), seed=0)
    (record,) = fit(training)
    images = data.train.images.float() / 255
    with torch.inference_mode():
        expected = ((training.network(images) - images) ** 2).mean().item()
    assert record.metrics["train_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adamax"])
def test_resumes_with_dropout_batch_norm_and_each_optimizer(digits: DataOnDevice, optimizer: str) -> None:
    settings_ = {"optimizer": optimizer, "dropout": 0.3, "batch_norm": True, "batch_size": 32, "filters": 2}
    config = ConvAutoencoderConfig.model_validate(settings_)
    assert_resumes(CONV, config, small(digits), Budget(2.0, rungs=(1 / 3, 4 / 3)))


def test_optimizer_is_the_one_described() -> None:
    network = ConvAutoencoder(REPORT_A, (1, 28, 28))
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}
    for name, kind in kinds.items():
        given_ = {"optimizer": name, "lr": 0.02, "momentum": 0.3, "weight_decay": 0.004}
        (phase,) = CONV.phases(ConvAutoencoderConfig.model_validate(given_), network)
        (update,) = phase.updates
        assert type(update.optimizer) is kind
        (group,) = update.optimizer.param_groups
        assert group["lr"] == 0.02
        assert group["weight_decay"] == 0.004
        assert name != "sgd" or group["momentum"] == 0.3
        assert set(map(id, group["params"])) == set(map(id, network.parameters()))


def test_divergence_ends_the_run(digits: DataOnDevice) -> None:
    config = ConvAutoencoderConfig(optimizer="sgd", lr=10, output="linear", batch_size=32)
    with pytest.raises(NonFiniteError, match=r"(train_loss|val_mse) became (nan|inf) by epoch \d+\.\d+ \(step \d+\)"):
        list(fit(start(CONV, config, digits, Budget(5), seed=0)))


def test_dropout_is_drawn_in_training_only() -> None:
    config = ConvAutoencoderConfig(dropout=0.5)
    network, images = ConvAutoencoder(config, (1, 28, 28)), batch_of((1, 28, 28)).images
    codes = torch.randn(5, config.latent_dim)
    for part, given_ in ((network.encode, images), (network.decode, codes)):
        network.train()
        assert not torch.equal(part(given_), part(given_))
        network.eval()
        assert torch.equal(part(given_), part(given_))


def test_sides_of_nine_pixels_are_the_smallest() -> None:
    """9 → 5 → 3 → 1, where 8 → 4 → 2 leaves no 3x3 window."""
    assert ConvAutoencoder(REPORT_A, (1, 9, 9)).map_shape == (32, 1, 1)
    assert [side for side in range(1, 12) if accepts(CONV, (1, side, side))] == [9, 10, 11]


def test_range_of_the_output() -> None:
    codes = torch.randn(20, 10) * 1e4
    for output, bounded in (("sigmoid", True), ("linear", False)):
        config = ConvAutoencoderConfig.model_validate({"output": output})
        with torch.inference_mode():
            made = ConvAutoencoder(config, (1, 28, 28)).eval().decode(codes)
        assert bool(made.min() >= 0 and made.max() <= 1) == bounded


def test_every_activation_is_used() -> None:
    kinds = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU}
    assert set(kinds) == set(ranges_of(ConvAutoencoderConfig)["activation"].values() or ())
    for name, kind in kinds.items():
        network = ConvAutoencoder(ConvAutoencoderConfig.model_validate({"activation": name}), (1, 28, 28))
        # After the convolutions, the hidden layers on both sides of the code, the features, two deconvolutions.
        assert len(list(layers(network, kind))) == 3 + 2 + 1 + 2


def test_momentum_is_searched_with_sgd_only() -> None:
    space = Space.of(ConvAutoencoderConfig)
    for seed in range(50):
        rng = random.Random(seed)
        picked = space.walk(lambda _, known, rng=rng: draw(rng, known))  # type: ignore[misc]
        assert ("momentum" in picked) == (picked["optimizer"] == "sgd")
    assert isinstance(space.ranges["lr"], Float)


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_family_of_ones_own_is_found_by_its_import_path() -> None:
    assert isinstance(get_family("models.conv_autoencoder:ConvAutoencoderFamily"), ConvAutoencoderFamily)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("conv_autoencodr", "did you mean 'conv_autoencoder'"),
        ("", "package.module:Class"),
        (":Family", "cannot be imported"),
        ("..models:Family", "cannot be imported"),
        ("no_such_module:Family", "no_such_module"),
        ("models.family:Nothing", "Nothing"),
        ("models.family:", "cannot be imported"),
        ("models.family:get_family", "derived from models.family.Family"),
        ("models.family:FamilyConfig", "derived from models.family.Family"),
        ("models.family:Family", "derived from models.family.Family"),
    ],
)
def test_what_is_no_family_is_refused(name: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        get_family(name)
    assert caught.value.problems[0].field == "family"
    assert caught.value.problems[0].value == name
    assert told in str(caught.value)
