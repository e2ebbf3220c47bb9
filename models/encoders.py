"""What can be told of a trained network without knowing its family: how to build it again, what its code comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from models.checkpoint import read
from models.errors import CheckpointError, UserError
from models.numerics import evaluating
from models.places import place

Features = Callable[[nn.Module, Tensor], Tensor]
"""Of a network and images float (B, C, H, W)."""


def describe(path: str) -> str:
    """Family, config and data of a checkpoint's model, as JSON.

    Raises:
        CheckpointError: the file is not usable.
    """
    try:
        status = place(path).stat()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return _describe(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _describe(path: str, mtime_ns: int, size: int) -> str:
    content = read(path)
    try:
        return json.dumps({key: content[key] for key in ("family", "config", "data")})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, its config is no plain value") from error


class Use:
    """Which parts of a network lead to the head: found by running it, whatever it is made of.

    Args:
        modules: those that were called.
        parameters: those that a gradient reaches.
        width: values of a code, or of an image.

    Attributes:
        convolutional: convolutions, with their batch norms, among the modules; none without a convolution.
    """

    def __init__(self, modules: set[nn.Module], parameters: set[nn.Parameter], width: int) -> None:
        self.modules, self.parameters, self.width = modules, parameters, width
        convs = {module for module in modules if isinstance(module, nn.modules.conv._ConvNd)}
        norms = {module for module in modules if isinstance(module, nn.BatchNorm2d)}
        self.convolutional: set[nn.Module] = convs | norms if convs else set()

    def of(self, frozen: str) -> tuple[set[nn.Parameter], set[nn.Module]]:
        """The parameters that do not move, and the modules that rest."""
        if frozen == "encoder":
            return self.parameters, self.modules
        if frozen == "convs":
            return {p for module in self.convolutional for p in module.parameters()}, self.convolutional
        return set(), set()


def trace(base: nn.Module, features: Features, shape: tuple[int, int, int]) -> Use:
    """Run ``features`` on an empty image (C, H, W), and look at what it used.

    Raises:
        UserError: the network does not take such images.
    """
    called: set[nn.Module] = set()
    handles = [module.register_forward_hook(lambda module, *_: called.add(module)) for module in base.modules()]
    parameters = list(base.parameters())
    try:
        with evaluating(base), torch.inference_mode(False), torch.enable_grad():
            output = features(base, torch.zeros(1, *shape))
            reached = (
                torch.autograd.grad(output.float().sum(), parameters, allow_unused=True)
                if output.requires_grad
                else [None] * len(parameters)
            )
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = (str(error).splitlines() or [""])[0]
        allowed = f"{type(base).__name__} does not take images of {shape_text(shape)}: {first}"
        raise UserError.of("model", None, allowed) from error
    finally:
        for handle in handles:
            handle.remove()
    used = {parameter for parameter, gradient in zip(parameters, reached, strict=True) if gradient is not None}
    return Use(called, used, output.numel())


def shape_text(shape: tuple[int, int, int]) -> str:
    """``28x28 with 1 channel`` for (1, 28, 28)."""
    channels, height, width = shape
    return f"{height}x{width} with {channels} channel{'s' * (channels > 1)}"
