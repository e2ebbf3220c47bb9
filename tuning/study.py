"""The memory of a search: an Optuna study in which every trial, its curve, state and reason stand.

What else there is (rungs, MLflow runs, progress, results) is derived from it. Times are UTC seconds in the study and
seconds since the search began outside.
"""

from __future__ import annotations

import json
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from models.datasets import DataSpec
from models.errors import LatentuneError, UserError
from models.family import Family, Record
from models.numerics import derive_seed
from models.space import Choice, Int, Range
from tuning.config import SearchConfig, space_of
from tuning.results import State, Trial
from tuning.samplers import make_sampler
from tuning.store import NewStudy, Store, store_of
from tuning.tpe import Memory
from tuning.versions import versions

FIDELITY = 1000
"""Optuna counts steps in whole numbers: ours are thousandths of an epoch, the same for every batch size."""

STATES: dict[TrialState, State] = {
    TrialState.WAITING: "queued",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class SearchStudy:
    """The study of one search, opened by the one process that runs it.

    Attributes:
        config: the search as it was begun, with the means of this run.
        id: names the search among all others.
        began: UTC time at which the search was first started.
        trials: every trial by number, kept up to date with what is told here.
    """

    def __init__(
        self, study: optuna.Study, store: Store, config: SearchConfig, family: Family[Any], spec: DataSpec
    ) -> None:
        self.config, self.family, self.objective, self.spec = config, family, family.objective, spec
        self.space = space_of(config, family)
        self._study, self._store = study, store
        self._handles: dict[int, optuna.Trial] = {}
        self._memory = Memory()
        attrs, self.trials = store.lasting(self._read)
        self.id = str(attrs["id"])
        self.began = float(attrs["began"])
        self._queued = [number for number, trial in self.trials.items() if trial.state == "queued"]  # by a crash
        self._left_grid = self._grid_left() if config.sampler == "grid" else None

    def _read(self) -> tuple[dict[str, Any], dict[int, Trial]]:
        self._study.set_user_attr("config", self.config.to_json())
        trials = read_trials(self._study, self.config, self.family)
        return self._study.user_attrs, {trial.number: trial for trial in trials}

    def close(self) -> None:
        """Let go of the study."""
        self._store.close()

    def now(self) -> float:
        """Seconds since the search began."""
        return time.time() - self.began

    @property
    def total(self) -> int:
        """Trials that the search will have."""
        wanted = self.config.trials
        if self._left_grid is not None:
            grid = len(self.trials) + len(self._left_grid)
            return grid if wanted is None else min(wanted, grid)
        return 20 if wanted is None else wanted

    def ordered(self) -> list[Trial]:
        """Every trial, in order of number."""
        return [self.trials[number] for number in sorted(self.trials)]

    def unfinished(self) -> list[Trial]:
        """Trials that were running when an earlier run of the search ended."""
        return [trial for trial in self.trials.values() if trial.state == "running"]

    def propose(self) -> Trial | None:
        """A new trial, running, or ``None`` where the search has all of its trials."""
        if len(self.trials) - len(self._queued) >= self.total:
            return None
        number = self._queued[0] if self._queued else len(self.trials)
        queued: dict[str, Any] | None = None
        if number == len(self.trials):
            if self._left_grid is not None:
                queued = self._next_grid_point()
            elif number == 0:
                queued = self.space.default()
        trial = self._started(lambda: self._begin(self._ask(number, queued)))
        del self._queued[:1]
        return trial

    def _ask(self, number: int, queued: dict[str, Any] | None) -> optuna.Trial:
        """The new trial of that number; the one that an attempt before this made, before the connection was lost."""
        self._study.sampler = make_sampler(self.config.sampler, self.config.seed, number, self._memory)
        there = self._stored(number)
        if there is not None and there.state == TrialState.RUNNING:
            return optuna.Trial(self._study, there._trial_id)
        if there is None and queued is not None:
            self._study.enqueue_trial(queued)
        elif there is None:  # none waits, for which ask() would look through all; the rest is as there
            self._study._thread_local.cached_all_trials = None
            return optuna.Trial(self._study, self._study._storage.create_new_trial(self._study._study_id))
        handle = self._study.ask()
        assert handle.number == number, "another process adds trials to this study"
        return handle

    def _stored(self, number: int) -> FrozenTrial | None:
        """A trial as the study has it, if it has; without a look at all the others."""
        storage = self._study._storage
        try:
            trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        except KeyError:
            return None
        return storage.get_trial(trial_id)

    def resume(self, number: int) -> Trial:
        """An unfinished trial, to go on. What a crash left unproposed or half reported is completed now."""
        return self._started(lambda: self._resume(number))

    def _started(self, begin: Callable[[], Trial]) -> Trial:
        """A trial that has begun, known here once it is in the study."""
        trial = self._store.lasting(begin)
        self.trials[trial.number] = trial
        return trial

    def _resume(self, number: int) -> Trial:
        frozen = self._stored(number)
        assert frozen is not None
        self._study.sampler = make_sampler(self.config.sampler, self.config.seed, number, self._memory)
        trial = self._begin(optuna.Trial(self._study, frozen._trial_id))
        for step, record in zip(_steps(trial.records), trial.records, strict=True):
            value = record.metrics.get(self.objective.metric)
            if value is not None and step not in frozen.intermediate_values:
                self._handles[number].report(value, step)
        return trial

    def report(self, number: int, *records: Record) -> tuple[Record, ...]:
        """Keep records of a running trial, in one piece; those that were new (a trial that goes on tells its past)."""
        trial = self.trials[number]
        known = len(trial.records)
        new = tuple(r for r in records if known == 0 or r.epoch > trial.records[-1].epoch)
        if not new:
            return ()
        times = _times(new, self.now())
        handle = self._handles[number]
        records = (*trial.records, *new)
        steps = _steps(records)

        def keep() -> None:
            for place, record, at in zip(range(known, len(records)), new, times, strict=True):
                # The record first: a value without its record would be taken for one that is known.
                handle.set_user_attr(f"record:{place:06d}", {**record.to_json(), "at": at})
                value = record.metrics.get(self.objective.metric)
                if value is not None:
                    handle.report(value, steps[place])

        self._store.lasting(keep)
        self.trials[number] = replace(trial, records=records, times=(*trial.times, *times))
        return new

    def complete(self, number: int) -> None:
        """Tell that a trial used its budget. Without any objective it has failed."""
        value = self.trials[number].value
        if value is None:
            self.fail(number, "ended without reporting " + self.objective.metric)
            return
        self._end(number, "complete", None, TrialState.COMPLETE, value)

    def prune(self, number: int, reason: str) -> None:
        """Tell that a trial was stopped at a rung."""
        self._end(number, "pruned", reason, TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """Tell that a trial crashed, or became non-finite."""
        self._end(number, "failed", reason, TrialState.FAIL)

    def checkpoint_path(self, number: int) -> Path:
        return checkpoint_path(self.config, number)

    def _begin(self, handle: optuna.Trial) -> Trial:
        params = self.space.walk(lambda name, known: _suggest(handle, name, known))
        numerics = asdict(self.config.numerics())
        handle.set_user_attr("numerics", numerics)
        if "started" not in handle.user_attrs:
            handle.set_user_attr("seed", derive_seed(self.config.seed, "trial", handle.number))
            handle.set_user_attr("started", time.time())
        self._handles[handle.number] = handle
        known = self.trials.get(handle.number)
        return Trial(
            number=handle.number,
            state="running",
            family=self.config.family,
            objective=self.objective,
            config=full_config(self.family, self.config, params),
            params=params,
            seed=handle.user_attrs["seed"],
            numerics=numerics,
            fingerprint=self.spec.fingerprint,
            records=known.records if known else (),
            times=known.times if known else (),
            started_s=handle.user_attrs["started"] - self.began,
            checkpoint=known.checkpoint if known else None,
        )

    def _end(self, number: int, state: State, reason: str | None, told: TrialState, value: float | None = None) -> None:
        now = time.time()
        handle = self._handles[number]

        def tell() -> None:
            # Only an attempt before this can have ended it: its answer was lost with the connection.
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                if reason is not None:
                    handle.set_user_attr("reason", reason)
                handle.set_user_attr("finished", now)
                self._study.tell(handle, value, told)

        self._store.lasting(tell)
        del self._handles[number]
        path = self.checkpoint_path(number)
        self.trials[number] = replace(
            self.trials[number],
            state=state,
            reason=reason,
            finished_s=now - self.began,
            checkpoint=path if path.exists() else None,
        )

    def _grid_left(self) -> list[dict[str, Any]]:
        """Grid points that no trial has; the default config comes first where it is one of them."""
        taken = [_key(trial.params) for trial in self.trials.values()]
        points = list(self.space.grid())
        default = _key(self.space.default())
        points.sort(key=lambda point: _key(point) != default)
        return [point for point in points if _key(point) not in taken]

    def _next_grid_point(self) -> dict[str, Any] | None:
        return self._left_grid.pop(0) if self._left_grid else None


def open_study(config: SearchConfig, family: Family[Any], spec: DataSpec) -> SearchStudy:
    """The study of a search, created where there is none. The caller holds the search's lock, and closes it.

    Raises:
        UserError: the images are not those that the search was begun with.
        SearchLockedError: another process runs the search.
        StorageError: the study cannot be read or written.
    """
    store = store_of(config.run_dir, config.study_url)
    attrs = {
        "began": time.time(),
        "data": spec.model_dump(mode="json"),
        "id": uuid.uuid4().hex,
        "versions": versions(),
        "config": config.to_json(),
    }
    study = store.open(NewStudy(config.name, "minimize" if family.objective.mode == "min" else "maximize", attrs))
    try:
        begun_with = study.user_attrs["data"]["fingerprint"]
        if begun_with != spec.fingerprint:
            raise UserError.of(
                "--dataset",
                f"{spec.source} ({spec.fingerprint[:12]})",
                f"the search {config.name!r} was begun with other images ({begun_with[:12]}); choose another name",
            )
        return SearchStudy(study, store, config, family, spec)
    except BaseException:
        store.close()
        raise


def search_id(study: optuna.Study) -> str:
    """Names a search among all others, wherever its folder is moved."""
    return str(study.user_attrs["id"])


def load_study(run_dir: Path) -> optuna.Study:
    """The study of the search in a folder, for reading.

    Raises:
        LatentuneError: there is none, or it is not a study of ours.
    """
    store = store_of(run_dir)
    study = store.load()
    if "config" not in study.user_attrs:
        raise LatentuneError(f"{store.shown} holds a study that latentune did not make")
    return study


def read_trials(study: optuna.Study, config: SearchConfig, family: Family[Any]) -> list[Trial]:
    """All trials of a study, in order of number."""
    attrs = study.user_attrs
    began, fingerprint = attrs["began"], attrs["data"]["fingerprint"]
    # One listing: in a bucket each question takes its time.
    kept = {path.parent.name: path for path in (config.run_dir / "trials").glob("*/checkpoint.pt")}
    trials = study.get_trials(deepcopy=False)
    return [
        _read_trial(frozen, config, family, began, fingerprint, kept.get(f"{frozen.number:04d}")) for frozen in trials
    ]


def checkpoint_path(config: SearchConfig, number: int) -> Path:
    """Where a trial's checkpoint is, or will be."""
    return config.run_dir / "trials" / f"{number:04d}" / "checkpoint.pt"


def full_config(family: Family[Any], config: SearchConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Defaults, fixed values and proposed ones: the config of a trial, field by field."""
    defaults = {name: info.get_default(call_default_factory=True) for name, info in family.Config.model_fields.items()}
    return {**defaults, **config.fixed, **params}


def _read_trial(
    frozen: FrozenTrial,
    config: SearchConfig,
    family: Family[Any],
    began: float,
    fingerprint: str,
    checkpoint: Path | None,
) -> Trial:
    attrs = frozen.user_attrs
    stored = [attrs[key] for key in sorted(key for key in attrs if key.startswith("record:"))]
    # Of one that a crash left half proposed, also what it was queued with: a grid point is taken from then on.
    params = {**frozen.system_attrs.get("fixed_params", {}), **frozen.params}
    return Trial(
        number=frozen.number,
        state=STATES[frozen.state],
        family=config.family,
        objective=family.objective,
        config=full_config(family, config, params),
        params=params,
        seed=attrs.get("seed", derive_seed(config.seed, "trial", frozen.number)),
        numerics=attrs.get("numerics", {}),
        fingerprint=fingerprint,
        records=tuple(Record(**{k: v for k, v in item.items() if k != "at"}) for item in stored),
        times=tuple(item["at"] for item in stored),
        reason=attrs.get("reason"),
        started_s=attrs["started"] - began if "started" in attrs else None,
        finished_s=attrs["finished"] - began if "finished" in attrs else None,
        checkpoint=checkpoint,
    )


def _suggest(handle: optuna.Trial, name: str, known: Range) -> Any:
    if isinstance(known, Choice):
        return handle.suggest_categorical(name, known.options)
    if isinstance(known, Int):
        return handle.suggest_int(name, known.low, known.high, log=known.log, step=known.step)
    return handle.suggest_float(name, known.low, known.high, log=known.log, step=known.step)


def _times(records: Sequence[Record], now: float) -> tuple[float, ...]:
    """When records were made that came together now: as far apart as by the trial's own clock.

    At least two milliseconds, as MLflow, which keeps whole ones, puts those of the same epoch in order by them.
    """
    times = [now]
    for later, earlier in pairwise([record.seconds for record in reversed(records)]):
        times.append(times[-1] - max(later - earlier, 0.002))
    return tuple(reversed(times))


def _steps(records: Sequence[Record]) -> list[int]:
    """Optuna's step of each report. The second of two within a thousandth of an epoch takes the next one."""
    steps: list[int] = []
    for record in records:
        steps.append(max(round(record.epoch * FIDELITY), steps[-1] + 1 if steps else 0))
    return steps


def _key(params: dict[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
