"""MLflow as a mirror of the study, written by a thread of the driver.

The thread compares what MLflow has of a trial with how the trial stands, and sends the difference. Whatever could not
be sent, because MLflow was slow, down, or the driver died, is still a difference afterwards, and goes out later or when
the search is continued. A run notes in a tag how many records it has, in the same call that sends them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tuning.config import without_password
from tuning.mirror import Mirror
from tuning.results import Trial

if TYPE_CHECKING:
    from models.datasets import TrainingData
    from tuning.study import SearchStudy

logger = logging.getLogger(__name__)

GATHER_S = 0.5
"""Pause between two rounds of sending, in which changes of the same trial add up to one call."""

FIRST_WAIT_S = 15.0
"""How long MLflow is left alone before a trial has reported: loading it would slow down the start of the workers."""

AT_A_TIME = 10
"""Trials that are sent in one piece. In a database without a server others who want to write wait as long."""

RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses after one, two, … failures in a row."""

STUCK_S, LONGEST_FLUSH_S = 20.0, 120.0
"""How long the end of a search waits for MLflow: without any progress, and in all. A database's tables may have to be
made first, which takes long on a busy machine: for one that is written without a server only the second counts."""


class Tracker(Protocol):
    """What the search needs of a tracker."""

    @property
    def run(self) -> dict[str, str] | None:
        """``tracking_uri``, ``experiment`` and ``run_id`` of the parent run, once it is known."""

    def trial_changed(self, trial: Trial) -> None:
        """Note how a trial stands; returns at once."""

    def close(self, trials: Sequence[Trial], pictures: Sequence[Path]) -> list[str]:
        """Send what is left, within bounds; what could not be sent is told in the returned warnings."""


class NoTracker:
    """Tracking switched off."""

    run: dict[str, str] | None = None

    def trial_changed(self, trial: Trial) -> None:
        """Nothing."""

    def close(self, trials: Sequence[Trial], pictures: Sequence[Path]) -> list[str]:
        return []


def make_tracker(study: SearchStudy, images: TrainingData | None = None) -> Tracker:
    """The tracker that the study's config asks for, at work; with ``images`` it shows what trials make of them."""
    uri = study.config.mlflow_uri
    return NoTracker() if uri is None else MlflowTracker(uri, study, images)


class MlflowTracker:
    """Keeps one parent run and one child run a trial in step with the study."""

    def __init__(self, uri: str, study: SearchStudy, images: TrainingData | None = None) -> None:
        self._study = study
        self._mirror = Mirror(uri, study.config, study.objective, study.spec, study.id, study.began, images)
        self._lock = threading.Condition()
        self._waiting: dict[int, Trial] = {t.number: t for t in study.ordered() if t.state != "queued"}
        self._taken: dict[int, Trial] = {}
        self._pictures: Sequence[Path] = ()
        self._closing = self._over = False
        self._progress = time.monotonic()
        self._problem = ""
        self._thread = threading.Thread(target=self._work, name="latentune-mlflow", daemon=True)
        self._thread.start()

    @property
    def run(self) -> dict[str, str] | None:
        return self._mirror.run

    def trial_changed(self, trial: Trial) -> None:
        with self._lock:
            self._waiting[trial.number] = trial
            self._lock.notify()

    def close(self, trials: Sequence[Trial], pictures: Sequence[Path]) -> list[str]:
        with self._lock:
            for trial in trials:
                if trial.state == "running":
                    self._waiting[trial.number] = replace(trial, state="interrupted")
            self._over = sum(trial.finished_s is not None for trial in trials) >= max(self._study.total, len(trials))
            self._pictures, self._closing = pictures, True
            self._progress = began = time.monotonic()
            self._lock.notify()
        while self._thread.is_alive():
            self._thread.join(0.1)
            now = time.monotonic()
            stuck = self._mirror.uri.startswith(("http:", "https:")) and now - self._progress > STUCK_S
            if stuck or now - began > LONGEST_FLUSH_S:
                break
        if not self._thread.is_alive() and not self._problem:
            return []
        with self._lock:
            left = len({*self._waiting, *self._taken})
        return [
            f"MLflow at {self._mirror.shown_uri} has not received {left or 'some of the'} trials"
            f" ({self._problem or 'too slow'}); they are in the study, and the same command sends them"
        ]

    def _work(self) -> None:
        failures = 0
        with self._lock:
            self._lock.wait_for(self._worth_it, timeout=FIRST_WAIT_S)
        while True:
            with self._lock:
                while not (self._waiting or self._closing):
                    self._lock.wait()
                self._taken, self._waiting, closing = self._waiting, {}, self._closing
            try:
                self._mirror.connect()
                left = sorted(self._taken)
                while left:
                    some, left = left[:AT_A_TIME], left[AT_A_TIME:]
                    self._mirror.send_all([self._taken[number] for number in some], together=not failures)
                    with self._lock:
                        for number in some:
                            del self._taken[number]
                    self._progress = time.monotonic()
                self._mirror.tell_best()
                self._mirror.send_snapshots()
                self._progress = time.monotonic()
                if closing:
                    self._mirror.end(self._pictures, self._over)
                failures, self._problem = 0, ""
                if closing:
                    return
                self._pause(GATHER_S)
            except Exception as error:
                # Anything at all: a server's 500, a locked database, no route. The mirror finds out anew what is there.
                failures += 1
                self._problem = " ".join(without_password(str(error)).split())[:200] or type(error).__name__
                logger.debug("MLflow: %s", self._problem)
                self._mirror.disconnect()
                with self._lock:
                    self._waiting, self._taken = {**self._taken, **self._waiting}, {}
                if closing and failures >= 3:
                    return
                self._pause(RETRY_S[min(failures, len(RETRY_S)) - 1])

    def _worth_it(self) -> bool:
        """Whether there is something to tell besides that trials wait for their workers."""
        return self._closing or any(trial.records or trial.reason for trial in self._waiting.values())

    def _pause(self, seconds: float) -> None:
        with self._lock:
            if not self._closing:
                self._lock.wait_for(lambda: self._closing, timeout=seconds)
