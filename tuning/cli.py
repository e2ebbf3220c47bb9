"""The ``latentune`` command. Results go to stdout, progress and messages to stderr.

Exit codes: 0 done; 1 something failed; 2 the user's request cannot work; 128 + n stopped by signal n.
"""

from __future__ import annotations

import atexit
import errno
import gc
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Annotated

import typer

from tuning import analysis_commands, job_commands, reproduce_command, search_command, window_commands
from tuning.options import RUNS, AsJson, RunsDir, SearchName, Verbose
from tuning.options import families as family_names
from tuning.usage import Command
from tuning.verbosity import verbose as verbose_now
from tuning.waiting import say

app = typer.Typer(
    name="latentune",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"latentune {version('latentune')}")
        raise typer.Exit


@app.callback()
def latentune(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Search hyperparameters of image models, on one machine or a Ray cluster, and use the best one."""


def main() -> None:
    """The installed command: :func:`run`, and the end of the process as soon as all is done and written.

    Python would take apart what was loaded first, which takes torch, Ray and MLflow one to five seconds.
    """
    try:
        run()
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            raise
        try:
            # What Python does at an exit before that, in its order.
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:  # nobody reads it, or the disk is full: Python says so
            raise leaving from None
        os._exit(leaving.code or 0)


def run() -> None:
    """A command, in this process: errors made for people are printed as such.

    Raises:
        SystemExit: always.
    """
    gc.set_threshold(50_000, 20, 100)  # imports make no garbage, and looking for it takes a fifth of their time
    from models.errors import LatentuneError, UserError

    try:
        code = app(standalone_mode=False)  # gives the code of a typer.Exit instead of raising it
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        _explain(error)
        because = "" if len(error.problems) == 1 else ", because of"
        say(f"[bold red]cannot do that{because}:[/]", markup=True)
        for problem in error.problems:
            say(f"  {problem}")
        sys.exit(2)
    except LatentuneError as error:
        _explain(error)
        say(f"error: {error}")
        sys.exit(2 if type(error).__name__ == "SearchLockedError" else 1)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _explain(error)
        say("error: the output cannot be written: no space left on the device")
        sys.exit(1)
    except Exception as error:
        told = getattr(error, "format_message", None)  # a usage error that no command caught: no such command
        if told is None:
            raise
        say("[bold red]cannot do that:[/]", markup=True)
        say(f"  {told()} (latentune --help lists the commands)" if "command" in told() else f"  {told()}")
        sys.exit(2)


def _explain(error: Exception) -> None:
    """The traceback, for those who want it."""
    if verbose_now():
        traceback.print_exception(error)


search_command.register(app)


@app.command(cls=Command, epilog="Examples:\n\nlatentune trials first\n\nlatentune trials first --json")
def trials(name: SearchName, runs_dir: RunsDir = RUNS, as_json: AsJson = False) -> None:
    """List the trials of a search, also while it runs."""
    from tuning.api import load_search
    from tuning.report import print_trials

    result = load_search(name, runs_dir)
    if as_json:
        print(json.dumps([trial.to_json() for trial in result.trials]))
    else:
        print_trials(result)


@app.command(cls=Command, epilog="Examples:\n\nlatentune best first\n\nlatentune best first --export best.pt")
def best(
    name: SearchName,
    runs_dir: RunsDir = RUNS,
    as_json: AsJson = False,
    export: Annotated[Path | None, typer.Option(help="Copy the best checkpoint to this new file.")] = None,
) -> None:
    """Show the best trial: its value, its config and where its checkpoint is."""
    from models.errors import LatentuneError
    from tuning.api import export_best, load_search
    from tuning.report import print_best

    result = load_search(name, runs_dir)
    if result.best is None:
        raise LatentuneError(f"{name} has no complete trial yet ({result.counts()['total']} trials so far)")
    if export is not None:
        export_best(result, export)
    if as_json:
        print(json.dumps(result.to_json()["best"]))
    else:
        print_best(result)


@app.command(cls=Command, epilog="Example:\n\nlatentune replay first 0")
def replay(
    name: SearchName,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="Number of the trial.", show_default=False)],
    runs_dir: RunsDir = RUNS,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data set's files are now.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a trial again and compare every number with what was recorded."""
    from tuning.replaying import replay as run_again
    from tuning.report import print_replay

    result = run_again(name, trial, runs_dir, data_dir)
    if as_json:
        print(json.dumps({"number": trial, "identical": result.identical, "differences": list(result.differences)}))
    else:
        print_replay(result)
    if not result.identical:
        raise typer.Exit(1)


@app.command(cls=Command, epilog="Examples:\n\nlatentune families\n\nlatentune families conv_autoencoder")
def families(
    family: Annotated[
        str | None,
        typer.Argument(help="Show the fields of this one.", show_default=False, autocompletion=family_names),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the families, or one family's fields with defaults, bounds, search ranges and help."""
    from models.family import FAMILIES, get_family
    from tuning.report import describe_family, print_families, print_family

    if family is None:
        found = [get_family(name) for name in FAMILIES]
        print(json.dumps([describe_family(one) for one in found])) if as_json else print_families(found)
    else:
        one = get_family(family)
        print(json.dumps(describe_family(one))) if as_json else print_family(one)


@app.command(cls=Command, epilog="Example:\n\nlatentune datasets")
def datasets(as_json: AsJson = False) -> None:
    """List the data sets that need no more than their name, and the forms for your own."""
    from dataclasses import asdict

    from models.datasets import DATASETS
    from tuning.report import print_datasets

    if as_json:
        print(json.dumps([{"name": name, **asdict(info)} for name, info in DATASETS.items()]))
    else:
        print_datasets()


window_commands.register(app)
analysis_commands.register(app)
job_commands.register(app)
reproduce_command.register(app)


if __name__ == "__main__":
    main()
