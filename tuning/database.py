"""Studies in PostgreSQL: where one is, who runs it, and what happens while the server is away.

The connection that a driver writes through is its lock: each connection first takes an advisory lock on the study, so
nothing is ever written by a driver that does not hold it, and the server lets go of it when the driver dies.

Optuna keeps numbers, text and JSON in its tables, and nothing that is unpickled: a stranger's study cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from models.errors import LatentuneError, StorageError, UserError
from tuning.config import study_url_problem, without_password
from tuning.lock import SearchLockedError, driver_name
from tuning.store import ADDRESS_FILE

if TYPE_CHECKING:
    import optuna
    import psycopg

    from tuning.store import NewStudy

T = TypeVar("T")

VARIABLE = "LATENTUNE_STUDY_URL"

AWAY_S = 180.0
"""How long a search waits for a server that is away: time enough to start it again, or to move it elsewhere."""

PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Between attempts to reach it; the last one repeats."""

CONNECT = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
KEEPALIVE = "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
"""The server's side: it would hold the lock of a machine that is switched off for two hours."""

CREATION = "making"
"""Whoever makes tables or a study is alone in the database."""


@dataclass(frozen=True)
class Address:
    """Where a study is, as ``study.json`` in the run folder says it.

    Args:
        url: of the database, without a password.
        study: its name there: the search's, and an id, as many searches of a name may be in one database.
    """

    url: str
    study: str


def stored_address(run_dir: Path) -> Address | None:
    """Where the study of a search is; ``None`` where that is not a database.

    Raises:
        LatentuneError: the file is damaged.
    """
    path = run_dir / ADDRESS_FILE
    try:
        content = json.loads(path.read_text())
        return Address(content["url"], content["study"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise LatentuneError(f"{path} is damaged, and does not say where the study is") from error


def database_url(given: str | None = None) -> str | None:
    """The database that was named, in a setting or else in the environment.

    Raises:
        UserError: the environment names none that can be used.
    """
    url = given or os.environ.get(VARIABLE) or None
    if url is not None and (problem := study_url_problem(url)):
        raise UserError.of(VARIABLE, without_password(url), problem)
    return url


def is_locked(run_dir: Path) -> bool:
    """Whether some process runs the search in ``run_dir`` now, whose study is in a database.

    Raises:
        LatentuneError: the database does not answer.
    """
    address = stored_address(run_dir)
    assert address is not None
    url = database_url() or address.url
    with _told(url, LatentuneError), _connection(url) as connection:
        return _holder(connection, _key(address.study)) is not None


class Database:
    """The study of one search in a database, for reading or as its driver."""

    def __init__(self, run_dir: Path, url: str | None = None) -> None:
        """
        Args:
            url: by default the one in the environment, else the one that ``study.json`` has.

        Raises:
            UserError: a package that talks to the database is not installed.
        """
        self._run_dir = run_dir
        address = stored_address(run_dir)
        for package in ("psycopg", "sqlalchemy"):
            if find_spec(package) is None:
                needs = f"needs the package {package}: pip install 'latentune[postgres]'"
                raise UserError.of("--study-url", None, needs)
        wanted = database_url(url) or (None if address is None else address.url)
        assert wanted is not None, "store_of() comes first"
        self._url = wanted
        self._study = "" if address is None else address.study
        self._engine: Any = None

    @property
    def shown(self) -> str:
        return shown_url(self._url)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nothing: the connection that :meth:`open` makes is the lock."""
        yield

    def open(self, new: NewStudy) -> optuna.Study:
        """The study, to be written by this process alone; made where there is none.

        Raises:
            SearchLockedError: another process runs the search; the message names it.
            StorageError: the database does not answer, or refuses.
            LatentuneError: it does not hold the study, which was begun in another one.
        """
        import optuna
        from optuna.storages import RDBStorage

        with _told(self._url, StorageError):
            with _connection(self._url) as connection:
                connection.execute("SET lock_timeout = '60s'")
                connection.execute("SELECT pg_advisory_lock(%s)", (_key(CREATION),))
                storage = RDBStorage("postgresql+psycopg://", {"creator": self._connect, **_engine(readers=True)})
                address = stored_address(self._run_dir)  # as somebody else may have made it meanwhile
                self._study = self._make(storage, new) if address is None else address.study
            driver = {"creator": self._connect_and_lock, **_engine(readers=False)}
            # The check of the tables, which was made above, needs two connections.
            storage = RDBStorage("postgresql+psycopg://", driver, True, skip_table_creation=True)
            self._engine = storage.engine
            try:
                return optuna.load_study(study_name=self._study, storage=storage)
            except KeyError:
                raise LatentuneError(self._elsewhere()) from None

    def load(self) -> optuna.Study:
        """The study, for reading.

        Raises:
            LatentuneError: the database does not answer, or does not hold it.
        """
        import optuna
        from optuna.storages import RDBStorage

        with _told(self._url, LatentuneError):
            readers = {"creator": self._connect, **_engine(readers=True)}
            storage = RDBStorage("postgresql+psycopg://", readers, skip_table_creation=True)
            try:
                return optuna.load_study(study_name=self._study, storage=storage)
            except KeyError:
                raise LatentuneError(self._elsewhere()) from None

    def lasting(self, act: Callable[[], T]) -> T:
        """What ``act`` gives; while the server is away it is tried again, for :data:`AWAY_S`.

        ``act`` must bear to be done again from the beginning, also where it had done everything but return.

        Raises:
            StorageError: the server stays away, or refuses.
            SearchLockedError: meanwhile another process has taken the search.
        """
        began: float | None = None
        tries = 0
        while True:
            try:
                with _told(self._url, StorageError):
                    return act()
            except (_AwayError, SearchLockedError):  # its own old connection may hold the lock for a while
                began = began or time.monotonic()
                if time.monotonic() - began > AWAY_S:
                    raise
                time.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
                tries += 1

    def close(self) -> None:
        """Let go of the search."""
        if self._engine is not None:
            self._engine.dispose()

    def _make(self, storage: optuna.storages.RDBStorage, new: NewStudy) -> str:
        """A new study. The file that says where it is comes last: without it there is no search yet."""
        import optuna

        from models.checkpoint import write_atomically

        name = f"{new.name}-{uuid.uuid4().hex}"
        study = optuna.create_study(storage=storage, study_name=name, direction=new.direction)
        for key, value in new.attrs.items():
            study.set_user_attr(key, value)
        told = {"url": self.shown, "study": name}
        write_atomically(self._run_dir / ADDRESS_FILE, (json.dumps(told, indent=2) + "\n").encode())
        return name

    def _connect(self) -> psycopg.Connection[Any]:
        return _connect(self._url)

    def _connect_and_lock(self) -> psycopg.Connection[Any]:
        connection, key = _connect(self._url), _key(self._study)
        try:
            connection.autocommit = True
            connection.execute(KEEPALIVE)
            row = connection.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()
            assert row is not None
            if not row[0]:
                who = _holder(connection, key) or "by a process that has just ended; try again"
                raise SearchLockedError(f"the search {self._run_dir.name!r} is already running: {who}")
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        return connection

    def _elsewhere(self) -> str:
        address = stored_address(self._run_dir)
        begun = "" if address is None else f", which was begun in {address.url}"
        return f"{self.shown} does not hold the study of {self._run_dir.name!r}{begun}"


def shown_url(url: str) -> str:
    """A database's address as it may be shown and stored: with the user, but no password."""
    url = re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1@", url)
    address, _, query = url.partition("?")
    kept = [item for item in query.split("&") if item and "pass" not in item.partition("=")[0]]
    return address + ("?" + "&".join(kept) if kept else "")


class _AwayError(StorageError):
    """The server cannot be reached, or has just gone."""


@contextmanager
def _told(url: str, kind: type[LatentuneError]) -> Iterator[None]:
    """Errors of the database as ``kind``, and :class:`_AwayError` where trying again may help."""
    import psycopg
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError, psycopg.Error) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        if isinstance(cause, sqlalchemy.exc.DBAPIError):
            cause = cause.orig
        lines = without_password(str(cause)).strip().splitlines() or [type(cause).__name__]
        # The last is how SQLAlchemy speaks of a connection that it lost in the middle of a transaction.
        gone = psycopg.OperationalError | psycopg.InterfaceError | sqlalchemy.exc.PendingRollbackError
        away = isinstance(cause, gone)
        kind = _AwayError if away and kind is StorageError else kind
        raise kind(f"the database {shown_url(url)} cannot be used: {lines[0]}") from error
    except RuntimeError as error:  # tables of another version of Optuna
        raise kind(f"the database {shown_url(url)} cannot be used: {str(error).splitlines()[0]}") from error


def _engine(*, readers: bool) -> dict[str, Any]:
    """Readers keep no connection. A driver has one, which is its lock, and asks it first whether it is alive."""
    from sqlalchemy.pool import NullPool

    return {"poolclass": NullPool} if readers else {"pool_size": 1, "max_overflow": 0, "pool_pre_ping": True}


def _connect(url: str) -> psycopg.Connection[Any]:
    import psycopg

    # 63 bytes; seen in pg_stat_activity by whoever is refused.
    return psycopg.connect(url, application_name=driver_name()[:63], **CONNECT)  # type: ignore[arg-type]


@contextmanager
def _connection(url: str) -> Iterator[psycopg.Connection[Any]]:
    connection = _connect(url)
    try:
        connection.autocommit = True
        yield connection
    finally:
        with suppress(Exception):
            connection.close()


def _key(what: str) -> int:
    """The advisory lock of a study: 64 bits, signed."""
    return int.from_bytes(hashlib.sha256(f"latentune {what}".encode()).digest()[:8], signed=True)


def _holder(connection: psycopg.Connection[Any], key: int) -> str | None:
    """Who holds a lock."""
    row = connection.execute(
        "SELECT l.pid, a.application_name, a.backend_start FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) "
        "WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.classid::bigint = %s "
        "AND l.objid::bigint = %s AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        ((key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF),
    ).fetchone()
    if row is None:
        return None
    pid, name, since = row
    if not name:
        return f"connection {pid} of the database"
    return f"{name}" + (f", since {since:%Y-%m-%d %H:%M:%S}" if since is not None else "")
