"""Training steps of one trial on a GPU: whether its numbers can be trusted, and how fast it is. Needs ``models`` alone.

    python benchmarks/gpu_steps.py [--json FILE]                      at most four minutes
    python benchmarks/gpu_steps.py --device cpu --seconds 1           to try the script without one

Images are synthetic and stay on the device. A part that fails is told with its error and the others go on; what does
not fit into ``--limit`` is told as skipped.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine, write_result
from benchmarks.measuring import (
    Chunk,
    bare_chunks,
    bare_step,
    begin,
    compiled,
    contiguous,
    first_batch,
    fit_chunks,
    interleaved,
    rate,
    ratio,
    scalar,
    synthetic,
    unfused,
)
from models.family import get_family
from models.numerics import Numerics
from models.training import Budget, DataOnDevice, Training, fit, start

FAMILIES = ("conv_autoencoder", "cnn_classifier", "vae", "mlp_classifier")
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of throughput")
    parser.add_argument("--limit", type=float, default=230.0, help="seconds after which nothing more is begun")
    parser.add_argument("--images", type=int, help="training images; by default 20,000, on a CPU 1,000")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--families", nargs="*", default=FAMILIES)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well, which takes long to begin")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device, began, parts = arguments.device, time.perf_counter(), dict[str, Any]()
    count = arguments.images or (1_000 if device == "cpu" else 20_000)

    def part(name: str, measure: Callable[[], Any]) -> None:
        at = time.perf_counter()
        if at - began > arguments.limit:
            parts[name] = {"skipped": f"the limit of {arguments.limit:g} s was reached"}
            return
        try:
            parts[name] = measure()
        except Exception as error:
            parts[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(f"{name} ({time.perf_counter() - at:.1f} s): {json.dumps(parts[name])}", file=sys.stderr, flush=True)

    data = DataOnDevice(synthetic(count, 2), device)
    for name in ("conv_autoencoder", "cnn_classifier"):
        part(f"replay and resume, {name}", lambda name=name: replay_and_resume(name, device))
        part(f"CPU against {device}, {name}", lambda name=name: against_cpu(name, device))
    part("out of memory", lambda: out_of_memory(device))
    for name in arguments.families:
        part(f"fit against bare, {name}", lambda name=name: fit_against_bare(name, data, arguments.batch_size))
    for name in arguments.families:
        part(f"variants, {name}", lambda name=name: variants(name, data, arguments))
    write_result(
        {
            "part": "gpu steps",
            "machine": machine(),
            "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
            "cuda": torch.version.cuda,
            "seconds_a_measurement": arguments.seconds,
            "batch_size": arguments.batch_size,
            "train_images": count,
            "wall_s": round(time.perf_counter() - began, 1),
            "parts": parts,
        },
        arguments.json,
    )


def short_run(name: str, data: DataOnDevice, epochs: float = 2.0, state: dict[str, Any] | None = None) -> Training:
    family = get_family(name)
    config = family.Config(batch_size=100)
    return start(family, config, data, Budget(epochs), seed=5, numerics=Numerics(device=data.device), state=state)


def replay_and_resume(name: str, device: str) -> dict[str, bool]:
    """Whether a second run, and one that goes on from the middle, give the same numbers and weights bit by bit."""
    data = DataOnDevice(synthetic(1_000, 200), device)
    first, again, half = (short_run(name, data) for _ in range(3))
    list(fit(first))
    list(fit(again))
    next(fit(half))
    stored = io.BytesIO()
    torch.save(half.state_dict(), stored)
    stored.seek(0)
    resumed = short_run(name, data, state=torch.load(stored, map_location="cpu", weights_only=True))
    list(fit(resumed))
    return {"replay_identical": same(first, again), "resume_identical": same(first, resumed)}


def same(a: Training, b: Training) -> bool:
    numbers = all(x.metrics == y.metrics for x, y in zip(a.records, b.records, strict=True))
    weights = zip(a.network.state_dict().values(), b.network.state_dict().values(), strict=True)
    return numbers and all(torch.equal(x, y) for x, y in weights)


def against_cpu(name: str, device: str) -> dict[str, float]:
    """The largest relative difference of any metric after one and after two epochs, from the same initial weights."""
    images = synthetic(1_000, 200)
    runs = [short_run(name, DataOnDevice(images, where)) for where in ("cpu", device)]
    records = [list(fit(run)) for run in runs]
    largest = {
        f"epoch_{a.epoch:g}": max(abs(a.metrics[k] - b.metrics[k]) / max(abs(a.metrics[k]), 1e-12) for k in a.metrics)
        for a, b in zip(*records, strict=True)
    }
    return {key: float(f"{value:.3g}") for key, value in largest.items()}


def out_of_memory(device: str) -> dict[str, Any]:
    """What torch says when memory is out, and whether a run after that has the numbers of one before."""
    if device == "cpu":
        return {"skipped": "there is no GPU"}
    data = DataOnDevice(synthetic(1_000, 200), device)
    before, after = short_run("conv_autoencoder", data), short_run("conv_autoencoder", data)
    list(fit(before))
    try:
        torch.empty(2**42, dtype=torch.uint8, device=device)
    except torch.cuda.OutOfMemoryError as error:
        told = str(error).splitlines()[0][:120]
    else:
        return {"error": "4 TiB were there"}
    torch.cuda.empty_cache()
    list(fit(after))
    return {"told": told, "run_after_it_identical": same(before, after)}


def fit_against_bare(name: str, data: DataOnDevice, batch_size: int) -> dict[str, Any]:
    numerics = Numerics(device=data.device)
    chunks = {
        "fit": fit_chunks(begin(name, data, numerics, batch_size=batch_size)),
        "bare": bare_chunks(begin(name, data, numerics, batch_size=batch_size)),
    }
    gauge = _gauge() if data.device != "cpu" else None
    try:
        rates = interleaved(chunks, data.device, ROUNDS)
    finally:
        busy = _read(gauge)
    return {
        **busy,
        "images_a_second": {key: round(statistics.median(values)) for key, values in rates.items()},
        "fit_to_bare": ratio(rates["fit"], rates["bare"]),
    }


def variants(name: str, data: DataOnDevice, arguments: argparse.Namespace) -> dict[str, Any]:
    """Images a second of the bare loop in other ways to compute; the first is how ``fit`` does it."""
    plain = Numerics(device=data.device)

    def run(numerics: Numerics = plain, batch_size: int = arguments.batch_size) -> Training:
        return begin(name, data, numerics, batch_size=batch_size)

    ways: dict[str, Callable[[], Chunk]] = {
        "float32": lambda: bare_chunks(run()),
        "channels first": lambda: bare_chunks(contiguous(run())),
        "optimizer not fused": lambda: bare_chunks(unfused(run())),
        "bfloat16": lambda: bare_chunks(run(replace(plain, precision="bfloat16"))),
        "batches of 1024": lambda: bare_chunks(run(batch_size=1024)),
    }
    if data.device != "cpu":
        # By default torch lets convolutions use TF32, and matrix products not.
        ways["no TF32"] = lambda: with_tf32(bare_chunks(run()), False)
        ways["all TF32"] = lambda: with_tf32(bare_chunks(run()), True)
        ways["CUDA graph"] = lambda: graph_chunks(run())
    if arguments.compile:
        ways["compiled"] = lambda: bare_chunks(compiled(run()))
    rates: dict[str, Any] = {}
    for way, make in ways.items():
        try:
            rates[way] = round(rate(make(), data.device, arguments.seconds / 2))
        except Exception as error:
            rates[way] = f"{type(error).__name__}: {error}"[:300]
    return rates


def with_tf32(chunk: Chunk, allowed: bool) -> Chunk:
    """Matrix products and convolutions with 10 bits of mantissa, or neither, in this chunk alone."""

    def with_it() -> int:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        try:
            return chunk()
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    return with_it


def graph_chunks(training: Training) -> Chunk:
    """One step recorded as a CUDA graph (torch.cuda.graph) and played again: no kernel is launched from Python."""
    size, steps, numerics = training.config.batch_size, training.steps_per_epoch, training.numerics
    batch = first_batch(training)
    updates = training.phases[0].updates
    for update in updates:
        for group in update.optimizer.param_groups:
            group["capturable"] = True
    training.network.train()

    def step() -> None:
        for update in updates:
            bare_step(update.optimizer, lambda b, loss=update.loss: scalar(loss(b)), batch, numerics)

    with numerics.applied():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()

    def chunk() -> int:
        for _ in range(steps):
            graph.replay()
        return size * steps

    return chunk


def _gauge() -> subprocess.Popen[str] | None:
    """nvidia-smi, telling five times a second how busy the GPU is; ``None`` where there is no such command."""
    query = ["--query-gpu=utilization.gpu,memory.used,power.draw", "--format=csv,noheader,nounits", "-lms", "200"]
    try:
        return subprocess.Popen(["nvidia-smi", *query], stdout=subprocess.PIPE, text=True)
    except OSError:
        return None


def _read(gauge: subprocess.Popen[str] | None) -> dict[str, float]:
    """Medians of what :func:`_gauge` told; a share of 100 means that some kernel ran all the time, not a full GPU."""
    if gauge is None:
        return {}
    gauge.terminate()
    rows = [[float(x) for x in line.split(",")] for line in gauge.communicate()[0].splitlines() if "[" not in line]
    names = ("busy_percent", "memory_mib", "power_w")
    return {name: statistics.median(column) for name, column in zip(names, zip(*rows, strict=True), strict=False)}


if __name__ == "__main__":
    main()
