"""Kuzushiji-Kanji, MATLAB files, and what can be done to the images of any data set."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import math
import os
import tarfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from scipy.io import savemat

from models.datasets import (
    DATASETS,
    DataOptions,
    ImageSet,
    load_test_set,
    load_training_data,
)
from models.errors import UserError
from models.transforms import binarised, resized, with_channels

Pixels = npt.NDArray[np.uint8]
URL = "http://codh.rois.ac.jp/kmnist/dataset/kkanji/kkanji.tar"


def refused(options: DataOptions, *, test: bool = False, download: bool = False) -> str:
    """The message of the UserError that loading must raise."""
    load: Callable[..., object] = load_test_set if test else load_training_data
    with pytest.raises(UserError) as caught:
        load(options, download=download)
    return str(caught.value)


def missing_from(message: str, told: list[str]) -> list[str]:
    return [part for part in told if part not in message]


def all_of(options: DataOptions) -> tuple[ImageSet, ImageSet, ImageSet]:
    data = load_training_data(options, download=False)
    return data.train, data.val, load_test_set(options, download=False)


# --- Kuzushiji-Kanji --------------------------------------------------------------------------------------------------

SIZES = {"U+20B9F": 1, "U+4E00": 400, "U+4E8C": 13, "U+4E09": 2, "U+56DB": 1, "U+4E94": 7}


def numbered(number: int) -> Pixels:
    """A 64x64 image that can be told from others."""
    pixels = np.full((64, 64), number % 251, dtype=np.uint8)
    pixels[:2, 0] = number // 256, number % 256
    return pixels


def number_of(image: Pixels) -> int:
    return int(image[0, 0, 0]) * 256 + int(image[0, 1, 0])


def write_kanji(folder: Path, sizes: dict[str, int]) -> dict[int, str]:
    """A folder of the archive's layout; the class of each image by its number."""
    classes: dict[int, str] = {}
    for name, count in sizes.items():
        (folder / name).mkdir(parents=True)
        for _ in range(count):
            number = len(classes)
            Image.fromarray(numbered(number)).save(folder / name / f"{number * 7919 % 100_003:05x}.png")
            classes[number] = name
    return classes


def kanji(data_dir: Path, **more: object) -> DataOptions:
    return DataOptions.model_validate({"source": "kuzushiji-kanji", "data_dir": str(data_dir), **more})


@pytest.mark.parametrize("inner", ["kkanji2", "kuzushiji-kanji/kkanji2"])
def test_kanji_folder(tmp_path: Path, inner: str) -> None:
    classes = write_kanji(tmp_path / inner, SIZES)
    train, val, test = all_of(kanji(tmp_path))
    parts = {"train": train, "val": val, "test": test}
    for part in parts.values():
        assert part.class_names == tuple(sorted(SIZES))
        assert part.images.dtype == np.uint8
        assert part.images.flags.writeable
        assert part.shape == (1, 64, 64)
        for image, label in zip(part.images, part.labels, strict=True):
            assert part.class_names[label] == classes[number_of(image)]
            np.testing.assert_array_equal(image[0], numbered(number_of(image)))
    numbers = {name: [number_of(image) for image in part.images] for name, part in parts.items()}
    assert sorted([*numbers["train"], *numbers["val"], *numbers["test"]]) == sorted(classes)
    held_out = Counter(classes[number] for number in numbers["test"])
    assert all(abs(held_out[name] - count / 5) < 1 for name, count in SIZES.items())
    assert held_out["U+20B9F"] == held_out["U+56DB"] == 0  # a class's only image is to be learned
    other_seed = load_test_set(kanji(tmp_path, split_seed=8, train_images=3))
    assert [number_of(image) for image in other_seed.images] == numbers["test"]
    first = load_training_data(kanji(tmp_path, val_split="first", val_images=60))
    assert len(set(first.val.labels.tolist())) > 2  # not the first folder only


def test_kanji_training_does_not_open_test_images(tmp_path: Path) -> None:
    classes = write_kanji(tmp_path / "kkanji2", {"U+4E00": 30, "U+4E8C": 10})
    before = load_training_data(kanji(tmp_path))
    kept = {number_of(image) for image in np.concatenate([before.train.images, before.val.images])}
    (tmp_path / "kkanji2-train.npz").unlink()
    for number, name in classes.items():
        if number not in kept:
            (tmp_path / "kkanji2" / name / f"{number * 7919 % 100_003:05x}.png").write_bytes(b"not to be read")
    assert load_training_data(kanji(tmp_path)).spec == before.spec
    assert not (tmp_path / "kkanji2-test.npz").exists()
    assert "cannot be used" in refused(kanji(tmp_path), test=True)


def test_kanji_of_single_images_has_no_test_set(tmp_path: Path) -> None:
    write_kanji(tmp_path / "kkanji2", {"U+4E00": 1, "U+4E8C": 1, "U+4E09": 1})
    data = load_training_data(kanji(tmp_path))
    assert (data.spec.train_images, data.spec.val_images, len(data.spec.class_names)) == (2, 1, 3)
    assert "too few images (3)" in refused(kanji(tmp_path), test=True)


def test_decoded_images_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kanji(tmp_path / "kkanji2", {"U+4E00": 20, "U+4E8C": 10})
    calls: list[tuple[str, int, int]] = []
    train, val, test = all_of(kanji(tmp_path))
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"kkanji2", "kkanji2-train.npz", "kkanji2-test.npz"}
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda path: pytest.fail(f"{path} was decoded again"))
        load_training_data(kanji(tmp_path), on_progress=lambda *call: calls.append(call))
        for before, after in zip((train, val, test), all_of(kanji(tmp_path)), strict=True):
            np.testing.assert_array_equal(before.images, after.images)
            assert before.labels.tolist() == after.labels.tolist()
            assert after.images.flags.writeable
    assert calls == []
    # Moved with the folder, it still fits.
    (tmp_path / "there").mkdir()
    for name in files:
        (tmp_path / name).rename(tmp_path / "there" / name)
    monkeypatch.setattr(Image, "open", lambda path: pytest.fail(f"{path} was decoded again"))
    assert len(load_training_data(kanji(tmp_path / "there")).train.images) == len(train.images)


def test_a_changed_folder_is_decoded_again(tmp_path: Path) -> None:
    root = tmp_path / "kkanji2"
    write_kanji(root, {"U+4E00": 9, "U+4E8C": 9})
    for path in root.rglob("*.png"):
        Image.open(path).save(path, compress_level=0)
        os.utime(path, (0, 0))  # all of one size and time

    def swap() -> None:
        for old, new in (("U+4E00", "U+0"), ("U+4E8C", "U+4E00"), ("U+0", "U+4E8C")):
            (root / old).rename(root / new)

    first, second, *_ = sorted(root.rglob("*.png"))
    other = root / "U+4E00" / "fffff.png"
    changes: list[Callable[[], object]] = [
        swap,
        swap,
        lambda: Image.fromarray(noise(64, 64)).save(first, compress_level=0),  # the same size, at another time
        lambda: (Image.fromarray(numbered(99)).save(second), os.utime(second, (0, 0))),  # the other way round
        lambda: Image.fromarray(numbered(77)).save(other),
        lambda: other.rename(root / "U+4E8C" / "fffff.png"),
        lambda: (root / "U+4E8C").rename(root / "U+20B9F"),
        lambda: first.unlink(),
    ]
    for change in changes:
        all_of(kanji(tmp_path))
        change()
        found = [
            (part.class_names[label], image.tobytes())
            for part in all_of(kanji(tmp_path))
            for image, label in zip(part.images, part.labels, strict=True)
        ]
        there = [(path.parent.name, np.asarray(Image.open(path)).tobytes()) for path in root.rglob("*.png")]
        assert Counter(found) == Counter(there)


def npz(**content: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(bytes([3]) * 999, bytes([4]) * 999),
        lambda data: npz(key=np.array("another"), images=np.zeros((4, 1, 64, 64), np.uint8)),
        lambda data: npz(images=np.zeros((4, 1, 64, 64), np.uint8)),
        lambda data: npz(key=np.load(io.BytesIO(data))["key"], images=np.zeros((3, 1, 64, 64), np.uint8)),
        lambda data: npz(key=np.load(io.BytesIO(data))["key"], images=np.zeros((4, 1, 64, 64), np.float32)),
        lambda data: npz(key=np.array(None, dtype=object)),
    ],
)
def test_damaged_decoded_images_are_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_kanji(tmp_path / "kkanji2", {"U+4E00": 5})
    before = load_training_data(kanji(tmp_path)).spec
    path = tmp_path / "kkanji2-train.npz"
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))
    assert load_training_data(kanji(tmp_path)).spec == before
    with np.load(path) as mended, np.load(io.BytesIO(content)) as original:
        np.testing.assert_array_equal(mended["images"], original["images"])


def test_decoded_images_that_cannot_be_kept(tmp_path: Path) -> None:
    """A folder stands in the place of the file, as permissions do not bind root."""
    write_kanji(tmp_path / "kkanji2", {"U+4E00": 10})
    (tmp_path / "kkanji2-train.npz" / "x").mkdir(parents=True)
    assert load_training_data(kanji(tmp_path)).spec.train_images == 7
    assert {path.name for path in tmp_path.iterdir()} == {"kkanji2", "kkanji2-train.npz"}


def test_kanji_of_another_size_or_mode(tmp_path: Path) -> None:
    write_kanji(tmp_path / "kkanji2", {"U+4E00": 4})
    Image.new("L", (63, 64)).save(tmp_path / "kkanji2" / "U+4E00" / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "kkanji2" / "U+4E00" / "b.png")
    (tmp_path / "kkanji2" / "U+4E00" / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    messages = "\n".join(refused(kanji(tmp_path), test=test) for test in (False, True))
    told = [f"--data-dir: got {str(tmp_path)!r}", "must be 64x64 L;", "a.png (63x64 L)", "b.png (64x64 RGB)", "c.png ("]
    assert missing_from(messages, told) == []
    (tmp_path / "kkanji2" / "U+4E8C").mkdir()
    assert "U+4E8C" in refused(kanji(tmp_path))


def test_many_unusable_images_are_not_all_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kkanji2" / "U+4E00").mkdir(parents=True)
    for number in range(3_000):
        (tmp_path / "kkanji2" / "U+4E00" / f"{number}.png").write_bytes(b"")
    opened: list[Path] = []
    original = Image.open

    def count(path: Path) -> Image.Image:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(Image, "open", count)
    monkeypatch.setattr("models.image_folders._PIECE", 8)
    assert refused(kanji(tmp_path)).count(".png (") == 5
    assert 5 <= len(opened) < 200


@pytest.mark.parametrize("empty", [None, "kkanji2", "kuzushiji-kanji"])
def test_no_kanji(tmp_path: Path, empty: str | None) -> None:
    if empty:
        (tmp_path / empty).mkdir()
    message = refused(kanji(tmp_path))
    told = [f"--data-dir: got {str(tmp_path)!r}", str(tmp_path / "kkanji2"), "kuzushiji-kanji/kkanji2", URL]
    assert missing_from(message, [*told, f"tar -xf kkanji.tar -C {tmp_path}", "allow the download"]) == []
    assert [path.name for path in tmp_path.iterdir()] == ([empty] if empty else [])


class Server(http.server.BaseHTTPRequestHandler):
    """Answers every request with ``content``, of which it announces ``announced`` bytes."""

    content: bytes
    announced: int
    status: int
    requests: Counter[str]

    def do_GET(self) -> None:
        self.requests[self.path] += 1
        self.send_response(self.status)
        self.send_header("Content-Length", str(self.announced))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., type[Server]]]:
    """Starts to serve some bytes at the archive's address."""

    class Handler(Server):
        """One's own, so that tests share nothing."""

    def serve(content: bytes, announced: int | None = None, status: int = 200) -> type[Server]:
        Handler.content, Handler.announced, Handler.status = content, announced or len(content), status
        Handler.requests = Counter()
        return Handler

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,)).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr("models.datasets.KANJI_URL", f"http://127.0.0.1:{running.server_port}/a/kkanji.tar")
        yield serve
        running.shutdown()


def packed(folder: Path, *more: tarfile.TarInfo, mode: str = "w") -> bytes:
    """A tar archive of ``folder`` under its name, and of ``more``."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for member in more:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
        tar.add(folder, folder.name)
    return file.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_kanji_download(
    server: Callable[..., type[Server]], tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    classes = write_kanji(tmp_path / "source" / "kkanji2", SIZES)
    others = [member("kkanji2.txt", size=9), member("else/0.png"), member("/kkanji2/U+4E00/root.png", size=5)]
    others += [
        member("kkanji2/U+4E00/link.png", tarfile.SYMTYPE, "/etc/passwd"),
        member("kkanji2/fifo", tarfile.FIFOTYPE),
    ]
    handler = server(packed(tmp_path / "source" / "kkanji2", *others, mode=mode))
    data_dir = tmp_path / "new" / "data"
    calls: list[tuple[str, int, int]] = []
    data = load_training_data(kanji(data_dir), on_progress=lambda *call: calls.append(call))
    test = load_test_set(kanji(data_dir))
    everything = np.concatenate([data.train.images, data.val.images, test.images])
    assert sorted(number_of(image) for image in everything) == sorted(classes)
    assert handler.requests == {"/a/kkanji.tar": 1}
    assert {path.name for path in data_dir.iterdir()} == {
        *("kkanji2", "kkanji2-train.npz", "kkanji2-test.npz", ".download.lock")
    }
    assert {path.name for path in (data_dir / "kkanji2").iterdir()} == set(SIZES)
    texts = [text for text, _, _ in calls]
    assert [text for before, text in zip(["", *texts], texts, strict=False) if text != before] == [
        "downloading Kuzushiji-Kanji",
        "unpacking Kuzushiji-Kanji",
        "reading images",
    ]
    last = {text: (done, total) for text, done, total in calls}
    assert all(done == total for done, total in last.values())
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "kkanji.tar" in shown.err


def test_kanji_is_downloaded_once(server: Callable[..., type[Server]], tmp_path: Path) -> None:
    write_kanji(tmp_path / "source" / "kkanji2", {"U+4E00": 30, "U+4E8C": 10})
    handler = server(packed(tmp_path / "source" / "kkanji2"))
    (tmp_path / "kkanji2").mkdir()  # an empty folder is no data
    with ThreadPoolExecutor(4) as threads:
        specs = set(threads.map(lambda _: load_training_data(kanji(tmp_path)).spec.fingerprint, range(4)))
    assert len(specs) == 1
    assert handler.requests == {"/a/kkanji.tar": 1}


@pytest.mark.parametrize("name", ["kkanji2/../../evil.png", "kkanji2/U+4E00/../../../../evil.png"])
def test_archive_that_reaches_out(server: Callable[..., type[Server]], tmp_path: Path, name: str) -> None:
    write_kanji(tmp_path / "source" / "kkanji2", {"U+4E00": 3})
    server(packed(tmp_path / "source" / "kkanji2", member(name)))
    assert "outside" in refused(kanji(tmp_path / "data"), download=True)
    assert not list(tmp_path.rglob("evil.png"))
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".download.lock"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda archive: (b"<html>please log in</html>",), "not the archive that it should be"),
        (lambda archive: (b"",), "not the archive that it should be"),
        (lambda archive: (archive[:5_000],), "not the archive that it should be"),
        (lambda archive: (archive[:5_000], len(archive)), "the connection ended after 5000 of"),
        (lambda archive: (b"gone", 4, 404), "404"),
        (lambda archive: (packed(Path(__file__)),), "has no folder kkanji2"),
    ],
)
def test_kanji_download_fails(
    server: Callable[..., type[Server]], tmp_path: Path, answer: Callable[[bytes], tuple[Any, ...]], told: str
) -> None:
    write_kanji(tmp_path / "source" / "kkanji2", {"U+4E00": 3})
    server(*answer(packed(tmp_path / "source" / "kkanji2")))
    message = refused(kanji(tmp_path / "data"), download=True)
    where = f"tar -xf kkanji.tar -C {tmp_path / 'data'}"
    assert missing_from(message, [told, "/a/kkanji.tar", where, f"--data-dir: got {str(tmp_path / 'data')!r}"]) == []
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".download.lock"]


def test_kanji_download_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("models.datasets.KANJI_URL", "http://127.0.0.1:9/kkanji.tar")
    message = refused(kanji(tmp_path), test=True, download=True)
    assert missing_from(message, ["http://127.0.0.1:9/kkanji.tar", "Connection refused"]) == []
    (tmp_path / "file").write_bytes(b"")
    assert "cannot write to" in refused(kanji(tmp_path / "file" / "data"), download=True)


# --- MATLAB files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upright() -> tuple[Pixels, list[int]]:
    """Real digits (360, 28, 28) and their labels."""
    digits = load_test_set(DataOptions())
    return digits.images[:, 0], digits.labels.tolist()


def turned(images: Pixels) -> Pixels:
    """Rotated by a quarter to the right, then mirrored left to right: so they look where MATLAB's file is read."""
    return np.array([np.fliplr(np.rot90(image, k=-1)) for image in images])


def mat(path: Path, **more: object) -> DataOptions:
    return DataOptions.model_validate({"source": f"mnist-mat:{path}", **more})


@pytest.mark.parametrize(
    ("scaled", "flat", "column", "keys", "form"),
    [
        (lambda pixels: pixels / 255, True, (-1, 1), ("input_images", "output_labels"), {}),
        (lambda pixels: np.float32(np.round(pixels / 255, 4)), True, (-1,), ("input_images", "output_labels"), {}),
        (lambda pixels: pixels, True, (1, -1), ("images", "labels"), {"do_compression": True}),
        (lambda pixels: pixels.astype(np.float64), False, (-1, 1), ("input_images", "labels"), {}),
        (lambda pixels: pixels.astype(np.int16), True, (-1, 1), ("images", "output_labels"), {"format": "4"}),
    ],
)
def test_mat_file(
    upright: tuple[Pixels, list[int]],
    tmp_path: Path,
    scaled: Callable[[Pixels], npt.NDArray[Any]],
    flat: bool,
    column: tuple[int, ...],
    keys: tuple[str, str],
    form: dict[str, Any],
) -> None:
    images, labels = upright
    stored = scaled(turned(images))
    content = {keys[0]: stored.reshape(len(images), -1) if flat else stored, "else": np.eye(3)}
    content[keys[1]] = np.array(labels, dtype=np.float64).reshape(column)
    savemat(tmp_path / "some.mat", content, **form)
    train, val, test = all_of(mat(tmp_path / "some.mat", val_split="first", val_images=20))
    assert train.shape == (1, 28, 28)
    assert train.class_names == tuple("0123456789")
    by_content = {image.tobytes(): place for place, image in enumerate(images)}
    assert len(by_content) == len(images)
    places: list[list[int]] = []
    for part in (train, val, test):
        places.append([by_content[image.tobytes()] for image in part.images])
        assert part.labels.tolist() == [labels[place] for place in places[-1]]
        assert part.images.flags.c_contiguous
        assert part.images.flags.writeable
    assert sorted([*places[0], *places[1], *places[2]]) == list(range(360))
    assert places[1] == sorted(set(range(360)) - set(places[2]))[:20]  # the file's order
    assert places[2] == sorted(places[2])
    held_out = Counter(test.labels.tolist())
    assert all(abs(held_out[label] - count / 5) < 1 for label, count in Counter(labels).items())


def test_mat_of_black_and_white(upright: tuple[Pixels, list[int]], tmp_path: Path) -> None:
    images, labels = upright
    savemat(tmp_path / "a.mat", {"images": turned(images // 128), "labels": np.array(labels)})
    savemat(tmp_path / "b.mat", {"images": turned(images) >= 128, "labels": np.array(labels)})
    one, other = (load_training_data(mat(tmp_path / name)) for name in ("a.mat", "b.mat"))
    assert np.unique(one.train.images).tolist() == [0, 255]
    assert one.spec.fingerprint == other.spec.fingerprint


def test_mat_in_the_data_folder(upright: tuple[Pixels, list[int]], tmp_path: Path) -> None:
    options = DataOptions(source="mnist-mat", data_dir=str(tmp_path))
    for download in (False, True):
        message = refused(options, download=download)
        assert message.startswith(f"--data-dir: got {str(tmp_path)!r}")
        assert missing_from(message, [str(tmp_path / "MNIST.mat"), "mnist-mat:<file>"]) == []
    images, labels = upright
    savemat(tmp_path / "MNIST.mat", {"input_images": turned(images), "output_labels": np.array(labels)})
    named = load_training_data(mat(tmp_path / "MNIST.mat")).spec
    assert load_training_data(options).spec.fingerprint == named.fingerprint
    assert named.source == f"mnist-mat:{tmp_path / 'MNIST.mat'}"


def test_published_mnist_as_mat(real_data: Path, tmp_path: Path) -> None:
    published = load_test_set(DataOptions(source="mnist", data_dir=str(real_data)), download=False)
    images, labels = published.images[:, 0], published.labels
    savemat(tmp_path / "MNIST.mat", {"input_images": turned(images).reshape(-1, 784) / 255, "output_labels": labels})
    train, val, test = all_of(DataOptions(source="mnist-mat", data_dir=str(tmp_path)))
    read = Counter(image.tobytes() for part in (train, val, test) for image in part.images)
    assert read == Counter(image.tobytes() for image in images)
    assert len(test.labels) == 2_000


def header_of_7_3() -> bytes:
    """The first 520 bytes that MATLAB writes with -v7.3: its own header, then HDF5's signature."""
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  1 00:00:00 2024 HDF5 schema 1.00 ."
    return text.ljust(116) + bytes(8) + b"\x00\x02IM" + bytes(512 - 128) + b"\x89HDF\r\n\x1a\n" + bytes(1_000)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (header_of_7_3(), ["MATLAB 7.3", "'-v7'"]),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), ["MATLAB 7.3", "'-v7'"]),
        (b"", ["not a MATLAB file"]),
        (b"what?", ["not a MATLAB file"]),
        (b"P5 28 28 255 " * 100, ["not a MATLAB file"]),
        ({"X": np.eye(3), "labels": np.zeros(9)}, ["input_images or images", "it has X (3x3), labels (1x9)"]),
        ({"images": np.zeros((4, 784))}, ["must have output_labels or labels;", "images (4x784)"]),
        ({}, ["it has nothing"]),
        (
            {"images": np.zeros((4, 783)), "labels": np.zeros((4, 2))},
            ["found 4x783 of float64", "found 4x2 of float64"],
        ),
        ({"images": np.zeros((28, 28, 4)), "labels": np.zeros(4)}, ["(N, 784) or (N, 28, 28), found 28x28x4"]),
        ({"images": np.zeros((0, 784)), "labels": np.zeros(0)}, ["found 0x784", "found 0x0"]),
        ({"images": "what?", "labels": {"a": 1}}, ["images must be numbers", "labels must be numbers"]),
        ({"images": np.zeros((4, 784)), "labels": np.zeros(5)}, ["5 labels for 4 images"]),
        ({"images": np.full((4, 784), 256), "labels": [0, 1, 10, 3]}, ["found 256 to 256", "0 to 9, found 10"]),
        ({"images": np.full((4, 784), -0.1), "labels": [0, 1, 1.5, 3]}, ["found -0.1 to -0.1", "0 to 9, found 1.5"]),
        ({"images": np.full((4, 784), np.nan), "labels": [0, np.nan, 1, 2]}, ["found nan to nan", "0 to 9, found nan"]),
    ],
)
def test_wrong_mat_file(tmp_path: Path, content: bytes | dict[str, Any], told: list[str]) -> None:
    path = tmp_path / "some.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)
    message = refused(mat(path))
    assert message.startswith(f"--dataset: got 'mnist-mat:{path}'; ")
    assert missing_from(message, [*told, str(path)]) == []


def test_damaged_mat_file(upright: tuple[Pixels, list[int]], tmp_path: Path) -> None:
    images, labels = upright
    path = tmp_path / "some.mat"
    savemat(path, {"images": turned(images), "labels": np.array(labels)}, do_compression=True)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for keep in [*generator.integers(1, len(content), 20).tolist(), 128, 132, 136]:
        path.write_bytes(content[:keep])
        assert "some.mat" in refused(mat(path))
    for _ in range(60):
        damaged = bytearray(content)
        damaged[generator.integers(124, len(content) if generator.random() < 0.5 else 200)] ^= 255
        path.write_bytes(damaged)
        # Most is noticed by zlib's sums; a type of number may turn into another.
        with warnings.catch_warnings(action="ignore"), contextlib.suppress(UserError):
            load_training_data(mat(path))


def test_mat_without_a_test_set(tmp_path: Path) -> None:
    savemat(tmp_path / "some.mat", {"images": np.zeros((3, 784)), "labels": np.arange(3)})
    assert load_training_data(mat(tmp_path / "some.mat")).spec.train_images == 2
    assert "too few images (3)" in refused(mat(tmp_path / "some.mat"), test=True)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("mnist-mat:", "must name a file: mnist-mat:<file>"),
        ("mnist-mat:/no/such.mat", "there is no /no/such.mat"),
        (f"mnist-mat:{Path(__file__).parent}", "is not one"),
        ("mnist-mat:~no-such-user/x", "cannot read ~no-such-user/x"),
        ("mnist-mat:/" + "x" * 300, "too long"),
        ("mat:/x", "mnist-mat:<file>"),
        ("kuzushiji-kanjis", "did you mean 'kuzushiji-kanji'?"),
    ],
)
def test_wrong_source(source: str, told: str) -> None:
    message = refused(DataOptions(source=source))
    assert message.startswith(f"--dataset: got {source!r}; ")
    assert told in message


# --- what is done to images -------------------------------------------------------------------------------------------


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def by_pillow(image: Pixels, channels: int, size: int | tuple[int, int]) -> Pixels:
    """An image (C, H, W) that Pillow turned into so many channels and scaled to ``size`` (width, height)."""
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    shape = (size, size) if isinstance(size, int) else size
    pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB").resize(shape, Image.Resampling.BILINEAR))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def test_grey_is_pillows_grey() -> None:
    colours = noise(300, 3, 20, 30)
    expected = [np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in colours]
    grey = with_channels(colours, 1)
    np.testing.assert_array_equal(grey[:, 0], np.array(expected))
    primaries = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=np.uint8)[:, :, None, None]
    assert with_channels(primaries, 1).ravel().tolist() == [round(255 * k) for k in (0.299, 0.587, 0.114, 1)]
    coloured = with_channels(grey, 3)
    assert coloured.shape == colours.shape
    assert coloured.flags.c_contiguous
    assert all(np.array_equal(coloured[:, channel], grey[:, 0]) for channel in range(3))
    np.testing.assert_array_equal(with_channels(coloured, 1), grey)


@settings(max_examples=40)
@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(8, 90), channels=st.sampled_from([1, 3]))
@example(height=64, width=64, size=28, channels=1)
@example(height=28, width=28, size=64, channels=3)
@example(height=700, width=9, size=512, channels=1)
def test_another_size_is_torchs_and_pillows(height: int, width: int, size: int, channels: int) -> None:
    import torch

    images = noise(3, channels, height, width)
    ours = resized(images, size)
    assert ours.dtype == np.uint8
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(images).double(), size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    assert np.abs(ours - exact.numpy()).max() <= 0.5 + 1e-4
    pillow = np.array([by_pillow(image, channels, size) for image in images])
    assert np.abs(ours.astype(int) - pillow).max() <= 1


def test_another_size_of_many_images() -> None:
    """More than are worked on at a time; each as if it were alone."""
    images = noise(3_000, 1, 28, 28)
    together = resized(images, 32)
    for index in (0, 1, 777, 1_500, 2_999):
        np.testing.assert_array_equal(together[index], resized(images[index : index + 1], 32)[0])
    flat = np.arange(256, dtype=np.uint8).repeat(28 * 28).reshape(256, 1, 28, 28)
    for size in (8, 13, 28, 512):  # what has one value keeps it
        some = flat[:: 1 if size < 100 else 50]
        assert np.array_equal(resized(some, size), some[:, :, :1, :1].repeat(size, axis=2).repeat(size, axis=3))


@pytest.mark.parametrize(("old", "new"), [(28, 32), (64, 28), (9, 20), (30, 15), (8, 64)])
def test_another_size_is_exact(old: int, new: int) -> None:
    """To the last bit what fractions give, hence the same on every machine."""
    scale = Fraction(old, new)
    reach = max(scale, Fraction(1))
    weights = np.zeros((new, old), dtype=object)
    for i in range(new):
        for j in range(old):
            distance = abs(Fraction(2 * j + 1, 2) - Fraction(2 * i + 1, 2) * scale) / reach
            weights[i, j] = max(1 - distance, Fraction(0))
        weights[i] /= weights[i].sum()
    image = noise(old, old)
    image[:4] = 255 * (image[:4] > 127)
    exact = weights @ image.astype(object) @ weights.T
    assert any(value % 1 == Fraction(1, 2) for value in exact.ravel()) or (old, new) != (30, 15)
    expected = [math.floor(value + Fraction(1, 2)) for value in exact.ravel()]
    assert resized(image[None, None], new).ravel().tolist() == expected


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
@example(0.5)
@example(0.2)  # 51 exactly
@example(math.nextafter(0.2, 1))
@example(math.nextafter(1, 0))
@example(5e-324)
def test_black_and_white(threshold: float) -> None:
    every = np.arange(256, dtype=np.uint8)
    assert binarised(every, threshold).tolist() == [255 if pixel >= threshold * 255 else 0 for pixel in range(256)]


def write_colours(folder: Path, sizes: dict[str, int], size: tuple[int, int] = (12, 9)) -> None:
    pixels = iter(noise(sum(sizes.values()), size[1], size[0], 3))
    for name, count in sizes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(next(pixels)).save(folder / name / f"{index:03}.png")


@pytest.mark.parametrize(
    "change", [{"channels": 1}, {"image_size": 8}, {"binarise": 0.4}, {"channels": 1, "image_size": 16}]
)
def test_all_images_are_changed_alike(tmp_path: Path, change: dict[str, Any]) -> None:
    write_colours(tmp_path, {"a": 20, "b": 10})
    options = DataOptions(source=f"images:{tmp_path}", val_images=7)
    for before, after in zip(all_of(options), all_of(options.model_copy(update=change)), strict=True):
        assert before.labels.tolist() == after.labels.tolist()
        if "binarise" in change:
            expected = np.where(before.images / 255 >= 0.4, 255, 0)
        else:
            channels, size = change.get("channels", 3), change.get("image_size", (12, 9))
            expected = np.array([by_pillow(image, channels, size) for image in before.images])
        assert after.images.shape == expected.shape
        assert np.abs(after.images.astype(int) - expected).max() <= (1 if "image_size" in change else 0)
        assert after.images.dtype == np.uint8
        assert after.images.flags.c_contiguous
        assert after.images.flags.writeable


def test_order_of_changes(tmp_path: Path) -> None:
    """Channels, then size, then black and white."""
    write_colours(tmp_path, {"a": 20, "b": 10})
    source = f"images:{tmp_path}"
    grey = load_test_set(DataOptions(source=source, channels=1, image_size=16)).images
    both = load_test_set(DataOptions(source=source, channels=1, image_size=16, binarise=0.5)).images
    np.testing.assert_array_equal(both, np.where(grey >= 128, 255, 0))
    colours = load_test_set(DataOptions(source=source)).images
    np.testing.assert_array_equal(grey, resized(with_channels(colours, 1), 16))
    spec = load_training_data(DataOptions(source=source, channels=1, image_size=16, binarise=0.5)).spec
    assert spec.shape == (1, 16, 16)
    digits = load_test_set(DataOptions(channels=3, image_size=32, binarise=0.5)).images
    by_hand = binarised(resized(with_channels(load_test_set(DataOptions()).images, 3), 32), 0.5)
    np.testing.assert_array_equal(digits, by_hand)


def test_fingerprint_is_of_the_changed_pixels(tmp_path: Path) -> None:
    def fingerprint(**change: Any) -> str:
        return load_training_data(DataOptions(**change)).spec.fingerprint

    same = {fingerprint(), fingerprint(channels=1), fingerprint(image_size=28), fingerprint(binarise=None)}
    assert len(same) == 1
    changed: list[dict[str, Any]] = [
        {"channels": 3},
        {"image_size": 32},
        {"binarise": 0.5},
        {"binarise": 0.3},
        {"image_size": 32, "binarise": 0.5},
    ]
    assert len({*same, *(fingerprint(**change) for change in changed)}) == 6
    # The same pixels from other files are the same data, labels and all.
    write_colours(tmp_path / "before", {"a": 9, "b": 9})
    for path in (tmp_path / "before").rglob("*.png"):
        (tmp_path / "after" / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("L").save(tmp_path / "after" / path.parent.name / path.name)
    before, after = (f"images:{tmp_path / name}" for name in ("before", "after"))
    assert fingerprint(source=before, channels=1) == fingerprint(source=after)
    assert fingerprint(source=before) != fingerprint(source=after)


def test_fingerprints_that_searches_have_stored() -> None:
    found = load_training_data(DataOptions(image_size=32, channels=3, binarise=0.5)).spec.fingerprint
    assert found.startswith("ef6b1d5b")


def test_options_of_before_mean_what_they_meant() -> None:
    fields = {"source": "digits", "data_dir": None, "train_images": None, "val_images": None, "val_split": "random"}
    old = DataOptions.model_validate_json(json.dumps({**fields, "split_seed": 0}))
    assert old == DataOptions()
    assert (old.channels, old.image_size, old.binarise) == (None, None, None)
    new = DataOptions(channels=3, image_size=64, binarise=0.25)
    assert DataOptions.model_validate_json(new.model_dump_json()) == new


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("binarise", value) for value in (0, 1, -0.5, 1.5, math.nan, "half")),
        *(("image_size", value) for value in (7, 513, 28.5)),
        *(("channels", value) for value in (0, 2, 4)),
    ],
)
def test_options_out_of_bounds(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        DataOptions.model_validate({field: value})
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]


def test_few_training_images_of_many_small_classes(tmp_path: Path) -> None:
    names = {f"class{index:02}": 1 + 29 * (index == 3) for index in range(12)}
    write_colours(tmp_path, names)
    options = DataOptions(source=f"images:{tmp_path}")
    whole, test = load_training_data(options), load_test_set(options)
    by_content = {
        image.tobytes(): label
        for part in (whole.train, whole.val)
        for image, label in zip(part.images, part.labels.tolist(), strict=True)
    }
    assert set(by_content.values()) == set(range(12))
    assert set(test.labels.tolist()) == {3}
    few = load_training_data(options.model_copy(update={"train_images": 5, "val_images": 3}))
    assert (few.spec.train_images, few.spec.val_images) == (5, 3)
    assert few.spec.class_names == test.class_names == tuple(names)
    assert 1 < len(set(few.train.labels.tolist())) < 12
    for part in (few.train, few.val):
        assert [by_content[image.tobytes()] for image in part.images] == part.labels.tolist()


# --- what is listed ---------------------------------------------------------------------------------------------------


def test_listed_data_sets() -> None:
    for info in DATASETS.values():
        assert info.class_names == () or info.classes == len(info.class_names)
        if info.train_images is not None and info.test_images is not None:
            assert info.images == info.train_images + info.test_images
        assert info.needs_files or not info.downloaded
        assert len(json.dumps(asdict(info))) < 1_000
    digits, test = load_training_data(DataOptions()).spec, load_test_set(DataOptions())
    listed = DATASETS["digits"]
    assert (listed.train_images, listed.test_images) == (digits.train_images + digits.val_images, len(test.labels))
    assert DATASETS["kuzushiji-kanji"].classes == 3_832
