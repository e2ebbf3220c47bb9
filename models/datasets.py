"""Data sets by name: read, split into training and validation images, and fingerprinted.

The test images lie in files of their own (or are a fixed part) that :func:`load_training_data` never opens; a search
cannot see them. Only numpy and pydantic are imported with this module; what a source needs besides comes with its use.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from models.data_sources import (
    IDX_FILES,
    ImageSet,
    Part,
    Progress,
    Setting,
    find_idx_file,
    missing_idx_files,
    read_digits,
    read_idx_pair,
    read_image_folder,
    reason,
    silent,
)
from models.errors import Problem, UserError, did_you_mean

__all__ = [
    "DATASETS",
    "DataOptions",
    "DataSpec",
    "DatasetInfo",
    "ImageSet",
    "TrainingData",
    "load_test_set",
    "load_training_data",
]

DATA_DIR_VARIABLE = "LATENTUNE_DATA_DIR"
DEFAULT_DATA_DIR = "~/.cache/latentune/data"
_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read. Sizes in pixels."""

    title: str
    channels: int
    height: int
    width: int
    class_names: tuple[str, ...]
    train_images: int  # official training images: training and validation together
    test_images: int
    licence: str  # and where it comes from, one line
    needs_files: bool
    folder: str = ""  # under the data folder, also the name of torchvision's class; "" where no files are needed


_UCI = "UCI optical digits as in scikit-learn, CC BY 4.0, https://archive.ics.uci.edu/dataset/80"
_ZALANDO = "Zalando Research, MIT, https://github.com/zalandoresearch/fashion-mnist"
_LECUN = "LeCun, Cortes and Burges, CC BY-SA 3.0, http://yann.lecun.com/exdb/mnist"
_CODH = "CODH, CC BY-SA 4.0, https://github.com/rois-codh/kmnist"
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_DIGITS = tuple("0123456789")


def _mnist_like(title: str, folder: str, class_names: tuple[str, ...], licence: str) -> DatasetInfo:
    return DatasetInfo(title, 1, 28, 28, class_names, 60_000, 10_000, licence, True, folder)


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo("Digits", 1, 28, 28, _DIGITS, 1_437, 360, _UCI, False),
    "fashion-mnist": _mnist_like("Fashion-MNIST", "FashionMNIST", _FASHION, _ZALANDO),
    "mnist": _mnist_like("MNIST", "MNIST", _DIGITS, _LECUN),
    "kmnist": _mnist_like("Kuzushiji-MNIST", "KMNIST", _KANA, _CODH),
}


class DataOptions(BaseModel):
    """Which images to use, and how many of them for what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(default="digits", description="a name in DATASETS, idx:<folder> or images:<folder>")
    data_dir: str | None = Field(
        default=None,
        description=f"folder of torchvision's layout; by default ${DATA_DIR_VARIABLE}, else {DEFAULT_DATA_DIR}",
    )
    train_images: int | None = Field(default=None, ge=1, description="by default all that validation leaves")
    val_images: int | None = Field(
        default=None, ge=1, description="by default one fifth of the number of training images"
    )
    val_split: Literal["random", "first"] = Field(
        default="random", description="which training images are for validation"
    )
    split_seed: int = Field(default=0, ge=0, description="of the permutation of the training images")


class DataSpec(BaseModel):
    """What a model was trained on: enough to use it, and to tell whether other data are the same.

    ``fingerprint`` is a sha256 (hex) over shapes, dtypes, training and validation images and labels in split order;
    it does not depend on where the files lie, nor on the names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    channels: int
    height: int
    width: int
    class_names: tuple[str, ...]
    train_images: int
    val_images: int
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self.channels, self.height, self.width


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training and validation images of one source, disjoint."""

    train: ImageSet
    val: ImageSet
    spec: DataSpec


def load_training_data(
    options: DataOptions, *, download: bool = True, on_progress: Progress | None = None
) -> TrainingData:
    """Read the training images of ``options.source`` and split them. Files of test images are never opened.

    The official training images are permuted by ``default_rng(split_seed)``: the first ``val_images`` are for
    validation, the next ``train_images`` for training. With ``val_split="first"`` the first ones in file order are
    for validation, and only the others are permuted.

    Args:
        options: what to read and how to split it.
        download: fetch the files of a named data set if they are missing.
        on_progress: called with (text, done, total) while files are downloaded or many images decoded.

    Raises:
        UserError: unknown source, missing or damaged files, or more images asked for than there are.
    """
    everything = _load(options, "train", download, on_progress or silent)
    train_index, val_index = _split(options, len(everything.labels))
    train, val = everything.take(train_index), everything.take(val_index)
    channels, height, width = everything.shape
    spec = DataSpec(
        source=options.source,
        channels=channels,
        height=height,
        width=width,
        class_names=everything.class_names,
        train_images=len(train.labels),
        val_images=len(val.labels),
        fingerprint=_fingerprint(train, val),
    )
    return TrainingData(train, val, spec)


def load_test_set(options: DataOptions, *, download: bool = True, on_progress: Progress | None = None) -> ImageSet:
    """Read all test images of ``options.source``; the numbers and the split in ``options`` do not matter.

    Arguments and errors as for :func:`load_training_data`; a folder without test images is a UserError too.
    """
    return _load(options, "test", download, on_progress or silent)


def _split(options: DataOptions, available: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the training and of the validation images among ``available`` ones, each int64 (M,)."""
    val = options.val_images
    if val is None:  # a fifth of the training images is a sixth of both together
        val = max(1, available // 6 if options.train_images is None else options.train_images // 5)
    train = available - val if options.train_images is None else options.train_images
    if available < 2:
        raise UserError.of("--dataset", options.source, "must have two images at least, has one besides the test set")
    both = f"the {available} images that {options.source!r} has for both"
    if options.train_images is None and val >= available:
        raise UserError.of("--val-images", val, f"must leave one for --train-images at least of {both}")
    if train + val > available:
        default = "the default, one fifth of --train-images" if options.val_images is None else "lower one or both"
        raise UserError(
            Problem("--train-images", train, f"together with {val} for --val-images more than {both}"),
            Problem("--val-images", val, default),
        )
    generator = np.random.default_rng(options.split_seed)
    if options.val_split == "random":
        order = generator.permutation(available)
        return order[val : val + train], order[:val]
    return val + generator.permutation(available - val)[:train], np.arange(val)


def _fingerprint(*parts: ImageSet) -> str:
    """sha256 (hex) of the content of ``parts``."""
    digest = hashlib.sha256()
    for part in parts:
        for array in (part.images, part.labels.astype("<i8")):
            digest.update(f"{array.shape} {array.dtype.str}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _load(options: DataOptions, part: Part, download: bool, on_progress: Progress) -> ImageSet:
    """All images of ``part`` of the source that ``options`` name."""
    if options.source == "digits":
        return read_digits(part)
    if options.source in DATASETS:
        info = DATASETS[options.source]
        setting, folder = _find_files(options, info, part, download, on_progress)
        return read_idx_pair(setting, folder, part, info.class_names, (info.height, info.width))
    kind, colon, where = options.source.partition(":")
    setting = Setting("--dataset", options.source)
    if not colon or kind not in ("idx", "images"):
        known = [*DATASETS, "idx:<folder>", "images:<folder>"]
        raise setting.error(did_you_mean(options.source.lower(), known))
    if not where:
        raise setting.error(f"must name a folder: {kind}:<folder>")
    folder = _checked_folder(setting, where)
    if kind == "images":
        return read_image_folder(setting, folder, part, on_progress)
    missing = missing_idx_files(folder, "train")
    if missing:
        raise setting.error(f"missing in {folder}: {', '.join(missing)} (or the same with .gz)")
    train = read_idx_pair(setting, folder, "train")
    if part == "train":
        return train
    missing = missing_idx_files(folder, "test")
    if missing:
        raise setting.error(f"{folder} has no test set: missing {', '.join(missing)} (or the same with .gz)")
    return read_idx_pair(setting, folder, "test", train.class_names, train.shape[1:])


def _checked_folder(setting: Setting, where: str | Path, *, may_lack: bool = False) -> Path:
    """The folder ``where``, whose files can be listed and opened; with ``may_lack`` it need not exist."""
    try:
        folder = Path(where).expanduser()
        exists, is_folder = folder.exists(), folder.is_dir()
    except (OSError, RuntimeError) as error:  # no permission, name too long; no such user in ~user
        raise setting.error(f"cannot read {where}: {reason(error)}") from error
    if exists and not is_folder:
        raise setting.error(f"must be a folder: {folder} is not one")
    if not exists and not may_lack:
        raise setting.error(f"must be a folder: there is no {folder}")
    if exists and not os.access(folder, os.R_OK | os.X_OK):
        raise setting.error(f"must be a folder that can be read: no permission for {folder}")
    return folder


def _find_files(
    options: DataOptions, info: DatasetInfo, part: Part, download: bool, on_progress: Progress
) -> tuple[Setting, Path]:
    """The folder that has the files of ``part``, after a download if need be, and the setting that says where it is."""
    given = options.data_dir or os.environ.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR
    setting = Setting("--data-dir", given)
    folder = _checked_folder(setting, given, may_lack=True)
    for inner in (info.folder, "raw"):
        folder = _checked_folder(setting, folder / inner, may_lack=True)
    missing = missing_idx_files(folder, part)
    if missing and download:
        _download(setting, info, folder, part, on_progress)
    elif missing:
        raise setting.error(
            f"{info.title}: missing in {folder}: {', '.join(missing)} (or the same with .gz); allow the download, "
            f"get them from {info.licence.split(', ')[-1]}, or point --data-dir at a folder that has them"
        )
    return setting, folder


def _download(setting: Setting, info: DatasetInfo, folder: Path, part: Part, on_progress: Progress) -> None:
    """Fetch what is missing of ``info``'s four files from the addresses (and with the md5 sums) of torchvision's class.

    Each file appears under its name only when it is complete, so that a process that needs no download never finds
    half a file; the lock is for those that do. Files of the other part are fetched too, but may be missing.
    """
    import torchvision.datasets  # slow to import, hence only here
    from filelock import FileLock
    from torchvision.datasets.utils import download_and_extract_archive

    source = getattr(torchvision.datasets, info.folder)
    archives: list[tuple[str, str]] = sorted(
        source.resources, key=lambda item: item[0].removesuffix(".gz") not in IDX_FILES[part]
    )
    failures: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock"), _download_surroundings():
            for done, (archive, md5) in enumerate(archives):
                on_progress(f"downloading {info.title}", done, len(archives))
                name = archive.removesuffix(".gz")
                if find_idx_file(folder, name) is not None:
                    continue
                for mirror in source.mirrors:
                    try:
                        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
                            download_and_extract_archive(
                                mirror + archive, scratch, filename=archive, md5=md5, remove_finished=True
                            )
                            (Path(scratch) / name).replace(folder / name)
                        break
                    except (OSError, RuntimeError, EOFError, http.client.HTTPException, zlib.error) as error:
                        failures.append(f"{mirror}{archive} ({reason(error)})")
                if failures and find_idx_file(folder, name) is None:
                    break  # the next file would fail as slowly
            else:
                on_progress(f"downloading {info.title}", len(archives), len(archives))
    except OSError as error:
        failures.append(f"cannot write to {error.filename or folder} ({reason(error)})")
    missing = missing_idx_files(folder, part)
    if missing:
        addresses = [mirror + name + ".gz" for name in missing for mirror in source.mirrors]
        raise setting.error(
            f"{info.title}: missing in {folder}: {', '.join(missing)} (or the same with .gz); "
            f"the download failed: {'; '.join(failures)}; "
            f"get them from {', '.join(addresses)}, or point --data-dir at a folder that has them"
        )


@contextlib.contextmanager
def _download_surroundings() -> Iterator[None]:
    """Progress bars on stderr, as stdout is for results, and no waiting for ever: torchvision sets no time limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)
