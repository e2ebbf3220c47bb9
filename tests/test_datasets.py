"""Data sets: what is read, how it is split, and what users are told about wrong files."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.datasets import (
    DATASETS,
    DataOptions,
    DataSpec,
    ImageSet,
    TrainingData,
    load_test_set,
    load_training_data,
)
from models.errors import UserError

Pixels = npt.NDArray[np.uint8]
PREFIX = {"train": "train", "test": "t10k"}


def write_idx(folder: Path, part: str, images: Pixels, labels: list[int], compress: bool = False) -> None:
    """MNIST-style files of images (N, H, W), packed by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "images-idx3-ubyte": struct.pack(">IIII", 2051, *images.shape) + images.tobytes(),
        "labels-idx1-ubyte": struct.pack(">II", 2049, len(labels)) + bytes(labels),
    }
    for name, data in content.items():
        path = folder / f"{PREFIX[part]}-{name}"
        if compress:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
        else:
            path.write_bytes(data)


def numbered(count: int, height: int = 3, width: int = 4) -> Pixels:
    """Images (N, H, W) that can be told apart: all pixels of the i-th are i."""
    return np.repeat(np.arange(count, dtype=np.uint8), height * width).reshape(count, height, width)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """60 training and 8 test images of 3 classes."""
    folder = tmp_path / "idx"
    write_idx(folder, "train", numbered(60), [i % 3 for i in range(60)])
    write_idx(folder, "test", numbered(8), [0, 1, 2, 0, 1, 2, 0, 1])
    return folder


def write_image(path: Path, value: int, mode: str = "L", size: tuple[int, int] = (5, 4)) -> None:
    """An image file of one grey ``value``; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)


def ids(images: ImageSet) -> list[int]:
    """The number of each :func:`numbered` image."""
    return [int(image[0, 0, 0]) for image in images.images]


def as_bytes(images: ImageSet) -> set[bytes]:
    return {image.tobytes() for image in images.images}


def refused(options: DataOptions, *, test: bool = False, download: bool = False) -> str:
    """The message of the UserError that loading must raise."""
    load: Callable[..., object] = load_test_set if test else load_training_data
    with pytest.raises(UserError) as caught:
        load(options, download=download)
    return str(caught.value)


def idx(folder: Path, **more: object) -> DataOptions:
    return DataOptions.model_validate({"source": f"idx:{folder}", **more})


def pictures(folder: Path, **more: object) -> DataOptions:
    return DataOptions.model_validate({"source": f"images:{folder}", **more})


def official(data: TrainingData) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """All images (N, H, W) and labels that were split."""
    images = np.concatenate([data.val.images, data.train.images])[:, 0]
    return images, np.concatenate([data.val.labels, data.train.labels])


# --- what is read -----------------------------------------------------------------------------------------------------


def read_by_hand(folder: Path, part: str, count: int) -> tuple[Pixels, list[int]]:
    raw = (folder / f"{PREFIX[part]}-images-idx3-ubyte").read_bytes()
    assert struct.unpack(">IIII", raw[:16]) == (2051, count, 28, 28)
    images = np.array(list(raw[16 : 16 + 20 * 784]), dtype=np.uint8).reshape(20, 28, 28)
    return images, list((folder / f"{PREFIX[part]}-labels-idx1-ubyte").read_bytes()[8:])


@pytest.mark.parametrize(
    ("source", "folder", "mean"), [("fashion-mnist", "FashionMNIST", 0.2860), ("mnist", "MNIST", 0.1307)]
)
def test_published_training_images(real_data: Path, source: str, folder: str, mean: float) -> None:
    options = DataOptions(
        source=source, data_dir=str(real_data), train_images=50_000, val_images=10_000, val_split="first"
    )
    started = time.perf_counter()
    data = load_training_data(options)
    assert time.perf_counter() - started < 5  # about 0.3 s; slow machines must not fail
    assert data.spec.shape == (1, 28, 28)
    assert data.train.images.dtype == np.uint8
    assert data.train.images.flags.c_contiguous
    assert data.train.labels.dtype == np.int64
    images, labels = official(data)
    assert images.mean() / 255 == pytest.approx(mean, abs=5e-5)
    by_hand, labels_by_hand = read_by_hand(real_data / folder / "raw", "train", 60_000)
    np.testing.assert_array_equal(images[:20], by_hand)
    assert labels[:10_000].tolist() == labels_by_hand[:10_000]
    assert Counter(labels.tolist()) == Counter(labels_by_hand)


def test_published_test_images(real_data: Path) -> None:
    test = load_test_set(DataOptions(source="fashion-mnist", data_dir=str(real_data)))
    images, labels = read_by_hand(real_data / "FashionMNIST" / "raw", "test", 10_000)
    assert test.images.shape == (10_000, 1, 28, 28)
    np.testing.assert_array_equal(test.images[:20, 0], images)
    assert test.labels.tolist() == labels
    assert set(Counter(labels).values()) == {1_000}


def test_default_split_of_a_published_set(real_data: Path) -> None:
    data = load_training_data(DataOptions(source="mnist", data_dir=str(real_data)))
    assert (data.spec.train_images, data.spec.val_images) == (50_000, 10_000)
    assert (len(data.train.labels), len(data.val.labels)) == (50_000, 10_000)


def test_class_names_are_torchvisions() -> None:
    from torchvision import datasets

    assert list(DATASETS["fashion-mnist"].class_names) == datasets.FashionMNIST.classes
    assert list(DATASETS["kmnist"].class_names) == datasets.KMNIST.classes
    assert [name[0] for name in datasets.MNIST.classes] == list(DATASETS["mnist"].class_names)


def test_digits_are_scikit_learns_scaled_up() -> None:
    import torch
    from sklearn.datasets import load_digits

    data, test = load_training_data(DataOptions()), load_test_set(DataOptions())
    assert (data.spec.train_images + data.spec.val_images, len(test.labels)) == (1_437, 360)
    content = load_digits()
    small = torch.from_numpy(content.images * 255 / 16)[:, None]
    large = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False).numpy()
    # The order is ours, so images are matched by the nearest of all; ours are rounded, hence at most half a step off.
    ours = np.concatenate([data.train.images, data.val.images, test.images]).reshape(-1, 784).astype(np.float64)
    labels = np.concatenate([data.train.labels, data.val.labels, test.labels])
    theirs = large.reshape(-1, 784)
    distance = (ours**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * ours @ theirs.T
    nearest = distance.argmin(1)
    assert sorted(nearest) == list(range(1_797))
    assert np.abs(ours - theirs[nearest]).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(labels, content.target[nearest])


def test_digits_test_set_is_fixed_stratified_and_unseen() -> None:
    data, test = load_training_data(DataOptions(split_seed=1)), load_test_set(DataOptions(split_seed=2))
    again = load_test_set(DataOptions(split_seed=3, train_images=7))
    np.testing.assert_array_equal(test.images, again.images)
    counts = Counter(np.concatenate([data.train.labels, data.val.labels, test.labels]).tolist())
    assert all(abs(found - counts[label] / 5) < 1 for label, found in Counter(test.labels.tolist()).items())
    assert as_bytes(test).isdisjoint(as_bytes(data.train) | as_bytes(data.val))
    assert as_bytes(data.train).isdisjoint(as_bytes(data.val))


@pytest.mark.parametrize("compress", [False, True])
def test_idx_folder(tmp_path: Path, compress: bool) -> None:
    write_idx(tmp_path, "train", numbered(12), [0, 1, 2, 3] * 3, compress)
    write_idx(tmp_path, "test", numbered(2), [3, 0], compress)
    data = load_training_data(idx(tmp_path))
    assert data.spec.class_names == ("0", "1", "2", "3")
    assert (data.spec.shape, data.spec.train_images, data.spec.val_images) == ((1, 3, 4), 10, 2)
    assert all(label == number % 4 for number, label in zip(ids(data.train), data.train.labels, strict=True))
    test = load_test_set(idx(tmp_path))
    assert (ids(test), test.labels.tolist(), test.class_names) == ([0, 1], [3, 0], data.spec.class_names)


def test_arrays_can_be_written_to(idx_folder: Path) -> None:
    """torch.from_numpy warns otherwise."""
    data, test = load_training_data(idx(idx_folder)), load_test_set(idx(idx_folder))
    assert all(part.images.flags.writeable for part in (data.train, data.val, test))


def test_data_dir_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "KMNIST" / "raw", "train", numbered(6, 28, 28), list(range(6)))
    monkeypatch.setenv("LATENTUNE_DATA_DIR", str(tmp_path))
    assert load_training_data(DataOptions(source="kmnist")).spec.train_images == 5
    assert "/nowhere" in refused(DataOptions(source="kmnist", data_dir="/nowhere"))


# --- splits and fingerprints ------------------------------------------------------------------------------------------


def test_random_split_is_the_permutation(idx_folder: Path) -> None:
    data = load_training_data(idx(idx_folder, train_images=20, val_images=10, split_seed=5))
    order = np.random.default_rng(5).permutation(60).tolist()
    assert (ids(data.val), ids(data.train)) == (order[:10], order[10:30])


def test_first_split_keeps_the_file_order(idx_folder: Path) -> None:
    data = load_training_data(idx(idx_folder, val_images=10, val_split="first", split_seed=5))
    assert ids(data.val) == list(range(10))
    assert sorted(ids(data.train)) == list(range(10, 60))
    other = load_training_data(idx(idx_folder, val_images=10, val_split="first", split_seed=6))
    assert ids(other.val) == list(range(10))
    assert ids(other.train) != ids(data.train)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_idx(folder, "train", numbered(40, 1, 1), [i % 2 for i in range(40)])
    return folder


@settings(max_examples=60, deadline=None)
@given(
    train=st.none() | st.integers(1, 50),
    val=st.none() | st.integers(1, 50),
    split=st.sampled_from(["random", "first"]),
    seed=st.integers(0, 2**40),
)
def test_every_split(pool: Path, train: int | None, val: int | None, split: str, seed: int) -> None:
    options = idx(pool, train_images=train, val_images=val, val_split=split, split_seed=seed)
    want_val = val or max(1, (40 // 6 if train is None else train // 5))
    want_train = train or 40 - want_val
    if want_train < 1 or want_train + want_val > 40:
        message = refused(options)
        assert all(part in message for part in ("--train-images", "--val-images", str(want_val), " 40 images"))
        return
    data = load_training_data(options)
    train_ids, val_ids = ids(data.train), ids(data.val)
    assert (len(train_ids), len(val_ids)) == (want_train, want_val)
    assert len({*train_ids, *val_ids}) == want_train + want_val
    if val is not None and want_train > 1:  # subsets are nested
        fewer = load_training_data(options.model_copy(update={"train_images": want_train - 1}))
        assert (ids(fewer.train), ids(fewer.val)) == (train_ids[:-1], val_ids)


def test_fingerprint_by_hand(idx_folder: Path) -> None:
    data = load_training_data(idx(idx_folder))
    digest = hashlib.sha256()
    for part in (data.train, data.val):
        digest.update(f"({len(part.labels)}, 1, 3, 4) |u1\n".encode() + part.images.tobytes())
        digest.update(f"({len(part.labels)},) <i8\n".encode() + struct.pack(f"<{len(part.labels)}q", *part.labels))
    assert data.spec.fingerprint == digest.hexdigest()


def test_fingerprint_is_of_the_content(idx_folder: Path, tmp_path: Path) -> None:
    images, labels = numbered(60), [i % 3 for i in range(60)]

    def fingerprint(name: str, **more: object) -> str:
        write_idx(tmp_path / name, "train", images, labels, compress=name == "packed")
        return load_training_data(idx(tmp_path / name, **more)).spec.fingerprint

    original = load_training_data(idx(idx_folder)).spec.fingerprint
    assert {fingerprint("elsewhere"), fingerprint("packed")} == {original}
    changed = [
        fingerprint("seed", split_seed=1),
        fingerprint("fewer", train_images=49, val_images=10),
        fingerprint("border", train_images=49, val_images=11),
        fingerprint("first", val_split="first"),
    ]
    labels[17] = 0
    changed.append(fingerprint("label"))
    labels[17] = 17 % 3
    images[31, 2, 3] += 1
    changed.append(fingerprint("pixel"))
    images[31, 2, 3] -= 1
    images = images.reshape(60, 4, 3)
    changed.append(fingerprint("shape"))
    assert len({original, *changed}) == 8


def test_digits_have_the_same_fingerprint_everywhere() -> None:
    """Whole-number arithmetic only: the value of another machine."""
    expected = "892ba4d6"
    assert load_training_data(DataOptions()).spec.fingerprint.startswith(expected)


def test_spec_survives_json(idx_folder: Path) -> None:
    spec = load_training_data(idx(idx_folder)).spec
    assert DataSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


# --- test images stay unseen ------------------------------------------------------------------------------------------


def test_training_does_not_open_test_files(idx_folder: Path, tmp_path: Path) -> None:
    before = load_training_data(idx(idx_folder)).spec.fingerprint
    for path in idx_folder.glob("t10k*"):
        path.write_bytes(b"not to be read")
    assert load_training_data(idx(idx_folder)).spec.fingerprint == before
    for path in idx_folder.glob("t10k*"):
        path.unlink()
    assert load_training_data(idx(idx_folder)).spec.fingerprint == before
    message = refused(idx(idx_folder), test=True)
    assert "no test set" in message
    assert "t10k-images-idx3-ubyte" in message
    assert "t10k-labels-idx1-ubyte" in message
    write_idx(tmp_path / "MNIST" / "raw", "train", numbered(6, 28, 28), [0] * 6)
    assert load_training_data(DataOptions(source="mnist", data_dir=str(tmp_path))).spec.train_images == 5


def test_held_out_fifth_of_an_image_folder(tmp_path: Path) -> None:
    sizes = {"a": 20, "b": 11, "c": 1, "train": 5}
    value = 0
    for name, count in sizes.items():
        for index in range(count):
            write_image(tmp_path / name / f"{index:02}.png", value)
            value += 1
    data, test = load_training_data(pictures(tmp_path)), load_test_set(pictures(tmp_path))
    assert data.spec.class_names == tuple(sizes)
    assert sorted(ids(data.train) + ids(data.val) + ids(test)) == list(range(37))
    counts = Counter(test.labels.tolist())
    assert all(abs(counts[label] - count / 5) < 1 for label, count in enumerate(sizes.values()))
    assert counts[2] == 0  # a class's only image is to be learned
    assert ids(load_test_set(pictures(tmp_path, split_seed=9))) == ids(test)
    first = load_training_data(pictures(tmp_path, val_split="first", val_images=12))
    assert len(set(first.val.labels.tolist())) > 1  # not the first folder only
    for name in sizes:  # training works without the held-out files' content
        for path in (tmp_path / name).iterdir():
            if int(np.asarray(Image.open(path))[0, 0]) in ids(test):
                path.write_bytes(b"not to be read")
    assert load_training_data(pictures(tmp_path)).spec.fingerprint == data.spec.fingerprint


def test_image_folder_with_train_and_test(tmp_path: Path) -> None:
    for index in range(6):
        write_image(tmp_path / "train" / "xy"[index % 2] / f"{index}.PNG", index)
    write_image(tmp_path / "test" / "y" / "0.jpeg", 100)
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "x" / "._0.png").write_bytes(b"")
    (tmp_path / "train" / "x" / "notes.txt").write_bytes(b"")
    data, test = load_training_data(pictures(tmp_path)), load_test_set(pictures(tmp_path))
    assert sorted(ids(data.train) + ids(data.val)) == list(range(6))
    assert all(label == number % 2 for number, label in zip(ids(data.train), data.train.labels, strict=True))
    assert (test.labels.tolist(), ids(test), data.spec.shape) == ([1], [100], (1, 4, 5))


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("CMYK", 3)]
)
def test_modes_of_images(tmp_path: Path, mode: str, channels: int) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    for index in range(4):
        write_image(tmp_path / "only" / f"{index}.{suffix}", 255 * (index % 2), mode)
    data = load_training_data(pictures(tmp_path, train_images=1, val_images=1))
    assert data.spec.shape == (channels, 4, 5)
    assert data.train.images.flags.c_contiguous
    assert all(len(np.unique(image)) == 1 and image.max() in (0, 255) for image in data.train.images)


def test_colours_keep_their_channel(tmp_path: Path) -> None:
    for index in range(2):
        (tmp_path / "red").mkdir(exist_ok=True)
        Image.new("RGB", (3, 2), (200, 100, 50)).save(tmp_path / "red" / f"{index}.png")
    test = load_test_set(pictures(tmp_path))
    assert test.images[0, :, 1, 2].tolist() == [200, 100, 50]


def test_progress_of_reading_images(tmp_path: Path) -> None:
    for index in range(10):
        write_image(tmp_path / "only" / f"{index}.png", index)
    calls: list[tuple[str, int, int]] = []
    load_training_data(pictures(tmp_path), on_progress=lambda *call: calls.append(call))
    assert calls == [("reading images", 8, 8)]


# --- what users are told ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("fasion-mnist", ["did you mean 'fashion-mnist'?", "idx:<folder>", "images:<folder>", "digits"]),
        ("MNIST", ["'MNIST'", "did you mean 'mnist'?"]),
        ("zip:/data", ["'zip:/data'", "allowed: digits"]),
        ("idx:", ["idx:<folder>"]),
        ("idx:/no/such", ["there is no /no/such"]),
        ("images:/no/such", ["there is no /no/such"]),
        (f"images:{__file__}", ["is not one", __file__]),
        ("idx:~no-such-user/x", ["cannot read ~no-such-user/x"]),
        ("idx:/" + "x" * 300, ["too long"]),
    ],
)
def test_unknown_source(source: str, told: list[str]) -> None:
    message = refused(DataOptions(source=source))
    assert message.startswith(f"--dataset: got {source!r}; ")
    assert all(part in message for part in told)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
HEADER = struct.pack(">IIII", 2051, 60, 3, 4)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        (IMAGES, HEADER + bytes(719), ["expected 736 bytes", "found 735 bytes"]),
        (IMAGES, HEADER + bytes(721), ["expected 736 bytes", "found 737 bytes"]),
        (IMAGES, HEADER[:15], ["expected a header of 16 bytes", "found 15 bytes"]),
        (IMAGES, b"", ["found 0 bytes"]),
        (IMAGES, b"\x1f\x8b" + bytes(30), ["expected magic number 2051"]),
        (IMAGES, struct.pack(">IIII", 2051, 2**32 - 1, 2**32 - 1, 9), ["4294967295", "found 16 bytes"]),
        (IMAGES, struct.pack(">IIII", 2051, 0, 28, 28), ["is empty", "0x28x28"]),
        (IMAGES, struct.pack(">IIII", 2051, 59, 3, 4) + bytes(59 * 12), ["60 labels for the 59 images"]),
        (LABELS, HEADER + bytes(720), ["expected magic number 2049 (IDX labels), found 2051"]),
        (LABELS, struct.pack(">II", 2049, 60) + bytes(10), ["expected 68 bytes", "found 18 bytes"]),
    ],
)
def test_damaged_idx_file(idx_folder: Path, file: str, content: bytes, told: list[str]) -> None:
    (idx_folder / file).write_bytes(content)
    message = refused(idx(idx_folder))
    assert message.startswith(f"--dataset: got 'idx:{idx_folder}'")
    assert all(part in message for part in [*told, str(idx_folder / file)])


def test_damaged_files_are_told_together(idx_folder: Path) -> None:
    for file in (IMAGES, LABELS):
        (idx_folder / file).write_bytes(b"what?")
    message = refused(idx(idx_folder))
    assert IMAGES in message
    assert LABELS in message


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:60] + b"xxxx" + data[64:], bytes.upper])
def test_damaged_gz_file(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 5, 5), dtype=np.uint8)
    write_idx(tmp_path, "train", noise, [0] * 9, compress=True)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert f"cannot read {path}" in refused(idx(tmp_path))


def test_unreadable_file(idx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's refusal is put in its place, as permissions do not bind root."""

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert f"cannot read {idx_folder / IMAGES}: Permission denied" in refused(idx(idx_folder))


def test_folder_without_permission(idx_folder: Path) -> None:
    idx_folder.chmod(0)
    try:
        next(idx_folder.iterdir())
        pytest.skip("this user may read everything")
    except PermissionError:
        assert "no permission" in refused(idx(idx_folder))
    finally:
        idx_folder.chmod(0o700)


def test_test_set_must_fit_the_training_set(idx_folder: Path) -> None:
    write_idx(idx_folder, "test", numbered(4, 5, 5), [0, 1, 2, 7])
    message = refused(idx(idx_folder), test=True)
    assert "expected images of 3x4 pixels, found 5x5" in message
    assert "labels must be 0 to 2, found 7" in message


def test_wrong_files_of_a_published_set(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST" / "raw", "train", numbered(6), [0, 1, 2, 3, 4, 10])
    message = refused(DataOptions(source="mnist", data_dir=str(tmp_path)))
    assert message.startswith(f"--data-dir: got {str(tmp_path)!r}")
    assert "expected images of 28x28 pixels, found 3x4" in message
    assert "labels must be 0 to 9, found 10" in message


def test_incomplete_idx_folder(tmp_path: Path) -> None:
    message = refused(idx(tmp_path))
    assert all(part in message for part in (IMAGES, LABELS, str(tmp_path), ".gz"))


def test_a_single_image_cannot_be_split(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", numbered(1), [0])
    assert "two images at least" in refused(idx(tmp_path))


@pytest.mark.parametrize("inner", ["", "MNIST", "MNIST/raw"])
def test_data_dir_that_is_a_file(tmp_path: Path, inner: str) -> None:
    path = tmp_path / "data" / inner
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    message = refused(DataOptions(source="mnist", data_dir=str(tmp_path / "data")), download=True)
    assert f"{path} is not one" in message


def test_missing_files_without_download(tmp_path: Path) -> None:
    message = refused(DataOptions(source="kmnist", data_dir=str(tmp_path)), test=True)
    told = ["--data-dir", str(tmp_path / "KMNIST" / "raw"), "t10k-images-idx3-ubyte", "https://github.com", "point"]
    assert all(part in message for part in told)
    assert not list(tmp_path.iterdir())


def test_bad_image_folders(tmp_path: Path) -> None:
    assert f"images without classes: all in one folder, such as {tmp_path / 'all'}" in refused(pictures(tmp_path))
    for index in range(3):
        write_image(tmp_path / "a" / f"{index}.png", index)
    (tmp_path / "b").mkdir()
    assert f"in 1 class folders: {tmp_path / 'b'}" in refused(pictures(tmp_path))


def test_odd_images_are_named(tmp_path: Path) -> None:
    for index in range(3):
        write_image(tmp_path / "train" / "a" / f"{index}.png", index)
    write_image(tmp_path / "train" / "b" / "wide.png", 0, size=(9, 4))
    write_image(tmp_path / "train" / "b" / "red.png", 0, "RGB")
    write_image(tmp_path / "train" / "b" / "deep.png", 0, "I;16")
    (tmp_path / "train" / "b" / "cut.png").write_bytes((tmp_path / "train" / "a" / "0.png").read_bytes()[:45])
    (tmp_path / "train" / "b" / "text.jpg").write_text("what?")
    message = refused(pictures(tmp_path))
    told = [
        "5x4 L",
        "wide.png (9x4 L)",
        "red.png (5x4 RGB)",
        "deep.png (I;16",
        "cut.png (",
        "text.jpg (",
        str(tmp_path),
    ]
    assert [part for part in told if part not in message] == []


def test_bad_test_folders(tmp_path: Path) -> None:
    for index in range(3):
        write_image(tmp_path / "train" / "a" / f"{index}.png", index)
    assert "no test set" in refused(pictures(tmp_path), test=True)
    write_image(tmp_path / "test" / "z" / "0.png", 0)
    message = refused(pictures(tmp_path), test=True)
    assert "does not have: z" in message
    (tmp_path / "test" / "z").rename(tmp_path / "test" / "a")
    write_image(tmp_path / "test" / "a" / "0.png", 0, size=(9, 9))
    assert "0.png (9x9 L)" in refused(pictures(tmp_path), test=True)
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"")  # what the test images are compared with
    assert str(tmp_path / "train" / "a" / "0.png") in refused(pictures(tmp_path), test=True)


def test_too_few_images_for_a_test_set(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "0.png", 0)
    assert "too few images (1)" in refused(pictures(tmp_path), test=True)


# --- downloads --------------------------------------------------------------------------------------------------------


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and counts the requests for each file."""

    requests: Counter[str]

    def do_GET(self) -> None:
        self.requests[self.path] += 1
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Mirror]]:
    """A server with a small KMNIST, which torchvision's class points at, after an address that does not answer."""
    from torchvision.datasets import KMNIST

    folder = tmp_path / "mirror"
    write_idx(folder, "train", numbered(12, 28, 28), [0, 1, 2] * 4, compress=True)
    write_idx(folder, "test", numbered(3, 28, 28), [0, 1, 2], compress=True)
    sums = [(name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for name, _ in KMNIST.resources]
    handler = type("Handler", (Mirror,), {"requests": Counter()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: handler(*args, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(KMNIST, "mirrors", ["http://127.0.0.1:9/", address])
        monkeypatch.setattr(KMNIST, "resources", sums)
        yield handler
        server.shutdown()


def test_download(
    mirror: type[Mirror], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, int, int]] = []
    options = DataOptions(source="kmnist", data_dir=str(tmp_path / "new" / "data"))
    data = load_training_data(options, on_progress=lambda *call: calls.append(call))
    assert sorted(ids(data.train) + ids(data.val)) == list(range(12))
    assert calls == [("downloading Kuzushiji-MNIST", done, 4) for done in range(5)]
    assert capsys.readouterr().out == ""
    files = {path.name for path in (tmp_path / "new" / "data" / "KMNIST" / "raw").iterdir() if path.name[0] != "."}
    assert files == {
        f"{part}-{kind}" for part in PREFIX.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    }
    # From now on nothing is fetched, and torchvision's own class finds its files.
    monkeypatch.setattr("torchvision.datasets.KMNIST.mirrors", [])
    assert len(load_test_set(options).labels) == 3
    from torchvision.datasets import KMNIST

    assert len(KMNIST(tmp_path / "new" / "data", train=False)) == 3


def test_only_missing_files_are_fetched_and_once(mirror: type[Mirror], tmp_path: Path) -> None:
    write_idx(tmp_path / "KMNIST" / "raw", "train", numbered(12, 28, 28), [0] * 12, compress=True)
    options = DataOptions(source="kmnist", data_dir=str(tmp_path))
    load_test_set(options)
    alone = dict(mirror.requests)
    assert set(alone) == {"/t10k-images-idx3-ubyte.gz", "/t10k-labels-idx1-ubyte.gz"}
    mirror.requests.clear()
    for path in (tmp_path / "KMNIST" / "raw").glob("t10k*"):
        path.unlink()
    with ThreadPoolExecutor(4) as threads:
        assert {len(test.labels) for test in threads.map(lambda _: load_test_set(options), range(4))} == {3}
    assert dict(mirror.requests) == alone


def test_damaged_download_is_not_kept(mirror: type[Mirror], tmp_path: Path) -> None:
    (tmp_path / "mirror" / f"{LABELS}.gz").write_bytes(gzip.compress(b"another file"))
    message = refused(DataOptions(source="kmnist", data_dir=str(tmp_path)), download=True)
    assert LABELS in message
    assert IMAGES + "," not in message  # that one is there now
    assert not (tmp_path / "KMNIST" / "raw" / LABELS).exists()
    assert (tmp_path / "KMNIST" / "raw" / IMAGES).exists()


@pytest.mark.parametrize("test", [False, True])
def test_download_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: bool) -> None:
    from torchvision.datasets import FashionMNIST

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/"])
    message = refused(DataOptions(source="fashion-mnist", data_dir=str(tmp_path)), test=test, download=True)
    part = PREFIX["test" if test else "train"]
    told = [f"missing in {tmp_path / 'FashionMNIST' / 'raw'}: ", f"{part}-images-idx3-ubyte, {part}-labels-idx1-ubyte"]
    told += [f"http://127.0.0.1:9/{way}/{part}-{kind}" for way in "ab" for kind in ("images-idx3", "labels-idx1")]
    told += ["Connection refused", "or point --data-dir at a folder that has them"]
    assert [part for part in told if part not in message] == []


def test_download_into_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    message = refused(DataOptions(source="mnist", data_dir=str(tmp_path / "file" / "data")), download=True)
    assert f"cannot write to {tmp_path / 'file'}" in message


def test_import_is_light() -> None:
    code = "import sys, models.datasets; print(sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    loaded = set(json.loads(result.stdout.replace("'", '"')))
    assert loaded.isdisjoint({"torch", "torchvision", "sklearn", "scipy", "PIL", "ray", "mlflow", "filelock"})
