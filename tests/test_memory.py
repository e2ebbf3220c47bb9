"""What makes steps fast and must not show in the numbers: memory that stays, and the layout of filters."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from models.datasets import DataOptions, load_training_data
from models.family import get_family
from models.numerics import RandomStream
from models.training import Budget, DataOnDevice, start

STEP = """
import torch
from models.memory import keep_freed_memory
if {keep}: assert keep_freed_memory()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
torch.zeros(1)
before = resident()
pieces = [torch.ones(2_000_000) for _ in range(8)]  # 64 MB
del pieces
print(resident() - before)
"""


def kept_bytes(keep: bool) -> int:
    """What a process still holds of 64 MB that it has freed."""
    command = [sys.executable, "-c", STEP.format(keep=keep)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library; nothing is promised there")
def test_memory_that_was_freed_stays_with_the_process() -> None:
    assert kept_bytes(keep=True) > 50e6 > kept_bytes(keep=False)


def test_filters_have_their_channels_last_and_the_values_that_they_were_drawn_with() -> None:
    data = DataOnDevice(load_training_data(DataOptions(source="digits", train_images=32, val_images=8)))
    for name in ("conv_autoencoder", "cnn_classifier"):
        family = get_family(name)
        with RandomStream(3):
            drawn = family.build(family.Config(), data.spec)
        network = start(family, family.Config(), data, Budget(1), seed=3).network
        filters = 0
        for given, kept in zip(drawn.parameters(), network.parameters(), strict=True):
            assert torch.equal(given, kept)
            if kept.dim() == 4:
                filters += 1
                assert kept.stride(1) == 1  # of one channel too, where `is_contiguous` does not tell
        assert filters >= 2
