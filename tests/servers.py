"""Real servers for tests, each in processes of its own, on a free port of the loopback address."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

START_S = 120.0

PASSWORD = "Gr8-secret-Wort"
"""Of the database's owner. Where it may not be found, it is looked for."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(holds: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    began = time.monotonic()
    while not holds():
        assert process.poll() is None, f"ended at once: {log.read_text()}"
        assert time.monotonic() - began < START_S, f"did not come up: {log.read_text()}"
        time.sleep(0.1)


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


@dataclass
class Postgres:
    """A PostgreSQL server of the machine's packages, with a folder of its own."""

    folder: Path
    binaries: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def _owner(self) -> str | None:
        """The server refuses to run as root."""
        return "postgres" if os.geteuid() == 0 else None

    def url(self, database: str, *, password: bool = True) -> str:
        secret = f":{PASSWORD}" if password else ""
        return f"postgresql://keeper{secret}@127.0.0.1:{self.port}/{database}"

    def make(self) -> None:
        if self._owner is not None:
            shutil.chown(self.folder, self._owner)
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        options = ("-U", "keeper", "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync", "-E", "UTF8")
        subprocess.run(
            [str(self.binaries / "initdb"), "-D", str(self.folder / "data"), *options],
            check=True,
            capture_output=True,
            user=self._owner,
            cwd=self.folder,
        )
        secret.unlink()

    def start(self) -> None:
        log = self.folder / "log"
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *options],
                stdout=out,
                stderr=out,
                user=self._owner,
                cwd=self.folder,
                start_new_session=True,
            )
        wait_for(self._answers, self.process, log)

    def _answers(self) -> bool:
        ready = [str(self.binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0

    def stop(self) -> None:
        """As an administrator does who does not wait for those who are connected."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(START_S)
            self.process = None

    def create(self, database: str) -> str:
        """A new database; its address."""
        self.ask("postgres", f'CREATE DATABASE "{database}"')
        return self.url(database)

    def ask(self, database: str, query: str) -> list[tuple[object, ...]]:
        """What a query gives."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def dump(self, database: str) -> str:
        """All that is in a database, as text."""
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        command = [str(self.binaries / "pg_dump"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "keeper", database]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def _postgres_binaries() -> Path | None:
    found = [Path(path).parent for path in (shutil.which("postgres"), shutil.which("pg_ctl")) if path]
    with suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True)
        found.append(Path(asked.stdout.strip()))
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found += [Path(path).parent for path in [shutil.which("postgres")] if path]
    needed = ("initdb", "postgres", "pg_isready", "pg_dump")
    return next((folder for folder in found if all((folder / name).exists() for name in needed)), None)


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server for the length of the block; skips the test where there is none to be had."""
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL's server (Debian: apt-get install postgresql)")
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    with tempfile.TemporaryDirectory(prefix="latentune-pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder), binaries, free_port())
        server.make()
        try:
            server.start()
            yield server
        finally:
            server.stop()


# --- S3 --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bucket:
    """A bucket on an S3-compatible server.

    Attributes:
        url: ``s3://…``.
        environment: leads whoever has it to the server.
    """

    url: str
    environment: dict[str, str]


@contextmanager
def s3_server(bucket: str = "latentune-test") -> Iterator[Bucket]:
    """An S3-compatible server with one empty bucket, for the length of the block."""
    port = free_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with tempfile.TemporaryDirectory(prefix="latentune-s3-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            server = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                stdout=out,
                stderr=out,
                cwd=folder,
                start_new_session=True,
            )

        def answers() -> bool:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
                return True
            return False

        try:
            wait_for(answers, server, log)
            make = urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT")
            urllib.request.urlopen(make, timeout=30).close()
            yield Bucket(f"s3://{bucket}", environment)
        finally:
            server.terminate()
            server.wait(START_S)
