"""``search`` and ``load_search``: the Python door to the service."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from models.datasets import DataOptions
from models.errors import CheckpointError, Problem, ProblemCollector, StorageError, UserError, did_you_mean
from models.family import get_family
from models.places import is_url, put
from tuning.config import NAME, SearchConfig, cluster_address, continued, make_config, runs_folder, space_of
from tuning.results import SearchResult, Trial
from tuning.store import ADDRESS_FILE, JOURNAL_FILE, has_study, is_running, store_of

if TYPE_CHECKING:
    from models.data_sources import Progress
    from models.datasets import TrainingData
    from tuning.driver import Driver, Listener
    from tuning.progress import View
    from tuning.study import SearchStudy

REPORTED = 10
"""Trials from which on a search ends with its report: of fewer there is little to say of which parameters matter."""

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the environment of a job's command."""

LEAST_FREE_BYTES = 32 * 2**20
"""Free space without which a search does not begin: it would end in the middle of its first checkpoints."""


def search(
    family: str | None = None,
    *,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    progress: str = "auto",
    pictures: bool = True,
    report: bool | None = None,
    **settings: Any,
) -> SearchResult:
    """Search the hyperparameters of a family; or go on with the search of that ``name``.

    Args:
        family: a name that ``latentune families`` lists, or your own as ``package.module:Class``. May be left out where
            the search of that ``name`` is there already.
        dataset, data_dir: short for ``data={"source": …, "data_dir": …}``.
        progress: ``auto`` (a live view in a terminal, lines elsewhere), ``live``, ``lines`` or ``none``; on stderr.
        pictures: draw the best model's reconstructions and the history into the run folder at the end.
        report: write ``report.html`` into the run folder at the end, which takes some seconds; by default where
            :data:`REPORTED` trials or more are there and nobody stopped the search.
        settings: any field of :class:`tuning.config.SearchConfig`. One that is not given keeps its default, or in a
            search that is continued what it was. ``set`` holds fields at a value, ``space`` gives ranges::

                search("conv_autoencoder", dataset="fashion-mnist", trials=50, set={"batch_size": 128},
                       space={"latent_dim": "2..10", "lr": "1e-4..1e-1:log"})

    Returns:
        All trials with their curves, the best one, and how the run ended. Ctrl-C and SIGTERM end it early and cleanly.

    Raises:
        UserError: something in the settings cannot work; every such thing is named, before any work starts.
        SearchLockedError: another process runs this search.
        StorageError: the run folder cannot be written (any more); what was told before is kept.
    """
    from tuning.waiting import progress_bar

    began = time.perf_counter()
    with progress_bar(progress == "none", "checking, and reading the images", lines=True) as told:
        config, images = _prepare(_together(family, dataset, data_dir, settings), told)
    config = config.with_lowest_rung(len(images.train.labels))
    with store_of(config.run_dir, config.study_url).locked():
        return _run(config, images, progress=progress, pictures=pictures, report=report, began=began)


def check(
    family: str | None = None, *, dataset: str | None = None, data_dir: str | Path | None = None, **settings: Any
) -> None:
    """Whether :func:`search` can begin with these arguments.

    Raises:
        UserError: as :func:`search` would.
    """
    _prepare(_together(family, dataset, data_dir, settings))


def load_search(name: str, runs_dir: str | Path = "runs") -> SearchResult:
    """A search as it stands now, also while it runs.

    Raises:
        UserError: there is no such search; the message lists those that there are.
    """
    from tuning.study import load_study, read_trials

    config = _stored_config(runs_folder(runs_dir), name)
    family = get_family(config.family)
    trials = read_trials(load_study(config.run_dir), config, family)
    idle = not is_running(config.run_dir)
    return SearchResult(
        config, family.objective, tuple(_at_rest(t) if idle else t for t in trials), pictures=_pictures(config)
    )


def _at_rest(trial: Trial) -> Trial:
    """What "running" means where nothing runs."""
    return replace(trial, state="interrupted") if trial.state == "running" else trial


def export_best(result: SearchResult, path: Path) -> None:
    """Copy the best trial's checkpoint to a new file.

    Raises:
        UserError: the file is there already, or cannot be written.
        CheckpointError: somebody has deleted the checkpoint.
    """
    assert result.best is not None
    if result.best.checkpoint is None:
        raise CheckpointError(f"the checkpoint of trial {result.best.number} in {result.run_dir} is gone")
    if path.exists():
        raise UserError.of("--export", str(path), "exists already; name a new file")
    try:
        path.write_bytes(result.best.checkpoint.read_bytes())
    except OSError as error:
        raise UserError.of("--export", str(path), f"cannot be written: {error.strerror}") from error


def list_searches(runs_dir: str | Path = "runs") -> list[str]:
    """Names of the searches in a folder, sorted."""
    folder = runs_folder(runs_dir)
    names: set[str] = set()
    with suppress(FileNotFoundError):  # a folder in a bucket is gone with its last object
        for file in (JOURNAL_FILE, ADDRESS_FILE):
            names |= {path.parent.name for path in folder.glob(f"*/{file}")}
    return sorted(names)


def _together(
    family: str | None, dataset: str | None, data_dir: str | Path | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """All that was given, as settings."""
    given = settings if family is None else {**settings, "family": family}
    data = {"source": dataset, "data_dir": None if data_dir is None else str(data_dir)}
    data = {key: value for key, value in data.items() if value is not None}
    if data and isinstance(given.get("data", {}), Mapping | DataOptions):  # else make_config says what it must be
        given["data"] = {**dict(given.get("data", {})), **data}
    return given


def _prepare(given: Mapping[str, Any], on_progress: Progress | None = None) -> tuple[SearchConfig, TrainingData]:
    """The config and its images, after everything that can be checked beforehand was.

    Raises:
        UserError: all problems at once: a wrong setting does not hide a missing file or a GPU that is not there.
    """
    problems = ProblemCollector()
    config: SearchConfig | None = None
    with problems.gather():
        config = _settle(given)
    # Where some settings are wrong, what the others ask for is checked all the same.
    valid = _valid_ones(given)
    known = config or SearchConfig(family="", **valid)
    images: TrainingData | None = None
    with problems.gather():
        images = load_images(known, None if problems.problems else on_progress)  # else it is refused anyway
    with problems.gather():
        _check_device(known)
    if known is config or "runs_dir" not in given or "runs_dir" in valid:
        with problems.gather():
            _check_run_dir(known)
    if known.name:
        with problems.gather():
            store_of(known.run_dir, known.study_url)
    if problems.problems and known.name and not is_url(known.run_dir):
        with suppress(OSError):  # it was there before, with something in it
            known.run_dir.rmdir()
    problems.raise_if_any()
    assert config is not None
    assert images is not None
    return config, images


def _valid_ones(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are valid on their own."""
    valid: dict[str, Any] = {}
    for name in given.keys() & {
        "data",
        "runs_dir",
        "address",
        "cpus_per_trial",
        "gpus_per_trial",
        "study_url",
        "tracking_uri",
    }:
        with suppress(ValidationError, UserError):
            value = getattr(SearchConfig.model_validate({"family": "", name: given[name]}), name)
            valid[name] = runs_folder(value) if name == "runs_dir" else value
    return valid


def _settle(given: Mapping[str, Any]) -> SearchConfig:
    """The config of this run: a fresh search's, or a stored one's with what was given this time."""
    name, runs_dir = given.get("name"), runs_folder(str(given.get("runs_dir", "runs")))
    if isinstance(name, str) and NAME.fullmatch(name) and has_study(runs_dir / name):
        stored = _stored_config(runs_dir, name)
        return continued(stored, {**given, "runs_dir": str(runs_dir)})
    config = make_config(given)
    return config if config.name else config.model_copy(update={"name": _fresh_name(config)})


def _stored_config(runs_dir: Path, name: str) -> SearchConfig:
    from tuning.study import load_study

    if not (NAME.fullmatch(name) and has_study(runs_dir / name)):
        known = list_searches(runs_dir)
        raise UserError.of("NAME", name, f"no such search in {runs_dir}; {did_you_mean(name, known)}")
    study = load_study(runs_dir / name)
    stored = SearchConfig.model_validate(study.user_attrs["config"])
    # The folder may have been moved or copied since.
    return stored.model_copy(update={"runs_dir": runs_dir, "name": name})


def _fresh_name(config: SearchConfig) -> str:
    """``conv_autoencoder-digits-001`` and so on: the first number that no folder has."""
    words = (config.family.rpartition(":")[2], re.split(r"[/\\]", config.data.source.rstrip("/\\"))[-1])
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(words)).strip("-.")[:90]
    number = 1
    while (config.runs_dir / f"{stem}-{number:03d}").exists():
        number += 1
    return f"{stem}-{number:03d}"


def load_images(config: SearchConfig, on_progress: Progress | None = None) -> TrainingData:
    """The search's images, checked against the family's default config."""
    from models.datasets import load_training_data

    images = load_training_data(config.data, on_progress=on_progress)
    if config.family:
        family = get_family(config.family)
        space = space_of(config, family)
        family.check(family.Config.model_validate({**space.fixed, **space.default()}), images.spec)
    return images


def _check_device(config: SearchConfig) -> None:
    if cluster_address(config) is not None:  # it is asked once we are connected
        return
    problems = []
    cores = os.cpu_count() or 1
    if config.cpus_per_trial > cores:
        problems.append(
            Problem("--cpus-per-trial", config.cpus_per_trial, f"at most {cores}, the cores of this machine")
        )
    if config.gpus_per_trial:
        import torch

        there = torch.cuda.device_count()
        if config.gpus_per_trial > there:
            allowed = f"at most {there}, the GPUs of this machine" if there else "0: torch sees no GPU on this machine"
            problems.append(Problem("--gpus-per-trial", config.gpus_per_trial, allowed))
    if problems:
        raise UserError(*problems)


def _check_run_dir(config: SearchConfig) -> None:
    """Write something there before any work is spent on a search that could not be kept."""
    folder = config.run_dir if config.name else config.runs_dir
    if is_url(folder):
        _check_bucket(config, folder)
        return
    if JOB_VARIABLE in os.environ and config.runs_dir.absolute().is_relative_to(Path.cwd()):
        where = "is in the job's own copy of the working directory, which goes with the cluster: name a shared folder"
        raise UserError.of("--runs-dir", str(config.runs_dir), f"{where}, or set LATENTUNE_RUNS_DIR on its nodes")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except OSError as error:
        raise UserError.of("--runs-dir", str(config.runs_dir), f"must be writable: {error.strerror}") from error
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        needs = f"needs {LEAST_FREE_BYTES >> 20} MiB free; the disk has {free >> 20} MiB"
        raise UserError.of("--runs-dir", str(config.runs_dir), needs)


def _check_bucket(config: SearchConfig, folder: Path) -> None:
    problems = ProblemCollector()
    probe = folder / f".writable-{uuid.uuid4().hex}"
    try:
        put(probe, b"")
        probe.unlink()
    except Exception as error:  # each kind of storage has its own
        told = (str(error).splitlines() or [type(error).__name__])[0]
        problems.add("--runs-dir", str(folder), f"must be writable: {told}")
    if config.mlflow_uri is None and config.tracking_uri != "none":
        needs = "must be given with runs in a bucket, which cannot hold MLflow's database file; none for no tracking"
        problems.add("--tracking-uri", None, needs)
    problems.raise_if_any()


def _run(
    config: SearchConfig, images: TrainingData, *, progress: str, pictures: bool, report: bool | None, began: float
) -> SearchResult:
    from tuning.study import open_study

    family = get_family(config.family)
    with closing(open_study(config, family, images.spec)) as study:
        return _run_on(study, images, progress=progress, pictures=pictures, report=report, began=began)


def _run_on(
    study: SearchStudy, images: TrainingData, *, progress: str, pictures: bool, report: bool | None, began: float
) -> SearchResult:
    from tuning.driver import Driver
    from tuning.progress import make_progress
    from tuning.tracking import Tracker, make_tracker

    config, family = study.config, study.family
    write_yaml(config)
    deadline = None if config.time_budget is None else time.monotonic() + config.time_budget
    tracker: Tracker = make_tracker(study, images)
    view = make_progress(progress, study)
    listeners: Sequence[Listener] = (tracker, view)
    outcome_warnings: list[str] = []
    try:
        with view:
            driver = Driver(study, listeners, max_concurrent=1, deadline=deadline)
            with _stop_on_signals(driver):
                if not driver.finished:
                    _train(driver, images, view)
            result = SearchResult(
                config, family.objective, tuple(map(_at_rest, study.ordered())), driver.outcome, driver.signal
            )
            if pictures and any(trial.finished_s is not None for trial in result.trials):
                from tuning.pictures import draw

                outcome_warnings += draw(result, images)
            if report if report is not None else driver.signal is None and len(result.trials) >= REPORTED:
                from tuning.search_page import write_page_at_end

                view.stage("writing the report")
                outcome_warnings += write_page_at_end(result)
            result = replace(result, pictures=_pictures(config))
    finally:
        outcome_warnings += tracker.close(tuple(study.ordered()), _pictures(config))
    return replace(
        result,
        wall_s=time.perf_counter() - began,
        mlflow_run=tracker.run,
        warnings=tuple(outcome_warnings),
    )


def _train(driver: Driver, images: TrainingData, view: View) -> None:
    config = driver.study.config
    address = cluster_address(config)
    view.stage("starting Ray" if address is None else f"connecting to the Ray cluster at {address}")
    from tuning.ray_session import concurrency, ray_session

    with ray_session(config) as ours:
        driver.max_concurrent = concurrency(config)
        view.stage(f"starting workers, {driver.max_concurrent} at a time")
        from tuning.ray_tune import run_trials  # loads Ray Tune, while the workers load torch
        from tuning.stopping import judged_epochs
        from tuning.trial import Assignment

        assignment = Assignment(config.family, config.budget(), config.numerics(), judged_epochs(config))
        run_trials(driver, assignment, images, warm=ours)


@contextmanager
def _stop_on_signals(driver: Driver) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the driver to stop; a second one is obeyed at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        driver.interrupt(number)
        restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


def write_yaml(config: SearchConfig) -> None:
    """``search.yaml`` in the run folder: what was run, readable, and usable with ``--config``."""
    import yaml

    from models.checkpoint import write_atomically

    settings = {key: value for key, value in config.to_json().items() if value is not None}
    write_atomically(config.run_dir / "search.yaml", yaml.safe_dump(settings, sort_keys=False).encode())


def _pictures(config: SearchConfig) -> tuple[Path, ...]:
    return tuple(sorted((config.run_dir / "figures").glob("*.png")))


__all__ = ["SearchResult", "StorageError", "check", "list_searches", "load_search", "search"]
