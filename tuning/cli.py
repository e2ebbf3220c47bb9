"""The ``latentune`` command. Results go to stdout, progress and messages to stderr.

Exit codes: 0 done; 1 something failed; 2 the user's request cannot work; 128 + n stopped by signal n.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tuning import analysis_commands, job_commands, reproduce_command, window_commands
from tuning.options import RUNS, AsJson, RunsDir, SearchName, pairs

app = typer.Typer(
    name="latentune",
    help="Search hyperparameters of image models, on one machine or a Ray cluster, and use the best one.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the command: errors made for people are printed as such."""
    gc.set_threshold(50_000, 20, 100)  # imports make no garbage, and looking for it takes a fifth of their time
    from models.errors import LatentuneError, UserError

    try:
        code = app(standalone_mode=False)  # gives the code of a typer.Exit instead of raising it
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        _say("[bold red]cannot do that:[/]" if len(error.problems) == 1 else "[bold red]cannot do that, because of:[/]")
        for problem in error.problems:
            _say(f"  {problem}", markup=False)
        sys.exit(2)
    except LatentuneError as error:
        _say(f"error: {error}", markup=False)
        sys.exit(2 if type(error).__name__ == "SearchLockedError" else 1)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        show = getattr(error, "show", None)  # a click usage error: unknown option, missing argument
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))


@app.command(
    epilog="Example:  latentune search conv_autoencoder --dataset fashion-mnist --data-dir data --trials 50 "
    "--set batch_size=128 --space latent_dim=2..10 --space lr=1e-4..1e-1:log"
)
def search(
    family: Annotated[
        str | None,
        typer.Argument(
            help="A family (see `latentune families`), or your own as package.module:Class.", show_default=False
        ),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="See `latentune datasets`; idx:FOLDER; images:FOLDER.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all (default 20, or the whole grid).")] = None,
    max_epochs: Annotated[float | None, typer.Option(help="Full budget of a trial (default 9).")] = None,
    min_epochs: Annotated[float | None, typer.Option(help="Lowest rung (default 1/3, more for few images).")] = None,
    reduction_factor: Annotated[
        int | None, typer.Option(help="One trial in so many passes a rung (default 3).")
    ] = None,
    patience: Annotated[int | None, typer.Option(help="End a trial after so many epochs without improvement.")] = None,
    name: Annotated[str | None, typer.Option(help="A new search's name, or the one to go on with.")] = None,
    runs_dir: Annotated[
        str | None,
        typer.Option(envvar="LATENTUNE_RUNS_DIR", help="Where searches are kept: a folder, or s3://… (default runs)."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random (default 0).")] = None,
    sampler: Annotated[str | None, typer.Option(help="tpe, gp, random, grid or qmc (default tpe).")] = None,
    scheduler: Annotated[str | None, typer.Option(help="asha, hyperband, median or none (default asha).")] = None,
    fixed: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE: hold a field.")] = None,
    space: Annotated[
        list[str] | None,
        typer.Option("--space", help="FIELD=RANGE: 4,8,16 or 2..10 or 1e-5..1e-1:log or 0..0.5:step=0.1."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="search.yaml with any of these; options here win.")] = None,
    time_budget: Annotated[str | None, typer.Option(help="End this run after 90s, 30m or 2h.")] = None,
    cpus_per_trial: Annotated[float | None, typer.Option(help="Cores (and threads) a trial (default 1).")] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="GPUs a trial; a fraction shares one (default 0).")
    ] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Trials at a time (default as many as fit).")] = None,
    max_failures: Annotated[
        int | None, typer.Option(help="Times that a trial goes on after its worker died (default 3).")
    ] = None,
    report_timeout: Annotated[
        str | None, typer.Option(help="Fail a trial that reports nothing for 90s, 30m or 2h (default never).")
    ] = None,
    train_images: Annotated[int | None, typer.Option(help="Train on so many images.")] = None,
    val_images: Annotated[int | None, typer.Option(help="Validate on so many (default a fifth as many).")] = None,
    val_split: Annotated[
        str | None, typer.Option(help="random, or first for the first images (default random).")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="1 makes images grey, 3 makes them RGB.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Scale images to a square of so many pixels a side.")] = None,
    binarise: Annotated[float | None, typer.Option(help="Pixels from this part of white on are 1, others 0.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16 (default float32).")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to run on.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store or server; none for no tracking.")] = None,
    study_url: Annotated[
        str | None,
        typer.Option(help="PostgreSQL for the study; with a password as $LATENTUNE_STUDY_URL (default in runs-dir)."),
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Search a family's hyperparameters, or go on with a search.

    The same command again continues the search of that [bold]--name[/]: after Ctrl-C, a crash, or with more --trials.
    """
    from models.errors import ProblemCollector
    from tuning.config import read_yaml

    problems = ProblemCollector()
    settings: dict[str, Any] = {}
    with problems.gather():
        settings = read_yaml(config) if config else {}
    fields = {
        "set": pairs(problems, "--set", fixed),
        "space": pairs(problems, "--space", space, "FIELD=RANGE"),
    }
    for key in settings.keys() & {"progress", "pictures"}:  # arguments of search() beside the settings
        problems.add(key, settings.pop(key), "is no setting of a search")
    options = {
        "family": family,
        "trials": trials,
        "max_epochs": max_epochs,
        "min_epochs": min_epochs,
        "reduction_factor": reduction_factor,
        "patience": patience,
        "name": name,
        "runs_dir": runs_dir,
        "seed": seed,
        "sampler": sampler,
        "scheduler": scheduler,
        "time_budget": time_budget,
        "cpus_per_trial": cpus_per_trial,
        "gpus_per_trial": gpus_per_trial,
        "max_concurrent": max_concurrent,
        "max_failures": max_failures,
        "report_timeout": report_timeout,
        "precision": precision,
        "address": address,
        "tracking_uri": tracking_uri,
        "study_url": study_url,
    }
    settings |= {key: value for key, value in options.items() if value is not None}
    data = {
        "source": dataset,
        "data_dir": None if data_dir is None else str(data_dir),
        "train_images": train_images,
        "val_images": val_images,
        "val_split": val_split,
        "channels": channels,
        "image_size": image_size,
        "binarise": binarise,
    }
    nested: dict[str, dict[str, Any]] = {"data": data, **fields}
    for key, parts in nested.items():
        wanted = {k: v for k, v in parts.items() if v is not None}
        if wanted and isinstance(settings.get(key) or {}, dict):
            settings[key] = {**(settings.get(key) or {}), **wanted}

    from tuning.api import check
    from tuning.api import search as run_search
    from tuning.report import print_result

    if not settings.get("family") and not settings.get("name"):
        if not problems.problems:  # else the family may stand in a file that could not be read
            problems.add(
                "FAMILY", None, "say what to search: latentune search conv_autoencoder (see latentune families)"
            )
    elif problems.problems:  # nothing will run; what else is wrong is told with it
        with problems.gather():
            check(**settings)
    problems.raise_if_any()
    result = run_search(settings.pop("family", None), progress="none" if quiet or as_json else "auto", **settings)
    for warning in result.warnings:
        _say(f"warning: {warning}", markup=False)
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        print_result(result)
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)
    if result.outcome == "finished" and result.best is None:
        raise typer.Exit(1)


@app.command()
def trials(name: SearchName, runs_dir: RunsDir = RUNS, as_json: AsJson = False) -> None:
    """List the trials of a search, also while it runs."""
    from tuning.api import load_search
    from tuning.report import print_trials

    result = load_search(name, runs_dir)
    if as_json:
        print(json.dumps([trial.to_json() for trial in result.trials]))
    else:
        print_trials(result)


@app.command()
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


@app.command()
def replay(
    name: SearchName,
    trial: Annotated[int, typer.Argument(help="Number of the trial.", show_default=False)],
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


@app.command()
def families(
    family: Annotated[str | None, typer.Argument(help="Show the fields of this one.", show_default=False)] = None,
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


@app.command()
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


def _say(text: str, *, markup: bool = True) -> None:
    """A message for people, on stderr, wrapped by their terminal and not by us."""
    from rich.console import Console

    Console(stderr=True).print(text, markup=markup, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
