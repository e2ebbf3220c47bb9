"""Where the study of a search is kept: a journal in its folder, or a database that the folder names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from models.errors import UserError
from models.places import is_url

if TYPE_CHECKING:
    import optuna

T = TypeVar("T")

JOURNAL_FILE = "study.journal"
ADDRESS_FILE = "study.json"
"""Says which database has the study."""


@dataclass(frozen=True)
class NewStudy:
    """What a study begins with.

    Args:
        attrs: user attributes, JSON values.
    """

    name: str
    direction: Literal["minimize", "maximize"]
    attrs: Mapping[str, Any]


class Store(Protocol):
    """A place for one study."""

    @property
    def shown(self) -> str:
        """The place, for messages."""

    def locked(self) -> AbstractContextManager[None]:
        """Hold the search for this process, where :meth:`open` does not do so by itself."""

    def open(self, new: NewStudy) -> optuna.Study:
        """The study, for the one process that writes it; made as ``new`` where there is none."""

    def load(self) -> optuna.Study:
        """The study, for reading."""

    def lasting(self, act: Callable[[], T]) -> T:
        """What ``act`` gives, through a time in which the place cannot be reached."""

    def close(self) -> None:
        """Let go of it."""


def store_of(run_dir: Path, study_url: str | None = None) -> Store:
    """The place of a search's study: where it is already, else in the database that is named, else in a journal.

    Args:
        study_url: a database; by default the one in the environment.

    Raises:
        UserError: the search has a journal, and a database was named; or a bucket, and none was.
    """
    from tuning.database import Database, database_url, stored_address
    from tuning.journal import Journal

    journal = run_dir / JOURNAL_FILE
    if journal.exists():
        if study_url is not None:
            has = f"the search {run_dir.name!r} has its study in {journal}; leave it out, or choose another name"
            raise UserError.of("--study-url", study_url, has)
        return Journal(journal)
    if stored_address(run_dir) is not None or database_url(study_url) is not None:
        return Database(run_dir, study_url)
    if is_url(run_dir):
        needs = "must be given, or LATENTUNE_STUDY_URL: a bucket can hold neither the study nor its lock"
        raise UserError.of("--study-url", None, needs)
    return Journal(journal)


def has_study(run_dir: Path) -> bool:
    """Whether a folder is that of a search."""
    return any((run_dir / file).exists() for file in (JOURNAL_FILE, ADDRESS_FILE))


def is_running(run_dir: Path) -> bool:
    """Whether some process runs the search now."""
    from tuning import database, lock

    return database.is_locked(run_dir) if (run_dir / ADDRESS_FILE).exists() else lock.is_held(run_dir)
