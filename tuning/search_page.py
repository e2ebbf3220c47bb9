"""What analyses of a whole search need of the service: its ranges, its rungs, and the facts for its page."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from models.errors import UserError
from models.family import get_family
from models.space import Range
from tuning.config import SearchConfig, space_of
from tuning.progress import better_sign
from tuning.report import (
    continue_command,
    replay_command,
    training_command,
    training_settings,
)
from tuning.results import PAGE, SearchResult
from tuning.store import is_running

if TYPE_CHECKING:
    from analysis.importance import Importance, Values
    from analysis.page import Facts
    from models.data_sources import Progress

MARK = '<meta name="generator" content="latentune">'


def ranges_of_search(search: SearchResult) -> Mapping[str, Range]:
    """Field → range, in field order."""
    return space_of(search.config, get_family(search.config.family)).ranges


def weigh(search: SearchResult, values: Values, seed: int, progress: Progress) -> Importance:
    """Importance of a search's parameters, with the rungs that it had."""
    from analysis import weigh_parameters

    rungs = search.config.rungs() if search.config.scheduler in ("asha", "hyperband") else ()
    return weigh_parameters(search, ranges_of_search(search), values=values, rungs=rungs, seed=seed, progress=progress)


def write_page(search: SearchResult, out: Path | None, progress: Progress) -> Path:
    """Write a search's report, by default as ``report.html`` in its folder.

    Returns:
        The file.

    Raises:
        UserError: ``out`` is there, and is no report.
        LatentuneError: the search has no trial yet.
        StorageError: the file cannot be written.
    """
    from analysis import render_report
    from models.checkpoint import write_atomically

    path = search.run_dir / PAGE if out is None else out
    if path.is_dir() or (path.exists() and MARK not in path.read_text(errors="replace")[:4000]):
        raise UserError.of("--out", str(path), "is there already and is no report; name a new file")
    importance = weigh(search, "rung", 0, progress)
    progress("drawing", 0, 1)
    html = render_report(search, ranges_of_search(search), facts_of(search), importance, search.run_dir)
    write_atomically(path, html.encode())
    return path


def write_page_at_end(search: SearchResult) -> list[str]:
    """The same at the end of a search, which has ended well whatever becomes of its page.

    Returns:
        What went wrong, in one line; nothing is raised.
    """
    from models.data_sources import silent

    try:
        write_page(search, None, silent)
    except Exception as error:
        told = str(error).partition("\n")[0] or type(error).__name__
        return [f"{PAGE} could not be written: {told}"]
    return []


def facts_of(search: SearchResult) -> Facts:
    """What only the service knows of a search, in words."""
    from analysis.page import Facts
    from tuning.study import load_study

    config = search.config
    attrs = load_study(config.run_dir).user_attrs
    data, versions = attrs["data"], attrs.get("versions", {})
    space = space_of(config, get_family(config.family))
    planned = config.trials if config.trials is not None else len(search.trials) if config.sampler == "grid" else 20
    first = next((trial for trial in search.trials if trial.number == 0), None)
    best = search.best
    ended = sum(trial.finished_s is not None for trial in search.trials)
    running = is_running(config.run_dir)
    whole = ended >= planned and search.outcome == "finished"
    standing = "finished" if whole else "running" if running and search.outcome == "finished" else "not finished"
    images = f"{data['train_images']:,} for training, {data['val_images']:,} for validation"
    shape = f"{data['height']}x{data['width']}x{data['channels']}"
    commands = [] if best is None else [("Train the best trial again and compare every number", best.number)]
    numerics = {} if best is None else best.numerics
    return Facts(
        family=config.family,
        dataset=config.data.source,
        standing=standing,
        planned=planned,
        budget=config.max_epochs,
        default=0 if first is not None and first.params == space.default() else None,
        settings=[
            ("ranked by", f"{search.objective.metric}, {better_sign(search.objective)}"),
            ("images", images),
            ("size, channels, classes", f"{shape}, {len(data['class_names'])} classes"),
            *_data_options(config),
            ("full budget", f"{config.max_epochs:g} epochs"),
            ("sampler", config.sampler),
            ("scheduler", config.scheduler),
            ("rungs", ", ".join(f"{rung:.3g}" for rung in config.rungs()) + f" epochs; η {config.reduction_factor}"),
            *([] if config.patience is None else [("patience", f"{config.patience} epochs")]),
        ],
        fixed=[(name, _word(value)) for name, value in space.fixed.items()],
        command="" if best is None else training_command(config, best),
        yaml="" if best is None else yaml.safe_dump(training_settings(config, best), sort_keys=False),
        commands=[
            *((label, replay_command(config, number)) for label, number in commands),
            ("Go on with the search, or give it more --trials", continue_command(config, "latentune")),
        ],
        reproducibility=[
            ("seed", str(config.seed)),
            *([] if best is None else [("seed of the best trial", str(best.seed))]),
            ("fingerprint of the images (sha256)", data["fingerprint"]),
            ("begun", time.strftime("%d %B %Y, %H:%M UTC", time.gmtime(attrs["began"]))),
            *((("numerics", ", ".join(f"{k} {v}" for k, v in numerics.items())),) if numerics else ()),
            *(versions or {"versions": "not recorded when this search was begun"}).items(),
            ("identity", str(attrs["id"])),
        ],
        written=time.strftime("%d %B %Y at %H:%M UTC", time.gmtime()),
    )


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _data_options(config: SearchConfig) -> list[tuple[str, str]]:
    """Options that change the images, where they were given."""
    options: dict[str, Any] = config.data.model_dump(include={"channels", "image_size", "binarise"}, exclude_none=True)
    return [(name.replace("_", " "), str(value)) for name, value in options.items()]
