"""Where images come from: what all readers share, the embedded digits, and IDX files.

Every reader gives an :class:`ImageSet` of either the official training images or the test images, and opens no image
of the other part's. What is wrong with files is a :class:`~models.errors.UserError` under the setting that named them.
Readers of other files have modules of their own: :mod:`models.image_folders`, :mod:`models.mat_files`.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.errors import Problem, ProblemCollector, UserError

Part = Literal["train", "test"]
Progress = Callable[[str, int, int], None]
"""Called with (what is going on, steps done, steps in all)."""


def silent(text: str, done: int, total: int) -> None:
    """The :data:`Progress` that tells nothing."""


# The held-out test images of sources without an official test set must be the same for everybody, for ever.
TEST_SPLIT_SEED = 20_190_611

IDX_FILES: dict[Part, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
NAMED_AT_MOST = 5  # files named in one message


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their classes.

    Args:
        images: uint8 (N, C, H, W), C-contiguous, writable, 0..255; C is 1 (grey) or 3 (RGB).
        labels: int64 (N,), indices into ``class_names``.
        class_names: one name per class, in label order.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, indices: npt.NDArray[np.int64]) -> ImageSet:
        """A copy of the images at ``indices`` (int64, (M,)), in that order."""
        return ImageSet(self.images[indices], self.labels[indices], self.class_names)


@dataclass(frozen=True)
class Setting:
    """The setting, as users know it, under which a problem with a file is told."""

    field: str
    value: str

    def error(self, allowed: str) -> UserError:
        return UserError(Problem(self.field, self.value, allowed))


def held_out_fifth(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Mask (N,) of a fixed, stratified fifth of ``labels``: the test images where there is no official test set.

    Every fifth image in an order by class, shuffled within the classes, so that each class gives its share to within
    one image. A class's only image is never held out: it could not be learned.
    """
    shuffled = np.random.default_rng(TEST_SPLIT_SEED).permutation(len(labels))
    chosen = np.lexsort((shuffled, labels))[::5]
    mask = np.zeros(len(labels), dtype=np.bool_)
    mask[chosen[np.bincount(labels)[labels[chosen]] > 1]] = True
    return mask


def read_digits(part: Part) -> ImageSet:
    """scikit-learn's 1,797 digits, scaled up from 8x8 to 28x28: 1,437 for training, 360 for the test."""
    # Its file alone: `sklearn.datasets` takes a second to load.
    found = importlib.util.find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    rows = np.loadtxt(
        Path(found.origin).with_name("datasets") / "data" / "digits.csv.gz", delimiter=",", dtype=np.int64
    )
    labels = rows[:, -1]
    keep = held_out_fifth(labels) == (part == "test")
    small = rows[keep, :-1].reshape(-1, 8, 8)  # 0..16
    # Bilinear with align_corners=False: pixel i of 28 lies at (4 i - 5) / 14 of 8. Whole numbers of fourteenths make
    # the result exact, thus the fingerprint the same on every machine.
    place = np.clip(4 * np.arange(28) - 5, 0, 7 * 14)
    weights = np.zeros((28, 8), dtype=np.int64)
    np.add.at(weights, (np.arange(28), place // 14), 14 - place % 14)
    np.add.at(weights, (np.arange(28), np.minimum(place // 14 + 1, 7)), place % 14)
    scale = 16 * 14 * 14
    images = (weights @ small @ weights.T * 255 + scale // 2) // scale
    return ImageSet(images.astype(np.uint8)[:, None], labels[keep], tuple("0123456789"))


def find_idx_file(folder: Path, name: str) -> Path | None:
    """The file ``name`` or ``name.gz`` in ``folder``; ``None`` if there is neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def missing_idx_files(folder: Path, part: Part) -> list[str]:
    """Names of the files of ``part`` that ``folder`` has neither plain nor as ``.gz``."""
    return [name for name in IDX_FILES[part] if find_idx_file(folder, name) is None]


def read_idx_pair(
    setting: Setting,
    folder: Path,
    part: Part,
    class_names: tuple[str, ...] | None = None,
    size: tuple[int, int] | None = None,
) -> ImageSet:
    """The images and labels of ``part`` from MNIST-style IDX files, plain or ``.gz``.

    Args:
        setting: what problems are told under.
        folder: where the two files lie; they must exist (:func:`missing_idx_files`).
        part: training or test pair.
        class_names: ``None``: "0" to the highest label.
        size: (height, width) that the images must have; ``None``: any.

    Raises:
        UserError: a file cannot be read, is not of the format or is cut off; the two do not fit together; a label
            has no class; the images have another size. Problems of both files are told together.
    """
    image_path, label_path = (find_idx_file(folder, name) or folder / name for name in IDX_FILES[part])
    images: npt.NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
    labels = images
    problems = ProblemCollector()
    with problems.gather():
        images = _read_idx(setting, image_path, dimensions=3)
    with problems.gather():
        labels = _read_idx(setting, label_path, dimensions=1)
    problems.raise_if_any()

    def check(fine: bool, allowed: str) -> None:
        if not fine:
            problems.add(setting.field, setting.value, allowed)

    count = len(images)
    check(len(labels) == count, f"{label_path} has {len(labels)} labels for the {count} images of {image_path}")
    if size is not None:
        found = f"{images.shape[1]}x{images.shape[2]}"
        check(images.shape[1:] == size, f"{image_path}: expected images of {size[0]}x{size[1]} pixels, found {found}")
    highest = int(labels.max())
    if class_names is None:
        class_names = tuple(str(label) for label in range(highest + 1))
    last = len(class_names) - 1
    check(highest <= last, f"{label_path}: labels must be 0 to {last}, found {highest}")
    problems.raise_if_any()
    # The buffer of the file is read-only: copied, as torch wants to write into what it wraps.
    return ImageSet(images[:, None].copy(), labels.astype(np.int64), class_names)


def _read_idx(setting: Setting, path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The content of an IDX file of unsigned bytes with so many ``dimensions``; none of them is 0."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise setting.error(f"cannot read {path}: {reason(error)}") from error
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise setting.error(f"{path}: expected a header of {header} bytes, found {len(content)} bytes")
    magic, expected_magic = int.from_bytes(content[:4], "big"), 0x800 + dimensions
    if magic != expected_magic:
        what = "images" if dimensions == 3 else "labels"
        raise setting.error(f"{path}: expected magic number {expected_magic} (IDX {what}), found {magic}")
    shape = [int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4)]
    expected = header + math.prod(shape)
    if expected != len(content):
        sizes = "x".join(map(str, shape))
        raise setting.error(f"{path}: expected {expected} bytes (header and {sizes}), found {len(content)} bytes")
    if expected == header:
        raise setting.error(f"{path}: is empty, its header says {'x'.join(map(str, shape))}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def reason(error: Exception) -> str:
    """Why an operation failed, without the error number and the path that the message names anyway."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def some(names: Sequence[str]) -> str:
    """The first few ``names``, and how many more there are."""
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + more


def checked_folder(setting: Setting, where: str | Path, *, may_lack: bool = False) -> Path:
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
