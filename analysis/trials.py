"""What an analysis of trials needs to know of them: any object with these attributes will do.

A search's own results have them. They are described here, and not imported, because analyses know nothing of how a
search is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from models.family import Objective, Record


class TrialView(Protocol):
    """One trial of a search."""

    @property
    def number(self) -> int:
        """From 0, in the order of proposal."""
        ...

    @property
    def state(self) -> str:
        """One of queued, running, interrupted, complete, pruned and failed."""
        ...

    @property
    def value(self) -> float | None:
        """The best objective so far; ``None`` where there is none yet."""
        ...

    @property
    def epochs(self) -> float:
        """Epochs trained and reported."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """The family's config, field by field, defaults and fixed values included."""
        ...

    @property
    def params(self) -> dict[str, Any]:
        """The part of the config that was proposed."""
        ...

    @property
    def records(self) -> Sequence[Record]:
        """Everything reported, in order of epochs."""
        ...

    @property
    def times(self) -> Sequence[float]:
        """For each record, seconds since the search began."""
        ...

    @property
    def curve(self) -> Sequence[tuple[float, float, float]]:
        """(epoch, objective, seconds since the search began) of each record that has an objective."""
        ...

    @property
    def reason(self) -> str | None:
        """Why it was pruned or failed."""
        ...

    @property
    def started_s(self) -> float | None:
        """Seconds since the search began."""
        ...

    @property
    def finished_s(self) -> float | None:
        """Seconds since the search began."""
        ...

    @property
    def checkpoint(self) -> Path | None:
        """The file with the weights of its best record; ``None`` where there is none yet."""
        ...


class SearchView(Protocol):
    """A search as it stands."""

    @property
    def name(self) -> str:
        """Which people gave it."""
        ...

    @property
    def objective(self) -> Objective:
        """What ranks its trials."""
        ...

    @property
    def trials(self) -> Sequence[TrialView]:
        """All of them, in order of their numbers."""
        ...

    @property
    def best(self) -> TrialView | None:
        """The complete trial with the best objective, if there is a complete one."""
        ...

    def leaderboard(self) -> Sequence[TrialView]:
        """Complete trials, best first."""
        ...
