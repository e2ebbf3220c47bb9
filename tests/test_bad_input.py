"""What a user asks for and cannot have: one message with every problem in it, before any work, and exit code 2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import environment, run
from studies import DO_NOTHING, finish, open_by_hand

from tuning import cli
from tuning.api import LEAST_FREE_BYTES, list_searches, load_search

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

ROOT = Path(__file__).resolve().parent.parent

NO_RAY = """
import sys

class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise RuntimeError("RAY-WAS-IMPORTED")

sys.meta_path.insert(0, NoRay())
"""


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment without a network, in which importing Ray is an error that nobody catches."""
    folder = tmp_path_factory.mktemp("no-ray")
    (folder / "sitecustomize.py").write_text(NO_RAY)
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return environment(PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]), **nowhere)


class Refusal(dict[str, str]):
    """Field → the rest of its line, of the one message that a command ended with."""

    def __init__(self, stdout: str, stderr: str) -> None:
        assert stdout == ""
        assert "Traceback" not in stderr
        assert "RAY-WAS-IMPORTED" not in stderr
        head, *lines = stderr.splitlines()
        assert head in ("cannot do that:", "cannot do that, because of:")
        assert head.endswith("that:") == (len(lines) == 1)
        assert all(line.startswith("  ") for line in lines), stderr
        super().__init__(line.strip().split(": ", 1) for line in lines)
        assert len(self) == len(lines), f"something is told twice:\n{stderr}"


def refused(*words: str, cwd: Path, env: dict[str, str]) -> Refusal:
    """By the installed command."""
    done = run(*words, cwd=cwd, env=env, code=2)
    return Refusal(done.stdout, done.stderr)


@pytest.fixture
def refused_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Refusal]:
    """By its entry point in this process, which does not take seconds to begin."""

    def call(*words: str) -> Refusal:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["latentune", *words])
        with pytest.raises(SystemExit) as end:
            cli.run()
        assert end.value.code == 2
        return Refusal(*capsys.readouterr())

    return call


def write_idx(path: Path, array: np.ndarray, *, keep: int | None = None) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((header + array.astype(np.uint8).tobytes())[:keep])


def write_training_set(folder: Path, *, keep: int | None = None) -> None:
    """MNIST's two training files, 30 images; the first cut off after ``keep`` bytes."""
    write_idx(folder / "train-images-idx3-ubyte", np.zeros((30, 28, 28)), keep=keep)
    write_idx(folder / "train-labels-idx1-ubyte", np.arange(30) % 10)


def test_the_environment_catches_ray(tmp_path: Path, env: dict[str, str]) -> None:
    """Otherwise the tests below would show nothing."""
    words = ("search", DO_NOTHING, "--trials", "1", "--train-images", "20", "--val-images", "5")
    done = run(*words, "--tracking-uri", "none", cwd=tmp_path, env=env, code=None)
    assert done.returncode not in (0, 2)
    assert "RAY-WAS-IMPORTED" in done.stderr


def test_settings_means_and_files_are_all_told_at_once(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "a-file").write_text("not a folder")
    told = refused(
        *("search", "conv_autoencodr", "--dataset", "fashion-mnist", "--data-dir", "empty", "--trials", "0"),
        *("--max-epochs", "-1", "--name", "../evil", "--sampler", "tpee", "--scheduler", "ahsa", "--seed", "-5"),
        *("--time-budget", "soon", "--cpus-per-trial", "4096", "--runs-dir", "a-file", "--precision", "float16"),
        *("--reduction-factor", "1", "--patience", "0", "--max-concurrent", "0"),
        *("--val-images", "few", "--colour", "red"),
        *(("--gpus-per-trial", "1") if not torch.cuda.is_available() else ()),
        cwd=tmp_path,
        env=env,
    )
    wanted = {
        "family": "got 'conv_autoencodr'; did you mean 'conv_autoencoder'? allowed: conv_autoencoder",
        "trials": "got 0; Input should be greater than or equal to 1",
        "max_epochs": "got -1.0; Input should be greater than 0",
        "name": "got '../evil'; letters, digits, dot, dash and underscore, at most 100, not beginning with a dot",
        "sampler": "got 'tpee'; did you mean 'tpe'? allowed: tpe, gp, random, grid, qmc",
        "scheduler": "got 'ahsa'; did you mean 'asha'? allowed: asha, hyperband, median, none",
        "seed": "got -5; Input should be greater than or equal to 0",
        "time_budget": "got 'soon'; a duration such as 90s, 30m, 2h or 1h30m",
        "precision": "got 'float16'; did you mean 'bfloat16'? allowed: float32, bfloat16",
        "reduction_factor": "got 1; Input should be greater than or equal to 2",
        "patience": "got 0; Input should be greater than or equal to 1",
        "--val-images": "got 'few'; must be a whole number",
        "--colour": "no such option",
        "max_concurrent": "got 0; Input should be greater than or equal to 1",
        "--cpus-per-trial": f"got 4096.0; at most {os.cpu_count()}, the cores of this machine",
        "--runs-dir": f"got '{tmp_path}/a-file'; must be writable: File exists",
        "--data-dir": "got 'empty'; Fashion-MNIST: missing in empty/FashionMNIST/raw: train-images-idx3-ubyte,",
    }
    if not torch.cuda.is_available():
        wanted["--gpus-per-trial"] = "got 1.0; 0: torch sees no GPU on this machine"
    assert set(told) == set(wanted)
    for field, text in wanted.items():
        assert told[field].startswith(text), told[field]
    files = told["--data-dir"]
    assert "train-labels-idx1-ubyte (or the same with .gz)" in files, "every file is named"
    assert "t10k" not in files, "the test set is nobody's business here"
    assert "the download failed: " in files
    assert re.search(r"get them from https?://\S+/train-images-idx3-ubyte.gz", files)
    assert "or point --data-dir at a folder that has them" in files
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "runs").exists()


def test_fields_and_ranges_are_all_told_at_once(tmp_path: Path, env: dict[str, str]) -> None:
    write_training_set(tmp_path / "data" / "MNIST" / "raw", keep=5000)
    told = refused(
        *("search", "conv_autoencoder", "--dataset", "mnist", "--data-dir", "data", "--max-epochs", "3"),
        *("--set", "learning_rate=0.1", "--set", "batch_size=0", "--set", "optimizer=adm", "--set", "filters"),
        *("--space", "latent_dim=0..10", "--space", "hidden_units=32...64", "--space", "dropout=0.5..0.1"),
        *("--space", "lr=0..1:log", "--space", "activation=relu,swish", "--space", "momentum=0..0.9:step=0"),
        *("--space", "weight_decay=1e-5..1e-2:lin", "--space", "batch_norm=1..2", "--space", "layers=1..3"),
        cwd=tmp_path,
        env=env,
    )
    assert set(told) == {
        *("set.learning_rate", "set.batch_size", "set.optimizer", "--set", "space.latent_dim", "space.hidden_units"),
        *("space.dropout", "space.lr", "space.activation", "space.momentum", "space.weight_decay", "space.batch_norm"),
        *("space.layers", "--data-dir"),
    }
    assert told["set.learning_rate"].startswith("got '0.1'; no such field; ")
    assert "lr" in told["set.learning_rate"]
    assert told["set.batch_size"].startswith("got '0'; ")
    assert "whole number from 1 to 65536" in told["set.batch_size"]
    assert "sgd, adam, adamw, adamax" in told["set.optimizer"]
    assert told["--set"] == "got 'filters'; write it as FIELD=VALUE"
    assert told["space.latent_dim"].startswith("got 0; ")
    assert "whole number from 1 to 4096" in told["space.latent_dim"]
    for name, given in (("hidden_units", "32...64"), ("weight_decay", "1e-5..1e-2:lin"), ("batch_norm", "1..2")):
        assert told[f"space.{name}"].startswith(f"got '{given}'; write 4,8,16 or 2..10 or 1e-5..1e-1:log")
    assert told["space.dropout"] == "got '0.5..0.1'; low <= high must hold, and both be finite"
    assert told["space.lr"] == "got '0..1:log'; a log range must start above 0"
    assert "swish" in told["space.activation"]
    assert "step must be above 0" in told["space.momentum"]
    assert told["space.layers"].startswith("got '1..3'; no such field; ")
    path = "data/MNIST/raw/train-images-idx3-ubyte"
    assert told["--data-dir"] == f"got 'data'; {path}: expected 23536 bytes (header and 30x28x28), found 5000 bytes"
    assert list((tmp_path / "runs").iterdir()) == [], "no trace of a search that was none"


YAML = """\
family: conv_autoencoder
data: digits
trails: 5
seed: seven
set: [lr]
progress: loud
time_budget: 2 hours
fixed: {lr: 1}
"""


def test_wrong_settings_in_a_file(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "search.yaml").write_text(YAML)
    told = refused("search", "--config", "search.yaml", "--trials", "0", cwd=tmp_path, env=env)
    assert set(told) == {"data", "trails", "seed", "set", "progress", "time_budget", "fixed", "trials"}
    assert told["data"].startswith("got 'digits'; Input should be a valid dictionary")
    assert told["trails"].startswith("got 5; no such setting; did you mean 'trials'?")
    assert told["seed"] == "got 'seven'; Input should be a valid integer, unable to parse string as an integer"
    assert told["time_budget"] == "got '2 hours'; a duration such as 90s, 30m, 2h or 1h30m"
    assert told["fixed"].startswith("got {'lr': 1}; no such setting; ")


def test_file_that_is_no_yaml(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "bad.yaml").write_text("family: conv_autoencoder\nset: {lr: 0.1\nseed: 3\n")
    seen = refused(
        *("search", "conv_autoencoder", "--config", "bad.yaml", "--set", "lr", "--space", "=1", "--seed", "-1"),
        cwd=tmp_path,
        env=env,
    )
    assert set(seen) == {"--config", "--set", "--space", "seed"}
    assert seen["--config"] == "got 'bad.yaml'; is not valid YAML (line 3, column 5): expected ',' or '}', but got ':'"
    assert seen["--set"] == "got 'lr'; write it as FIELD=VALUE"
    assert seen["--space"] == "got '=1'; write it as FIELD=RANGE"


def test_file_that_holds_no_settings(tmp_path: Path, refused_here: Callable[..., Refusal]) -> None:
    (tmp_path / "bad.yaml").write_text("- family\n- conv_autoencoder\n")
    told = {"--config": "got 'bad.yaml'; must hold settings as `field: value` lines"}
    assert refused_here("search", "--config", "bad.yaml") == told
    assert refused_here("search", "conv_autoencoder", "--config", "bad.yaml") == told
    assert refused_here("search", "--config", "none.yaml") == {
        "--config": "got 'none.yaml'; cannot be read: No such file or directory"
    }


def test_own_family_that_is_none(
    tmp_path: Path, env: dict[str, str], refused_here: Callable[..., Refusal], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_family.py").write_text("class Family(\n")
    (tmp_path / "family_file.py").write_text("thing = 5\n")
    words = ("--dataset", "digts", "--trials", "-1")
    seen = refused("search", "broken_family:Family", *words, cwd=tmp_path, env=env)
    assert set(seen) == {"family", "trials", "--dataset"}
    assert seen["family"].startswith(
        "got 'broken_family:Family'; cannot be imported: SyntaxError: '(' was never closed"
    )
    assert seen["--dataset"].startswith("got 'digts'; did you mean 'digits'? allowed: digits, fashion-mnist")
    monkeypatch.syspath_prepend(str(tmp_path))
    for family, told in (
        ("nowhere.to:Be", "cannot be imported: No module named 'nowhere'"),
        ("family_file:NotThere", "cannot be imported: module 'family_file' has no attribute 'NotThere'"),
        ("famly_file:Own", "cannot be imported: No module named 'famly_file'; did you mean 'family_file'?"),
        (
            "models.gan:GANfamily",
            "cannot be imported: module 'models.gan' has no attribute 'GANfamily'; did you mean 'GanFamily'?",
        ),
        ("family_file:thing", "must be a class derived from models.family.Family"),
    ):
        seen = refused_here("search", family, *words)
        assert set(seen) == {"family", "trials", "--dataset"}
        assert seen["family"] == f"got '{family}'; {told}"


def test_grid_over_endless_ranges_and_folder_that_cannot_be(tmp_path: Path, env: dict[str, str]) -> None:
    seen = refused(
        *("search", "conv_autoencoder", "--sampler", "grid", "--space", "lr=1e-4..1e-2", "--set", "weight_decay=0"),
        *("--set", "momentum=0.9", "--runs-dir", "/proc/nowhere", "--dataset", "idx:no/such/folder"),
        cwd=tmp_path,
        env=env,
    )
    assert set(seen) == {"space.lr", "--runs-dir", "--dataset"}
    assert seen["space.lr"].startswith("got '0.0001..0.01'; grid search needs a finite list: give values (1e-3,1e-2)")
    assert seen["--runs-dir"].startswith("got '/proc/nowhere'; must be writable: ")
    assert seen["--dataset"] == "got 'idx:no/such/folder'; must be a folder: there is no no/such/folder"


def test_refusal_leaves_no_trace(tmp_path: Path, refused_here: Callable[..., Refusal]) -> None:
    """A search that was never begun takes no name away, and nothing of a stored one."""
    for words in ((), ("--name", "mine")):
        assert set(refused_here("search", DO_NOTHING, "--cpus-per-trial", "4096", *words)) == {"--cpus-per-trial"}
        assert list((tmp_path / "runs").iterdir()) == []
    study = open_by_hand(tmp_path / "runs")
    before = sorted(study.config.run_dir.iterdir())
    refused_here("search", DO_NOTHING, "--name", "by-hand", "--cpus-per-trial", "4096")
    assert sorted(study.config.run_dir.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    seen = refused("search", "conv_autoencoder", "--runs-dir", "locked", cwd=tmp_path, env=env)
    assert seen["--runs-dir"].endswith("must be writable: Permission denied")


def test_names_and_numbers_that_are_not_there(
    tmp_path: Path, env: dict[str, str], refused_here: Callable[..., Refusal]
) -> None:
    study = open_by_hand(tmp_path / "runs")
    trial = study.propose()
    assert trial is not None
    finish(study, trial)
    told = {"NAME": f"got 'byhand'; no such search in {tmp_path}/runs; did you mean 'by-hand'? allowed: by-hand"}
    assert refused("best", "byhand", cwd=tmp_path, env=env) == told
    for words in (["trials", "byhand"], ["best", "byhand", "--json"], ["replay", "byhand", "0"]):
        assert refused_here(*words) == told
    assert refused("replay", "by-hand", "7", cwd=tmp_path, env=env) == {"TRIAL": "got 7; by-hand has the trials 0 to 0"}
    assert refused_here("trials", "x", "--runs-dir", "nothing-here") == {
        "NAME": f"got 'x'; no such search in {tmp_path}/nothing-here; there are none"
    }
    assert not (tmp_path / "nothing-here").exists()


def test_search_that_is_another_one(tmp_path: Path, env: dict[str, str], refused_here: Callable[..., Refusal]) -> None:
    """A changed search under a name that is taken: every difference, and the stored search stays as it was."""
    study = open_by_hand(tmp_path / "runs")
    before = study.config.study_file.read_bytes()
    words = ("search", DO_NOTHING, "--name", "by-hand", "--max-epochs", "4", "--seed", "3", "--set", "a=0.5")
    told = refused(*words, "--train-images", "65", "--space", "b=0..0.5", cwd=tmp_path, env=env)
    assert set(told) == {"max_epochs", "seed", "set.a", "space.a", "space.b", "data.train_images"}
    assert told["seed"] == "got 3; the search 'by-hand' has 0 there; choose another name for another search"
    assert told["set.a"] == "got 0.5; the search 'by-hand' has nothing there; choose another name for another search"
    assert study.config.study_file.read_bytes() == before
    assert set(refused_here("search", "conv_autoencoder", "--name", "by-hand")) == {"family"}
    assert study.config.study_file.read_bytes() == before


# --- the disk --------------------------------------------------------------------------------------------------------


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, mebibytes: int) -> None:
        self._call("mount", "-o", f"remount,size={mebibytes}m", str(self.folder))

    def mount(self, mebibytes: int) -> None:
        self._call("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(self.folder))

    def free(self) -> int:
        stat = os.statvfs(self.folder)
        return stat.f_bavail * stat.f_frsize

    def _call(self, *words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot make a small disk: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk")
    disk.mount(40)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.folder)], check=True)


def test_disk_that_is_too_small_is_refused_at_once(tmp_path: Path, disk: Disk, env: dict[str, str]) -> None:
    disk.resize(30)
    told = refused("search", "conv_autoencoder", "--runs-dir", "disk/runs", cwd=tmp_path, env=env)
    needs = LEAST_FREE_BYTES >> 20
    assert told == {"--runs-dir": f"got '{disk.folder}/runs'; needs {needs} MiB free; the disk has 30 MiB"}


@pytest.mark.slow
def test_disk_that_fills_up_ends_the_search_and_loses_nothing(tmp_path: Path, disk: Disk, env: dict[str, str]) -> None:
    words = (
        *("search", "conv_autoencoder", "--name", "big", "--runs-dir", "disk/runs", "--trials", "6", "--seed", "1"),
        *("--max-epochs", "1", "--min-epochs", "0.3", "--scheduler", "none", "--max-concurrent", "1"),
        *("--train-images", "96", "--val-images", "16", "--set", "hidden_units=1800", "--set", "filters=8"),
        *("--set", "optimizer=adam", "--set", "batch_norm=false", "--set", "batch_size=32"),
    )
    with_ray = {**env, "PYTHONPATH": str(ROOT)}
    done = run(*words, cwd=tmp_path, env=with_ray, code=1)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (message,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert re.fullmatch(rf"error: cannot write {disk.folder}/runs/big/\S+: No space left on device", message)
    before = load_search("big", disk.folder / "runs")
    complete = [trial for trial in before.trials if trial.state == "complete"]
    assert 0 < len(complete) < 6
    assert all(trial.load() for trial in complete), "what was written is whole"
    assert [trial.state for trial in before.trials[len(complete) :]] == ["interrupted"]
    left = [path.name for path in disk.folder.rglob(".*") if path.is_file()]
    assert left == [], "half-written files are cleared away"

    # Still full: refused in one message; looking is possible.
    filler = disk.folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    assert disk.free() < 2**16
    told = refused(*words, cwd=tmp_path, env=env)
    assert told["--runs-dir"].startswith(f"got '{disk.folder}/runs'; ")
    shown = run("trials", "big", "--runs-dir", "disk/runs", cwd=tmp_path, env=env)
    assert shown.stdout.count("complete") == len(complete)

    filler.unlink()
    disk.resize(300)
    done = run(*words, cwd=tmp_path, env=with_ray)
    after = load_search("big", disk.folder / "runs")
    assert after.trials[: len(complete)] == tuple(complete)
    assert [trial.state for trial in after.trials] == ["complete"] * 6
    assert "warning" not in done.stderr
    assert list_searches(disk.folder / "runs") == ["big"]
