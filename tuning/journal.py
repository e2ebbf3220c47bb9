"""Studies in a journal: one file of JSON lines in the run folder, written by one process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from models.errors import LatentuneError, StorageError
from tuning.lock import search_lock
from tuning.store import NewStudy

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Journal:
    """The study of one search in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def shown(self) -> str:
        return str(self._path)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the search for this process.

        Raises:
            SearchLockedError: another process holds it.
        """
        return search_lock(self._path.parent)

    def open(self, new: NewStudy) -> optuna.Study:
        """The study, made where there is none. The caller holds the search's lock.

        Raises:
            StorageError: the journal cannot be read or written.
        """
        path = self._path
        try:
            # Only the search's driver writes, and we are it: a lock left behind by a killed one would cost 30 seconds.
            with suppress(FileNotFoundError):
                Path(f"{path}.lock").unlink()
            _cut_partial_line(path)
            if not path.exists():
                _create(path, new)
            return optuna.load_study(storage=_storage(path), study_name=None)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error

    def load(self) -> optuna.Study:
        """The study, for reading.

        Raises:
            LatentuneError: there is none.
        """
        path = self._path
        if not path.is_file() or path.stat().st_size == 0:
            raise LatentuneError(f"{path.parent} holds no search")
        try:
            return optuna.load_study(storage=_storage(path), study_name=None)
        except (OSError, ValueError, KeyError) as error:
            raise LatentuneError(f"{path} cannot be read as a study: {error}") from error

    def lasting(self, act: Callable[[], T]) -> T:
        """What ``act`` gives, at once: a file is there, or not.

        Raises:
            StorageError: the journal cannot be written.
        """
        try:
            return act()
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Nothing: no file stays open."""


def _create(path: Path, new: NewStudy) -> None:
    """Make the journal of a new search. It appears whole: half of one could be neither read nor continued."""
    draft = path.with_suffix(".new")
    for left in (draft, Path(f"{draft}.lock")):
        left.unlink(missing_ok=True)
    study = optuna.create_study(storage=_storage(draft), study_name=new.name, direction=new.direction)
    for key, value in new.attrs.items():
        study.set_user_attr(key, value)
    draft.replace(path)


def _storage(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def _cut_partial_line(path: Path) -> None:
    """Drop a last line that a full disk or a power cut left unfinished: nothing behind it could be read any more."""
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        logger.warning("%s: dropped %d bytes of an unfinished entry at its end", path, len(content) - end)
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
