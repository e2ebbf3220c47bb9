"""The space that codes lie in: its size, where codes are found in it, and the ways between two of them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from analysis.subject import Subject
from models.errors import UserError
from models.numerics import evaluating

Floats = npt.NDArray[np.float32]

MOST_CODES = 5000
"""Training images that are encoded to learn where codes lie."""


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """Where a model's codes lie.

    A model that can sample is taken to have the prior N(0, I), as VAEs and GANs do. One that only encodes and decodes
    has none; its codes are then described by those of training images.

    Args:
        shape: of one code, as the network takes it.
        codes: float32 (N, L), of training images; ``None`` where there is a prior.
    """

    subject: Subject
    shape: tuple[int, ...]
    codes: Floats | None = None

    @property
    def size(self) -> int:
        """L, the number of values in a code."""
        return int(np.prod(self.shape))

    @property
    def source(self) -> str:
        """What :meth:`draw` draws from, for people."""
        if self.codes is None:
            return "the prior N(0, I)"
        return f"a Gaussian fitted to the codes of {len(self.codes):,} training images"

    @property
    def scale(self) -> Floats:
        """Standard deviation of each value of a code (L,)."""
        return np.ones(self.size, np.float32) if self.codes is None else self.codes.std(0)

    def draw(self, count: int, generator: np.random.Generator) -> Floats:
        """Codes (count, L) from the prior, or from the Gaussian with the mean and covariance of the known codes."""
        if self.codes is None:
            return generator.standard_normal((count, self.size), np.float32)
        # Sums of the centred codes with Gaussian weights have exactly their covariance, which need not be made.
        weights = generator.standard_normal((count, len(self.codes)), np.float32)
        mean = self.codes.mean(0)
        drawn: Floats = mean + weights @ (self.codes - mean) / np.float32(np.sqrt(len(self.codes) - 1))
        return drawn

    def quantiles(self, steps: int) -> Floats:
        """Values (L, steps) at the quantiles (i + ½) / steps: of N(0, 1), or of each value of the known codes."""
        shares = (np.arange(steps) + 0.5) / steps
        if self.codes is None:
            normal = [NormalDist().inv_cdf(share) for share in shares]
            return np.tile(np.array(normal, np.float32), (self.size, 1))
        return np.quantile(self.codes, shares, axis=0).T.astype(np.float32)

    def encode(self, images: npt.NDArray[np.uint8]) -> Floats:
        """Codes (N, L) of images uint8 (N, C, H, W).

        Raises:
            UserError: some are not finite.
        """
        return finite(self.subject, self.subject.encode(images), "codes")

    def decode(self, codes: Floats) -> Floats:
        """Images (N, C, H, W), cut off to [0, 1], of codes (N, L).

        Raises:
            UserError: some are not finite.
        """
        images = self.subject.decode(codes.reshape(-1, *self.shape))
        return finite(self.subject, images, "images").clip(0, 1)


def latent_space(subject: Subject, images: npt.NDArray[np.uint8], latent_dim: int | None = None) -> LatentSpace:
    """The latent space of a model that can decode.

    Args:
        images: uint8 (N, C, H, W), training images; at most 5,000 of them, evenly spread, are encoded.
        latent_dim: size of a code, where neither an image's code nor the network says it.

    Raises:
        UserError: the size is not known, or another one than ``latent_dim``; codes are not finite; one image only,
            where a Gaussian has to be fitted.
    """
    if latent_dim is not None and latent_dim < 1:
        raise UserError.of("latent_dim", latent_dim, "must be at least 1")
    can = subject.capabilities
    known = getattr(subject.network, "latent_dim", None)
    if known is None and subject.trained is not None:
        known = getattr(subject.trained.config, "latent_dim", None)
    shape = _code_shape(subject, images[:1]) if "encode" in can else (known,) if isinstance(known, int) else None
    if shape is None and latent_dim is None:
        told = "the network does not say how many values it decodes; give that number"
        raise UserError.of("latent_dim", None, told)
    if shape is not None and latent_dim not in (None, int(np.prod(shape))):
        raise UserError.of("latent_dim", latent_dim, f"must be {int(np.prod(shape))}, as the model's codes are")
    shape = (latent_dim or 1,) if shape is None else shape
    if "sample" in can or "encode" not in can:
        return LatentSpace(subject, shape)
    if len(images) < 2:
        raise UserError.of("--train-images", len(images), "must be two at least, to fit a Gaussian to their codes")
    chosen = np.linspace(0, len(images) - 1, min(len(images), MOST_CODES)).round().astype(np.int64)
    return LatentSpace(subject, shape, finite(subject, subject.encode(images[chosen]), "codes"))


def _code_shape(subject: Subject, image: npt.NDArray[np.uint8]) -> tuple[int, ...]:
    network: Any = subject.network  # nn.Module does not know of encode
    with evaluating(network), torch.inference_mode():
        return tuple(network.encode(torch.from_numpy(image).to(subject.device).float() / 255).shape[1:])


def finite(subject: Subject, values: Floats, what: str) -> Floats:
    """``values`` themselves.

    Raises:
        UserError: some of them are NaN or infinite.
    """
    bad = int((~np.isfinite(values)).reshape(len(values), -1).any(1).sum())
    if bad:
        raise UserError.of("model", subject.name, f"gives {what} that are not finite, {bad} of {len(values)}")
    return values


def lerp(start: Floats, end: Floats, steps: int) -> Floats:
    """Codes (steps, L) on the straight line from ``start`` (L,) to ``end`` (L,), both included."""
    along = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
    return (1 - along) * start + along * end


def slerp(start: Floats, end: Floats, steps: int) -> Floats:
    """Codes (steps, L) whose direction turns at a steady angle from ``start`` (L,) to ``end`` (L,).

    Shoemake, "Animating Rotation with Quaternion Curves" (1985), for directions; the norm goes linearly from the one to
    the other, so that between codes of equal norm it stays. Where there is no one shortest arc (a code of zeros,
    directions that are equal or opposite) it is the straight line.
    """
    norms = [float(np.linalg.norm(code)) for code in (start, end)]
    if min(norms) == 0:
        return lerp(start, end, steps)
    first, last = start.astype(np.float64) / norms[0], end.astype(np.float64) / norms[1]
    angle = float(np.arccos(np.clip(first @ last, -1, 1)))
    if np.sin(angle) < 1e-6:
        return lerp(start, end, steps)
    along = np.linspace(0, 1, steps)[:, None]
    turned = (np.sin((1 - along) * angle) * first + np.sin(along * angle) * last) / np.sin(angle)
    codes: Floats = (turned * ((1 - along) * norms[0] + along * norms[1])).astype(np.float32)
    return codes
