"""Small pieces that several families build with."""

from __future__ import annotations

from typing import Literal

from torch import nn

ActivationName = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def strided_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Map sizes of three convolutions with kernel 3, stride 2 and padding 1, 1, 0: four pairs, the image's first."""
    sizes = [size]
    for padding in (1, 1, 0):
        height, width = sizes[-1]
        sizes.append(((height + 2 * padding - 3) // 2 + 1, (width + 2 * padding - 3) // 2 + 1))
    return sizes


def strided_encoder(channels: int, filters: int, activation: str, batch_norm: bool = False) -> nn.Sequential:
    """Three convolutions with nf, 2nf and 4nf filters, kernel 3, stride 2, padding 1, 1, 0."""
    act, widths, layers = ACTIVATIONS[activation], (channels, filters, 2 * filters, 4 * filters), list[nn.Module]()
    for inner, outer, padding in zip(widths[:-1], widths[1:], (1, 1, 0), strict=True):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=padding)]
        layers += [nn.BatchNorm2d(outer)] if batch_norm else []
        layers += [act()]
    return nn.Sequential(*layers)


def strided_decoder(
    channels: int, filters: int, activation: str, size: tuple[int, int], batch_norm: bool = False
) -> nn.Sequential:
    """The mirror of :func:`strided_encoder` for images of ``size`` (height, width), without a last non-linearity."""
    act, widths, layers = ACTIVATIONS[activation], (channels, filters, 2 * filters, 4 * filters), list[nn.Module]()
    sizes = strided_sizes(size)
    for i, padding in ((2, 0), (1, 1), (0, 1)):
        # Output padding recovers the pixel that stride 2 rounds away, so that any image size is mirrored.
        height, width = ((s - 1) * 2 - 2 * padding + 3 for s in sizes[i + 1])
        lost = (sizes[i][0] - height, sizes[i][1] - width)
        layers += [nn.ConvTranspose2d(widths[i + 1], widths[i], 3, stride=2, padding=padding, output_padding=lost)]
        if i > 0:
            layers += [nn.BatchNorm2d(widths[i])] if batch_norm else []
            layers += [act()]
    return nn.Sequential(*layers)
