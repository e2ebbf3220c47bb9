"""The comparison with other libraries: its arithmetic, and a small one from end to end."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, environment

from benchmarks.comparing import best, compare_to_target, compare_walls, goodput, time_to
from benchmarks.measuring import synthetic
from benchmarks.workloads import WORKLOADS
from models.datasets import DataOptions, load_training_data
from models.family import Objective

LOSS, ACCURACY = Objective("val_mse", "min"), Objective("val_accuracy", "max")


def test_time_to_target_is_the_first_moment_that_is_as_good() -> None:
    trace = [(9.0, "1", 1.0, 0.2), (3.0, "0", 1.0, 0.5), (5.0, "0", 2.0, None), (7.0, "0", 3.0, 0.3)]
    assert best(trace, LOSS) == 0.2
    assert [time_to(trace, target, LOSS) for target in (0.6, 0.5, 0.3, 0.25, 0.2)] == [3, 3, 7, 9, 9]
    assert time_to(trace, 0.19, LOSS) == math.inf
    assert best(trace, ACCURACY) == 0.5
    assert time_to(trace, 0.5, ACCURACY) == 3
    assert best([(1.0, "0", 1.0, None)], LOSS) is None


def test_what_is_never_reached_counts_and_the_first_trial_is_told_apart() -> None:
    theirs = {seed: [(100.0, "a", 9.0, 0.1), (200.0, "b", 9.0, 0.3)] for seed in (1, 2, 3, 4)}
    ours = {
        1: [(10.0, "0", 1.0, 0.1), (50.0, "1", 9.0, 0.05)],  # by the default config, later by a proposal
        2: [(25.0, "1", 1.0, 0.09)],
        3: [(40.0, "0", 1.0, 0.2)],  # never
        5: [(1.0, "0", 1.0, 0.0)],  # a seed that the other has not done
    }
    found = compare_to_target(ours, theirs, LOSS)
    assert found["seeds"] == [1, 2, 3]
    assert found["ratios"] == [10, 4, 0]
    assert found["ratio"] == {"median": 4, "low": 0, "high": 10, "seeds": 3}
    assert found["never"] == 1
    assert found["seconds_ours"] == 25
    assert found["seconds_theirs"] == 100
    assert found["without_first"] == {"median": 2, "low": 0, "high": 4, "seeds": 3}
    assert found["never_without_first"] == 1
    assert compare_to_target({3: ours[3]}, theirs, LOSS)["seconds_ours"] == math.inf


def test_wall_times_are_compared_seed_by_seed() -> None:
    found = compare_walls({1: 10.0, 2: 20.0, 3: 10.0}, {1: 30.0, 2: 20.0, 4: 1.0})
    assert found["seeds"] == [1, 2]
    assert found["ratios"] == [3, 1]
    assert found["ratio"]["median"] == 2


def test_goodput_is_the_share_of_all_cores() -> None:
    found = goodput(30.0, 2, 40.0, started_s=[5.0, 6.0], finished_s=[20.0, 25.0])
    assert found == {"whole_process": 30 / 80, "while_searching": 30 / 40}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_names_all_that_varies_and_its_list_is_the_seeds(name: str) -> None:
    work = WORKLOADS[name]
    assert set(work.ranges()) == set(work.space)
    configs = work.configs(1)
    assert len({json.dumps(config) for config in configs}) == 8
    assert all(set(config) == set(work.space) for config in configs)
    assert configs == work.configs(1) != work.configs(2)


@pytest.fixture
def small_fashion(tmp_path: Path) -> Path:
    """A folder of torchvision's layout whose Fashion-MNIST has 1,000 made-up images."""
    folder = tmp_path / "data" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images = synthetic(1000, 10).train
    for part in ("train", "t10k"):
        pixels, labels = images.images[:, 0], images.labels.astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, *pixels.shape) + pixels.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(labels)) + labels.tobytes())
    return tmp_path / "data"


def test_the_peers_see_the_same_images(small_fashion: Path) -> None:
    from benchmarks.peers.tutorial import load_data

    train, val = load_data(str(small_fashion), 600, 200)
    options = DataOptions(source="fashion-mnist", data_dir=str(small_fashion), train_images=600, val_images=200)
    ours = load_training_data(options)
    assert np.array_equal(val.val.images.numpy(), ours.val.images)
    assert np.array_equal(val.val.labels.numpy(), ours.val.labels)
    for index in (0, 1, 599):
        pixels, label = train[index]
        assert np.array_equal((pixels.numpy() * 255).round(), ours.train.images[index])
        assert label == ours.train.labels[index]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_small_comparison_from_end_to_end(small_fashion: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.compare", "--workloads", "classifier-smoke", "--data-dir"]
    words += [str(small_fashion), "--results", str(tmp_path / "results"), "--contenders", "latentune", "optuna"]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr
    assert "| Optuna | 1 |" in done.stdout
    runs = {path.name: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*-1.json")}
    assert len(runs) == 4
    search = runs["classifier-smoke-search-latentune-1.json"]
    assert search["states"]["total"] == 4
    assert 0 < search["goodput"]["whole_process"] < search["goodput"]["while_searching"] <= 1
    for run in runs.values():
        times = [at for at, *_ in run["trace"]]
        assert times
        assert 0 < min(times) <= max(times) < run["wall_s"]
    work = [runs[f"classifier-smoke-same-work-{name}-1.json"] for name in ("latentune", "optuna")]
    assert [len(run["trace"]) for run in work] == [8, 8]
    assert (tmp_path / "results" / "benchmark-classifier-smoke.png").stat().st_size > 0
    again = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert again.stdout == done.stdout
    assert "seed 1" not in again.stderr, "what was measured is measured again"
