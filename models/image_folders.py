"""Folders with one folder of image files per class: listed, split, decoded, and kept decoded where that pays."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.data_sources import (
    NAMED_AT_MOST,
    ImageSet,
    Part,
    Progress,
    Setting,
    held_out_fifth,
    reason,
    silent,
    some,
)
from models.errors import ProblemCollector

Shape = tuple[int, ...]
"""(channels, height, width) of an image."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# The order of the images must be the same for everybody, for ever.
FOLDER_ORDER_SEED = 20_190_612

_THREADS = 8  # more than cores: on a slow disk they wait for each other's files
_PIECE = 256  # images a thread decodes at a time


def read_image_folder(setting: Setting, root: Path, part: Part, on_progress: Progress = silent) -> ImageSet:
    """Images from ``root/train/<class>/`` and ``root/test/<class>/``, or else as :func:`read_class_folders` does.

    Files are ``.png``, ``.jpg`` or ``.jpeg`` of 8 bits per channel; hidden files and folders are left out. Grey modes
    become one channel, all others RGB, without transparency. The images come in a fixed shuffled order, so that the
    first ones are of all classes.

    Raises:
        UserError: no or empty classes, no test set, a test class that training does not have, unreadable files,
            images that are not all of one size and mode.
    """
    # A class may be called "train": then that folder holds images and no folders.
    if not ((root / "train").is_dir() and class_folders(setting, root / "train")):
        return read_class_folders(setting, root, part, on_progress)
    class_names, paths, labels = _list_images(setting, root / "train")
    reference = paths[0]
    if part == "test":
        if not (root / "test").is_dir():
            raise setting.error(f"{root} has a folder train but none called test: there is no test set")
        test_names, paths, labels = _list_images(setting, root / "test")
        unknown = [name for name in test_names if name not in class_names]
        if unknown:
            raise setting.error(f"classes in {root / 'test'} that {root / 'train'} does not have: {some(unknown)}")
        labels = np.array([class_names.index(name) for name in test_names], dtype=np.int64)[labels]
    order = _shuffled(len(paths))
    images = _decode_like(setting, [paths[index] for index in order], reference, on_progress)
    return ImageSet(images, labels[order], class_names)


def read_class_folders(
    setting: Setting,
    root: Path,
    part: Part,
    on_progress: Progress = silent,
    *,
    shape: Shape | None = None,
    cached: bool = False,
) -> ImageSet:
    """Images from ``root/<class>/``, of which a fixed, stratified fifth (:func:`held_out_fifth`) is the test set.

    Args:
        setting: what problems are told under.
        root: the folder; the names of the folders in it, sorted, are the class names.
        part: training images or test images; the files of the other part are not opened.
        on_progress: told how many images are decoded.
        shape: what every image must have; ``None``: that of the first training image.
        cached: keep the decoded images in ``<root>-train.npz`` and ``<root>-test.npz`` beside ``root``, and take them
            from there as long as ``root`` has the same files, by name, size and time. Where they cannot be written,
            images are decoded every time.

    Raises:
        UserError: no or empty classes, too few images, unreadable files, images of another size or mode.
    """
    class_names, paths, labels = _list_images(setting, root)
    held_out = held_out_fifth(labels)
    keep = held_out == (part == "test")
    if not keep.any():
        raise setting.error(f"{root} has too few images ({len(labels)}) to hold out a fifth as the test set")
    reference = paths[int(np.flatnonzero(~held_out)[0])]
    paths, labels = [path for path, kept in zip(paths, keep, strict=True) if kept], labels[keep]
    order = _shuffled(len(paths))
    paths, labels = [paths[index] for index in order], labels[order]

    def decode() -> npt.NDArray[np.uint8]:
        if shape is None:
            return _decode_like(setting, paths, reference, on_progress)
        return _decode(setting, paths, shape, _describe(shape), on_progress)

    if not cached:
        return ImageSet(decode(), labels, class_names)
    cache = root.with_name(f"{root.name}-{part}.npz")
    try:
        key = _key(paths)
    except OSError as error:
        raise setting.error(f"cannot read {error.filename}: {reason(error)}") from error
    images = _from_cache(cache, key, len(paths))
    if images is None:
        images = decode()
        _keep(cache, key, images)
    return ImageSet(images, labels, class_names)


def class_folders(setting: Setting, root: Path) -> list[str]:
    """Sorted names of the folders in ``root``, without hidden ones."""
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise setting.error(f"cannot read the folder {root}: {reason(error)}") from error


def _list_images(setting: Setting, root: Path) -> tuple[tuple[str, ...], list[Path], npt.NDArray[np.int64]]:
    """Class names, files and labels (int64, (N,)) of ``root/<class>/<file>``, sorted by class and file name."""
    names = class_folders(setting, root)
    if not names:
        needs = f"{root} must hold one folder of {', '.join(IMAGE_SUFFIXES)} files per class; it has none"
        raise setting.error(f"{needs} (images without classes: all in one folder, such as {root / 'all'})")
    files: list[list[Path]] = []
    for name in names:
        try:
            entries = sorted((root / name).iterdir())
        except OSError as error:
            raise setting.error(f"cannot read {root / name}: {reason(error)}") from error
        files.append([path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."])
    empty = [str(root / name) for name, found in zip(names, files, strict=True) if not found]
    if empty:
        raise setting.error(f"no {', '.join(IMAGE_SUFFIXES)} files in {len(empty)} class folders: {some(empty)}")
    labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(found) for found in files])
    return tuple(names), [path for found in files for path in found], labels


def _shuffled(count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(FOLDER_ORDER_SEED).permutation(count)


# --- decoding ---------------------------------------------------------------------------------------------------------


def _decode_like(
    setting: Setting, paths: Sequence[Path], reference: Path, on_progress: Progress
) -> npt.NDArray[np.uint8]:
    """uint8 (N, C, H, W) from image files, all of which must be of ``reference``'s size and mode."""
    first = _pixels(reference)
    if isinstance(first, str):
        raise setting.error(f"images that cannot be used: {first}")
    like = f"{_describe(first.shape)} (width x height, mode) like {reference}"
    return _decode(setting, paths, first.shape, like, on_progress)


def _decode(
    setting: Setting, paths: Sequence[Path], shape: Shape, told: str, on_progress: Progress
) -> npt.NDArray[np.uint8]:
    """uint8 (N, C, H, W) from image files, all of which must have ``shape``, which ``told`` says in words."""
    images = np.empty((len(paths), *shape), dtype=np.uint8)

    def decode_piece(start: int) -> tuple[list[str], list[str]]:
        """Decode the images from ``start`` on; files that cannot be used, and those of another size or mode."""
        unusable, odd = [], []
        for index, path in enumerate(paths[start : start + _PIECE], start):
            pixels = _pixels(path)
            if isinstance(pixels, str):
                unusable.append(pixels)
            elif pixels.shape != shape:
                odd.append(f"{path} ({_describe(pixels.shape)})")
            else:
                images[index] = pixels
            if len(unusable) + len(odd) >= NAMED_AT_MOST:
                break
        return unusable, odd

    unusable: list[str] = []
    odd: list[str] = []
    starts = range(0, len(paths), _PIECE)
    with ThreadPoolExecutor(min(_THREADS, len(starts))) as threads:
        try:
            for start, (more_unusable, more_odd) in zip(starts, threads.map(decode_piece, starts), strict=True):
                on_progress("reading images", min(start + _PIECE, len(paths)), len(paths))
                unusable += more_unusable
                odd += more_odd
                if len(unusable) + len(odd) >= NAMED_AT_MOST:
                    break
        finally:
            threads.shutdown(cancel_futures=True)  # also where the user will not wait
    problems = ProblemCollector()
    if unusable:
        problems.add(setting.field, setting.value, f"images that cannot be used: {some(unusable)}")
    if odd:
        problems.add(setting.field, setting.value, f"all images must be {told}; others are {some(odd)}")
    problems.raise_if_any()
    return images


def _pixels(path: Path) -> npt.NDArray[np.uint8] | str:
    """uint8 (C, H, W) of an image file, or its name and what is wrong with it."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            image: Image.Image = file
            if image.mode.startswith(("I", "F")):  # Pillow would cut the values off at 255
                return f"{path} ({image.mode}: more than 8 bits per pixel)"
            grey = image.mode in ("1", "L", "LA", "La")
            # By way of RGBA, as Pillow warns about palettes with transparency.
            image = image.convert("RGBA") if image.mode == "P" else image
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
            return pixels[None] if grey else pixels.transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        return f"{path} ({reason(error)})"


def _describe(shape: Shape) -> str:
    return f"{shape[2]}x{shape[1]} {'L' if shape[0] == 1 else 'RGB'}"


# --- kept decoded -----------------------------------------------------------------------------------------------------


def _key(paths: Sequence[Path]) -> str:
    """sha256 (hex) of what the system says of ``paths``, in their order: folder, name, size, time of change."""
    digest = hashlib.sha256(b"latentune decoded images 1\n")
    for path in paths:
        known = path.stat()
        text = f"{path.parent.name}/{path.name}\0{known.st_size} {known.st_mtime_ns}\n"
        digest.update(text.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _from_cache(cache: Path, key: str, count: int) -> npt.NDArray[np.uint8] | None:
    """The images (uint8, (N, C, H, W)) that ``cache`` holds; ``None`` if it has none, others or damaged ones."""
    try:
        with np.load(cache) as content:
            if str(content["key"]) != key:
                return None
            images: npt.NDArray[np.uint8] = content["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        return None
    return images if images.dtype == np.uint8 and images.ndim == 4 and len(images) == count else None


def _keep(cache: Path, key: str, images: npt.NDArray[np.uint8]) -> None:
    """Write ``cache`` so that readers see nothing or all of it; where that is not possible, do without."""
    with (
        contextlib.suppress(OSError),
        tempfile.TemporaryDirectory(dir=cache.parent, prefix=".decoded-") as scratch,
    ):
        np.savez(Path(scratch) / cache.name, key=np.array(key), images=images)
        (Path(scratch) / cache.name).replace(cache)
