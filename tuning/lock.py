"""One driver a search: a lock in its folder, with the owner's name for whoever comes second."""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from models.errors import LatentuneError


class SearchLockedError(LatentuneError):
    """Another process runs the search; the message names it."""


@contextmanager
def search_lock(run_dir: Path) -> Iterator[None]:
    """Hold the search in ``run_dir`` for this process. The kernel lets go of it if the process dies.

    Raises:
        SearchLockedError: another process holds it.
    """
    lock, owner = FileLock(run_dir / "search.lock"), run_dir / "search.owner.json"
    try:
        lock.acquire(timeout=0.5)  # somebody who only looks holds it for an instant
    except Timeout:
        raise SearchLockedError(f"the search {run_dir.name!r} is already running: {_describe(owner)}") from None
    try:
        me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "user": _user(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        owner.write_text(json.dumps(me))
        yield
    finally:
        with suppress(OSError):
            owner.unlink()
        lock.release()


def is_held(run_dir: Path) -> bool:
    """Whether some process holds the lock of the search in ``run_dir`` now."""
    lock = FileLock(run_dir / "search.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that we may read but not write cannot be ours to run
        return False
    lock.release()
    return False


def _describe(owner: Path) -> str:
    try:
        known = json.loads(owner.read_text())
        return f"process {known['pid']} of {known['user']} on {known['host']}, since {known['since']}"
    except (OSError, ValueError, KeyError):
        return f"by a process that left no name in {owner}"


def driver_name() -> str:
    """This process, as it is shown to whoever wants the same search."""
    return f"process {os.getpid()} of {_user()} on {socket.gethostname()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        return f"uid {os.getuid()}"
