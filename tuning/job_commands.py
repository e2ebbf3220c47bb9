"""The commands for a cluster that somebody started: submit, jobs, logs, stop."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tuning.options import AsJson, pairs
from tuning.usage import Command

Address = Annotated[
    str | None,
    typer.Option("--address", help="Ray dashboard (default $RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, see `latentune jobs`.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    panel = "Run on a cluster"
    passed_on = {
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["-h", "--help"],
    }
    app.command(
        cls=Command,
        rich_help_panel=panel,
        context_settings=passed_on,
        epilog="Example:\n\nlatentune submit search conv_autoencoder --dataset mnist --name far --trials 100",
    )(submit)
    for command, example in (
        (jobs, "jobs"),
        (logs, "logs far-20261121-120000 --follow"),
        (stop, "stop far-20261121-120000"),
    ):
        app.command(cls=Command, rich_help_panel=panel, epilog=f"Example:\n\nlatentune {example}")(command)


def submit(
    words: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="What to run there.", show_default=False)],
    address: Address = None,
    working_dir: Annotated[Path, typer.Option(help="Folder to ship, for families of your own.")] = Path(),
    env: Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE for the job; no secrets.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow what it prints until it ends.")] = True,
) -> None:
    """Run a latentune command on a cluster: latentune submit search conv_autoencoder --dataset mnist --name cae.

    The same submit again continues the search of that --name.
    """
    from models.errors import ProblemCollector
    from tuning.jobs import Cluster, option

    problems = ProblemCollector()
    given = pairs(problems, "--env", env, "NAME=VALUE")
    if words[0] == "search" and not option(words, "--name"):
        problems.add("--name", None, "must be given, so that the same submit can continue the search")
    if not working_dir.is_dir():
        problems.add("--working-dir", str(working_dir), "must be a folder")
    problems.raise_if_any()
    cluster = Cluster(address)
    job = cluster.submit(words, working_dir.resolve(), given)
    print(job.id)
    if wait:
        ended = cluster.follow(job.id, sys.stderr.write)
        raise typer.Exit(0 if ended.status == "succeeded" else 1)


def jobs(address: Address = None, as_json: AsJson = False) -> None:
    """List the jobs that a cluster remembers, newest first."""
    from rich.console import Console
    from rich.table import Table

    from tuning.jobs import Cluster

    found = Cluster(address).jobs()
    if as_json:
        print(json.dumps([job.to_json() for job in found]))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("job", "status", "began", "command"):
        table.add_column(column, overflow="fold")
    for job in found:
        began = "" if job.started_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started_s))
        table.add_row(job.id, job.status, began, job.command)
    Console(markup=False).print(table)


def logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
) -> None:
    """Show what a job has printed."""
    from tuning.jobs import Cluster

    cluster = Cluster(address)
    if follow:
        cluster.follow(job, sys.stdout.write)
    else:
        sys.stdout.write(cluster.logs(job))


def stop(job: JobId, address: Address = None) -> None:
    """End a job cleanly: what its search has stays, and the same submit continues it."""
    from tuning.jobs import Cluster

    ended = Cluster(address).stop(job)
    print(f"{ended.id}: {ended.status}")
