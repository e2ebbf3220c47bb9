"""One trial of :mod:`benchmarks.peers.syne_tune_asha`, which Syne Tune starts with its config as options."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from syne_tune import Reporter

from benchmarks.peers.tutorial import Task, note, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", type=Path, required=True)
    arguments, rest = parser.parse_known_args()
    task = Task(**json.loads(arguments.task.read_text()))
    given = dict(zip((name.removeprefix("--") for name in rest[::2]), rest[1::2], strict=True))
    given.pop("st_checkpoint_dir")
    config = task.configs[int(given["config"])] if task.part == "same-work" else given
    report = Reporter()
    for epoch, value in train(task, config):
        note(task, str(os.getpid()), epoch, value)
        report(epoch=epoch, **{task.metric: value})


if __name__ == "__main__":
    main()
