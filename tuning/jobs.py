"""Searches as jobs of a Ray cluster: Ray's Jobs API under our words.

A job is one run of the ``latentune`` command on the cluster's head node. Its id begins with the search's name, by which
a second run of a search that is not over is refused; the same submit later continues it.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from models.errors import LatentuneError, UserError, did_you_mean

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"

STOP_SECONDS = 120
"""How long a search that is told to stop may take to end cleanly before it is killed; Ray's own 3 s are too few."""

READY_SECONDS = 60
"""How long a submit waits for a cluster that has just been started."""

EXCLUDED = (
    ".git",
    ".venv",
    "venv",
    "runs",
    "data",
    "mlruns",
    "mlartifacts",
    "**/__pycache__",
    "**/.ipynb_checkpoints",
    "**/*.pt",
    "**/*.npz",
    "**/*.egg-info",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
)
"""What is left behind of the working directory; besides this Ray leaves out what ``.gitignore`` does."""

LARGEST_UPLOAD = 64 * 2**20
"""Bytes of a working directory above which a submit is refused: it holds data, or a run."""

STOPPED = frozenset({JobStatus.SUCCEEDED, JobStatus.STOPPED, JobStatus.FAILED})


@dataclass(frozen=True)
class Job:
    """A run of the command on the cluster.

    Args:
        id: names it in ``logs`` and ``stop``.
        status: ``pending``, ``running``, ``succeeded``, ``failed`` or ``stopped``.
        command: what runs.
        started_s, ended_s: seconds since 1970; ``None`` where it has not.
        message: Ray's, of how it stands.
    """

    id: str
    status: str
    command: str
    started_s: float | None
    ended_s: float | None
    message: str

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "status": self.status,
            "command": self.command,
            "started_s": self.started_s,
            "ended_s": self.ended_s,
            "message": self.message,
        }


class Cluster:
    """The Jobs API of one cluster."""

    def __init__(self, address: str | None = None) -> None:
        """Connect.

        Args:
            address: of the dashboard, as ``http://127.0.0.1:8265``; by default ``$RAY_API_SERVER_ADDRESS``, else that.

        Raises:
            UserError: nothing answers there, or it wants a token.
        """
        self.address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        try:
            self._client = JobSubmissionClient(self.address, headers=_headers())
        except AuthenticationError as error:
            raise UserError.of(
                "--address",
                self.address,
                f"{error.message.splitlines()[0]}; the cluster's token stands in ~/.ray/auth_token of whoever started "
                "it and of its head (ray get-auth-token prints it): put it into that file here, or into RAY_AUTH_TOKEN",
            ) from error
        except Exception as error:  # no route, no server, a page of something else
            hint = "; is the cluster up, and its port forwarded (ray dashboard cluster.yaml)?"
            raise UserError.of("--address", self.address, f"no Ray dashboard answers there ({error}){hint}") from error

    def submit(self, words: Sequence[str], folder: Path, env: dict[str, str]) -> Job:
        """Start ``latentune`` with ``words`` on the head node, in a copy of ``folder``.

        Args:
            env: environment of the job, such as where runs are kept. Secrets do not belong here: whoever reads the
                cluster's dashboard reads them.

        Raises:
            UserError: the folder is too large to ship, or a run of this search is not over yet.
        """
        size = upload_size(folder)
        if size > LARGEST_UPLOAD:
            raise UserError.of(
                "--working-dir",
                str(folder),
                f"has {size / 2**20:.0f} MiB to ship, more than {LARGEST_UPLOAD >> 20}; keep data and runs elsewhere, "
                "or name a smaller folder",
            )
        name = option(words, "--name")
        running = [job for job in self.jobs() if job.status in ("pending", "running") and job.id.startswith(f"{name}-")]
        if name and running:
            raise UserError.of("--name", name, f"is running already, as the job {running[0].id}")
        ask = partial(
            self._client.submit_job,
            entrypoint=shlex.join(["latentune", *words]),
            submission_id=f"{name or words[0]}-{time.strftime('%Y%m%d-%H%M%S')}",
            runtime_env={
                "working_dir": str(folder),
                "excludes": list(EXCLUDED),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **env},
            },
        )
        given = self._call(lambda: _once_ready(ask))
        return self.job(given)

    def jobs(self) -> list[Job]:
        """All jobs that the cluster remembers, newest first."""
        found = self._call(self._client.list_jobs)
        return sorted((_job(one) for one in found if one.submission_id), key=lambda job: -(job.started_s or 0))

    def job(self, job_id: str) -> Job:
        """One job.

        Raises:
            UserError: there is none of that id; the message names those that there are.
        """
        known = {job.id: job for job in self.jobs()}
        if job_id not in known:
            raise UserError.of("JOB", job_id, did_you_mean(job_id, known))
        return known[job_id]

    def logs(self, job_id: str) -> str:
        """What a job has printed so far."""
        self.job(job_id)
        return str(self._call(lambda: self._client.get_job_logs(job_id)))

    def follow(self, job_id: str, write: Callable[[str], object]) -> Job:
        """Hand what a job prints to ``write``, until it ends; how it ended."""
        self.job(job_id)

        async def tail() -> None:
            async for piece in self._client.tail_job_logs(job_id):
                write(piece)

        self._call(lambda: asyncio.run(tail()))
        while (job := self.job(job_id)).status in ("pending", "running"):
            time.sleep(0.5)
        return job

    def stop(self, job_id: str, *, wait: bool = True) -> Job:
        """Ask a job to end cleanly, as SIGTERM does: what a search has stays, and the same submit continues it."""
        self.job(job_id)
        self._call(lambda: self._client.stop_job(job_id))
        while wait and (job := self.job(job_id)).status in ("pending", "running"):
            time.sleep(0.5)
        return job if wait else self.job(job_id)

    def _call(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (RuntimeError, OSError) as error:
            told = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise LatentuneError(f"the cluster at {self.address} refused: {told}") from error


def _once_ready(ask: Callable[[], str]) -> str:
    """Ask again while the head answers but has not started what runs jobs: it is up some seconds before that is."""
    began = time.monotonic()
    while True:
        try:
            return ask()
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() - began > READY_SECONDS:
                raise
        time.sleep(1)


def _headers() -> dict[str, str]:
    """How to show oneself: by the token, from where Ray looks for one; it sends none unless its mode is "token"."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        with suppress(OSError):
            token = path.read_text().strip()
    return {"authorization": f"Bearer {token}"} if token else {}


def upload_size(folder: Path) -> int:
    """Bytes of ``folder`` that a submit would ship, near enough: without what :data:`EXCLUDED` names."""
    total = 0
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _excluded(name, Path(place) == folder)]
        total += sum((Path(place) / name).lstat().st_size for name in files if not name.endswith((".pt", ".npz")))
    return total


def _excluded(name: str, at_top: bool) -> bool:
    anywhere = name.endswith(".egg-info") or f"**/{name}" in EXCLUDED
    return anywhere or (at_top and name in EXCLUDED)


def option(words: Sequence[str], name: str) -> str | None:
    """The value of ``--name VALUE`` or ``--name=VALUE`` among the words of a command."""
    for i, word in enumerate(words):
        if word == name and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _job(details: JobDetails) -> Job:
    def seconds(millis: int | None) -> float | None:
        return None if millis is None else millis / 1000

    return Job(
        id=str(details.submission_id),
        status=str(details.status.value).lower(),
        command=details.entrypoint,
        started_s=seconds(details.start_time),
        ended_s=seconds(details.end_time),
        message=(details.message or "").strip(),
    )
