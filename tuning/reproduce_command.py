"""The command that reproduces a published experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tuning.options import RUNS, AsJson, RunsDir, one_of
from tuning.usage import Command


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        cls=Command,
        rich_help_panel="Use what was found",
        epilog="Examples:\n\nlatentune reproduce\n\nlatentune reproduce guatto-2022 --budget small --data-dir data\n\n"
        "latentune reproduce my.yaml --check",
    )(reproduce)


def reproduce(
    report: Annotated[
        str | None, typer.Argument(help="A published experiment, or a YAML file of your own.", show_default=False)
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            help="smoke (seconds), small (minutes) or full (as the report).",
            autocompletion=one_of("smoke", "small", "full"),
        ),
    ] = "small",
    data_dir: Annotated[Path | None, typer.Option(help="Where the data sets' files are.")] = None,
    runs_dir: RunsDir = RUNS,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results (default reproductions/REPORT-BUDGET in runs).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random (default the file's).")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store or server; none for no tracking.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the file and list its steps; do nothing.")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Reproduce a published experiment, and set each of its numbers and pictures beside ours.

    Without a name it lists those that there are. The same command again goes on where it was: what is done is not done
    a second time.
    """
    from models.errors import UserError, did_you_mean
    from tuning import reproduction_report as told
    from tuning.experiment import BUDGETS, find_experiment

    if report is None:
        told.print_experiments(as_json)
        return
    if budget not in BUDGETS:
        raise UserError.of("--budget", budget, did_you_mean(budget, BUDGETS))
    file = find_experiment(report)
    if check:
        told.print_steps(file, budget)
        return

    from tuning.config import runs_folder
    from tuning.reproduction import Means, StoppedError
    from tuning.reproduction import reproduce as run
    from tuning.reproduction_page import write_results
    from tuning.waiting import progress_bar

    with progress_bar(quiet or as_json) as bar:
        means = Means(
            runs_folder(runs_dir),
            None if data_dir is None else str(data_dir),
            tracking_uri,
            told=bar,
            said=(lambda line: None) if quiet or as_json else told.say,
        )
        try:
            found = run(file, budget, means, seed=seed, out=out)
        except StoppedError as stop:
            told.say(str(stop))
            raise typer.Exit(128 + stop.signal) from stop
    results = write_results(found)
    if as_json:
        print(json.dumps(results.to_json()))
    else:
        told.print_results(results)
    if not found.complete:
        raise typer.Exit(1)
