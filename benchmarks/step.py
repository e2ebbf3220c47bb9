"""Training steps on this machine's CPU: ``fit`` against the bare loop, and the bare loop against what else there is.

    python benchmarks/step.py [--rounds 15] [--json FILE]

Every figure is the ratio of images a second of two loops that take turns in one process, so that other work on the
machine slows both. Above 1: the first named is faster.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine, write_result
from benchmarks.measuring import (
    Chunk,
    bare_chunks,
    begin,
    compiled,
    contiguous,
    fit_chunks,
    interleaved,
    ratio,
    synthetic,
    unfused,
)
from models.memory import keep_freed_memory
from models.numerics import Numerics
from models.training import DataOnDevice

FAMILIES = ("conv_autoencoder", "cnn_classifier", "vae", "mlp_classifier", "dcgan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=5_000, help="a round; training images of the data set")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--families", nargs="*", default=FAMILIES)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well; needs a C++ compiler")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kept = keep_freed_memory()
    data = DataOnDevice(synthetic(arguments.images, 2))
    plain, results = Numerics(), {}
    for name in arguments.families:
        size = {"batch_size": arguments.batch_size}
        chunks: dict[str, Chunk] = {
            "fit": fit_chunks(begin(name, data, plain, **size)),
            "bare": bare_chunks(begin(name, data, plain, **size)),
            "bare, channels first": bare_chunks(contiguous(begin(name, data, plain, **size))),
            "bare, optimizer not fused": bare_chunks(unfused(begin(name, data, plain, **size))),
            "bare, two threads": bare_chunks(begin(name, data, Numerics(threads=2), **size)),
            "bare, bfloat16": bare_chunks(begin(name, data, Numerics(precision="bfloat16"), **size)),
        }
        begun = time.perf_counter()
        if arguments.compile:
            chunks["bare, compiled"] = bare_chunks(compiled(begin(name, data, plain, **size)))
            chunks["bare, compiled"]()
        compile_s = time.perf_counter() - begun
        rates = interleaved(chunks, "cpu", arguments.rounds)
        results[name] = {
            "images_a_second": {key: round(sorted(values)[len(values) // 2]) for key, values in rates.items()},
            "ratio_to_bare": {key: ratio(values, rates["bare"]) for key, values in rates.items() if key != "bare"},
        }
        if arguments.compile:
            results[name]["first_compiled_epoch_s"] = round(compile_s, 1)
        print(name, json.dumps(results[name]), file=sys.stderr)
    write_result(
        {
            "part": "step",
            "machine": machine(),
            "memory_kept": kept,
            "batch_size": arguments.batch_size,
            "families": results,
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
