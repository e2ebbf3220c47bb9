"""Reproducing a published experiment: its steps, done once, and each published number beside ours."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from models.checkpoint import write_atomically
from models.data_sources import Progress, silent
from models.datasets import DataOptions, load_training_data
from models.errors import LatentuneError, ProblemCollector, UserError
from models.places import is_url
from tuning.api import check, load_search, search
from tuning.config import runs_folder
from tuning.experiment import Budget, Experiment, ExperimentFile, Search, Step, Train, Training
from tuning.results import SearchResult
from tuning.steps import Source, analyse, pictures_of, settings_of, summary_of

STEP_FILE = "step.json"

LESS = ("max_epochs", "epochs", "trials", "train_images", "count")
"""Settings of a step in which a small budget is less than the full one."""


class StoppedError(LatentuneError):
    """A signal ended a search; what is done stays done."""

    def __init__(self, signal: int) -> None:
        super().__init__("stopped; the same command goes on")
        self.signal = signal


@dataclass(frozen=True)
class Done:
    """What a step gave.

    Args:
        name, kind: of the step.
        key: identifies everything that decides the result; a step with the same key is not done again.
        seconds: it took, when it was done.
        summary: its numbers, which rows ask.
        pictures: relative path without ending, under the step's folder or its search's ``figures`` → file.
        facts: what it was done with, in words.
        less: in what it is less than at the full budget, in words.
        notes: what was done otherwise than asked for.
        problem: why it gave nothing; empty where it did.
        again: whether it was done before and only read now.
    """

    name: str
    kind: str
    key: str
    seconds: float
    summary: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    facts: str = ""
    less: str = ""
    notes: tuple[str, ...] = ()
    problem: str = ""
    again: bool = False


@dataclass(frozen=True)
class Reproduction:
    """An experiment done at a budget.

    Args:
        folder: with everything that the steps gave.
    """

    name: str
    experiment: Experiment
    budget: Budget
    seed: int
    folder: Path
    steps: dict[str, Done]

    @property
    def complete(self) -> bool:
        """Whether every step gave something."""
        return all(not done.problem for done in self.steps.values())

    @property
    def seconds(self) -> float:
        """All steps together, those done earlier too."""
        return sum(done.seconds for done in self.steps.values())

    def seconds_of(self, name: str) -> float:
        """A step, and those that it works on."""
        needed, found = [name], set[str]()
        while needed:
            if (one := needed.pop()) not in found:
                found.add(one)
                needed += self.experiment.steps[one].sources
        return sum(self.steps[one].seconds for one in found)


@dataclass(frozen=True)
class Means:
    """Where and with what steps are done.

    Args:
        told: progress of an analysis: (text, done, total).
        said: one line when a step begins.
    """

    runs_dir: Path
    data_dir: str | None = None
    tracking_uri: str | None = None
    progress: str = "none"
    told: Progress = silent
    said: Callable[[str], None] = print


def reproduce(
    file: ExperimentFile, budget: Budget, means: Means, *, seed: int | None = None, out: Path | None = None
) -> Reproduction:
    """Do every step that is not done yet.

    A step that fails is told in the result, and so are those that work on it; the others are done all the same.

    Args:
        seed: instead of the file's.
        out: for results; by default ``reproductions/NAME-BUDGET`` in the folder of runs.

    Raises:
        UserError: a step cannot work; of all steps, before any is begun.
        StoppedError: Ctrl-C or SIGTERM during a search.
        StorageError: results cannot be written.
    """
    experiment, full = file.at[budget], file.at["full"]
    used = experiment.seed if seed is None else seed
    runs_dir = runs_folder(means.runs_dir)
    if is_url(runs_dir):  # its results are pages and pictures that lie beside each other, to be opened
        raise UserError.of("--runs-dir", str(runs_dir), "must be a folder: a reproduction cannot be in a bucket")
    folder = out or runs_dir / "reproductions" / f"{file.name}-{budget}"
    data = _usable_data(experiment, means)
    _check_all(experiment, means, data, used)
    done: dict[str, Done] = {}
    searches: dict[str, SearchResult] = {}
    with _one_ray() as ray:
        for number, (name, step) in enumerate(experiment.steps.items(), 1):
            options, notes = data[name]
            less = less_than_full(experiment, full, name)
            means.said(f"[{number}/{len(experiment.steps)}] {name}: {describe(step)}")
            try:
                if isinstance(step, Train | Search):
                    settings = settings_of(step, options, used)
                    for source in _sources(step, searches, done):
                        (like,) = source.chosen("best")
                        settings["set"] = {**like.config, **step.fixed}
                    one, found = _search(name, file.name, step, settings, folder, means, ray)
                    searches[name] = found
                else:
                    sources = _sources(step, searches, done)
                    one = _analysis(name, step, sources, options, used, folder, means)
            except StoppedError:
                raise
            except LatentuneError as error:
                one = Done(name, step.do, "", 0.0, problem=" ".join(str(error).split()))
                means.said(f"    failed: {one.problem}")
            done[name] = replace(one, less=less, notes=notes)
    return Reproduction(file.name, experiment, budget, used, folder, done)


def describe(step: Step) -> str:
    """What a step does, in a few words."""
    kind = step.do  # type: ignore[attr-defined]
    if isinstance(step, Train):
        return f"train {step.family}, at most {step.max_epochs:g} epochs"
    if isinstance(step, Search):
        return f"search {step.family}, {step.max_epochs:g} epochs a trial"
    return f"{kind} of {', '.join(step.sources)}"


def _usable_data(experiment: Experiment, means: Means) -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
    """For each step its data options, with what stands in for a data set whose files are missing; and what to say."""
    usable: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {}
    for name in experiment.steps:
        options = dict(experiment.data_of(name))
        otherwise = options.pop("otherwise", None)
        where = {} if means.data_dir is None else {"data_dir": means.data_dir}
        notes: tuple[str, ...] = ()
        if otherwise is not None:
            try:
                load_training_data(DataOptions(**options, **where), download=False)
            except UserError:
                notes = (f"the files of {options.get('source')} are not here; {otherwise.get('source')} instead",)
                options |= otherwise
        usable[name] = ({**options, **where}, notes)
    return usable


def _check_all(
    experiment: Experiment, means: Means, data: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]], seed: int
) -> None:
    """That every training can begin.

    Raises:
        UserError: all problems of all steps, each once.
    """
    problems = ProblemCollector()
    try:
        means.runs_dir.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=means.runs_dir, prefix=".check-")
    except OSError as error:
        raise UserError.of("--runs-dir", str(means.runs_dir), f"must be writable: {error.strerror}") from error
    with scratch as folder:  # a check makes the folder that a fresh search would have
        for name, step in experiment.steps.items():
            if isinstance(step, Train | Search):
                with problems.gather():
                    settings = settings_of(step, data[name][0], seed)
                    check(**settings, runs_dir=folder, tracking_uri=means.tracking_uri)
    if problems.problems:
        raise UserError(*{str(problem): problem for problem in problems.problems}.values())


def _sources(step: Step, searches: Mapping[str, SearchResult], done: Mapping[str, Done]) -> list[Source]:
    for source in step.sources:
        if source not in searches:
            raise LatentuneError(f"{source} gave nothing: {done[source].problem}")
    return [Source(source, searches[source]) for source in step.sources]


def _search(
    name: str,
    report: str,
    step: Training,
    settings: dict[str, Any],
    folder: Path,
    means: Means,
    ray: Callable[[], None],
) -> tuple[Done, SearchResult]:
    """A training or a search, by its own continuation: what it has is kept, whenever it was interrupted."""
    identity = {**settings, "data": {k: v for k, v in settings["data"].items() if k != "data_dir"}}
    key = _key(identity)
    run = f"{report}.{name}.{key[:10]}"[-100:]
    place = folder / "steps" / name
    before = _read(place, key)
    if before is not None:
        try:
            found = load_search(run, means.runs_dir)
            return before, found
        except UserError:
            pass  # somebody has deleted its folder
    ray()
    found = search(
        progress=means.progress,
        **settings,
        name=run,
        runs_dir=str(means.runs_dir),
        tracking_uri=means.tracking_uri,
    )
    if found.signal is not None:
        raise StoppedError(found.signal)
    if found.best is None:
        reasons = sorted({trial.reason for trial in found.trials if trial.reason})
        raise LatentuneError(f"no trial is complete: {'; '.join(reasons)}")
    trials = found.trials
    seconds = max(t.finished_s or 0.0 for t in trials) - min(t.started_s or 0.0 for t in trials)
    spec = found.best.load().spec
    count = "" if len(trials) == 1 else f", {len(trials)} trials"
    facts = (
        f"{step.family} on {spec.source}, {spec.train_images:,} + {spec.val_images:,} images, "
        f"{max(t.epochs for t in trials):g} of {step.max_epochs:g} epochs{count}"
    )
    _fresh(place)
    pictures_of(found, place)
    pictures = {path.stem: str(path) for path in (*found.pictures, *place.glob("*.png"))}
    done = Done(name, step.do, key, seconds, summary_of(found), pictures, facts)
    _write(place, done)
    return done, found


def _analysis(
    name: str,
    step: Step,
    sources: Sequence[Source],
    data: dict[str, Any],
    seed: int,
    folder: Path,
    means: Means,
) -> Done:
    from analysis.result import plain

    which = getattr(step, "trials", "all")
    checkpoints = [_digest(t.checkpoint) for source in sources for t in source.chosen(which)]
    options = {k: v for k, v in data.items() if k != "data_dir"}
    key = _key({"step": step.model_dump(mode="json"), "data": options, "seed": seed, "of": checkpoints})
    place = folder / "steps" / name
    before = _read(place, key)
    if before is not None:
        return before
    began = time.perf_counter()
    results = analyse(step, sources, data, seed, means.told)
    seconds = time.perf_counter() - began
    _fresh(place)
    summaries, pictures = [], {}
    for trial, result in results:
        inside = place if len(results) == 1 else place / f"trial-{0 if trial is None else trial.number:04d}"
        for path in result.save(inside):
            if path.suffix == ".png":
                pictures[path.relative_to(place).with_suffix("").as_posix()] = str(path)
        told = plain(result.summary())
        summaries.append(
            told if trial is None else {"number": trial.number, "config": trial.config, "params": trial.params, **told}
        )
    summary = summaries[0] if which == "best" or len(results) == 1 else {"trials": summaries}
    if which == "all" and results[0][0] is not None:
        summary = {"trials": summaries}
    facts = f"of {', '.join(step.sources)}"
    done = Done(name, step.do, key, seconds, plain(summary), pictures, facts)  # type: ignore[attr-defined]
    _write(place, done)
    return done


@contextmanager
def _one_ray() -> Iterator[Callable[[], None]]:
    """One Ray for all searches: yields what starts it, when the first one needs it."""
    with ExitStack() as stack:
        begun: list[bool] = []

        def start() -> None:
            from tuning.config import SearchConfig
            from tuning.ray_session import ray_session

            if not begun:
                begun.append(True)
                stack.enter_context(ray_session(SearchConfig(family="")))

        yield start


def less_than_full(experiment: Experiment, full: Experiment, name: str) -> str:
    """What this budget leaves out of a step, and of what it works on."""
    told: dict[str, None] = {}
    for each in (*experiment.steps[name].sources, name):
        here, there = experiment.steps[each], full.steps[each]
        mine = {**experiment.data_of(each), **here.model_dump()}
        other = {**full.data_of(each), **there.model_dump()}
        for setting in LESS:
            if setting in mine and mine[setting] != other.get(setting):
                wanted = other.get(setting)
                told[f"{setting} {_word(mine[setting])} instead of {'all' if wanted is None else _word(wanted)}"] = None
        if mine.get("source") != other.get("source"):
            told[f"{mine.get('source')} instead of {other.get('source')}"] = None
    return "; ".join(told).replace("_", " ")


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_word, value))
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _key(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _digest(path: Path | None) -> str:
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _read(place: Path, key: str) -> Done | None:
    """A step's stored result, if it is of this key and its pictures are all there."""
    try:
        stored = json.loads((place / STEP_FILE).read_text())
        done = Done(**{**stored, "notes": tuple(stored["notes"]), "again": True})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = all(Path(path).is_file() for path in done.pictures.values())
    return done if done.key == key and whole else None


def _write(place: Path, done: Done) -> None:
    write_atomically(place / STEP_FILE, (json.dumps(asdict(done), indent=1) + "\n").encode())


def _fresh(place: Path) -> None:
    """An empty folder: nothing of an earlier result is left beside a new one."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
