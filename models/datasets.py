"""Data sets by name: read, split into training and validation images, and fingerprinted.

The test images lie in files of their own (or are a fixed part) that :func:`load_training_data` never opens; a search
cannot see them. Only numpy and pydantic are imported with this module; what a source needs besides comes with its use.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from models.data_sources import (
    ImageSet,
    Part,
    Progress,
    Setting,
    checked_folder,
    missing_idx_files,
    read_digits,
    read_idx_pair,
    reason,
    silent,
)
from models.downloads import download_folder, download_idx_files
from models.errors import Problem, UserError, did_you_mean
from models.image_folders import class_folders, read_class_folders, read_image_folder
from models.mat_files import read_mat
from models.published import DATASETS, DatasetInfo
from models.transforms import transformed

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
KANJI_URL = "http://codh.rois.ac.jp/kmnist/dataset/kkanji/kkanji.tar"  # 310 MB; no checksum is published
_MAT_FILE = "MNIST.mat"


# What a source can be besides a name in DATASETS, each with what must stand behind its colon.
_FORMS = {"idx": "<folder>", "images": "<folder>", "mnist-mat": "<file>"}


class DataOptions(BaseModel):
    """Which images to use, and how many of them for what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        default="digits", description="a name in DATASETS, idx:<folder>, images:<folder> or mnist-mat:<file>"
    )
    data_dir: str | None = Field(
        default=None,
        description=f"folder of torchvision's layout; by default ${DATA_DIR_VARIABLE}, else {DEFAULT_DATA_DIR}",
    )
    train_images: int | None = Field(
        default=None,
        ge=1,
        description="by default all that validation leaves; drawn from all classes together, so that a small class "
        "may have none, but stays a class",
    )
    val_images: int | None = Field(
        default=None, ge=1, description="by default one fifth of the number of training images"
    )
    val_split: Literal["random", "first"] = Field(
        default="random", description="which training images are for validation"
    )
    split_seed: int = Field(default=0, ge=0, description="of the permutation of the training images")
    channels: Literal[1, 3] | None = Field(
        default=None, description="1: RGB images become grey; 3: grey images become RGB; by default as they are"
    )
    image_size: int | None = Field(
        default=None,
        ge=8,
        le=512,
        description="height and width in pixels that images are scaled to, whatever their aspect ratio",
    )
    binarise: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="pixels of at least this share of the highest value become white, all others black",
    )


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
    for validation, and only the others are permuted. Classes play no part in this: of a class with few images, all
    may be for validation, or none be taken. ``class_names`` are nevertheless all that the training images have, and a
    label stands for the same class however many images are taken.

    Every image is then given ``channels``, scaled to ``image_size`` and made black and white by ``binarise``, in that
    order; ``spec`` and its fingerprint are of what comes out.

    Args:
        options: what to read and how to split it.
        download: fetch the files of a named data set if they are missing.
        on_progress: called with (text, done, total) while files are downloaded or many images decoded.

    Raises:
        UserError: unknown source, missing or damaged files, or more images asked for than there are.
    """
    everything = _load(options, "train", download, on_progress or silent)
    train_index, val_index = _split(options, len(everything.labels))
    train, val = (_transformed(options, everything.take(index)) for index in (train_index, val_index))
    channels, height, width = train.shape
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

    They are transformed as the training images are. Arguments and errors as for :func:`load_training_data`; a folder
    without test images is a UserError too.
    """
    return _transformed(options, _load(options, "test", download, on_progress or silent))


def _transformed(options: DataOptions, part: ImageSet) -> ImageSet:
    images = transformed(part.images, options.channels, options.image_size, options.binarise)
    return ImageSet(images, part.labels, part.class_names)


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
    if options.source == "kuzushiji-kanji":
        return _load_kanji(options, part, download, on_progress)
    if options.source == "mnist-mat":
        setting, folder = _data_dir(options)
        path = folder / _MAT_FILE
        if not path.is_file():
            raise setting.error(f"there is no {path}; put it there, or name it: --dataset mnist-mat:<file>")
        return read_mat(setting, path, part)
    if options.source in DATASETS:
        info = DATASETS[options.source]
        setting, folder = _find_idx_files(options, info, part, download, on_progress)
        return read_idx_pair(setting, folder, part, info.class_names, (info.height, info.width))
    kind, colon, where = options.source.partition(":")
    setting = Setting("--dataset", options.source)
    if not colon or kind not in _FORMS:
        known = [*DATASETS, *(f"{form}:{what}" for form, what in _FORMS.items())]
        raise setting.error(did_you_mean(options.source.lower(), known))
    if not where:
        raise setting.error(f"must name a {_FORMS[kind][1:-1]}: {kind}:{_FORMS[kind]}")
    if kind == "mnist-mat":
        return read_mat(setting, _checked_file(setting, where), part)
    folder = checked_folder(setting, where)
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


def _data_dir(options: DataOptions) -> tuple[Setting, Path]:
    """The setting that says where the files of named data sets are, and that folder, which need not exist."""
    given = options.data_dir or os.environ.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR
    setting = Setting("--data-dir", given)
    return setting, checked_folder(setting, given, may_lack=True)


def _checked_file(setting: Setting, where: str) -> Path:
    """The file ``where``; whether it can be read is up to who reads it."""
    try:
        path = Path(where).expanduser()
        is_file, exists = path.is_file(), path.exists()
    except (OSError, RuntimeError) as error:  # name too long; no such user in ~user
        raise setting.error(f"cannot read {where}: {reason(error)}") from error
    if not is_file:
        raise setting.error(f"must be a file: {path} is not one" if exists else f"must be a file: there is no {path}")
    return path


def _find_idx_files(
    options: DataOptions, info: DatasetInfo, part: Part, download: bool, on_progress: Progress
) -> tuple[Setting, Path]:
    """The folder that has the files of ``part``, after a download if need be, and the setting that says where it is."""
    setting, folder = _data_dir(options)
    for inner in (info.folder, "raw"):
        folder = checked_folder(setting, folder / inner, may_lack=True)
    missing = missing_idx_files(folder, part)
    if missing and download:
        download_idx_files(setting, info.title, info.folder, folder, part, on_progress)
    elif missing:
        raise setting.error(
            f"{info.title}: missing in {folder}: {', '.join(missing)} (or the same with .gz); allow the download, "
            f"get them from {info.licence.split(', ')[-1]}, or point --data-dir at a folder that has them"
        )
    return setting, folder


def _load_kanji(options: DataOptions, part: Part, download: bool, on_progress: Progress) -> ImageSet:
    """The published archive's folder, after a download if need be.

    Class names are the names of its folders, the characters' code points (``U+4E00``).
    """
    info = DATASETS["kuzushiji-kanji"]
    setting, data_dir = _data_dir(options)
    places = [
        checked_folder(setting, place / info.folder, may_lack=True)
        for place in (data_dir, checked_folder(setting, data_dir / options.source, may_lack=True))
    ]
    folder = next((place for place in places if place.is_dir() and class_folders(setting, place)), None)
    if folder is None:
        why = download_folder(info.title, KANJI_URL, places[0], on_progress) if download else "allow the download"
        if why is not None:
            raise setting.error(
                f"{info.title}: there is neither {places[0]} nor {places[1]} with a folder per character; {why}, "
                f"or get {KANJI_URL} (310 MB) and unpack it with tar -xf kkanji.tar -C {data_dir}, "
                f"or point --data-dir at a folder that has {info.folder}"
            )
        folder = places[0]
    shape = (info.channels, info.height, info.width)
    return read_class_folders(setting, folder, part, on_progress, shape=shape, cached=True)
