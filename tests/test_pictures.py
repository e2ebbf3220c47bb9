"""Pictures: what they say is right, they are really written, and drawing them breaks nothing."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from analysis import figures, history, reconstruct
from analysis.reconstruction import plot_pairs
from models import checkpoint
from models.conv_autoencoder import ConvAutoencoder, ConvAutoencoderConfig, ConvAutoencoderFamily
from models.datasets import DataOptions, ImageSet, TrainingData, load_training_data
from models.errors import StorageError, UserError
from models.family import Objective
from models.training import Budget, DataOnDevice, Training, fit, start
from tuning.config import SearchConfig
from tuning.pictures import draw
from tuning.results import SearchResult, State, Trial

STATES = ("complete", "pruned", "failed", "interrupted", "running")
Mode = Literal["min", "max"]


@pytest.fixture(scope="module")
def digits() -> TrainingData:
    return load_training_data(DataOptions(source="digits", train_images=200, val_images=50))


@pytest.fixture(scope="module")
def training(digits: TrainingData) -> Training:
    """A small autoencoder after an epoch."""
    config = ConvAutoencoderConfig(filters=4)
    training = start(ConvAutoencoderFamily(), config, DataOnDevice(digits), Budget(1.0), seed=0)
    for _ in fit(training):
        pass
    return training


@pytest.fixture
def search(training: Training, tmp_path: Path) -> SearchResult:
    """A search with a trial of each state; the complete one has a checkpoint."""
    path = tmp_path / "s" / "checkpoints" / "0.pt"
    checkpoint.save(path, training, family="conv_autoencoder", resumable=False)
    states: tuple[State, ...] = ("complete", "pruned", "failed", "interrupted", "running", "queued")
    trials = tuple(
        Trial(
            number=number,
            state=state,
            family="conv_autoencoder",
            objective=Objective("val_mse", "min"),
            config=training.config.model_dump(),
            params={},
            seed=0,
            numerics=dataclasses.asdict(training.numerics),
            fingerprint=training.data.spec.fingerprint,
            records=() if state in ("failed", "queued") else tuple(training.records),
            times=() if state in ("failed", "queued") else (1.0,) * len(training.records),
            checkpoint=path if state == "complete" else None,
        )
        for number, state in enumerate(states)
    )
    config = SearchConfig(family="conv_autoencoder", name="s", runs_dir=tmp_path)
    return SearchResult(config, Objective("val_mse", "min"), trials)


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """The PNG at ``path``, opened and decoded by another library: (H, W, 3)."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


# --- history ----------------------------------------------------------------------------------------------------------

trials_strategy = st.lists(
    st.tuples(
        st.sampled_from(STATES),
        st.none() | st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf]),
    ),
    max_size=20,
)


@given(trials=trials_strategy, mode=st.sampled_from(["min", "max"]), order=st.randoms(use_true_random=False))
def test_best_so_far_is_the_best_complete_trial_up_to_each_number(
    trials: list[tuple[str, float | None]], mode: Mode, order: Any
) -> None:
    numbered = [(number, *trial) for number, trial in enumerate(trials)]
    shuffled = order.sample(numbered, len(numbered))
    result = history.compute([t[0] for t in shuffled], [t[1] for t in shuffled], [t[2] for t in shuffled], mode)
    assert result.numbers.tolist() == list(range(len(trials)))
    assert result.states.tolist() == [state for state, _ in trials]
    for i in range(len(trials)):
        complete = [v for s, v in trials[: i + 1] if s == "complete" and v is not None and math.isfinite(v)]
        if complete:
            assert result.best_so_far[i] == (min(complete) if mode == "min" else max(complete))
        else:
            assert math.isnan(result.best_so_far[i])


@pytest.mark.parametrize("state", [state for state in STATES if state != "complete"])
def test_only_complete_trials_are_ever_the_best(state: str) -> None:
    result = history.compute([0, 1, 2], ["complete", state, "complete"], [0.5, 0.001, 0.4], "min")
    assert result.best_so_far.tolist() == [0.5, 0.5, 0.4]
    title = history.plot(result, "val_mse").axes[0].get_title(loc="left")
    assert title == "best val_mse: 0.4 in trial 2"


def test_a_value_that_is_not_finite_is_none() -> None:
    result = history.compute([0, 1, 2], ["complete"] * 3, [math.inf, 3.0, math.nan], "max")
    assert np.isnan(result.values).tolist() == [True, False, True]
    assert result.best_so_far[-1] == 3.0


def test_history_refuses_what_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="2 numbers, 1 states, 2 values"):
        history.compute([0, 1], ["complete"], [1.0, 2.0], "min")
    with pytest.raises(ValueError, match="finished"):
        history.compute([0], ["finished"], [1.0], "min")


@pytest.mark.parametrize(
    ("values", "mode", "scale"),
    [
        ([0.01, 0.5, 0.02], "min", "log"),
        ([0.1, 0.5, 0.9], "min", "linear"),
        ([-5.0, 0.5, 900.0], "max", "linear"),
        ([0.0, 0.5, 900.0], "max", "linear"),
    ],
)
def test_the_axis_is_logarithmic_where_that_helps(values: list[float], mode: Mode, scale: str) -> None:
    figure = history.plot(history.compute(range(3), ["complete"] * 3, values, mode), "val_mse")
    assert figure.axes[0].get_yscale() == scale


@pytest.mark.parametrize("mode", ["min", "max"])
def test_an_outlier_does_not_squeeze_the_others(mode: Mode) -> None:
    sign = 1 if mode == "min" else -1
    values = [sign * value for value in (0.5, 0.4, 0.45, 0.42, 1e30, 0.38, 0.41)]
    figure = history.plot(history.compute(range(7), ["complete"] * 7, values, mode), "val_x")
    low, high = figure.axes[0].get_ylim()
    assert -1 < low < high < 1
    assert low < sign * 0.38 < high, "the best must be in view"
    assert "beyond the axis (1)" in figure.axes[0].get_legend_handles_labels()[1]


def test_the_best_is_in_view_even_if_pruned_trials_were_far_better() -> None:
    values = [0.011, 0.012, 0.013, 0.012, 0.011, 5.0]
    figure = history.plot(history.compute(range(6), ["pruned"] * 5 + ["complete"], values, "min"), "val_mse")
    low, high = figure.axes[0].get_ylim()
    assert low < 0.011 < 5.0 < high


@settings(max_examples=15, deadline=None, phases=set(Phase) - {Phase.shrink, Phase.explain})  # drawing is slow
@example(trials=[("complete", 1.0), ("complete", 2.3e-308)], mode="min")
@example(trials=[("complete", 1e38), ("pruned", -1e38)], mode="max")
@example(trials=[], mode="min")
@given(
    trials=st.lists(st.tuples(st.sampled_from(STATES), st.none() | st.floats(-1e38, 1e38)), max_size=6),
    mode=st.sampled_from(["min", "max"]),
)
def test_any_history_can_be_drawn(trials: list[tuple[str, float | None]], mode: Mode) -> None:
    result = history.compute(range(len(trials)), [s for s, _ in trials], [v for _, v in trials], mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = history.plot(result, "val_mse")
        figure.draw_without_rendering()
    ticks = figure.axes[0].get_xticks()
    assert (ticks == ticks.round()).all(), "a trial number is whole"


# --- reconstructions --------------------------------------------------------------------------------------------------


class Half(nn.Module):
    """A colour autoencoder that anybody can check: the image, shifted by ``shift`` after it was halved."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift
        self.frozen = nn.Dropout().eval()

    def encode(self, images: Tensor) -> Tensor:
        assert not self.training
        return images / 2

    def decode(self, codes: Tensor) -> Tensor:
        return codes + self.shift


def drawn(model: nn.Module, images: ImageSet, count: int = 10) -> Figure:
    """The picture of evenly spread images and their reconstructions."""
    shown = reconstruct(model, images, count=count)
    return plot_pairs(shown, shown.examples, "some of them")


def image_set(images: np.ndarray[Any, Any], class_names: tuple[str, ...] = ("thing",)) -> ImageSet:
    return ImageSet(images, np.zeros(len(images), dtype=np.int64), class_names)


def test_errors_are_what_numpy_computes(training: Training, digits: TrainingData) -> None:
    result = reconstruct(training.network, digits, count=10)
    chosen = np.linspace(0, 49, 10).round().astype(int)
    originals = digits.val.images / 255
    with torch.no_grad():
        expected = training.network.eval()(torch.tensor(originals, dtype=torch.float32)).numpy()
    errors = np.square(originals - expected).mean((1, 2, 3))
    np.testing.assert_array_equal(result.examples.indices, chosen)
    np.testing.assert_allclose(result.examples.originals, originals[chosen], rtol=1e-6)
    np.testing.assert_allclose(result.examples.reconstructions, expected[chosen], atol=1e-6)
    np.testing.assert_allclose(result.squared_errors, errors, rtol=1e-4)
    for array in (result.examples.originals, result.examples.reconstructions, result.squared_errors):
        assert array.dtype == np.dtype(np.float32)


def test_over_all_images_the_error_is_the_objective(training: Training, digits: TrainingData) -> None:
    result = reconstruct(training.network, digits, count=1000)
    assert len(result.examples.originals) == 50, "no more than there are"
    assert result.squared_errors.mean() == pytest.approx(training.records[-1].metrics["val_mse"], rel=1e-5)


def test_output_outside_of_pixel_range_counts_in_full_but_is_shown_cut_off() -> None:
    images = np.full((4, 3, 5, 7), 255, dtype=np.uint8)
    result = reconstruct(Half(shift=2.0), image_set(images), count=2)
    assert (result.examples.reconstructions == 1).all()
    np.testing.assert_allclose(result.squared_errors, 1.5**2, rtol=1e-6)


def test_the_network_stays_in_the_modes_it_was_in() -> None:
    network = Half().train()
    network.frozen.eval()
    reconstruct(network, image_set(np.zeros((1, 3, 5, 7), dtype=np.uint8)))
    assert network.training
    assert not network.frozen.training


def test_a_network_without_decode_is_refused_with_what_it_can_do() -> None:
    class Classifier(nn.Module):
        def encode(self, images: Tensor) -> Tensor:
            return images

        def classify(self, images: Tensor) -> Tensor:
            return images

    with pytest.raises(UserError, match=r"Classifier.*can encode and decode; this one can: encode, classify"):
        reconstruct(Classifier(), image_set(np.zeros((1, 1, 9, 9), dtype=np.uint8)))


def test_what_cannot_be_compared_is_refused() -> None:
    class Flat(Half):
        def decode(self, codes: Tensor) -> Tensor:
            return codes.flatten(1)

    with pytest.raises(UserError, match=r"\(105,\).*\(3, 5, 7\)"):
        reconstruct(Flat(), image_set(np.zeros((1, 3, 5, 7), dtype=np.uint8)))
    with pytest.raises(UserError, match="has no images"):
        reconstruct(Half(), image_set(np.zeros((0, 3, 5, 7), dtype=np.uint8)))
    with pytest.raises(UserError, match="must be at least 1"):
        reconstruct(Half(), image_set(np.zeros((5, 3, 5, 7), dtype=np.uint8)), count=0)


def test_a_picture_shows_originals_above_reconstructions_in_colour(tmp_path: Path) -> None:
    red = np.zeros((1, 3, 8, 8), dtype=np.uint8)
    red[:, 0] = 255
    figures.save(drawn(Half(), image_set(red)), tmp_path / "red.png")
    image = pixels(tmp_path / "red.png")
    bright, dark = (image == (255, 0, 0)).all(-1), (image == (127, 0, 0)).all(-1)
    assert bright.sum() > 1000
    assert dark.sum() > 1000
    assert np.argwhere(bright)[:, 0].max() < np.argwhere(dark)[:, 0].min()


@pytest.mark.parametrize("count", [1, 10, 23])
def test_labels_do_not_overlap(training: Training, digits: TrainingData, count: int) -> None:
    names = tuple(f"{i} $_{'very' * i} long" for i in range(10))
    figure = drawn(training.network, replace(digits.val, class_names=names), count)
    (axes,) = figure.axes
    assert len(axes.images) == 2 * count
    boxes = [shown.get_window_extent() for shown in (*figure.texts, *axes.texts, *axes.images)]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


# --- files ------------------------------------------------------------------------------------------------------------


def test_after_a_search_its_pictures_lie_in_the_run_folder(search: SearchResult, digits: TrainingData) -> None:
    assert draw(search, digits) == []
    folder = search.run_dir / "figures"
    assert sorted(path.name for path in folder.iterdir()) == ["history.png", "reconstructions.png"]
    for path in folder.iterdir():
        assert pixels(path).shape[1] == figures.WIDTH * figures.DPI
        assert pixels(path).std() > 10, "not an empty sheet"
        assert path.stat().st_size < figures.LARGE


def test_a_family_that_does_not_decode_gets_no_reconstructions(
    search: SearchResult, digits: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ConvAutoencoder, "decode")
    assert draw(search, digits) == []
    assert [path.name for path in (search.run_dir / "figures").iterdir()] == ["history.png"]


def test_a_damaged_checkpoint_is_a_warning(search: SearchResult, digits: TrainingData) -> None:
    assert search.best is not None
    assert search.best.checkpoint is not None
    search.best.checkpoint.write_bytes(b"half of a")
    (warning,) = draw(search, digits)
    assert "reconstructions.png" in warning
    assert str(search.best.checkpoint) in warning
    assert [path.name for path in (search.run_dir / "figures").iterdir()] == ["history.png"]


def test_a_folder_that_cannot_be_written_is_a_warning_for_each(search: SearchResult, digits: TrainingData) -> None:
    (search.run_dir / "figures").write_text("in the way")
    told = draw(search, digits)
    assert len(told) == 2
    assert all("cannot write" in warning for warning in told)


def test_photographs_make_small_files_too(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 64, 64), dtype=np.uint8)
    figures.save(drawn(Half(), image_set(images)), tmp_path / "a" / "noise.png")
    assert pixels(tmp_path / "a" / "noise.png").shape[1] == figures.WIDTH * figures.LOW_DPI


def test_save_replaces_a_file_and_tells_when_it_cannot(tmp_path: Path) -> None:
    figure = history.plot(history.compute([0], ["complete"], [1.0], "min"), "val_mse")
    path = tmp_path / "new" / "history.png"
    for _ in range(2):
        figures.save(figure, path)
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(StorageError, match=r"history\.png"):
        figures.save(figure, path / "history.png")


def test_nothing_of_matplotlib_changes_for_the_caller(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figures.save(history.plot(history.compute([0], ["complete"], [1.0], "min"), "val_mse"), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


def test_analysis_loads_no_search_service_and_no_window_system(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys
import analysis, analysis.figures, analysis.history, analysis.reconstruction
history = analysis.history.compute([0], ["complete"], [1.0], "min")
analysis.figures.save(analysis.history.plot(history, "val_mse"), pathlib.Path({str(tmp_path / "a.png")!r}))
print(*sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert {"analysis.history", "analysis.reconstruction"} <= loaded
    assert not loaded & {"ray", "mlflow", "optuna", "tuning", "matplotlib.pyplot"}
