"""What the layers of any torch network do while it works: which come after which, and how active their units are.

A layer here is a linear one or a convolution of two dimensions. Its activation is what becomes of its output before the
next operation that joins values: after batch normalisation and non-linearity, as modules or as functions, and before
pooling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.numerics import evaluating

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)

_MOVING = {"permute", "transpose", "t", "mT", "T", "movedim", "moveaxis", "swapaxes", "swapdims", "flip", "roll"}
"""Functions that keep all values but not their order."""


@dataclass(frozen=True, eq=False)
class Call:
    """A layer at work, the first time in a pass.

    Args:
        input: (B, …), as the layer got it.
        activation: of the shape of its output, with its units in dimension 1.
        before: the layer whose activation the input is; ``None`` where it is the images, or not a layer's.
        on_images: whether the input is the images, flattened or scaled at most.
        to_images: whether the activation is what the network made: decoded images or samples.
        gain: (units of ``before``,) factor of the batch normalisation between; ``None`` for none.
    """

    name: str
    layer: nn.Module
    input: Tensor
    activation: Tensor
    before: str | None
    on_images: bool
    to_images: bool
    gain: Tensor | None


def trace(network: nn.Module, images_BCHW: Tensor) -> list[Call]:
    """All layers that work when the network does what it can with images, in order of their work.

    Those methods that it has are called: ``encode`` and with the codes ``decode``, ``classify``; where it has neither
    ``encode`` nor ``classify``, ``sample``, or else the network itself; and direct children that this leaves out, such
    as a discriminator, are tried on the images.

    Args:
        images_BCHW: in [0, 1], on the network's device.
    """
    functions, passes = _Functions(), list[_Pass]()
    with evaluating(network), torch.inference_mode(), _watched(network, passes), functions:
        made = _work(network, images_BCHW)
        for prefix, child in network.named_children():
            if not any(name.split(".")[0] == prefix for name, *_ in passes):
                with suppress(Exception):  # it takes something else
                    child(images_BCHW)
    owner = {id(output): name for name, _, _, output in passes}
    first = {name: (layer, given, output) for name, layer, given, output in reversed(passes)}
    calls = []
    for name, (layer, given, output) in reversed(first.items()):
        root, gain = functions.back(given)
        chain = functions.onwards(output)
        units = -1 if isinstance(layer, nn.Linear) else 1
        activation = chain[-1].reshape(output.shape).movedim(units, 1)
        ends = any(tensor is end for tensor in chain for end in made)
        before = owner.get(id(root))
        calls.append(Call(name, layer, given, activation, before, root is images_BCHW, ends, gain))
    return calls


def _work(network: Any, images: Tensor) -> list[Tensor]:
    """Let the network do what it can; gives the images that it made."""
    made = []
    if hasattr(network, "encode"):
        codes = network.encode(images)
        if hasattr(network, "decode"):
            made.append(network.decode(codes))
    if hasattr(network, "classify"):
        network.classify(images)
    if not hasattr(network, "encode") and not hasattr(network, "classify"):
        made.append(network.sample(len(images)) if hasattr(network, "sample") else network(images))
    return made


_Pass = tuple[str, nn.Module, Tensor, Tensor]
"""A layer's name, itself, what it got, what it gave."""


@contextmanager
def _watched(network: nn.Module, passes: list[_Pass]) -> Iterator[None]:
    """Notes in ``passes`` whenever a layer works."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            passes.append((name, module, given[0], output))

        return note

    handles = [m.register_forward_hook(hook(name)) for name, m in network.named_modules() if isinstance(m, LAYERS)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Link:
    source: Tensor
    result: Tensor
    gain: Tensor | None = None


@dataclass
class _Functions(TorchFunctionMode):
    """Notes the functions of one tensor that keep the number of its values: non-linearities, scaling, reshaping."""

    links: list[_Link] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if isinstance(result, Tensor) and args and isinstance(args[0], Tensor) and name not in _MOVING:
            source, others = args[0], [value for value in (*args[1:], *kwargs.values()) if isinstance(value, Tensor)]
            same = result is not source and result.numel() == source.numel()
            if same and name == "batch_norm":
                self.links.append(_Link(source, result, _gain(func, args, kwargs)))
            elif same and not others:
                self.links.append(_Link(source, result))
        return result

    def onwards(self, tensor: Tensor) -> list[Tensor]:
        """``tensor`` and what became of it, step by step."""
        chain = [tensor]
        for link in self.links:  # in the order of time
            if link.source is chain[-1]:
                chain.append(link.result)
        return chain

    def back(self, tensor: Tensor) -> tuple[Tensor, Tensor | None]:
        """What ``tensor`` was made of, and the factor that batch normalisation put on it."""
        gain = None
        for link in reversed(self.links):
            if link.result is tensor:
                tensor = link.source
                gain = link.gain if gain is None else gain
        return tensor, gain


def _gain(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The factor of each unit in batch normalisation with fixed statistics."""
    given = inspect.signature(func).bind(*args, **kwargs)
    given.apply_defaults()
    values = given.arguments
    if values["running_var"] is None:
        return None
    gain: Tensor = (values["running_var"] + values["eps"]).rsqrt()
    return gain if values["weight"] is None else gain * values["weight"]
