"""The commands that open a window on searches: MLflow's UI, Optuna Dashboard."""

from __future__ import annotations

from typing import Annotated

import typer

from tuning.options import RUNS, RunsDir, SearchName, searches
from tuning.usage import Command
from tuning.waiting import say

Port = Annotated[int, typer.Option("--port", help="Port to listen on.", min=1, max=65535)]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser where there is one.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(cls=Command, epilog="Examples:\n\nlatentune ui\n\nlatentune ui first --port 5001 --no-browser")(ui)
    app.command(cls=Command, epilog="Example:\n\nlatentune dashboard first")(dashboard)


def ui(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Open this search (default all).", show_default=False, autocompletion=searches
        ),
    ] = None,
    runs_dir: RunsDir = RUNS,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow database to show (default the one in runs-dir).")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback opens it to others.")
    ] = "127.0.0.1",
    port: Port = 5000,
    browser: Browser = True,
) -> None:
    """Open MLflow's UI on the searches in a folder; Ctrl-C ends it."""
    from tuning.ui import serve

    raise typer.Exit(serve(runs_dir, tracking_uri, host, port, say, name=name, browser=browser))


def dashboard(
    name: SearchName,
    runs_dir: RunsDir = RUNS,
    port: Port = 8080,
    browser: Browser = True,
) -> None:
    """Open Optuna Dashboard on a search, also while it runs, for looking only; Ctrl-C ends it.

    Needs the extra: pip install "latentune[dashboard]".
    """
    from tuning.dashboard import serve

    serve(name, runs_dir, port, say, browser)
