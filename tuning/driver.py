"""The driver of a search: what happens between Ray Tune's events and the study.

Knows neither Ray nor Optuna. Ray Tune asks it for trials and shows it what workers send; it keeps the study, applies
the stopping rule and tells the listeners.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from models.errors import StorageError
from models.family import Record
from tuning.results import Outcome, Trial
from tuning.stopping import make_rule
from tuning.study import SearchStudy


class Listener(Protocol):
    """Something that shows or tracks a search. Called on the driver's loop: must return at once and never raise."""

    def trial_changed(self, trial: Trial) -> None:
        """A trial was proposed, reported or ended; ``trial`` is how it stands now."""


@dataclass(frozen=True)
class Message:
    """What a worker sends: records, and whether and how the trial ended.

    ``storage`` means that the worker could not write its checkpoint; the trial is not to blame and stays unfinished.
    """

    records: tuple[Record, ...]
    state: Literal["running", "complete", "failed", "storage"] = "running"
    reason: str | None = None

    def to_json(self) -> str:
        return json.dumps({"records": [r.to_json() for r in self.records], "state": self.state, "reason": self.reason})

    @classmethod
    def from_json(cls, text: str) -> Message:
        content: dict[str, Any] = json.loads(text)
        return cls(tuple(Record(**r) for r in content["records"]), content["state"], content["reason"])


class Driver:
    """Proposes trials up to the search's total, receives what they report, and decides when the run is over."""

    def __init__(
        self, study: SearchStudy, listeners: Sequence[Listener], max_concurrent: int, deadline: float | None
    ) -> None:
        self.study, self.max_concurrent, self.deadline = study, max_concurrent, deadline
        self._listeners = listeners
        # Verdicts that an earlier run died on, after the report and before its trial was told to have stopped.
        self._overdue: dict[int, str | None] = {}
        self._rule = make_rule(study.config, study.objective, study.trials.values(), self._overdue)
        self._unfinished = study.unfinished()
        self._live: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self.signal: int | None = None
        self.error: Exception | None = None

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        # Ray Tune pickles what it works with, for a restore that we never do.
        return object, ()

    def interrupt(self, signal: int) -> None:
        """Ask for a clean stop; safe in a signal handler."""
        self.signal = signal

    def abort(self, error: Exception) -> None:
        """End the run with an error that is not a trial's own, such as a full disk."""
        self.error = self.error or error

    @property
    def stopping(self) -> bool:
        """Whether the run is to end now, leaving live trials unfinished."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return self.signal is not None or late or self.error is not None

    @property
    def finished(self) -> bool:
        """Whether the search has all of its trials, ended."""
        ended = sum(trial.finished_s is not None for trial in self.study.trials.values())
        return not self._live and not self._unfinished and ended >= self.study.total

    @property
    def outcome(self) -> Outcome:
        if self.finished:
            return "finished"
        return "interrupted" if self.signal is not None else "time budget"

    @property
    def full(self) -> bool:
        """Whether as many trials are live as may be."""
        return len(self._live) >= self.max_concurrent

    @property
    def waiting(self) -> bool:
        """Whether live trials are awaited, one of which may have to be begun again."""
        return bool(self._live) and not self.stopping

    def next_trial(self) -> Trial | None:
        """The next trial to run, first those that an earlier run left; ``None`` where there are no more."""
        if self.stopping:
            return None
        if self._unfinished:
            trial: Trial | None = self.study.resume(self._unfinished.pop(0).number)
        else:
            trial = self.study.propose()
        if trial is not None:
            self._live.add(trial.number)
            self._tell(trial.number)
        return trial

    def receive(self, number: int, message: Message) -> bool:
        """Keep what a worker sent; whether its trial should stop now."""
        if number not in self._live or self.error is not None:
            return True
        stop = self._overdue.pop(number, None)
        for record in self.study.report(number, *message.records):
            value = record.metrics.get(self.study.objective.metric)
            if value is not None:
                verdict = self._rule.observe(number, record.epoch, value)
                stop = stop or verdict
        if message.state == "storage":
            self.abort(StorageError(message.reason))
            return True
        if message.state == "complete":  # with nothing left to save, whatever the rule says
            self.study.complete(number)
        elif message.state == "failed":
            self.study.fail(number, message.reason or "no reason given")
        elif stop is not None:
            self.study.prune(number, stop)
        ended = message.state != "running" or stop is not None
        if ended:
            self._live.discard(number)
        self._tell(number)
        return ended

    def lost(self, number: int, reason: str, *, counts: bool = True) -> None:
        """A trial's worker died. It goes on from its checkpoint with another one, unless that happened too often.

        Args:
            counts: whether the trial may be to blame; it is not where a whole node was lost.
        """
        if number not in self._live or self.stopping:
            return
        self._deaths[number] += counts
        if self._deaths[number] > self.study.config.max_failures:
            self.give_up(number, f"its worker died {self._deaths[number]} times: {reason}")
        else:
            self._live.discard(number)
            self._unfinished.append(self.study.trials[number])

    def give_up(self, number: int, reason: str) -> None:
        """Fail a live trial; whatever its worker still sends is not heard."""
        if number in self._live and not self.stopping:
            self._live.discard(number)
            self.study.fail(number, reason)
            self._tell(number)

    def _tell(self, number: int) -> None:
        for listener in self._listeners:
            listener.trial_changed(self.study.trials[number])
