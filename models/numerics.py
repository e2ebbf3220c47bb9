"""Device, threads, precision and random state of a training run, set for its duration and put back afterwards."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Numerics:
    """How a trial computes.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``float32``, or ``bfloat16`` for autocast in the forward pass.
        threads: CPU threads; part of what makes two runs give the same numbers.
    """

    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Thread count and deterministic kernels, put back at the end."""
        # cuBLAS reads it when the first handle is made; without it deterministic matrix products raise.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)

    def autocast(self) -> AbstractContextManager[object]:
        """The forward pass in ``precision``; nothing where that is float32, as entering autocast costs every step."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)


def placed(network: nn.Module, device: str) -> nn.Module:
    """``network`` on ``device``, the filters of its convolutions with channels last.

    Convolutions then give maps in that layout, for which CPUs and GPUs have the faster kernels. Values stay what they
    were; results differ in their last digits from those of the other layout.
    """
    network = network.to(device)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            # `contiguous` would leave filters of one channel alone, whose strides say nothing of the layout.
            empty = torch.empty_like(parameter.data, memory_format=torch.channels_last)
            parameter.data = empty.copy_(parameter.data)
    return network


def derive_seed(*parts: int | str) -> int:
    """A seed below 2³² that depends on all parts, the same on every machine and Python."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


class RandomStream:
    """A random state of one's own: Python's, NumPy's and torch's generators, whatever else runs in the process.

    Inside ``with stream:`` the global generators continue this stream; outside, they are as they were.
    """

    def __init__(self, seed: int, device: str = "cpu") -> None:
        self._device = torch.device(device)
        outer = self._capture()
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed every GPU as well
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda.manual_seed(seed)
        self._state = self._capture()
        self._restore(outer)

    def __enter__(self) -> None:
        self._outer = self._capture()
        self._restore(self._state)

    def __exit__(self, *error: object) -> None:
        self._state = self._capture()
        self._restore(self._outer)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only, so that it can stand in a checkpoint."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = dict(state)

    def _capture(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        return {
            # By way of NumPy, in a tenth of the time.
            "python": [version, torch.from_numpy(np.array(words, np.int64)), gauss],
            "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(cached)],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self._device)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module as it was: a frozen layer is not put back into training."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
