"""The command that searches, and goes on with a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tuning.choices import PRECISIONS, SAMPLERS, SCHEDULERS
from tuning.options import AsJson, Verbose, datasets, families, one_of, pairs, searches
from tuning.usage import CARRIED, CarryingCommand

EXAMPLES = """Examples:

latentune search conv_autoencoder --dataset digits --trials 12 --name first

latentune search --name first --trials 24

latentune search vae --dataset fashion-mnist --data-dir data --set batch_size=128 --space latent_dim=2..10

latentune search my_family.py:MyFamily --dataset images:photos --time-budget 2h"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(cls=CarryingCommand, epilog=EXAMPLES)(search)


def search(
    context: typer.Context,
    family: Annotated[
        str | None,
        typer.Argument(
            help="A family (see `latentune families`), or your own as package.module:Class.",
            show_default=False,
            autocompletion=families,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="See `latentune datasets`; idx:FOLDER; images:FOLDER.", autocompletion=datasets),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all (default 20, or the whole grid).")] = None,
    max_epochs: Annotated[float | None, typer.Option(help="Full budget of a trial (default 9).")] = None,
    min_epochs: Annotated[float | None, typer.Option(help="Lowest rung (default 1/3, more for few images).")] = None,
    reduction_factor: Annotated[
        int | None, typer.Option(help="One trial in so many passes a rung (default 3).")
    ] = None,
    patience: Annotated[int | None, typer.Option(help="End a trial after so many epochs without improvement.")] = None,
    name: Annotated[
        str | None, typer.Option(help="A new search's name, or the one to go on with.", autocompletion=searches)
    ] = None,
    runs_dir: Annotated[
        str | None,
        typer.Option(envvar="LATENTUNE_RUNS_DIR", help="Where searches are kept: a folder, or s3://… (default runs)."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random (default 0).")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="tpe, gp, random, grid or qmc (default tpe).", autocompletion=one_of(*SAMPLERS))
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="asha, hyperband, median or none (default asha).", autocompletion=one_of(*SCHEDULERS)),
    ] = None,
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
    precision: Annotated[
        str | None, typer.Option(help="float32 or bfloat16 (default float32).", autocompletion=one_of(*PRECISIONS))
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to run on.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store or server; none for no tracking.")] = None,
    study_url: Annotated[
        str | None,
        typer.Option(help="PostgreSQL for the study; with a password as $LATENTUNE_STUDY_URL (default in runs-dir)."),
    ] = None,
    report: Annotated[
        bool | None, typer.Option(help="Write report.html at the end (default from 10 trials on).", show_default=False)
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    verbose: Verbose = False,
) -> None:
    """Search a family's hyperparameters, or go on with a search.

    The same command again continues the search of that [bold]--name[/]: after Ctrl-C, a crash, or with more --trials.
    """
    from tuning.waiting import progress_bar, say

    view = "none" if quiet or as_json else "auto"
    with progress_bar(view == "none", "loading"):
        from models.errors import ProblemCollector
        from tuning.api import check
        from tuning.api import search as run_search
        from tuning.config import read_yaml
        from tuning.report import print_result

    problems = ProblemCollector(list(context.meta.get(CARRIED, ())))
    settings: dict[str, Any] = {}
    with problems.gather():
        settings = read_yaml(config) if config else {}
    fields = {
        "set": pairs(problems, "--set", fixed),
        "space": pairs(problems, "--space", space, "FIELD=RANGE"),
    }
    for key in settings.keys() & {"progress", "pictures", "report"}:  # arguments of search() beside the settings
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

    if not settings.get("family") and not settings.get("name"):
        if not problems.problems:  # else the family may stand in a file that could not be read
            problems.add(
                "FAMILY", None, "say what to search: latentune search conv_autoencoder (see latentune families)"
            )
    elif problems.problems:  # nothing will run; what else is wrong is told with it
        with problems.gather():
            check(**settings)
    problems.raise_if_any()
    result = run_search(settings.pop("family", None), progress=view, report=report, **settings)
    for warning in result.warnings:
        say(f"warning: {warning}")
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        print_result(result)
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)
    if result.outcome == "finished" and result.best is None:
        raise typer.Exit(1)
