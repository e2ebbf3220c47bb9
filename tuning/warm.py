"""Loaded by each worker of a Ray that we start, as the first thing that it does."""

import gc

# Imports make no garbage: looking for it every 700 objects takes a fifth of their time.
gc.set_threshold(50_000, 20, 100)

import torch._dynamo  # noqa: E402, F401 - optimizers load it at their first step

import tuning.trial  # noqa: E402, F401
