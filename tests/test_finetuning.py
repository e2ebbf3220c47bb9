"""Fine-tuning: the family that begins with another model's weights, the analysis, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from helpers import without_ray
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from analysis import evaluate, finetune
from analysis.classification import Classification, confusion_table, plot_confusion
from analysis.finetuning import Finetuning
from models import checkpoint
from models.checkpoint import Trained, load
from models.data_sources import ImageSet
from models.datasets import DataOptions, TrainingData, load_test_set, load_training_data
from models.errors import CheckpointError, UserError
from models.family import get_family
from models.finetuned_classifier import FinetunedClassifier, FinetunedClassifierConfig, FinetunedClassifierFamily
from models.training import Budget, DataOnDevice, Training, fit, start
from tuning import cli
from tuning.api import load_search, search

FAMILY = FinetunedClassifierFamily()
OPTIONS = DataOptions(source="digits", train_images=400, val_images=80)
SMALL = {"filters": 4, "hidden_units": 32, "batch_size": 32}


def trained_file(path: Path, name: str, data: TrainingData, epochs: float = 1.0, **settings: Any) -> Path:
    """A checkpoint of a built-in family."""
    family = get_family(name)
    config = family.Config.model_validate({"batch_size": 32, **settings})
    training = start(family, config, DataOnDevice(data), Budget(epochs), seed=0)
    list(fit(training))
    checkpoint.save(path, training, family=name, resumable=False)
    return path


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return load_training_data(OPTIONS)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, data: TrainingData) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "cae.pt"
    return trained_file(path, "conv_autoencoder", data, 6.0, batch_norm=True, dropout=0.1, latent_dim=6, **SMALL)


@pytest.fixture(scope="module")
def result(encoder: Path) -> Finetuning:
    return finetune(load(encoder), OPTIONS, epochs=6, settings={"batch_size": 32, "encoder_lr": 3e-3})


def begun(data: TrainingData, **settings: Any) -> Training:
    config = FinetunedClassifierConfig.model_validate({"batch_size": 32, **settings})
    return start(FAMILY, config, DataOnDevice(data), Budget(1), seed=0)


def refused(data: TrainingData, **settings: Any) -> dict[str, str]:
    """What :meth:`check` says, by field."""
    with pytest.raises(UserError) as caught:
        FAMILY.check(FinetunedClassifierConfig.model_validate(settings), data.spec)
    return {problem.field: str(problem) for problem in caught.value.problems}


def one_shape(data: TrainingData, shape: tuple[int, int, int]) -> TrainingData:
    """Images of another shape with the same labels."""

    def changed(part: ImageSet) -> ImageSet:
        pixels = np.zeros((len(part.labels), *shape), dtype=np.uint8)
        return ImageSet(pixels, part.labels, part.class_names)

    channels, height, width = shape
    spec = data.spec.model_copy(update={"channels": channels, "height": height, "width": width})
    return TrainingData(changed(data.train), changed(data.val), spec)


# --- what is frozen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frozen", "moving"),
    [
        ("convs", {"to_code"}),
        ("encoder", set()),
        ("nothing", {"convs", "to_code"}),
    ],
)
def test_what_is_frozen_keeps_weights_and_batch_statistics(
    encoder: Path, data: TrainingData, frozen: str, moving: set[str]
) -> None:
    training = begun(data, checkpoint=str(encoder), frozen=frozen)
    before, head = load(encoder).network.state_dict(), training.network.state_dict()["head.1.weight"].clone()
    list(fit(training))
    network = training.network
    assert isinstance(network, FinetunedClassifier)
    moved = {
        name.partition(".")[0] for name, tensor in network.base.state_dict().items() if not tensor.equal(before[name])
    }
    assert moved == moving, "the decoder never moves"
    assert not network.state_dict()["head.1.weight"].equal(head)
    network.train()
    norms = [module for module in network.base.convs.modules() if isinstance(module, nn.BatchNorm2d)]  # type: ignore[union-attr]
    assert len(norms) == 3
    assert all(module.training == (frozen == "nothing") for module in norms)
    dropouts = [module for module in network.base.to_code.modules() if isinstance(module, nn.Dropout)]  # type: ignore[union-attr]
    assert all(module.training == (frozen != "encoder") for module in dropouts)


def test_from_scratch_begins_afresh_and_trains_all_of_it_at_one_rate(encoder: Path, data: TrainingData) -> None:
    settings = {"checkpoint": str(encoder), "frozen": "encoder", "lr": 0.01, "encoder_lr": 0.001}
    scratch = begun(data, pretrained=False, **settings)
    before = load(encoder).network.state_dict()
    fresh: Any = scratch.network
    assert not fresh.base.state_dict()["to_code.0.weight"].equal(before["to_code.0.weight"])
    assert {group["lr"] for group in scratch.phases[0].updates[0].optimizer.param_groups} == {0.01}
    trained = {id(p) for group in scratch.phases[0].updates[0].optimizer.param_groups for p in group["params"]}
    wanted = [*fresh.base.convs.parameters(), *fresh.base.to_code.parameters(), *fresh.head.parameters()]
    assert trained == set(map(id, wanted))


def test_each_part_has_its_own_learning_rate(encoder: Path, data: TrainingData) -> None:
    training: Any = begun(data, checkpoint=str(encoder), frozen="convs", lr=0.01, encoder_lr=0.001)
    head, below = training.phases[0].updates[0].optimizer.param_groups
    assert (head["lr"], below["lr"]) == (0.01, 0.001)
    assert set(map(id, head["params"])) == set(map(id, training.network.head.parameters()))
    assert set(map(id, below["params"])) == set(map(id, training.network.base.to_code.parameters()))


def test_a_dense_encoder_has_no_convolutions_to_freeze(tmp_path: Path, data: TrainingData) -> None:
    path = str(trained_file(tmp_path / "dense.pt", "dense_autoencoder", data, hidden_units=16))
    told = refused(data, checkpoint=path, frozen="convs")
    assert "DenseAutoencoder has no convolutions; use encoder or nothing" in told["frozen"]
    for frozen in ("encoder", "nothing"):
        list(fit(begun(data, checkpoint=path, frozen=frozen)))


# --- what the head sees -----------------------------------------------------------------------------------------------


def test_a_variational_encoder_gives_its_posterior_means(tmp_path: Path, data: TrainingData) -> None:
    path = trained_file(tmp_path / "vae.pt", "vae", data, latent_dim=3)
    network: Any = begun(data, checkpoint=str(path)).network.eval()
    vae: Any = load(path).network
    images = torch.from_numpy(data.val.images[:7]).float() / 255
    with torch.no_grad():
        means = vae.to_mean(vae.encoder(images))
        scaled = means / (1 + 1e-5) ** 0.5  # a batch norm that has seen nothing, with its epsilon
        torch.testing.assert_close(network.encode(images), means)
        expected = scaled @ network.head[1].weight.T + network.head[1].bias
        torch.testing.assert_close(network.classify(images), expected)


def test_a_cnn_head_sees_the_reconstruction(encoder: Path, data: TrainingData) -> None:
    training: Any = begun(data, checkpoint=str(encoder), head="cnn", frozen="convs", filters=4)
    network, images = training.network.eval(), torch.from_numpy(data.val.images[:5]).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(network.classify(images), network.head(load(encoder).network(images)))
    assert not any(p.requires_grad for p in [*network.base.convs.parameters(), *network.base.deconvs.parameters()])
    assert all(p.requires_grad for p in network.base.from_code.parameters())


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_fine_tuned_checkpoint_outlives_the_file_it_began_with(
    tmp_path: Path, encoder: Path, data: TrainingData
) -> None:
    first = tmp_path / "cae.pt"
    first.write_bytes(encoder.read_bytes())
    whole = begun(data, checkpoint=str(first))
    states = [whole.state_dict() for _ in fit(whole)]
    checkpoint.save(tmp_path / "tuned.pt", whole, family=FAMILY.name, resumable=True)
    first.unlink()
    tuned = load(tmp_path / "tuned.pt")
    images = torch.from_numpy(data.val.images).float() / 255
    network: Any = tuned.network
    with torch.no_grad():
        found = network.classify(images).argmax(1).numpy()
    assert (found == data.val.labels).mean() == pytest.approx(tuned.record.metrics["val_accuracy"])
    resumed = start(FAMILY, whole.config, whole.data, Budget(1), seed=0, state=states[-1])
    assert resumed.finished
    with pytest.raises(UserError, match=r"checkpoint: .*cae\.pt"):
        start(FAMILY, whole.config, whole.data, Budget(1), seed=0)


def test_a_file_that_holds_another_model_by_now_is_refused(tmp_path: Path, encoder: Path, data: TrainingData) -> None:
    path = tmp_path / "cae.pt"
    path.write_bytes(encoder.read_bytes())
    config = FinetunedClassifierConfig(checkpoint=str(path))
    trained_file(path, "conv_autoencoder", data, 1 / 3, batch_norm=True, latent_dim=6, activation="elu", **SMALL)
    with pytest.raises(UserError, match="holds another model now"):
        start(FAMILY, config, DataOnDevice(data), Budget(1), seed=0)


def test_paths_are_absolute(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(encoder.parent)
    assert FinetunedClassifierConfig(checkpoint="cae.pt").checkpoint == str(encoder)


def test_what_cannot_be_begun_with_is_refused_before_training(
    tmp_path: Path, encoder: Path, data: TrainingData
) -> None:
    assert "must be given" in refused(data)["checkpoint"]
    assert "No such file" in refused(data, checkpoint=str(tmp_path / "no.pt"))["checkpoint"]
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(encoder.read_bytes()[:1000])
    assert "damaged" in refused(data, checkpoint=str(damaged))["checkpoint"]
    plain = tmp_path / "plain.pt"
    torch.save({"weights": {}}, plain)
    assert "not a latentune checkpoint" in refused(data, checkpoint=str(plain))["checkpoint"]
    mlp = trained_file(tmp_path / "mlp.pt", "mlp_classifier", data)
    assert "Classifier has no encode" in refused(data, checkpoint=str(mlp))["checkpoint"]
    stacked = trained_file(tmp_path / "stacked.pt", "stacked_autoencoder", data)
    assert "no encode and decode" in refused(data, checkpoint=str(stacked), head="cnn")["checkpoint"]
    told = refused(one_shape(data, (3, 30, 28)), checkpoint=str(encoder))["checkpoint"]
    assert "30x28 with 3 channels" in told
    assert "height 28, width 28 and 1 channel" in told
    content = checkpoint.read(encoder)
    torch.save({**content, "family": "os:system"}, tmp_path / "foreign.pt")
    assert "'os:system', which is not built in" in refused(data, checkpoint=str(tmp_path / "foreign.pt"))["checkpoint"]
    torch.save({**content, "config": {"latent_dim": -1}}, tmp_path / "wrong.pt")
    assert "does not fit its family" in refused(data, checkpoint=str(tmp_path / "wrong.pt"))["checkpoint"]


def test_all_problems_at_once(tmp_path: Path, data: TrainingData) -> None:
    alone = TrainingData(data.train, data.val, data.spec.model_copy(update={"class_names": ("all",)}))
    assert refused(alone, checkpoint=str(tmp_path / "no.pt")).keys() == {"--dataset", "checkpoint"}
    single = TrainingData(data.train, data.val, data.spec.model_copy(update={"train_images": 1}))
    assert refused(single, batch_size=1).keys() == {"--train-images", "batch_size", "checkpoint"}


def test_it_is_searched_like_any_family(tmp_path: Path, encoder: Path) -> None:
    options = {
        "tracking_uri": "none",
        "pictures": False,
        "progress": "none",
        "runs_dir": str(tmp_path),
        "name": "tuned",
    }
    given: dict[str, Any] = {"trials": 3, "max_epochs": 1, "set": {"checkpoint": str(encoder)}, **options}
    with without_ray():
        found = search("finetuned_classifier", data=OPTIONS.model_dump(), **given)
        with pytest.raises(UserError, match=r"checkpoint: got '.*no\.pt'; must be a trained model's file"):
            search("finetuned_classifier", **{**given, "name": "other", "set": {"checkpoint": str(tmp_path / "no.pt")}})
    assert {trial.state for trial in found.trials} <= {"complete", "pruned"}
    assert found.best is not None
    assert found.best.config["checkpoint"] == str(encoder)
    assert found.best.load().family.capabilities() == ("encode", "classify")


# --- the analysis -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [range(5), (0, 1, 3)])
def test_rates_are_scikit_learns(classes: Any) -> None:
    """Also where a class has no images and another one is never predicted."""
    rng = np.random.default_rng(0)
    labels = rng.choice(list(classes), 200).astype(np.int64)
    predicted = np.where(rng.random(200) < 0.6, labels, rng.choice([0, 1, 4], 200)).astype(np.int64)
    found = Classification(tuple("abcde"), labels, predicted)
    assert found.accuracy == accuracy_score(labels, predicted)
    np.testing.assert_array_equal(found.confusion, confusion_matrix(labels, predicted, labels=range(5)))
    with np.errstate(invalid="ignore"):
        shares = confusion_matrix(labels, predicted, labels=range(5)) / np.bincount(labels, minlength=5)[:, None]
    np.testing.assert_allclose(found.rates, shares)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(5), zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(found.per_class()[name], values, err_msg=name)
    table = confusion_table([("run", found)])
    assert sum(table["images"]) == 200
    plot_confusion(found, "made up").draw_without_rendering()


def test_many_classes_can_be_drawn() -> None:
    labels = np.arange(60)
    figure = plot_confusion(Classification(tuple(map(str, labels)), labels, labels[::-1].copy()), "sixty")
    figure.draw_without_rendering()
    assert not figure.axes[0].texts


def test_numbers_and_files_are_those_of_the_saved_checkpoint(result: Finetuning, tmp_path: Path) -> None:
    files = result.save(tmp_path)
    assert {file.name for file in files} >= {"finetune.json", "classes.parquet", "curves.png", "finetuned.pt"}
    network: Any = load(tmp_path / "finetuned.pt").network
    test = load_test_set(OPTIONS)
    with torch.no_grad():
        found = network.classify(torch.from_numpy(test.images).float() / 255).argmax(1).numpy()
    told = json.loads((tmp_path / "finetune.json").read_text())
    assert told["test_accuracy"] == accuracy_score(test.labels, found)
    assert told["test_accuracy"] > 0.6, "it has learnt"
    measured = evaluate(tmp_path / "finetuned.pt", OPTIONS)
    assert measured.metrics["accuracy"] == pytest.approx(told["test_accuracy"])
    classes = pyarrow.parquet.read_table(tmp_path / "classes.parquet").to_pydict()
    expected = precision_recall_fscore_support(test.labels, found, zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(classes[name][:10], values)
    assert classes["run"] == ["fine-tuned"] * 10 + ["from scratch"] * 10
    assert (tmp_path / "confusion-from-scratch.svg").is_file()


def test_time_to_accuracy_is_read_off_the_curve(result: Finetuning) -> None:
    assert result.scratch is not None
    best = max(record.metrics["val_accuracy"] for record in result.scratch.records)
    assert result.target_accuracy == pytest.approx(0.95 * best)
    for run in result.runs:
        at = run.seconds_to(result.target_accuracy)
        earlier = [r for r in run.records if at is None or r.seconds < at]
        assert all(record.metrics["val_accuracy"] < result.target_accuracy for record in earlier)
        assert run.best.metrics["val_accuracy"] == max(r.metrics["val_accuracy"] for r in run.records)
    assert result.finetuned.seconds_to(1.1) is None


def test_parameters_by_hand(encoder: Path) -> None:
    """Filters 4, hidden 32, code 6: what is below a linear head, less the frozen convolutions."""
    done = finetune(encoder, OPTIONS, frozen="convs", epochs=0.05, from_scratch=False)
    assert done.scratch is None
    assert done.finetuned.trained_parameters == (16 * 9 * 32 + 32) + (32 * 6 + 6) + (6 * 10 + 10)
    assert done.trained.config.checkpoint == str(encoder)  # type: ignore[attr-defined]


def test_the_same_seed_gives_the_same_classifier(result: Finetuning, encoder: Path) -> None:
    again = finetune(load(encoder), OPTIONS, epochs=6, settings={"batch_size": "32", "encoder_lr": "3e-3"})
    assert [r.metrics for r in again.finetuned.records] == [r.metrics for r in result.finetuned.records]
    np.testing.assert_array_equal(again.finetuned.test.predicted, result.finetuned.test.predicted)


class Own(nn.Module):
    """Anybody's network, that no search has trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 12)

    def encode(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)).tanh()  # type: ignore[no-any-return]


def test_a_network_trained_without_a_search_is_fine_tuned_and_left_as_it_is(tmp_path: Path) -> None:
    network = Own()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    done = finetune(network, OPTIONS, epochs=2, settings={"batch_size": 32})
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())
    assert done.finetuned.test.accuracy > 0.3
    done.save(tmp_path)
    with pytest.raises(CheckpointError, match="pass family="):
        load(tmp_path / "finetuned.pt")
    loaded: Any = load(tmp_path / "finetuned.pt", family=FinetunedClassifierFamily(Own())).network
    images = torch.from_numpy(load_test_set(OPTIONS).images).float() / 255
    with torch.no_grad():
        np.testing.assert_array_equal(loaded.classify(images).argmax(1).numpy(), done.finetuned.test.predicted)


def test_fresh_weights_of_ones_own_network_need_a_way_to_get_them() -> None:
    class Bare(Own):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def encode(self, images: Tensor) -> Tensor:
            return super().encode(images) * self.scale

    with pytest.raises(UserError, match=r"pretrained.*Bare has no reset_parameters"):
        finetune(Bare(), OPTIONS, epochs=0.1)
    assert finetune(Bare(), OPTIONS, epochs=0.1, from_scratch=False).scratch is None


def test_a_family_of_ones_own(encoder: Path, tmp_path: Path) -> None:
    base = type(get_family("conv_autoencoder"))

    class Mine(base):  # type: ignore[misc, valid-type]
        name = "mine"

    known = load(encoder)
    mine = Trained(Mine(), known.config, known.spec, known.seed, known.record, known.network)
    done = finetune(mine, OPTIONS, epochs=0.1)
    done.save(tmp_path)
    with pytest.raises(CheckpointError, match="pass family="):
        load(tmp_path / "finetuned.pt")
    assert load(tmp_path / "finetuned.pt", family=FinetunedClassifierFamily(own={"mine": Mine()}))


def test_mistakes_are_told_together(encoder: Path, data: TrainingData) -> None:
    with pytest.raises(UserError) as caught:
        finetune(encoder, OPTIONS, head="huge", frozen="all", epochs=0, patience=0, settings={"lr": "fast", "x": 1})
    fields = [problem.field for problem in caught.value.problems]
    assert sorted(fields) == ["epochs", "frozen", "head", "lr", "patience", "x"]
    with pytest.raises(UserError, match="30x30"):
        finetune(encoder, OPTIONS.model_copy(update={"image_size": 30}))
    with pytest.raises(UserError, match=r"test: .*must have shape and classes"):
        finetune(encoder, data, test=ImageSet(data.val.images, data.val.labels % 2, ("even", "odd")))
    with pytest.raises(UserError, match="model: Own does not take images of 30x30 with 1 channel"):
        finetune(Own(), OPTIONS.model_copy(update={"image_size": 30}))
    with pytest.raises(UserError, match="can encode and decode"):
        finetune(Own(), OPTIONS, head="cnn")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    data = {"source": "digits", "train_images": 200, "val_images": 50}
    with without_ray():
        search(
            "conv_autoencoder",
            name="cae",
            data=data,
            trials=2,
            max_epochs=1,
            runs_dir=str(folder),
            tracking_uri="none",
            pictures=False,
            progress="none",
        )
    return folder


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words), env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_command_and_evaluate_on_what_it_saves(runs: Path) -> None:
    words = ["finetune", "cae", "--runs-dir", str(runs), "--epochs", "1", "--frozen", "convs", "--set", "lr=0.01"]
    done = invoke(*words, "--train-images", "150", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["train_images"] == 150
    best = load_search("cae", runs).best
    assert best is not None
    folder = runs / "cae" / "analysis" / f"trial-{best.number:04d}" / "finetune"
    assert told["folder"] == str(folder)
    measured = invoke("evaluate", str(folder / "finetuned.pt"), "--json")
    assert json.loads(measured.stdout)["accuracy"] == pytest.approx(told["test_accuracy"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "lr"], "write it as FIELD=VALUE"),
        (["--set", "encodr_lr=1"], "did you mean 'encoder_lr'"),
        (["--frozen", "all"], "frozen: got 'all'"),
        (["--dataset", "fashion-mnist", "--data-dir", "/nowhere"], "/nowhere"),
        (["--trial", "7"], "TRIAL: got 7"),
    ],
)
def test_mistakes_on_the_command_line(runs: Path, words: list[str], told: str) -> None:
    done = invoke("finetune", "cae", "--runs-dir", str(runs), *words)
    assert isinstance(done.exception, UserError)
    assert told in str(done.exception)


# --- real images ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fashion(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DataOptions]:
    options = DataOptions(source="fashion-mnist", data_dir=str(real_data), train_images=48_000, val_images=6_000)
    path = tmp_path_factory.mktemp("fashion") / "cae.pt"
    settings = {"hidden_units": 256, "activation": "elu", "latent_dim": 10, "batch_size": 64}
    return trained_file(path, "conv_autoencoder", load_training_data(options), 5.0, **settings), options


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("frozen", "accuracy"), [("convs", 0.84), ("nothing", 0.88)])
def test_accuracy_on_fashion_mnist(fashion: tuple[Path, DataOptions], frozen: str, accuracy: float) -> None:
    path, options = fashion
    done = finetune(path, options, frozen=frozen, from_scratch=False)
    assert done.finetuned.test.accuracy >= accuracy
