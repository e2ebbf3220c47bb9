"""What can be done to the images of any data set: grey or RGB, another size, black and white.

Whole-number arithmetic throughout, so that the pixels, and with them the fingerprint, are the same on every machine.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
"""(N, C, H, W), 0..255."""

_PIECE_BYTES = 2 * 2**20  # of intermediate values at a time: what a processor keeps near


def transformed(images: Images, channels: int | None, size: int | None, threshold: float | None) -> Images:
    """``images`` after :func:`with_channels`, :func:`resized` and :func:`binarised`, in that order.

    Args:
        images: uint8 (N, C, H, W).
        channels, size, threshold: ``None`` leaves that step out; all three: ``images`` itself is returned.
    """
    if channels == 1:
        images = with_channels(images, channels)
    if size is not None:
        images = resized(images, size)
    if threshold is not None:
        images = binarised(images, threshold)
    # Three equal channels stay equal, so they are made last: the same pixels for a third of the work.
    return with_channels(images, 3) if channels == 3 else images


def with_channels(images: Images, channels: int) -> Images:
    """Grey images as RGB, thrice the same channel, or RGB images as grey; others as they are.

    Args:
        images: uint8 (N, 1 or 3, H, W).
        channels: 1 (grey) or 3 (RGB) of the result.

    Grey is the luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, rounded, with Pillow's 16-bit coefficients.
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=1)
    grey = np.empty((len(images), 1, *images.shape[2:]), dtype=np.uint8)
    for piece in _pieces(len(images), 8 * images[0, 0].size):
        red, green, blue = images[piece].astype(np.uint32).transpose(1, 0, 2, 3)
        grey[piece, 0] = (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16
    return grey


def resized(images: Images, size: int) -> Images:
    """Images of ``size`` x ``size`` pixels, bilinear with antialiasing; the aspect ratio is not kept.

    A pixel of the result is the mean of the pixels around its place, weighted by a triangle that reaches one pixel of
    the larger of the two grids to each side, and rounded half up: torch's ``interpolate(mode="bilinear",
    antialias=True, align_corners=False)`` and Pillow's ``resize(BILINEAR)`` to within their rounding.

    Args:
        images: uint8 (N, C, H, W).
        size: of the result, in pixels.
    """
    count, channels, height, width = images.shape
    if height == width == size:
        return images
    rows, columns = _triangles(height, size), _triangles(width, size)
    total = np.outer(rows.sum(axis=1), columns.sum(axis=1))  # (size, size)
    planes = images.reshape(-1, height, width)
    result = np.empty((len(planes), size, size), dtype=np.uint8)
    for piece in _pieces(len(planes), 8 * (height * width + size * (height + 3 * size))):
        sums = rows @ planes[piece].astype(np.float64) @ columns.T
        sums /= total
        sums += 0.5
        result[piece] = sums  # cut off, thus rounded half up
    return result.reshape(count, channels, size, size)


def _triangles(old: int, new: int) -> npt.NDArray[np.float64]:
    """(new, old) weights of the old pixels in the new ones along one axis, not normalised.

    The distance between the centres of old pixel j and new pixel i is |(2 j + 1) new - (2 i + 1) old| in units of
    1 / (2 new) old pixels, so the weights are whole numbers. Floats hold them and their sums exactly (up to 2^53:
    images of thousands of pixels), in whatever order a BLAS adds.
    """
    place = (2 * np.arange(new) + 1)[:, None] * old
    distance = np.abs((2 * np.arange(old) + 1) * new - place)
    weights = np.maximum(2 * max(old, new) - distance, 0)
    smallest: npt.NDArray[np.int64] = weights // np.gcd.reduce(weights, axis=None)
    return smallest.astype(np.float64)


def binarised(images: Images, threshold: float) -> Images:
    """255 where a pixel is at least ``threshold`` * 255, else 0.

    Args:
        images: uint8, any shape.
        threshold: in (0, 1).
    """
    return np.multiply(images >= math.ceil(threshold * 255), 255, dtype=np.uint8)


def _pieces(count: int, bytes_each: int) -> list[slice]:
    """Slices that cover ``count`` items, each of few enough for the memory of intermediate values."""
    step = max(1, _PIECE_BYTES // bytes_each)
    return [slice(start, start + step) for start in range(0, count, step)]
