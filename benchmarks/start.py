"""How long a user waits from `latentune search` until the first trial trains: ``python benchmarks/start.py``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tuning.api import load_search
from tuning.study import load_study

WORDS = ("search", "conv_autoencoder", "--dataset", "digits", "--trials", "4", "--max-epochs", "3", "--quiet")


def main() -> None:
    for _ in range(4):
        with tempfile.TemporaryDirectory() as folder:
            began = time.time()
            command = [str(Path(sys.executable).with_name("latentune")), *WORDS, "--name", "start"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            wall = time.time() - began
            runs = Path(folder) / "runs"
            search_began = float(load_study(runs / "start").user_attrs["began"])
            # What a trial had trained at its first report is taken off the time of that report.
            firsts = [t.times[0] - t.records[0].seconds for t in load_search("start", runs).trials if t.records]
            print(f"{search_began + min(firsts) - began:.1f} s to the first training, {wall:.1f} s in all", flush=True)


if __name__ == "__main__":
    main()
