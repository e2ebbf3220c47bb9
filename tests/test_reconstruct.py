"""Reconstructing a split: errors by image and class, the best and the worst, and how it came to be over epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from helpers import read_json, run, without_ray
from torch import Tensor, nn

from analysis import follow, reconstruct
from models.checkpoint import save
from models.datasets import DataOptions, ImageSet, TrainingData, load_test_set, load_training_data
from models.errors import CheckpointError, UserError
from models.training import Budget, DataOnDevice, fit, start
from tuning import search
from tuning.results import SearchResult

OPTIONS = DataOptions(source="digits", train_images=200, val_images=60)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return load_training_data(OPTIONS)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search of one trial, three epochs long."""
    with without_ray():
        return search(
            "conv_autoencoder",
            name="found",
            runs_dir=tmp_path_factory.mktemp("runs"),
            trials=1,
            max_epochs=3,
            data=OPTIONS.model_dump(include={"source", "train_images", "val_images"}),
            set={"filters": 4, "batch_size": 32},
            tracking_uri="none",
            progress="none",
            pictures=False,
        )


def errors_by_hand(network: nn.Module, images: ImageSet) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Mean squared error of each image, one after the other."""
    with torch.no_grad():
        pixels = [torch.tensor(image, dtype=torch.float32)[None] / 255 for image in images.images]
        return np.array([float(((network.eval()(x) - x) ** 2).mean()) for x in pixels])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_image_of_the_split_has_its_error(found: SearchResult, data: TrainingData, split: str) -> None:
    assert found.best is not None
    trained = found.best.load()
    result = reconstruct(trained, OPTIONS, split=split, count=7)  # type: ignore[arg-type]
    images = {"train": data.train, "val": data.val, "test": load_test_set(OPTIONS)}[split]
    errors = errors_by_hand(trained.network, images)
    np.testing.assert_allclose(result.squared_errors, errors, rtol=1e-4)
    order = np.argsort(errors)
    np.testing.assert_array_equal(result.best.indices, order[:7])
    np.testing.assert_array_equal(result.worst.indices, order[::-1][:7])
    np.testing.assert_allclose(result.worst.originals, images.images[order[::-1][:7]] / 255, rtol=1e-6)
    summary = result.summary()
    assert summary["mse"] == pytest.approx(errors.mean(), rel=1e-5)
    assert summary["mse_std"] == pytest.approx(errors.std(), rel=1e-4)
    means = {c: errors[images.labels == c].mean() for c in range(10)}
    assert summary["best_class"] == str(min(means, key=means.__getitem__))
    assert summary["worst_class"] == str(max(means, key=means.__getitem__))


class Fading(nn.Module):
    """Gives images back, darker by a share of themselves."""

    def __init__(self, share: float = 0.0, broken: float = 0.0) -> None:
        super().__init__()
        self.share, self.broken = share, broken

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, codes: Tensor) -> Tensor:
        return torch.where(codes.amax((1, 2, 3), keepdim=True) > 0.99, codes * (1 - self.share) + self.broken, codes)


def test_tables_hold_errors_and_their_spread_by_class_even_of_an_empty_one(tmp_path: Path) -> None:
    images = np.full((5, 1, 9, 9), 255, dtype=np.uint8)
    images[3] = 51  # 0.2, which is given back as it is
    some = ImageSet(images, np.array([0, 0, 2, 2, 2]), ("a", "b", "c"))
    reconstruct(Fading(0.5), some).save(tmp_path)
    errors = pyarrow.parquet.read_table(tmp_path / "errors.parquet").to_pydict()
    assert list(errors) == ["index", "label", "class_name", "squared_error"]
    assert errors["index"] == [0, 1, 2, 3, 4]
    assert errors["class_name"] == ["a", "a", "c", "c", "c"]
    np.testing.assert_allclose(errors["squared_error"], [0.25, 0.25, 0.25, 0, 0.25], atol=1e-7)
    classes = pyarrow.parquet.read_table(tmp_path / "classes.parquet").to_pydict()
    assert classes["images"] == [2, 0, 3]
    np.testing.assert_allclose(classes["mean"], [0.25, np.nan, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose(classes["std"], [0, np.nan, np.std([0.25, 0, 0.25])], atol=1e-7)
    np.testing.assert_allclose(classes["q25"], [0.25, np.nan, 0.125], rtol=1e-6)
    for picture in ("reconstructions", "best", "worst", "errors-by-class"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5000
        assert (tmp_path / f"{picture}.svg").is_file()


def test_one_image_and_many_classes_can_be_drawn(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    names = tuple(f"a class with the number {i} and a long name" for i in range(60))
    many = reconstruct(Fading(0.5), ImageSet(noise, np.arange(60), names))
    figure = many.figures()["errors-by-class"]
    assert len(figure.axes[0].get_yticks()) == 24
    assert "36 classes in the middle left out" in figure.axes[0].get_title(loc="left")
    one = reconstruct(Fading(), ImageSet(noise[:1], np.zeros(1, dtype=np.int64), ("only",)))
    assert one.summary()["mse_std"] == 0
    assert len(one.save(tmp_path)) == 3 + 4 * 2


def test_what_is_not_finite_is_counted_and_refused() -> None:
    images = np.full((5, 1, 9, 9), 255, dtype=np.uint8)
    images[3:] = 51
    with pytest.raises(UserError, match="not finite for 3 of 5 images"):
        reconstruct(Fading(broken=float("nan")), ImageSet(images, np.zeros(5, dtype=np.int64), ("a",)))


def test_images_of_another_shape_and_damaged_files_are_refused(found: SearchResult, tmp_path: Path) -> None:
    assert found.best is not None
    assert found.best.checkpoint is not None
    with pytest.raises(UserError, match="8x8, RGB; the model, trained on digits, takes 28x28, grey"):
        reconstruct(found.best.checkpoint, OPTIONS.model_copy(update={"channels": 3, "image_size": 8}))
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(found.best.checkpoint.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        reconstruct(damaged, OPTIONS)


# --- evolution --------------------------------------------------------------------------------------------------------


def test_evolution_shows_what_training_really_gave_at_each_epoch(
    found: SearchResult, data: TrainingData, tmp_path: Path
) -> None:
    """Each row is compared with another run that was stopped at that epoch."""
    assert found.best is not None
    trained = found.best.load()
    followed = follow(trained, OPTIONS, found.config.budget(), count=4, epochs=[1, 3])
    chosen = np.linspace(0, 59, 4).round().astype(int)
    for row, epoch in enumerate((1.0, 3.0)):
        training = start(trained.family, trained.config, DataOnDevice(data), found.config.budget(), seed=trained.seed)
        for record in fit(training):
            if record.epoch == epoch:
                break
        with torch.no_grad():
            pixels = torch.tensor(data.val.images[chosen], dtype=torch.float32) / 255
            expected = training.network.eval()(pixels).numpy()
        np.testing.assert_allclose(followed.reconstructions[row], expected.clip(0, 1), atol=1e-6)
        np.testing.assert_allclose(
            followed.squared_errors[row], np.square(expected - pixels.numpy()).mean((1, 2, 3)), rtol=1e-4
        )
    assert not np.array_equal(*followed.reconstructions)
    assert followed.difference == 0
    followed.save(tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "evolution.parquet").to_pydict()
    assert table["epoch"] == [1.0] * 4 + [3.0] * 4
    assert len(followed.figures()["evolution"].axes[0].images) == 3 * 4


def test_a_training_that_came_out_otherwise_says_by_how_much(found: SearchResult) -> None:
    assert found.best is not None
    trained = found.best.load()
    metric = trained.family.objective.metric
    stored = replace(trained.record, metrics={metric: trained.record.metrics[metric] + 0.5})
    followed = follow(replace(trained, record=stored), OPTIONS, found.config.budget(), count=1, epochs=[1])
    assert followed.difference == pytest.approx(0.5)
    assert list(followed.epochs) == [1]


@pytest.mark.parametrize(
    ("max_epochs", "expected"),
    [(19, list(range(1, 20, 2))), (3, [1, 2, 3]), (0.5, [0.5]), (100, list(range(1, 101, 10)))],
)
def test_epochs_are_evenly_spread(max_epochs: float, expected: list[float]) -> None:
    from analysis.evolution import chosen_epochs

    assert chosen_epochs(Budget(max_epochs, rungs=(0.25,)), None) == expected


def test_evolution_of_what_cannot_be_trained_again_is_refused(found: SearchResult, tmp_path: Path) -> None:
    assert found.best is not None
    trained, budget = found.best.load(), found.config.budget()
    with pytest.raises(UserError, match="must come from a checkpoint"):
        follow(trained.network, OPTIONS, budget)
    with pytest.raises(UserError, match="other images than the model was trained on"):
        follow(trained, OPTIONS.model_copy(update={"split_seed": 1}), budget)
    with pytest.raises(UserError, match=r"got '2.5, 7'; must be of .*1, 2, 3"):
        follow(trained, OPTIONS, budget, epochs=[7, 1, 2.5])
    with pytest.raises(UserError, match="from 1 to 10"):
        follow(trained, OPTIONS, budget, count=11)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_numbers_tables_and_pictures(found: SearchResult) -> None:
    folder = found.run_dir.parent
    words = ("--runs-dir", str(folder), "--count", "3", "--evolution", "--epochs", "1,2", "--json")
    told = read_json(run("reconstruct", "found", *words, cwd=folder).stdout)
    assert found.best is not None
    assert told["mse"] == pytest.approx(found.best.value, rel=1e-5)
    assert told["evolution_epochs"] == [1, 2]
    assert told["evolution_difference_of_val_mse"] == 0
    stems = ("reconstructions", "best", "worst", "errors-by-class", "evolution")
    tables = ("errors", "classes", "evolution")
    expected = {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")} | {f"{t}.parquet" for t in tables}
    assert set(told["files"]) == expected | {"reconstruct.json"}
    assert all((Path(told["folder"]) / name).stat().st_size for name in told["files"])


def test_the_command_refuses_with_exit_code_2(found: SearchResult, data: TrainingData, tmp_path: Path) -> None:
    folder = found.run_dir.parent
    done = run("reconstruct", "found", "--runs-dir", str(folder), "--epochs", "1", cwd=folder, code=2)
    assert "--evolution, which is not given" in done.stderr
    from models.classifiers import MlpClassifierFamily

    family = MlpClassifierFamily()
    training = start(family, family.Config(), DataOnDevice(data), Budget(1.0), seed=0)
    next(fit(training))
    save(tmp_path / "classifier.pt", training, family=family.name, resumable=False)
    done = run("reconstruct", str(tmp_path / "classifier.pt"), cwd=tmp_path, code=2)
    assert "this one can: classify" in done.stderr
