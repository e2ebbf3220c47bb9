"""Results as tables on stdout."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from models.datasets import DATASETS
from models.family import Family
from models.space import bounds_text, ranges_of
from tuning.config import SearchConfig
from tuning.progress import better_sign, number
from tuning.replaying import Replay
from tuning.results import PAGE, SearchResult, Trial
from tuning.trial_table import trial_table

LEADERS = 5

SHOWN_FAILURES = 3
"""Failed trials that the end of a search tells of; `latentune trials` tells all."""

WIDE = 1000
"""Columns of a file or a pipe, whose lines are for programs such as grep."""


def print_result(result: SearchResult) -> None:
    """The end of a search: leaderboard, the best config, where things are, and what to do next."""
    console = _console()
    counts = result.counts()
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if state != "total")
    ending = {
        "finished": "",
        "time budget": " - the time budget is used up",
        "interrupted": " - stopped",
    }[result.outcome]
    told = f" ({states})" if states else ""
    console.print(f"{result.name}: {counts['total']} trials{told}{ending}", highlight=False)
    leaders = result.leaderboard()
    if leaders:
        table, _ = trial_table(leaders[:LEADERS], result.objective, console.width, ranked=True)
        console.print(table)
    else:
        console.print("no trial is complete")
    for line in _failures(result)[-SHOWN_FAILURES:]:
        _plain(console, line)
    if leaders:
        best = leaders[0]
        params = " ".join(f"{name}={_typed(value)}" for name, value in best.params.items()) or "the default config"
        _line(console, "best config", params.replace("\n", " "))
    _line(console, "results", str(result.run_dir))
    for picture in result.pictures:
        _line(console, "picture", str(picture))
    if (result.run_dir / PAGE).exists():
        _line(console, "report", str(result.run_dir / PAGE))
    console.print("\nnext:")
    commands = next_commands(result)
    longest = max((len(line) for line, _ in commands), default=0)
    for line, what in commands:
        _plain(console, f"  {line.ljust(longest)}  # {what}")


def next_commands(result: SearchResult) -> list[tuple[str, str]]:
    """Commands to go on with, as they can be typed, and what each is for."""
    config, runs = result.config, runs_option(result.config)
    name, program = result.name, command()
    found = []
    if result.outcome != "finished":
        found.append((continue_command(config), "go on with it"))
    if result.best is None and result.trials:
        found.append((f"{program} trials {name}{runs}", "how each trial ended"))
    elif result.best is not None:
        found.append((f"{program} best {name}{runs}", "the best one, field by field"))
        found.append((f"{program} evaluate {name}{runs}", "the best model on the test images"))
    if result.mlflow_run is not None:
        found.append((f"{program} ui {name}{runs}{_tracking_option(config)}", "all of it in MLflow's UI"))
    elif result.best is not None:
        found.append((f"{program} report {name}{runs}", "all of it on one page"))
    return found


def print_trials(result: SearchResult) -> None:
    """All trials in order of number, a line for each; below it why some failed."""
    console = _console()
    table, left_out = trial_table(result.trials, result.objective, console.width)
    console.print(table)
    if left_out:
        _plain(console, f"no room for {', '.join(left_out)}: use a wider terminal, or --json")
    for line in _failures(result):
        _plain(console, line)


def print_best(result: SearchResult) -> None:
    """The best trial, field by field."""
    trial, console = result.best, _console()
    assert trial is not None
    _line(console, "trial", f"{trial.number} of {result.name}")
    _line(console, result.objective.metric, f"{trial.value:.6g} ({better_sign(result.objective)})")
    _line(console, "epochs", f"{trial.epochs:g}")
    _line(console, "checkpoint", str(trial.checkpoint or "its file is gone"))
    table = Table(box=None, pad_edge=False)
    table.add_column("field")
    table.add_column("value", overflow="fold")
    for name, value in trial.config.items():
        table.add_row(name, str(value))
    console.print(table)


def print_replay(result: Replay) -> None:
    """Record by record: same, or how far off."""
    console = _console()
    for record, difference in zip(result.stored, result.differences, strict=False):
        verdict = "the same" if difference == 0 else f"differs by up to {difference:.3g}"
        console.print(f"epoch {record.epoch:.4g}: {verdict}", highlight=False)
    if result.identical:
        console.print(f"trial {result.number} gives the same numbers again", highlight=False)
    else:
        console.print(f"trial {result.number} does not give the same numbers again", highlight=False)


def print_analysis(title: str, summary: Mapping[str, Any], folder: Path, files: Sequence[Path]) -> None:
    """The numbers of an analysis, one a line, and where its files are."""
    console = _console()
    console.print(title, highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("", style="dim")
    table.add_column("", overflow="fold")
    for name, value in summary.items():
        if isinstance(value, Mapping):
            shown = "  ".join(f"{key} {_shown(item)}" for key, item in value.items())
        elif isinstance(value, list):
            shown = ", ".join(map(_shown, value[:12])) + (f" and {len(value) - 12} more" if len(value) > 12 else "")
        else:
            shown = _shown(value)
        table.add_row(name.replace("_", " "), shown)
    console.print(table)
    for path in files:
        if path.suffix in (".png", ".html"):
            _line(console, "picture" if path.suffix == ".png" else "page", str(path))
    _line(console, "results", str(folder))


def print_comparison(columns: Mapping[str, Sequence[Any]], folder: Path, files: Sequence[Path]) -> None:
    """Trials as columns, what is known of them as rows, and where the files are."""
    console = _console()
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for label in columns["label"]:
        table.add_column(str(label), justify="right", overflow="fold")
    for name, values in columns.items():
        if name != "label":
            table.add_row(
                name.removeprefix("config_").replace("_", " "), *("" if v is None else _shown(v) for v in values)
            )
    console.print(table)
    console.print("gap is validation - training, both at the weights kept", highlight=False)
    for path in files:
        if path.suffix == ".png":
            _line(console, "picture", str(path))
    _line(console, "results", str(folder))


def print_page(path: Path) -> None:
    """Where a page is, and how large."""
    _line(_console(), "page", f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def _shown(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def describe_family(family: Family[Any]) -> dict[str, Any]:
    """A family as JSON: objective, capabilities, and every field from its one definition."""
    ranges = ranges_of(family.Config)
    return {
        "name": family.name,
        "title": family.title,
        "metric": family.objective.metric,
        "mode": family.objective.mode,
        "capabilities": list(family.capabilities()),
        "fields": [
            {
                "name": name,
                "default": info.get_default(call_default_factory=True),
                "allowed": bounds_text(family.Config, name),
                "searched": str(ranges[name]) if name in ranges else None,
                "when": {k: list(v) for k, v in ranges[name].when.items()} if name in ranges else {},
                "help": info.description,
            }
            for name, info in family.Config.model_fields.items()
        ],
    }


def print_families(families: Sequence[Family[Any]]) -> None:
    """One line a family."""
    table = Table(box=None, pad_edge=False)
    for column in ("family", "ranked by", "can", "what it is"):
        table.add_column(column, overflow="fold", no_wrap=column in ("family", "ranked by"))
    for family in families:
        ranked = f"{'lowest' if family.objective.mode == 'min' else 'highest'} {family.objective.metric}"
        table.add_row(family.name, ranked, ", ".join(family.capabilities()), family.title)
    _console().print(table)


def print_family(family: Family[Any]) -> None:
    """All fields of a family."""
    known, console = describe_family(family), _console()
    console.print(f"{family.name}: {family.title}", highlight=False)
    console.print(f"ranked by {family.objective.metric}, {better_sign(family.objective)}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("field", "default", "searched", "allowed", "help"):
        table.add_column(column, overflow="fold")
    for field in known["fields"]:
        condition = "; ".join(f"{k} is {' or '.join(map(str, v))}" for k, v in field["when"].items())
        searched = (field["searched"] or "-") + (f" when {condition}" if condition else "")
        table.add_row(field["name"], str(field["default"]), searched, field["allowed"], field["help"])
    console.print(table)


def print_datasets() -> None:
    """One line a data set, and the forms for one's own."""
    table = Table(box=None, pad_edge=False)
    for column in ("data set", "images", "size", "classes", "files", "source and licence"):
        table.add_column(column, overflow="fold")
    for name, info in DATASETS.items():
        parts = f"{info.images}, a fifth for the test" if info.images else "as in the file"
        files = "downloaded where missing" if info.downloaded else "MNIST.mat in the data folder"
        table.add_row(
            name,
            parts if info.train_images is None else f"{info.train_images} + {info.test_images}",
            f"{info.height}x{info.width}x{info.channels}",
            str(info.classes),
            files if info.needs_files else "none needed",
            info.licence,
        )
    table.add_row("mnist-mat:FILE", "your own", "28x28x1", "10", "a .mat file, its images turned and flipped back", "")
    table.add_row("idx:FOLDER", "your own", "any", "any", "MNIST's four IDX files, plain or .gz", "")
    table.add_row(
        "images:FOLDER", "your own", "any", "any", "train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png", ""
    )
    _console().print(table)


def continue_command(config: SearchConfig, program: str | None = None) -> str:
    """The command that goes on with a search, as it can be typed.

    Args:
        program: how the command is called; by default as from here.
    """
    return f"{program or command()} search {shlex.quote(config.family)} --name {config.name}{runs_option(config)}"


def replay_command(config: SearchConfig, number: int) -> str:
    """The command that trains a trial again and compares every number."""
    return f"latentune replay {config.name} {number}{runs_option(config)}"


def report_command(config: SearchConfig) -> str:
    """The command that writes the page of a search."""
    return f"latentune report {config.name}{runs_option(config)}"


def training_settings(config: SearchConfig, trial: Trial) -> dict[str, Any]:
    """Settings of a search, as in a search.yaml, that trains nothing but a trial's config."""
    data = {key: value for key, value in config.data.model_dump(mode="json").items() if value is not None}
    wanted: dict[str, Any] = {
        "family": config.family,
        "data": data,
        "set": dict(trial.config),
        "max_epochs": config.max_epochs,
        "patience": config.patience,
        "precision": config.precision,
        "gpus_per_trial": config.gpus_per_trial,
        "seed": config.seed,
        "trials": 1,
    }
    usual = {"precision": "float32", "gpus_per_trial": 0.0, "patience": None}
    return {key: value for key, value in wanted.items() if key not in usual or value != usual[key]}


def training_command(config: SearchConfig, trial: Trial) -> str:
    """The same as a command, an option a line; one that reads ``best.yaml`` where a split seed is given."""
    if config.data.split_seed:
        return "latentune search --config best.yaml"
    settings = training_settings(config, trial)
    data, fixed = settings.pop("data"), settings.pop("set")
    words = [f"latentune search {shlex.quote(settings.pop('family'))} --dataset {shlex.quote(data.pop('source'))}"]
    if data.get("val_split") == "random":
        del data["val_split"]
    data.pop("split_seed", None)
    for name, value in {**data, **settings}.items():
        words.append(f"--{name.replace('_', '-')} {shlex.quote(_typed(value))}")
    for name, value in fixed.items():
        words.append(f"--set {shlex.quote(f'{name}={_typed(value)}')}")
    return " \\\n  ".join(words)


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def command() -> str:
    """How to call this command from here: by name where it is on the path, else as it was called."""
    if shutil.which("latentune") is not None or Path(sys.argv[0]).name != "latentune":
        return "latentune"
    return shlex.quote(min(os.path.relpath(sys.argv[0]), str(Path(sys.argv[0]).absolute()), key=len))


def _failures(result: SearchResult) -> list[str]:
    """Why each failed trial did, and where its traceback is if it has one."""
    return [f"trial {t.number} failed: {t.reason or 'no reason given'}" for t in result.trials if t.state == "failed"]


def _plain(console: Console, text: str) -> None:
    """A line that a terminal wraps and we do not, so that it can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _line(console: Console, label: str, text: str) -> None:
    _plain(console, f"{label}: ".ljust(13) + text)


def runs_option(config: SearchConfig) -> str:
    """``--runs-dir`` where it has to be given, with a blank before it."""
    here = Path("runs").absolute()
    return "" if config.runs_dir == here else f" --runs-dir {shlex.quote(str(config.runs_dir))}"


def _tracking_option(config: SearchConfig) -> str:
    return "" if config.tracking_uri is None else f" --tracking-uri {shlex.quote(config.tracking_uri)}"


def _console() -> Console:
    # Without markup: a trial's reason or a field's value may hold anything, `[/]` too.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(markup=False, width=width)
