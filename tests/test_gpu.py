"""Training on a GPU: the same contract as on a CPU. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SLEEPY, ray_for_tests, run, with_test_families

from models import checkpoint
from models.datasets import DataOptions, load_training_data
from models.family import Family, Record
from models.numerics import Numerics
from models.training import Budget, DataOnDevice, Training, fit, start
from tuning import replay, search
from tuning.results import ENDED

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

GPU = Numerics("cuda")
BUDGET = Budget(2, (1 / 3,))


@pytest.fixture(scope="module")
def on_gpu() -> DataOnDevice:
    """400 training and 80 validation images of the digits, on the GPU."""
    return DataOnDevice(load_training_data(DataOptions(train_images=400, val_images=80)), "cuda")


def begin(family: Family[Any], data: DataOnDevice, state: dict[str, Any] | None = None) -> Training:
    numerics = GPU if data.device == "cuda" else Numerics("cpu")
    return start(family, family.Config(), data, BUDGET, seed=5, numerics=numerics, state=state)


def numbers(records: list[Record]) -> list[tuple[float, int, dict[str, float]]]:
    return [(record.epoch, record.step, record.metrics) for record in records]


def test_same_seed_same_numbers(family: Family[Any], on_gpu: DataOnDevice) -> None:
    assert numbers(list(fit(begin(family, on_gpu)))) == numbers(list(fit(begin(family, on_gpu))))


def test_a_run_goes_on_from_its_file_as_if_never_stopped(
    family: Family[Any], on_gpu: DataOnDevice, tmp_path: Path
) -> None:
    whole = list(fit(begin(family, on_gpu)))
    first = begin(family, on_gpu)
    next(fit(first))
    checkpoint.save(tmp_path / "c.pt", first, family=family.name, resumable=True)
    second = begin(family, on_gpu, checkpoint.read(tmp_path / "c.pt")["training"])
    assert numbers(first.records + list(fit(second))) == numbers(whole)


def test_first_weights_are_those_of_a_cpu(family: Family[Any], on_gpu: DataOnDevice, digits: DataOnDevice) -> None:
    here, there = begin(family, digits).network.state_dict(), begin(family, on_gpu).network.state_dict()
    for name, weights in here.items():
        assert there[name].device.type == "cuda"
        assert torch.equal(there[name].cpu(), weights), name


def test_an_autoencoder_learns_what_it_learns_on_a_cpu(digits: DataOnDevice, on_gpu: DataOnDevice) -> None:
    from models.conv_autoencoder import ConvAutoencoderFamily

    family = ConvAutoencoderFamily()
    here, there = (list(fit(begin(family, data)))[-1].metrics["val_mse"] for data in (digits, on_gpu))
    assert np.isclose(here, there, rtol=0.02)


@pytest.mark.timeout(600)
def test_trials_share_a_gpu(tmp_path: Path) -> None:
    """A quarter of a GPU a trial: four at a time, each replayed to the last bit."""
    with ray_for_tests(num_cpus=4):
        result = search(
            "conv_autoencoder",
            dataset="digits",
            trials=8,
            max_epochs=2,
            gpus_per_trial=0.25,
            runs_dir=tmp_path,
            name="shared",
            tracking_uri="none",
            progress="none",
        )
    assert [trial.state in ENDED for trial in result.trials] == [True] * 8
    assert {trial.numerics["device"] for trial in result.trials} == {"cuda"}
    spans = [(trial.started_s or 0.0, trial.finished_s or 0.0) for trial in result.trials]
    assert max(sum(a <= start < b for a, b in spans) for start, _ in spans) > 2, "they ran one after the other"
    for trial in result.trials[:3]:
        assert replay("shared", trial.number, tmp_path).identical


@pytest.mark.timeout(600)
def test_out_of_memory_is_told_and_the_gpu_goes_on(tmp_path: Path) -> None:
    words = ["search", SLEEPY, "--dataset", "digits", "--trials", "2", "--max-epochs", "1", "--gpus-per-trial", "1"]
    places = ["--runs-dir", str(tmp_path), "--name", "full", "--tracking-uri", "none", "--quiet"]
    env = with_test_families()
    run(*words, *places, "--set", "trouble=memory", cwd=tmp_path, env=env, code=1)
    from tuning import load_search

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        reasons = [trial.reason or "" for trial in load_search("full", tmp_path).trials]
    assert len(reasons) == 2
    assert all(reason.startswith("out of memory: ") for reason in reasons), reasons
