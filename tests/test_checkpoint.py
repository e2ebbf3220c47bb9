"""Checkpoints: what stands in the file, what comes back from it, and what is refused."""

from __future__ import annotations

import errno
import os
import pickle
import random
import resource
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import checkpoint
from models.conv_autoencoder import ConvAutoencoderConfig, ConvAutoencoderFamily
from models.datasets import DataSpec, ImageSet, TrainingData
from models.errors import CheckpointError, StorageError
from models.family import Batch, Family, FamilyConfig, Objective, Phase, Record, Update
from models.training import Budget, DataOnDevice, Training, fit, start

NAME = "conv_autoencoder"
CONFIG = ConvAutoencoderConfig(filters=2, hidden_units=8, latent_dim=3, dropout=0.2, batch_norm=True, batch_size=64)


@pytest.fixture(scope="module")
def training(digits: DataOnDevice) -> Training:
    """Two epochs of three."""
    training = start(ConvAutoencoderFamily(), CONFIG, digits, Budget(3), seed=7)
    for record in fit(training):
        if record.epoch == 2:
            break
    return training


@pytest.fixture
def path(tmp_path: Path, training: Training) -> Path:
    """A resumable checkpoint."""
    path = tmp_path / "trial" / "checkpoint.pt"
    checkpoint.save(path, training, family=NAME, resumable=True)
    return path


class ToyConfig(FamilyConfig):
    script: tuple[float, ...] = ()


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))


class ToyFamily(Family[ToyConfig]):
    """A family of a user's own: ``w`` is the number of steps, and the objective at step n the script's n-th."""

    name = "toy"
    title = "a toy"
    Config = ToyConfig
    Network = Toy
    objective = Objective("val_score", "max")

    def build(self, config: ToyConfig, spec: DataSpec) -> Toy:
        return Toy()

    def phases(self, config: ToyConfig, network: nn.Module) -> Sequence[Phase]:
        assert isinstance(network, Toy)
        return [Phase("only", [Update(torch.optim.SGD(network.parameters(), lr=1.0), lambda batch: -network.w)])]

    def measure(self, config: ToyConfig, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        assert isinstance(network, Toy)
        return {"score": torch.full((len(batch.labels),), config.script[int(network.w) - 1])}


def toy_run(*script: float) -> Training:
    """A finished run, an epoch for each value."""
    images = ImageSet(np.zeros((2, 1, 2, 2), np.uint8), np.zeros(2, np.int64), ("any",))
    spec = DataSpec(
        source="made",
        channels=1,
        height=2,
        width=2,
        class_names=("any",),
        train_images=2,
        val_images=2,
        fingerprint="",
    )
    data = DataOnDevice(TrainingData(images, images, spec))
    training = start(ToyFamily(), ToyConfig(script=script), data, Budget(len(script)), seed=0)
    list(fit(training))
    return training


def unpack(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def leaves(value: Any) -> list[Any]:
    """Everything in nested dicts and lists that is neither, keys too."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in (key, *leaves(item))]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


# --- round trip -------------------------------------------------------------------------------------------------------


def test_the_network_comes_back(path: Path, training: Training, digits: DataOnDevice) -> None:
    trained = checkpoint.load(path)
    original = ConvAutoencoderFamily().build(CONFIG, digits.spec)
    original.load_state_dict(training.best_weights)
    original.eval()
    images = digits.val.batch(slice(0, 9)).images
    assert not trained.network.training
    with torch.inference_mode():
        assert torch.equal(trained.network(images), original(images))
    assert trained.family.name == NAME
    assert trained.config == CONFIG
    assert type(trained.config) is ConvAutoencoderConfig
    assert trained.spec == digits.spec
    assert trained.seed == 7
    assert trained.record == training.best
    assert checkpoint.load(str(path)).record == trained.record


def test_loading_draws_no_luck_from_the_file(path: Path) -> None:
    """Two loads are the same network, whatever the random state."""
    torch.manual_seed(0)
    one = checkpoint.load(path).network.state_dict()
    torch.manual_seed(1)
    other = checkpoint.load(path).network.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_file_says_what_it_is(path: Path, training: Training, digits: DataOnDevice) -> None:
    content = unpack(path)
    assert set(content) == {
        *("format", "version", "family", "config", "data", "seed", "records", "record", "weights", "training"),
    }
    assert content["format"] == "latentune-checkpoint"
    assert content["version"] == 1
    assert content["family"] == NAME
    assert content["config"] == CONFIG.model_dump()
    assert content["data"]["fingerprint"] == digits.spec.fingerprint
    assert (content["data"]["channels"], content["data"]["height"], content["data"]["width"]) == (1, 28, 28)
    assert content["seed"] == 7
    assert [Record(**record) for record in content["records"]] == training.records
    assert len(content["records"]) == 2
    assert Record(**content["record"]) == training.best


@pytest.mark.parametrize("resumable", [True, False])
def test_the_file_holds_tensors_and_json_values_only(path: Path, training: Training, resumable: bool) -> None:
    checkpoint.save(path, training, family=NAME, resumable=resumable)
    found = leaves(unpack(path))
    assert {type(leaf) for leaf in found} <= {Tensor, str, int, float, bool, type(None)}
    assert sum(isinstance(leaf, Tensor) for leaf in found) >= 20
    # The same by the pickle's own words: the only names in it are torch's rebuilding of tensors and an ordered dict.
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        words = archive.read(name)
    assert b"models" not in words
    assert b"numpy._core" not in words


def test_weights_are_those_of_the_best_record(tmp_path: Path) -> None:
    training = toy_run(1, 5, 2, 5, 3)
    path = tmp_path / "toy.pt"
    checkpoint.save(path, training, family="test_checkpoint:ToyFamily", resumable=False)
    assert unpack(path)["weights"]["w"] == 2
    trained = checkpoint.load(path, ToyFamily())
    assert isinstance(trained.network, Toy)
    assert trained.network.w == 2
    assert trained.record.epoch == 2
    assert trained.record.metrics["val_score"] == 5
    assert [record["epoch"] for record in unpack(path)["records"]] == [1, 2, 3, 4, 5]
    assert training.network.state_dict()["w"] == 5


def test_without_an_objective_the_weights_are_the_last(tmp_path: Path) -> None:
    training = toy_run(1, 5, 2)
    training.best, training.best_weights = None, {}
    checkpoint.save(tmp_path / "toy.pt", training, family="toy", resumable=False)
    trained = checkpoint.load(tmp_path / "toy.pt", ToyFamily())
    assert trained.network.state_dict()["w"] == 3
    assert trained.record.epoch == 3


def test_a_resumable_one_goes_on_and_a_final_one_is_smaller(
    path: Path, training: Training, digits: DataOnDevice
) -> None:
    state = checkpoint.read(path)["training"]
    resumed = start(ConvAutoencoderFamily(), CONFIG, digits, Budget(3), seed=7, state=state)
    list(fit(resumed))
    whole = start(ConvAutoencoderFamily(), CONFIG, digits, Budget(3), seed=7)
    list(fit(whole))
    assert [record.metrics for record in resumed.records] == [record.metrics for record in whole.records]
    assert all(torch.equal(t, whole.network.state_dict()[name]) for name, t in resumed.network.state_dict().items())
    final = path.with_name("final.pt")
    checkpoint.save(final, training, family=NAME, resumable=False)
    assert checkpoint.read(final)["training"] is None
    assert checkpoint.load(final).record == checkpoint.load(path).record
    assert final.stat().st_size < path.stat().st_size / 2


def test_saving_does_not_disturb_the_run(tmp_path: Path, digits: DataOnDevice) -> None:
    runs = [start(ConvAutoencoderFamily(), CONFIG, digits, Budget(2), seed=1) for _ in range(2)]
    for _ in fit(runs[0]):
        checkpoint.save(tmp_path / "a.pt", runs[0], family=NAME, resumable=True)
        checkpoint.load(tmp_path / "a.pt")
    list(fit(runs[1]))
    assert [record.metrics for record in runs[0].records] == [record.metrics for record in runs[1].records]


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(path: Path, *told: str) -> None:
    for use in (checkpoint.read, checkpoint.load):
        with pytest.raises(CheckpointError) as caught:
            use(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        for text in told:
            assert text in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "no such file")
    refused(tmp_path, "not a latentune checkpoint")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\n",
        b'{"format": "latentune-checkpoint", "version": 1}',
        b"PK\x03\x04",
        b"PK\x05\x06" + bytes(18),
        bytes(1000),
        pickle.dumps({"format": "latentune-checkpoint"}, protocol=2),
    ],
    ids=["empty", "text", "json", "zip head", "empty zip", "zeros", "pickle"],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.pt"
    file.write_bytes(content)
    refused(file, "not a latentune checkpoint, or damaged")


def test_a_truncated_file_is_refused_whatever_its_length(path: Path) -> None:
    whole = path.read_bytes()
    rng = random.Random(0)
    lengths = [1, 2, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1]
    for length in [*lengths, *(rng.randrange(len(whole)) for _ in range(60))]:
        path.write_bytes(whole[:length])
        refused(path, "damaged")


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    for index in range(400):
        # Half of them begin like a pickle, which the unpickler must not be tempted by.
        (tmp_path / "noise").write_bytes(b"\x80\x02" * (index % 2) + rng.randbytes(rng.randrange(60)) + b".")
        refused(tmp_path / "noise", "damaged")


def test_a_flipped_bit_is_noticed_or_harmless(path: Path, training: Training) -> None:
    """No bit of the weights or of the header can turn without being noticed; zip has some that mean nothing."""
    whole = path.read_bytes()
    weights, record = training.best_weights, training.best
    rng, harmless = random.Random(1), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            trained = checkpoint.load(path)
        except CheckpointError:
            continue
        harmless += 1
        assert trained.record == record
        assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.network.state_dict().items())
    assert harmless < 150


def test_a_flipped_weight_is_told(path: Path, training: Training) -> None:
    whole = path.read_bytes()
    place = whole.index(training.best_weights["to_code.0.weight"].numpy().tobytes())
    path.write_bytes(whole[: place + 3] + bytes([whole[place + 3] ^ 0x40]) + whole[place + 4 :])
    refused(path, "damaged", "check sum")


class Trap:
    """Leaves a trace where unpickling runs code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "legacy torch", "within"])
def test_code_in_a_file_is_not_run(path: Path, kind: str) -> None:
    trace = path.with_name("trace")
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(trace)))
    elif kind == "within":
        torch.save({**unpack(path), "extra": Trap(trace)}, path)
    else:
        torch.save(Trap(trace), path, _use_new_zipfile_serialization=kind == "torch")
    refused(path)
    assert not trace.exists()
    # The trap works: whoever trusts the file falls into it.
    if kind != "pickle":
        torch.load(path, weights_only=False)
        assert trace.exists()


@pytest.mark.parametrize(
    "content", [{"weights": torch.zeros(2)}, torch.zeros(3), [1, 2], {"format": "other", "version": 1}, None]
)
def test_torch_files_of_others(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "foreign.pt")
    refused(tmp_path / "foreign.pt", "not a latentune checkpoint")


def changed(path: Path, **new: Any) -> Path:
    """The checkpoint with other entries; ``...`` takes one away."""
    content = {**unpack(path), **new}
    torch.save({key: value for key, value in content.items() if value is not ...}, path)
    return path


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_format_version(path: Path, version: object) -> None:
    refused(changed(path, version=version), f"checkpoint format {version}", "this version reads 1")


@pytest.mark.parametrize("key", ["family", "config", "data", "seed", "records", "record", "weights"])
def test_a_missing_entry(path: Path, key: str) -> None:
    refused(changed(path, **{key: ...}), "damaged", key)


@pytest.mark.parametrize(
    "new",
    [
        {"config": {"filters": 0}},
        {"config": {"nonsense": 1}},
        {"config": None},
        {"config": CONFIG.model_copy(update={"filters": 4}).model_dump()},
        {"data": {}},
        {"weights": {}},
        {"weights": None},
        {"weights": {"convs.0.weight": torch.zeros(1)}},
        {"record": {"epoch": 1}},
        {"record": []},
        {"family": None},
        {"family": ["conv_autoencoder"]},
        {"family": "no_such_family"},
    ],
    ids=str,
)
def test_entries_that_do_not_fit(path: Path, new: dict[str, Any]) -> None:
    changed(path, **new)
    assert checkpoint.read(path)["format"] == "latentune-checkpoint"
    with pytest.raises(CheckpointError, match="family"):
        checkpoint.load(path)


def test_a_file_cannot_name_code_to_import(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text("import pathlib\npathlib.Path(__file__).with_name('trace').mkdir()\n")
    monkeypatch.syspath_prepend(tmp_path)
    changed(path, family="planted:Family")
    with pytest.raises(CheckpointError, match=r"'planted:Family', which is not built in; pass family="):
        checkpoint.load(path)
    assert not (tmp_path / "trace").exists()
    assert "planted" not in sys.modules
    # Passed by the caller, it is the caller's code that is used, not the file's.
    assert checkpoint.load(path, ConvAutoencoderFamily()).config == CONFIG
    assert not (tmp_path / "trace").exists()


# --- writing ----------------------------------------------------------------------------------------------------------


def no_space(*args: object, **more: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def with_small_files(action: Callable[[], None]) -> None:
    """Run ``action`` where no file may pass 1000 bytes, a disk that fills up half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("failing", ["replace", "fsync", "mkdir", "full"])
@pytest.mark.parametrize("before", [True, False], ids=["over an old file", "new"])
def test_a_failing_write_leaves_things_as_they_were(
    path: Path, training: Training, monkeypatch: pytest.MonkeyPatch, failing: str, before: bool
) -> None:
    if not before:
        path.unlink()
    old = path.read_bytes() if before else None

    def save() -> None:
        with pytest.raises(StorageError) as caught:
            checkpoint.save(path, training, family=NAME, resumable=True)
        assert str(caught.value).startswith(f"cannot write {path}: ")
        assert os.strerror(errno.EFBIG if failing == "full" else errno.ENOSPC) in str(caught.value)

    if failing == "full":
        with_small_files(save)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(Path if failing == "mkdir" else os, failing, no_space)
            save()
    assert [item.name for item in path.parent.iterdir()] == ([path.name] if before else [])
    assert not before or path.read_bytes() == old


def test_a_parent_that_is_a_file(path: Path, training: Training) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        checkpoint.save(path / "below", training, family=NAME, resumable=False)
    assert checkpoint.load(path).seed == 7


def test_folders_are_made_and_old_files_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    checkpoint.write_atomically(path, b"one")
    checkpoint.write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_it_as_any_file(tmp_path: Path) -> None:
    checkpoint.write_atomically(tmp_path / "file", b"one")
    (tmp_path / "plain").write_bytes(b"one")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        calls.append(f"fsync {os.fstat(handle).st_size}")
        fsync(handle)

    def replaced(source: str, target: str | Path) -> None:
        calls.append(f"replace {Path(source).parent == Path(target).parent}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    checkpoint.write_atomically(tmp_path / "file", b"12345")
    assert calls == ["fsync 5", "replace True"]
