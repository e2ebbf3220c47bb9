"""MNIST as a MATLAB file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.data_sources import ImageSet, Part, Setting, held_out_fifth, reason
from models.errors import ProblemCollector

IMAGE_KEYS = ("input_images", "images")
LABEL_KEYS = ("output_labels", "labels")

_SIDE = 28  # pixels
_CLASSES = 10
_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_mat(setting: Setting, path: Path, part: Part) -> ImageSet:
    """The images of a MATLAB file such as ``MNIST.mat``, turned upright; a fixed, stratified fifth is the test set.

    The file has ``input_images`` (or ``images``), (N, 784) or (N, 28, 28) of any type of number, 0 to 1 or 0 to 255,
    and ``output_labels`` (or ``labels``), (N, 1), (1, N) or (N,), 0 to 9. MATLAB counts down the columns first, so
    that the images in it are rotated and flipped; transposing each undoes both. They stay in the file's order.

    Raises:
        UserError: the file cannot be read, is of MATLAB 7.3 or none of MATLAB's, lacks a variable, or one has a wrong
            shape or wrong values; or there are too few images for a test set.
    """
    images, labels = _variables(setting, path)
    problems = ProblemCollector()
    with problems.gather():
        images = _checked_images(setting, path, images)
    with problems.gather():
        labels = _checked_labels(setting, path, labels)
    problems.raise_if_any()
    if len(images) != len(labels):
        raise setting.error(f"{path} has {len(labels)} labels for {len(images)} images")
    keep = held_out_fifth(labels) == (part == "test")
    if not keep.any():
        raise setting.error(f"{path} has too few images ({len(labels)}) to hold out a fifth as the test set")
    scale = 255 if images.max() <= 1 else 1
    pixels = np.rint(images[keep] * np.float64(scale)).astype(np.uint8)
    upright = np.ascontiguousarray(pixels.reshape(-1, 1, _SIDE, _SIDE).transpose(0, 1, 3, 2))
    return ImageSet(upright, labels[keep], tuple(str(digit) for digit in range(_CLASSES)))


def _variables(setting: Setting, path: Path) -> tuple[Any, Any]:
    """What ``path`` holds under the two names."""
    from scipy.io import loadmat, whosmat  # type: ignore[import-untyped]

    try:
        with path.open("rb") as file:
            start = file.read(512 + len(_HDF5))
    except OSError as error:
        raise setting.error(f"cannot read {path}: {reason(error)}") from error
    if start.startswith((_HDF5, b"MATLAB 7.3")) or start.endswith(_HDF5):
        raise setting.error(
            f"{path} is of MATLAB 7.3 (HDF5), which is not read here; load it in MATLAB and write it with "
            f"save('{path.name}', '{IMAGE_KEYS[0]}', '{LABEL_KEYS[0]}', '-v7')"
        )
    wanted: list[str] = []
    missing: list[str] = []
    try:
        shapes = {name: shape for name, shape, _ in whosmat(path, appendmat=False)}
        for keys in (IMAGE_KEYS, LABEL_KEYS):
            found = next((key for key in keys if key in shapes), None)
            if found is None:
                missing.append(" or ".join(keys))
            else:
                wanted.append(found)
        content = {} if missing else loadmat(path, appendmat=False, variable_names=wanted)
    except Exception as error:  # of many kinds: SciPy's parser believes what a file says
        raise setting.error(f"{path} is not a MATLAB file (.mat), or is damaged: {reason(error)}") from error
    if missing:
        there = ", ".join(f"{name} ({'x'.join(map(str, shape))})" for name, shape in shapes.items()) or "nothing"
        raise setting.error(f"{path} must have {' and '.join(missing)}; it has {there}")
    images, labels = (content[key] for key in wanted)
    return images, labels


def _checked_images(setting: Setting, path: Path, images: Any) -> npt.NDArray[Any]:
    """(N, 28, 28), as the file has them."""
    if not _are_numbers(images) or images.shape[1:] not in ((_SIDE * _SIDE,), (_SIDE, _SIDE)) or not len(images):
        raise setting.error(f"{path}: images must be numbers, (N, 784) or (N, 28, 28), found {_describe(images)}")
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise setting.error(f"{path}: pixels must be 0 to 1 or 0 to 255, found {low:g} to {high:g}")
    checked: npt.NDArray[Any] = images.reshape(-1, _SIDE, _SIDE)
    return checked


def _checked_labels(setting: Setting, path: Path, labels: Any) -> npt.NDArray[np.int64]:
    """int64 (N,), 0 to 9."""
    if not _are_numbers(labels) or not 0 < labels.size == max(labels.shape):
        raise setting.error(f"{path}: labels must be numbers, (N, 1), (1, N) or (N,), found {_describe(labels)}")
    wrong = labels[~np.isin(labels, np.arange(_CLASSES))]
    if wrong.size:
        raise setting.error(f"{path}: labels must be 0 to {_CLASSES - 1}, found {wrong.flat[0]:g}")
    checked: npt.NDArray[np.int64] = labels.ravel().astype(np.int64)
    return checked


def _are_numbers(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind in "buif"


def _describe(array: Any) -> str:
    shape = "x".join(map(str, array.shape)) if hasattr(array, "shape") else "no array"
    return f"{shape} of {getattr(array, 'dtype', type(array).__name__)}"
