"""Embedding a split: components, maps and cluster figures against scikit-learn, NumPy and arithmetic by hand."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet
import pytest
import torch
from helpers import read_json, run
from matplotlib.text import Text
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness as sklearn_trustworthiness
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from analysis import embed
from analysis.code_space import mean_by_class, predict_by_neighbours, silhouettes, trustworthiness
from analysis.embedding import Embedding
from analysis.maps import principal_components, tsne
from analysis.scatter import plot_scatter
from models.checkpoint import Trained, load, save
from models.conv_autoencoder import ConvAutoencoderConfig, ConvAutoencoderFamily
from models.datasets import DataOptions, ImageSet, load_test_set, load_training_data
from models.errors import UserError
from models.training import Budget, DataOnDevice, fit, start

OPTIONS = DataOptions(source="digits", train_images=600, val_images=120)
NAMES = tuple("abcdefghij")


class Pixels(nn.Module):
    """An encoder whose codes are known: the first ``size`` pixels, stretched."""

    def __init__(self, size: int, scale: float = 1.0) -> None:
        super().__init__()
        self.size, self.scale = size, scale

    def encode(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : self.size] * self.scale


def image_set(codes: npt.NDArray[Any], labels: npt.NDArray[Any], names: tuple[str, ...] = NAMES) -> ImageSet:
    """Images whose first pixels are ``codes`` uint8 (N, L)."""
    images = np.zeros((len(codes), 1, 4, 4), dtype=np.uint8)
    images.reshape(len(codes), -1)[:, : codes.shape[1]] = codes
    return ImageSet(images, labels.astype(np.int64), names)


def blobs(count: int, size: int = 4, classes: int = 3, seed: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    centres = generator.uniform(60, 190, (classes, size))
    return generator.normal(centres[labels], 25).clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder of five latent units after 15 epochs on digits."""
    data = DataOnDevice(load_training_data(OPTIONS))
    config = ConvAutoencoderConfig(filters=8, latent_dim=5, batch_size=32, lr=0.01)
    training = start(ConvAutoencoderFamily(), config, data, Budget(15.0), seed=0)
    list(fit(training))
    path = tmp_path_factory.mktemp("embed") / "digits.pt"
    save(path, training, family="conv_autoencoder", resumable=False)
    return path


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> Trained:
    return load(checkpoint)


@pytest.fixture(scope="module")
def result(trained: Trained) -> Embedding:
    return embed(trained, OPTIONS, count=300)


def codes_of(trained: Trained, images: ImageSet) -> npt.NDArray[Any]:
    with torch.no_grad():
        return trained.network.encode(torch.tensor(images.images) / 255).numpy()  # type: ignore[operator,no-any-return]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_codes_components_and_neighbours_are_scikit_learns(trained: Trained, result: Embedding) -> None:
    test, train = load_test_set(OPTIONS), load_training_data(OPTIONS).train
    chosen = np.linspace(0, len(test.labels) - 1, 300).round().astype(int)
    codes, train_codes = codes_of(trained, test)[chosen], codes_of(trained, train)
    np.testing.assert_array_equal(result.indices, chosen)
    np.testing.assert_allclose(result.codes, codes, atol=1e-5)
    pca = PCA().fit(result.codes)
    np.testing.assert_allclose(result.components.ratios, pca.explained_variance_ratio_, rtol=1e-5)
    np.testing.assert_allclose(result.components.variances, pca.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(np.abs((result.components.axes * pca.components_).sum(1)), 1, rtol=1e-5)
    np.testing.assert_allclose(np.abs(result.maps["pca"]), np.abs(pca.transform(result.codes)[:, :2]), rtol=1e-6)
    classifier = KNeighborsClassifier(10).fit(train_codes, train.labels)
    summary = result.summary()
    assert summary["knn_among"] == "train"
    assert summary["knn_accuracy"] == pytest.approx(classifier.score(codes, test.labels[chosen]))
    assert summary["knn_accuracy"] > 0.5, "digits are not that hard"
    for method, places in result.maps.items():
        expected = sklearn_trustworthiness(codes, places, n_neighbors=10)
        assert summary[f"trustworthiness_{method}"] == pytest.approx(expected, abs=1e-6)
    assert summary["trustworthiness_tsne"] > summary["trustworthiness_pca"]


def test_the_same_seed_gives_the_same_map_and_another_split_leaves_one_out(trained: Trained, result: Embedding) -> None:
    again = embed(trained, OPTIONS, count=300)
    for method in ("pca", "tsne"):
        np.testing.assert_array_equal(again.maps[method], result.maps[method])  # type: ignore[index]
    on_train = embed(trained, OPTIONS, split="train", methods=["pca"])
    assert on_train.summary()["knn_among"] == "others"
    codes, labels = on_train.codes, on_train.labels
    hits = 0
    for i in range(len(codes)):
        distances = np.linalg.norm(codes - codes[i], axis=1)
        distances[i] = np.inf
        votes = Counter(labels[np.argsort(distances)[:10]].tolist())
        hits += min(votes, key=lambda c: (-votes[c], c)) == labels[i]
    assert on_train.summary()["knn_accuracy"] == pytest.approx(hits / len(codes))


def test_silhouettes_by_hand() -> None:
    codes, labels = np.array([[0.0], [1.0], [5.0], [7.0], [20.0]]), np.array([0, 0, 1, 1, 2])
    # 0: a = 1, b = mean(5, 7) = 6; 5: a = 2, b = mean(5, 4) = 4.5; 20 is alone.
    expected = [5 / 6, 4 / 5, 2.5 / 4.5, 4.5 / 6.5, 0]
    np.testing.assert_allclose(silhouettes(codes, labels, 0), expected)
    assert np.isnan(silhouettes(codes, np.zeros(5, dtype=int), 0)).all()
    assert np.isnan(silhouettes(codes, np.arange(5), 0)).all()


def test_of_many_codes_some_are_drawn_for_the_silhouette_and_the_seed_says_which() -> None:
    codes, labels = blobs(5200)
    one, same, other = (silhouettes(codes.astype(float), labels, seed) for seed in (0, 0, 1))
    assert np.isfinite(one).sum() == 5000
    np.testing.assert_array_equal(one, same)
    assert (np.isfinite(one) != np.isfinite(other)).any()
    assert np.nanmean(one) == pytest.approx(np.nanmean(other), abs=0.01)


def test_of_equal_votes_the_lower_label_wins() -> None:
    train, labels = np.array([[0.0], [1.0], [2.5], [9.0]]), np.array([3, 1, 1, 3])
    predicted = predict_by_neighbours(np.array([[0.0], [8.0]]), train, labels, 4)
    assert predicted.tolist() == [1, 1]
    assert predict_by_neighbours(np.array([[0.1]]), train, labels, 1).tolist() == [3]
    assert predict_by_neighbours(train, None, labels, 1).tolist() == [1, 3, 1, 1], "its own class does not count"


def test_trustworthiness_by_hand_and_across_blocks() -> None:
    codes = np.array([[0.0], [1.0], [3.0], [7.0], [15.0]])
    places = np.array([[0.0, 0], [1, 0], [2.1, 0], [1.1, 0.1], [15, 0]])
    # Nearest on the map and their rank among the codes: 0→1 (1), 1→3 (3), 2→3 (3), 3→1 (2), 4→2 (2): 0+2+2+1+1.
    assert trustworthiness(codes, places, 1) == pytest.approx(1 - 2 * 6 / (5 * 1 * (10 - 3 - 1)))
    many = np.random.default_rng(0).normal(size=(1100, 6))
    shuffled = np.random.default_rng(1).permutation(many[:, :2])
    for plane in (many[:, :2], shuffled):
        assert trustworthiness(many, plane) == pytest.approx(sklearn_trustworthiness(many, plane, n_neighbors=10))


def test_components_of_fewer_codes_than_units() -> None:
    codes = np.random.default_rng(0).normal(size=(6, 20))
    found = principal_components(codes)
    assert found.scores.shape == (6, 6)
    np.testing.assert_allclose(found.scores @ found.axes + found.mean, codes, atol=1e-12)
    assert found.ratios.sum() == pytest.approx(1)
    assert (found.axes[np.arange(6), np.abs(found.axes).argmax(1)] > 0).all()


def test_means_by_class_of_one_without_images() -> None:
    np.testing.assert_array_equal(mean_by_class(np.array([1, 0, 1]), np.array([0, 0, 2]), 3), [0.5, np.nan, 1])


def test_a_map_keeps_apart_what_is_apart() -> None:
    centres = np.repeat(np.eye(3) * 100, 50, axis=0)
    codes = centres + np.random.default_rng(0).normal(size=(150, 3))
    places, perplexity = tsne(codes, 0, principal_components(codes).scores[:, :2])
    assert perplexity == 30
    groups = places.reshape(3, 50, 2)
    within = max(np.linalg.norm(g - g.mean(0), axis=1).max() for g in groups)
    assert min(np.linalg.norm(groups[i].mean(0) - groups[j].mean(0)) for i, j in ((0, 1), (0, 2), (1, 2))) > 2 * within


# --- what is saved ----------------------------------------------------------------------------------------------------


def test_tables_and_pictures(result: Embedding, tmp_path: Path) -> None:
    files = {path.name for path in result.save(tmp_path)}
    pictures = {f"{stem}.{kind}" for stem in ("pca", "tsne", "scree") for kind in ("png", "svg")}
    assert files == pictures | {"embed.json", "codes.parquet", "classes.parquet", "components.parquet"}
    table = pyarrow.parquet.read_table(tmp_path / "codes.parquet")
    maps = ["pca_1", "pca_2", "tsne_1", "tsne_2"]
    assert table.column_names == ["index", "label", "class_name", *(f"code_{i}" for i in range(5)), *maps]
    np.testing.assert_array_equal(table["code_3"].to_numpy(), result.codes[:, 3])
    np.testing.assert_array_equal(table["tsne_2"].to_numpy(), result.maps["tsne"][:, 1])
    classes = pyarrow.parquet.read_table(tmp_path / "classes.parquet").to_pydict()
    weighted = np.average(classes["knn_accuracy"], weights=classes["images"])
    assert weighted == pytest.approx(result.summary()["knn_accuracy"])


def test_names_of_classes_stand_apart_and_inside_the_picture() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 30
    names = [f"class number {i}" for i in range(30)]
    figure = plot_scatter(generator.normal(size=(300, 2)), labels, names, ("x", "y"), "thirty classes in one heap")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines that lead to them
    assert len(boxes) == 20
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = axes.get_window_extent()
    assert all(frame.x0 - 1 <= b.x0 and b.x1 <= frame.x1 + 1 and frame.y0 - 1 <= b.y0 for b in boxes)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["10 other classes", *names[:20]]
    looks = {(str(c.get_facecolor()), len(c.get_paths()[0].vertices)) for c in axes.collections[2:22]}
    assert len(looks) == 20, "each with a look of its own"


# --- what is special --------------------------------------------------------------------------------------------------


def test_a_code_of_two_numbers_is_also_shown_as_it_is() -> None:
    codes, labels = blobs(40, size=2)
    figures = embed(Pixels(2), image_set(codes, labels), methods=["pca"]).figures()
    assert set(figures) == {"codes", "pca", "scree"}
    shown = np.concatenate([np.asarray(c.get_offsets()) for c in figures["codes"].axes[0].collections])
    np.testing.assert_allclose(np.sort(shown, axis=0), np.sort(codes / 255, axis=0), rtol=1e-6)


def test_a_code_of_one_number_is_shown_by_class_and_has_no_map() -> None:
    codes, labels = blobs(40, size=1)
    result = embed(Pixels(1), image_set(codes, labels))
    assert result.maps == {}
    assert set(result.figures()) == {"codes"}
    assert result.summary()["explained_variance"].tolist() == [1]
    with pytest.raises(UserError, match="this model's have one, shown by class"):
        embed(Pixels(1), image_set(codes, labels), methods=["tsne"])


def test_few_images_take_a_lower_perplexity_and_fewer_neighbours() -> None:
    codes, labels = blobs(7)
    summary = embed(Pixels(4), image_set(codes, labels)).summary()
    assert summary["notes"] == ["t-SNE with perplexity 2 instead of 30, for so few images"]
    assert (summary["knn_neighbours"], summary["trustworthiness_neighbours"]) == (6, 3)
    with pytest.raises(UserError, match="has 1 images to embed; must be at least 5"):
        embed(Pixels(4), image_set(codes[:1], labels[:1]))


def test_a_single_class_has_a_map_but_no_figures_of_classes(tmp_path: Path) -> None:
    codes, _ = blobs(30)
    result = embed(Pixels(4), image_set(codes, np.zeros(30), ("only",)))
    summary = result.summary()
    assert summary["knn_accuracy"] is None
    assert summary["silhouette"] is None
    assert "all images are of one class" in " ".join(summary["notes"])
    result.save(tmp_path)
    assert (tmp_path / "tsne.png").stat().st_size > 5000


def test_constant_units_are_counted_and_a_constant_code_is_refused() -> None:
    codes, labels = blobs(30)
    codes[:, 1] = 77
    assert embed(Pixels(4), image_set(codes, labels)).summary()["constant_units"] == 1
    with pytest.raises(UserError, match="gives all 30 images the same code"):
        embed(Pixels(4, scale=0.0), image_set(codes, labels))


def test_equal_codes_do_not_stop_the_map() -> None:
    codes, labels = blobs(60)
    codes[:45] = codes[0]
    assert np.isfinite(embed(Pixels(4), image_set(codes, labels)).maps["tsne"]).all()


def test_codes_that_are_not_finite_are_counted_and_refused() -> None:
    codes, labels = blobs(30)
    codes[:4, 0] = 0
    codes[4:, 0] = 1

    class Broken(Pixels):
        def encode(self, images: Tensor) -> Tensor:
            return 1 / super().encode(images)

    with pytest.raises(UserError, match="not finite for 4 of 30 images"):
        embed(Broken(1), image_set(codes, labels))


def test_what_is_wrong_is_told_at_once() -> None:
    codes, labels = blobs(30)
    with pytest.raises(UserError) as caught:
        embed(Pixels(4), image_set(codes, labels), methods=["tsn"], count=2)  # type: ignore[list-item]
    assert [problem.field for problem in caught.value.problems] == ["--method", "--count"]
    assert "did you mean 'tsne'?" in str(caught.value)


@pytest.mark.skipif(find_spec("umap") is not None, reason="the extra is installed")
def test_umap_without_its_library_says_how_to_get_it() -> None:
    codes, labels = blobs(30)
    with pytest.raises(UserError, match=r"pip install 'latentune\[umap\]'"):
        embed(Pixels(4), image_set(codes, labels), methods=["umap"])


@pytest.mark.skipif(find_spec("umap") is None, reason="needs the extra latentune[umap]")
def test_umap_maps() -> None:
    codes, labels = blobs(60)
    first, again = (embed(Pixels(4), image_set(codes, labels), methods=["umap"]) for _ in range(2))
    assert first.maps["umap"].shape == (60, 2)
    np.testing.assert_array_equal(first.maps["umap"], again.maps["umap"])
    assert first.summary()["trustworthiness_umap"] > 0.8


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(checkpoint: Path, result: Embedding) -> None:
    words = ("--count", "300", "--method", "tsne", "--json")
    folder = checkpoint.parent
    changed = read_json(run("embed", checkpoint.name, *words, cwd=folder).stdout)
    assert changed["images"] == 300
    assert changed["latent_dim"] == 5
    assert changed["trustworthiness_tsne"] == pytest.approx(result.trustworthiness["tsne"], abs=1e-3)
    assert {"codes.parquet", "tsne.png", "scree.svg"} <= set(changed["files"])
    refused = run("embed", checkpoint.name, "--count", "1", "--method", "x", "--split", "val", cwd=folder, code=2)
    assert "--count" in refused.stderr
    assert "--method" in refused.stderr


@pytest.mark.slow
def test_fashion_mnist_codes_tell_classes_apart(real_data: Path) -> None:
    options = DataOptions(source="fashion-mnist", data_dir=str(real_data), train_images=10_000, val_images=1000)
    data = DataOnDevice(load_training_data(options))
    family = ConvAutoencoderFamily()
    training = start(family, ConvAutoencoderConfig(latent_dim=10), data, Budget(5.0), seed=0)
    list(fit(training))
    summary = embed(training.network, options).summary()
    assert summary["images"] == 10_000
    assert summary["knn_accuracy"] >= 0.75
    assert summary["trustworthiness_tsne"] > 0.99
