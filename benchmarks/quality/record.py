"""Record the curves of random configs, by a search of the service's own without a stopping rule.

    python -m benchmarks.quality.record --data-dir DIR [--trials 72] [--train-images 3000]

Writes ``benchmarks/results/curves-conv_autoencoder.json``. Takes some minutes of two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.quality.curves import MAX_EPOCHS, POINTS, RECORDED
from tuning import search
from tuning.results import Trial

SETTINGS: dict[str, Any] = {
    "family": "conv_autoencoder",
    # Held, so that so few trials cover the rest.
    "set": {"activation": "relu", "hidden_units": 64, "weight_decay": 1e-5},
    "space": {"filters": "4,8"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="with FashionMNIST/raw")
    parser.add_argument("--trials", type=int, default=72)
    parser.add_argument("--train-images", type=int, default=3_000)
    parser.add_argument("--out", type=Path, default=RECORDED)
    arguments = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as runs_dir:
        result = search(
            **SETTINGS,
            data={
                "source": "fashion-mnist",
                "data_dir": str(arguments.data_dir),
                "train_images": arguments.train_images,
                "val_images": arguments.train_images // 5,
            },
            name="record",
            runs_dir=runs_dir,
            trials=arguments.trials,
            max_epochs=MAX_EPOCHS,
            min_epochs=1 / 3,
            sampler="random",
            scheduler="none",
            pictures=False,
            tracking_uri="none",
            progress="lines",
        )
    command = f"python -m benchmarks.quality.record --trials {arguments.trials} --train-images {arguments.train_images}"
    trials = [_trial(trial) for trial in result.trials if len(trial.curve) == len(POINTS)]
    print(f"{len(trials)} of {len(result.trials)} trials have a whole curve", file=sys.stderr)
    content = {
        "command": f"{command} --data-dir DIR",
        "machine": before,
        "data": result.config.data.model_dump(mode="json", exclude={"data_dir"}),
        "objective": result.objective.metric,
        "epochs": [round(point, 6) for point in POINTS],
        "settings": SETTINGS,
        "left_out": len(result.trials) - len(trials),
    }
    lines = ",\n  ".join(json.dumps(trial) for trial in trials)
    head = json.dumps(content, indent=1).removesuffix("\n}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(f'{head},\n "trials": [\n  {lines}\n ]\n}}\n')


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "params": {
            name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in trial.params.items()
        },
        "curve": [float(f"{value:.6g}") for _, value, _ in trial.curve],
        "seconds_an_epoch": round(trial.records[-1].seconds / trial.records[-1].epoch, 4),
    }


if __name__ == "__main__":
    main()
