"""Studies in a journal: one file of JSON lines in the run folder, written by one process."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from models.errors import LatentuneError, StorageError
from tuning.lock import search_lock
from tuning.store import NewStudy

T = TypeVar("T")

logger = logging.getLogger(__name__)


class OneWriter(BaseJournalBackend):
    """The file of a study that this process alone changes, in Optuna's format.

    Optuna's own backend opens, locks and syncs the file for every value that is told, some twenty times a trial, and
    opens it again for every question. Here what is told :meth:`together` is one write and one sync, and questions are
    answered from memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes = 0  # of the file, as far as it was read or written here
        self._new: list[dict[str, Any]] = []  # that the storage has not asked for yet
        self._lines: list[str] | None = None  # told, to be written; None outside of `together`
        self._error: OSError | None = None

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """What was told since the storage asked last, which is where ``log_number_from`` always is."""
        if self._lines is None:
            self._read()
        new, self._new = self._new, []
        return iter(new)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._lines is None:
            with self.together():
                self.append_logs(logs)
            return
        for log in logs:
            line = json.dumps(log, separators=(",", ":"))
            self._lines.append(line)
            self._new.append(json.loads(line))  # as whoever reads the file will see it

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is told inside reaches the disk at the end, in one piece.

        Raises:
            OSError: it could not be written, or an earlier piece could not. Nothing is written from then on: memory is
                ahead of the file, and what would follow might build on what the file lacks.
        """
        if self._error is not None:
            raise self._error
        self._read()  # before: what somebody else may have added, such as a note, stands before ours in the file
        self._lines = []
        try:
            yield
        finally:
            lines, self._lines = self._lines, None
            if lines:
                self._write("".join(f"{line}\n" for line in lines).encode())

    def _read(self) -> None:
        if self._path.stat().st_size == self._bytes:
            return
        with self._path.open("rb") as file:
            file.seek(self._bytes)
            for line in file:
                if not line.endswith(b"\n"):  # still being written
                    break
                self._new.append(json.loads(line))
                self._bytes += len(line)

    def _write(self, content: bytes) -> None:
        try:
            with self._path.open("ab", buffering=0) as file:
                start = file.seek(0, os.SEEK_END)
                left = memoryview(content)
                try:
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(start)  # all or nothing; a full disk leaves room for that
                    raise
                self._bytes = file.tell()
        except OSError as error:
            self._error = error
            raise


class Journal:
    """The study of one search in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: OneWriter | None = None

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
            self._writer = OneWriter(path)
            return optuna.load_study(storage=JournalStorage(self._writer), study_name=None)
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
        """What ``act`` gives, at once: a file is there, or not. What it tells is on the disk when it returns.

        Raises:
            StorageError: the journal cannot be written.
        """
        assert self._writer is not None, "open() comes first"
        try:
            with self._writer.together():
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
