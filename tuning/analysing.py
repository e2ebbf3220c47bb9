"""Analyses of a search's trials: what they work on, where their results go, and how MLflow gets them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.datasets import DataOptions
from models.errors import LatentuneError, UserError, did_you_mean
from models.family import get_family
from models.places import place
from tuning.api import load_search
from tuning.results import SearchResult, Trial

if TYPE_CHECKING:
    from analysis.evolution import Evolution
    from analysis.result import Result
    from models.checkpoint import Trained
    from models.numerics import Numerics

OPTIONS_FILE = "options.json"


@dataclass(frozen=True)
class Target:
    """A trial of a search, or a checkpoint file, that a command works on.

    Args:
        model: loaded.
        data: the options that it was trained with, with what the user gave instead.
        folder: under which results are kept.
        trial: ``None`` for a file.
    """

    model: Trained
    data: DataOptions
    folder: Path
    title: str
    search: SearchResult | None = None
    trial: Trial | None = None


def find_target(
    name: str, runs_dir: str | Path, *, trial: int | None = None, changed: Mapping[str, Any] | None = None
) -> Target:
    """What ``name`` means: a search in ``runs_dir``, or else the path of a checkpoint.

    Args:
        trial: of the search; by default its best one.
        changed: fields of :class:`DataOptions` to use instead of the search's; ``None`` values are left out.

    Raises:
        UserError: there is no such search or trial.
        LatentuneError: it has no complete trial yet, or its checkpoint is not usable.
    """
    given = _given(changed)
    try:
        path = place(name)
    except ValueError as error:
        raise UserError.of("NAME", name, str(error)) from error
    if path.is_file():
        from models.checkpoint import load

        if trial is not None:
            raise UserError.of("--trial", trial, f"{path} is one checkpoint; name a search to choose among its trials")
        model = load(path)
        data = _options({"source": model.spec.source, **given})
        return Target(model, data, path.parent / f"{path.stem}-analysis", f"{path.name}, {model.family.name}")
    return _target_in(load_search(name, runs_dir), trial, given)


def _target_in(result: SearchResult, trial: int | None, given: Mapping[str, Any]) -> Target:
    chosen = result.best if trial is None else result.trial(trial)
    if chosen is None:
        raise LatentuneError(f"{result.name} has no complete trial yet ({result.counts()['total']} trials so far)")
    data = _options({**result.config.data.model_dump(), **given})
    folder = result.run_dir / "analysis" / f"trial-{chosen.number:04d}"
    title = f"trial {chosen.number} of {result.name}, {get_family(chosen.family).name}"
    return Target(chosen.load(), data, folder, title, result, chosen)


BEST = 5
"""Trials of one search that are compared where none are named."""


def find_targets(
    names: Sequence[str], runs_dir: str | Path, trials: str | None, changed: Mapping[str, Any] | None = None
) -> list[tuple[str, Target]]:
    """Trials to compare, each with a label: of one search those named, or its best ones; of several each one's best.

    Args:
        trials: numbers with commas between them.

    Raises:
        UserError: no such search or trial, numbers that are none, or numbers for several searches.
        LatentuneError: a search has no complete trial yet, or a checkpoint is not usable.
    """
    if len(names) > 1:
        if trials is not None:
            raise UserError.of("--trials", trials, "goes with one search; of several the best trials are compared")
        found = [(name, find_target(name, runs_dir, changed=changed)) for name in names]
        return [(f"{name}, trial {target.trial.number}" if target.trial else name, target) for name, target in found]
    (name,) = names
    result = load_search(name, runs_dir)
    try:
        numbers = [trial.number for trial in result.leaderboard()[:BEST]] if trials is None else _numbers(trials)
    except ValueError:
        raise UserError.of("--trials", trials, "write numbers with commas between them, as 0,3,5") from None
    return [(f"trial {number}", _target_in(result, number, _given(changed))) for number in numbers]


def _given(changed: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (changed or {}).items() if value is not None}


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _options(values: dict[str, Any]) -> DataOptions:
    from pydantic import ValidationError

    try:
        return DataOptions(**values)
    except ValidationError as error:
        raise UserError.from_validation(error) from error


def parse_epochs(text: str | None, evolution: bool) -> list[float] | None:
    """The epochs of ``--epochs 1,3,5``.

    Raises:
        UserError: they are no numbers, or not asked for.
    """
    if text is None:
        return None
    if not evolution:
        raise UserError.of("--epochs", text, "says when to look at the model with --evolution, which is not given")
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UserError.of("--epochs", text, "must be numbers with commas between them, such as 1,3,5") from None


def follow_trial(
    target: Target, split: str, count: int, epochs: list[float] | None, told: Callable[[str, int, int], None]
) -> Evolution:
    """Train a search's trial again as it was trained, and reconstruct images at some epochs.

    Raises:
        UserError: the target is a checkpoint file, which does not say how long it was to be trained; and all that
            :func:`analysis.evolution.follow` raises.
    """
    import torch

    from analysis.evolution import follow
    from models.numerics import Numerics

    if target.search is None or target.trial is None:
        raise UserError.of("NAME", target.title, "--evolution takes a search, which knows how its trials were trained")
    numerics = Numerics(**target.trial.numerics)
    if numerics.device != "cpu" and not torch.cuda.is_available():
        numerics = replace(numerics, device="cpu")  # the last digits differ then, which the result says
    budget = target.search.config.budget()
    return follow(
        target.model,
        target.data,
        budget,
        split=split,  # type: ignore[arg-type]
        count=count,
        epochs=epochs,
        numerics=numerics,
        on_progress=told,
    )


def keep(
    result: Result, folder: Path, options: Mapping[str, Any], out: Path | None = None
) -> tuple[Path, tuple[Path, ...]]:
    """Save a result under ``folder``, or in ``out``, without touching what other options gave.

    ``<folder>/<analysis>`` holds the newest result for its options; the same analysis with others goes beside it, as
    ``<analysis>-2`` and so on. With the same options the files are written anew: they are the same.

    Returns:
        The folder and the files.

    Raises:
        UserError: ``out`` holds something already.
        StorageError: a file cannot be written.
    """
    from models.checkpoint import write_atomically

    text = json.dumps(dict(options), indent=2, sort_keys=True, default=str) + "\n"
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())) and _text(out / OPTIONS_FILE) != text:
            raise UserError.of("--out", str(out), "holds something else already; name a new folder")
        chosen = out
    else:
        number = 1
        while (chosen := folder / (result.name if number == 1 else f"{result.name}-{number}")).exists():
            if _text(chosen / OPTIONS_FILE) == text:
                break
            number += 1
    write_atomically(chosen / OPTIONS_FILE, text.encode())
    return chosen, result.save(chosen)


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def tell_mlflow(
    search: SearchResult | None, trial: Trial | None, folder: Path, files: tuple[Path, ...], summary: Mapping[str, Any]
) -> str | None:
    """Log a result to a trial's MLflow run, or the search's: its numbers as metrics, its files as artifacts.

    Args:
        search: ``None`` for what belongs to none, of which MLflow is told nothing.
        trial: ``None`` for what belongs to the whole search.

    Returns:
        What went wrong, in one line. A result is not lost because MLflow is down.
    """
    if search is None:
        return None
    from tuning.mlflow_store import log_analysis
    from tuning.study import load_study, search_id

    config, number = search.config, None if trial is None else trial.number
    return log_analysis(config, search_id(load_study(config.run_dir)), number, folder, files, summary)


def numerics_on(device: str) -> Numerics:
    """One core's numerics on a device that is named on the command line.

    Raises:
        UserError: this machine has no such device.
    """
    import torch

    from models.numerics import Numerics

    gpus = torch.cuda.device_count()
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if device not in known:
        raise UserError.of("--device", device, did_you_mean(device, known) + "; torch sees no other here")
    return Numerics(device)
