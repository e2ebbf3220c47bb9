"""What the documents tell people to do, done."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import typer
from helpers import without_ray
from PIL import Image
from typer.testing import CliRunner

from models.checkpoint import load
from models.datasets import DATASETS, DataOptions, load_training_data
from models.errors import CheckpointError
from models.family import FAMILIES as FAMILY_NAMES
from models.family import get_family
from tuning.api import load_search
from tuning.cli import app
from tuning.config import SearchConfig, make_config

ROOT = Path(__file__).resolve().parent.parent
COMMAND = Path(sys.executable).with_name("latentune")
"""The installed command, beside the Python that runs the tests."""

DOCS = ROOT / "docs"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
OWN_FAMILY = DOCS / "own-family.md"
SEARCH = "latentune search myfamily:MyFamily --dataset digits --trials 4 --max-epochs 2"


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)


def run(command: list[str], folder: Path) -> str:
    """Run in ``folder``, with this project's sources first; what it prints."""
    # As anybody's shell would have it. RAY_AUTH_MODE is how to show oneself to a Ray that runs in this process.
    foreign = ("LATENTUNE", "MLFLOW", "RAY_", "PYTEST")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign) or name == "RAY_AUTH_MODE"}
    env["COLUMNS"] = "200"
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the document's file in it, in which its command has run."""
    folder = tmp_path_factory.mktemp("own-family")
    (folder / "myfamily.py").write_text(blocks(OWN_FAMILY, "python")[0])
    (line,) = [line for block in blocks(OWN_FAMILY, "bash") for line in block.splitlines() if " search " in line]
    assert line == SEARCH
    words = shlex.split(line)
    small = ["--tracking-uri", "none", "--train-images", "100", "--max-concurrent", "1"]
    run([str(COMMAND), *words[1:], *small], folder)
    return folder


def test_a_family_of_ones_own_is_searched_by_the_command_in_the_document(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(searched)
    result = load_search("MyFamily-digits-001", searched / "runs")
    assert len(result.trials) == 4
    assert {trial.state for trial in result.trials} <= {"complete", "pruned"}
    assert result.best is not None
    # The first trial is the default config, and the best one is no worse.
    default = result.trials[0]
    assert default.config == get_family("myfamily:MyFamily").Config().model_dump()
    assert result.best.value is not None
    assert default.value is not None
    assert result.best.value <= default.value
    trained = result.best.load()
    assert trained.family.capabilities() == ("encode", "decode")
    network: Any = trained.network
    data = load_training_data(DataOptions(train_images=100))
    images = torch.from_numpy(data.val.images).float() / 255
    with torch.inference_mode():
        mse = torch.square(network.decode(network.encode(images)) - images).mean().item()
    assert mse == pytest.approx(result.best.value, rel=1e-5)


def test_the_documents_other_commands(searched: Path) -> None:
    """Those that show what the search left; ``trials`` is much used elsewhere."""
    (_, *others) = [line for block in blocks(OWN_FAMILY, "bash") for line in block.splitlines()]
    assert len(others) == 3
    fields, best = (run([str(COMMAND), *shlex.split(line)[1:]], searched) for line in others if " trials " not in line)
    assert "size of the latent code" in fields
    assert "latent_dim" in best
    with pytest.raises(CheckpointError, match=r"myfamily:MyFamily.*pass family="):
        load(searched / "best.pt")


def test_the_documents_programs_run(searched: Path) -> None:
    _, check, loading = blocks(OWN_FAMILY, "python")
    if not (searched / "best.pt").exists():
        run([str(COMMAND), "best", "MyFamily-digits-001", "--export", "best.pt"], searched)
    *told, loaded = run([sys.executable, "-c", check + loading], searched).splitlines()
    values = [float(re.findall(r"'val_mse': ([0-9.e-]+)", line)[0]) for line in told]
    assert len(values) == 4
    assert values[-1] < values[0]
    assert "latent_dim" in loaded


def test_links_between_documents_lead_somewhere() -> None:
    assert OWN_FAMILY in DOCUMENTS
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            # Pictures of docs/images are checked where they are drawn.
            assert target.startswith("docs/images/") or (document.parent / target).exists(), f"{document}: {target}"


def test_the_readme_tells_of_published_rows_what_their_tables_do() -> None:
    told = re.findall(
        r"^\| \[[\w-]+\]\((docs/reports/[\w-]+\.md)\) (\|.*\|)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert {Path(table).stem for table, _ in told} == {path.stem for path in ROOT.glob("docs/reports/*.md")}
    for table, cells in told:
        assert f"\n{cells} " in (ROOT / table).read_text(), cells


def test_the_picture_of_the_terminal_can_be_shown() -> None:
    drawn = (DOCS / "images" / "terminal.svg").read_text()
    told = "".join(ElementTree.fromstring(drawn).itertext())
    assert "latentune\xa0search\xa0conv_autoencoder" in told
    assert "url(http" not in drawn


FAMILIES = DOCS / "families.md"
ANALYSIS = DOCS / "analysis.md"
SMALL = {
    "search": ["--trials", "2", "--max-epochs", "1", "--train-images", "500", "--tracking-uri", "none"],
    "finetune": ["--train-images", "500", "--epochs", "1"],
    "embed": ["--count", "300"],
    "generate": ["--count", "16"],
    "robustness": ["--count", "50"],
    "reconstruct": ["--epochs", "1"],
}
"""A budget that wins over the one in a document, since the last of an option decides."""


def commands_in(document: Path, language: str = "bash") -> list[list[str]]:
    """The words of every command of ours in the code blocks of a document."""
    lines = [line for block in blocks(document, language) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("latentune ")]


def do_all(document: Path, folder: Path, run: Callable[[list[str], Path], object] = run) -> list[list[str]]:
    """Run every command of a document as it is written but for the budget; the words of each."""
    commands = commands_in(document)
    for words in commands:
        if words[1] in ("ui", "dashboard") or "-001" in words[-1]:
            continue  # serves until it is stopped; has a test of its own
        small = SMALL.get(words[1], []) if words[1] != "reconstruct" or "--evolution" in words else []
        run([str(COMMAND), *words[1:], *small], folder)
    return commands


def here(command: list[str], folder: Path) -> None:
    """Run the command in this process, without Ray."""
    with pytest.MonkeyPatch.context() as patch, without_ray():
        patch.chdir(folder)
        done = CliRunner().invoke(app, command[1:], catch_exceptions=False)
    assert done.exit_code == 0, f"{command}: exit code {done.exit_code}\n{done.output}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_families_document_work_as_written(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(real_data)
    commands = do_all(FAMILIES, tmp_path, here)
    assert {words[2] for words in commands if words[1] == "search"} == set(FAMILY_NAMES)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_analysis_document_work_as_written(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(real_data)
    commands = do_all(ANALYSIS, tmp_path, here)
    (program,) = blocks(ANALYSIS, "python")
    monkeypatch.chdir(tmp_path)
    told = run([sys.executable, "-c", program.replace('split="test"', 'split="test", count=300')], tmp_path)
    assert 0 < float(told) <= 1
    assert (tmp_path / "codes" / "tsne.png").is_file()
    # The table says something of every command, and of no other.
    named = re.findall(r"^\| `(\w+)` \|", ANALYSIS.read_text(), re.MULTILINE)
    assert set(named) == {words[1] for words in commands} - {"search"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_readme_work_as_written(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(real_data)
    commands = do_all(ROOT / "README.md", tmp_path)
    assert {"search", "trials", "best", "replay", "ui", "report"} <= {words[1] for words in commands}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_and_programs_of_the_quickstart_work_as_written(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(real_data)
    monkeypatch.setitem(SMALL, "search", SMALL["search"][:-2])  # with MLflow, which a program asks
    do_all(DOCS / "quickstart.md", tmp_path, here)
    assert (tmp_path / "best.pt").is_file()
    of_search, of_mlflow = blocks(DOCS / "quickstart.md", "python")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    with without_ray():
        exec(of_search.replace("trials=12", "trials=2, max_epochs=1"), found)
    assert len(found["table"]) == 2
    assert found["trained"].network.encode(torch.rand(3, 1, 28, 28)).shape[0] == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it, for all that comes after in this process
        exec(of_mlflow, found)
    assert found["restored"].shape == found["images"].shape
    assert len(found["codes"]) == 5


def test_the_commands_on_own_images_work_as_written(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 32), np.uint8)
    for number, pixels in enumerate(noise):
        path = tmp_path / "shapes" / ("discs", "squares")[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    few = ["--train-images", "12", "--val-images", "4"]
    do_all(DOCS / "own-data.md", tmp_path, lambda words, at: here(words + few * (words[1] == "search"), at))
    scaled = load_search("scaled", tmp_path / "runs").trials[0].load().spec
    assert (scaled.shape, scaled.class_names) == ((1, 28, 28), ("discs", "squares"))


def test_the_commands_that_continue_a_search_work_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--max-epochs", "1", "--train-images", "64", "--tracking-uri", "none"]
    monkeypatch.setitem(SMALL, "search", small)
    do_all(DOCS / "continue.md", tmp_path, here)
    assert len(load_search("first", tmp_path / "runs").trials) == 16


def parse(words: list[str]) -> None:
    """Check a command as far as possible without doing it: options, and the settings of a search."""
    group: Any = typer.main.get_command(app)
    assert words[1] in group.commands, words
    context = group.commands[words[1]].make_context(words[1], words[2:])
    assert not any(context.meta.values()), words  # a command may keep what is wrong for itself to tell
    given = context.params
    if words[1] == "submit":
        parse(["latentune", *given["words"]])
    if words[1] != "search" or given["family"] is None or ":" in given["family"]:
        return  # goes on, or is of a file that is not here
    plain = set(SearchConfig.model_fields) - {"fixed", "space"}
    settings = {name: given[name] for name in plain if given.get(name) is not None}
    settings["data"] = {name: given[name] for name in DataOptions.model_fields if given.get(name) is not None}
    settings["data"] = {**settings["data"], "data_dir": None, "source": given["dataset"]}
    pairs = {
        name: dict(item.split("=", 1) for item in given[of] or ()) for name, of in (("set", "fixed"), ("space",) * 2)
    }
    if str(settings.get("runs_dir", "")).startswith("s3:"):
        del settings["runs_dir"]  # there is no such bucket
    make_config({**settings, **pairs})
    assert given["dataset"].partition(":")[0] in (*DATASETS, "idx", "images")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_one_that_there_is(document: Path) -> None:
    for words in [*commands_in(document), *commands_in(document, "")]:
        parse(words)
    inline = re.findall(
        r"`(latentune [a-z][^`…]*)`", re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.M)
    )
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert {line.split()[1] for line in inline} <= known
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document.name}: make {target}"


def test_every_example_of_the_help_is_a_command() -> None:
    group: Any = typer.main.get_command(app)
    epilogs = [command.epilog for command in group.commands.values() if command.epilog]
    lines = re.findall(r"latentune .*?(?=\s\s+latentune|$)", "\n".join(epilogs), re.MULTILINE)
    assert len(lines) >= len(epilogs) > 0
    for line in lines:
        parse(shlex.split(line))


def test_the_figures_in_the_readme_are_those_of_the_reports() -> None:
    """Of the five tables: how many verdicts of each kind, and one search's stopped trials."""
    counts: Counter[str] = Counter()
    for report in (DOCS / "reports").glob("*.md"):
        (told,) = re.findall(r"^Budget .*? steps: (.*?)\. Written", report.read_text(), re.MULTILINE)
        for item in told.split(", "):
            number, _, verdict = item.partition(" ")
            counts[verdict] += int(number)
    text = " ".join((ROOT / "README.md").read_text().split())
    said = re.findall(
        r"of (\d+) numbers that can be compared (\d+) came out better, (\d+) the same, (\d+) worse, (\d+) diff", text
    )
    compared = [counts[verdict] for verdict in ("better", "same", "worse", "differs")]
    assert [tuple(map(int, found)) for found in said] == [(sum(compared), *compared)]
    (stopped,) = re.findall(r"of 100 trials (\d+) in the search of \[capettini-2022\]", text)
    (row,) = re.findall(
        r"^\| trials stopped early .*", (DOCS / "reports" / "capettini-2022.md").read_text(), re.MULTILINE
    )
    assert row.split(" | ")[2] == stopped
