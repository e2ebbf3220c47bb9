"""The commands that analyse a search's winner, or any trial, or a checkpoint file: one for each analysis."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tuning.choices import SPLITS
from tuning.options import RUNS, AsJson, RunsDir, SearchName, datasets, one_of, pairs, searches
from tuning.usage import Command
from tuning.waiting import say

if TYPE_CHECKING:
    from analysis.importance import Values
    from analysis.result import Result
    from tuning.analysing import Target
    from tuning.results import SearchResult, Trial

Target_ = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A search, or a checkpoint file.", show_default=False, autocompletion=searches),
]
TrialNumber = Annotated[int | None, typer.Option("--trial", help="Number of the trial (default the best one).")]
Dataset = Annotated[
    str | None, typer.Option("--dataset", help="Other images than the search's.", autocompletion=datasets)
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where the data set's files are now.")]
SplitName = Annotated[str, typer.Option("--split", help="train, val or test.", autocompletion=one_of(*SPLITS))]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the results (default in the search's).")]
Seed = Annotated[int, typer.Option("--seed", help="Decides everything random.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    panel = "Use what was found"
    for command, *examples in COMMANDS:
        lines = [f"latentune {command.__name__} {example}" for example in examples]
        epilog = "\n\n".join(["Examples:" if len(lines) > 1 else "Example:", *lines])
        app.command(cls=Command, rich_help_panel=panel, epilog=epilog)(command)


def evaluate(
    name: Target_,
    trial: TrialNumber = None,
    split: SplitName = "test",
    dataset: Dataset = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on the test images, which no search ever sees."""
    from analysis import evaluate as run

    _analyse(
        name,
        runs_dir,
        trial,
        {"source": dataset, "data_dir": data_dir},
        lambda target, _: run(target.model, target.data, split=split),  # type: ignore[arg-type]
        {"split": split},
        out,
        as_json,
    )


def generate(
    name: Target_,
    trial: TrialNumber = None,
    what: Annotated[
        str | None,
        typer.Option("--what", help="Of samples,grid,interpolation,variations,nearest (default all that apply)."),
    ] = None,
    count: Annotated[int, typer.Option("--count", help="Samples.")] = 64,
    image: Annotated[int | None, typer.Option("--image", help="Vary this image of the split (default six).")] = None,
    latent_dim: Annotated[
        int | None, typer.Option("--latent-dim", help="Size of a code, where the network does not say it.")
    ] = None,
    split: SplitName = "val",
    seed: Seed = 0,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Let a model make up images: samples, grids, interpolations, variations; and compare them with real ones."""
    from analysis import generate as run

    parts = None if what is None else [part.strip() for part in what.split(",") if part.strip()]
    given = {"count": count, "image": image, "latent_dim": latent_dim, "seed": seed}
    _analyse(
        name,
        runs_dir,
        trial,
        {"source": dataset, "data_dir": data_dir},
        lambda target, told: run(
            target.model,
            target.data,
            what=parts,
            split=split,  # type: ignore[arg-type]
            on_progress=told,
            **given,  # type: ignore[arg-type]
        ),
        {"what": parts, "split": split, **given},
        out,
        as_json,
    )


def robustness(
    name: Target_,
    trial: TrialNumber = None,
    count: Annotated[int, typer.Option("--count", help="Images, spread evenly over the split.")] = 2000,
    split: SplitName = "test",
    seed: Seed = 0,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Corrupt images by noise and occlusion, and measure what a model still makes of them."""
    from analysis import measure_robustness as run

    _analyse(
        name,
        runs_dir,
        trial,
        {"source": dataset, "data_dir": data_dir},
        lambda target, told: run(
            target.model,
            target.data,
            split=split,  # type: ignore[arg-type]
            count=count,
            seed=seed,
            on_progress=told,
        ),
        {"count": count, "split": split, "seed": seed},
        out,
        as_json,
    )


def filters(
    name: Target_,
    trial: TrialNumber = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Layer to show (default the first).")] = None,
    count: Annotated[int, typer.Option("--count", help="Most pictures in the sheet, those of largest norm.")] = 400,
    threshold: Annotated[float, typer.Option("--threshold", help="Activations up to this count as zero.")] = 0.01,
    split: SplitName = "val",
    dataset: Dataset = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Show a layer's weights as images, how sparse its activations are, and its dead units."""
    from analysis import inspect_filters as run

    given = {"layer": layer, "count": count, "threshold": threshold}
    _analyse(
        name,
        runs_dir,
        trial,
        {"source": dataset, "data_dir": data_dir},
        lambda target, told: run(
            target.model,
            target.data,
            split=split,  # type: ignore[arg-type]
            on_progress=told,
            **given,  # type: ignore[arg-type]
        ),
        {"split": split, **given},
        out,
        as_json,
    )


def finetune(
    name: Target_,
    trial: TrialNumber = None,
    head: Annotated[
        str,
        typer.Option(
            help="linear or mlp, on the code; cnn, on the reconstruction.",
            autocompletion=one_of("linear", "mlp", "cnn"),
        ),
    ] = "linear",
    frozen: Annotated[
        str, typer.Option(help="convs, encoder or nothing.", autocompletion=one_of("convs", "encoder", "nothing"))
    ] = "nothing",
    epochs: Annotated[float, typer.Option(help="Train for at most so many.")] = 12,
    patience: Annotated[int, typer.Option(help="Stop after so many epochs without a better accuracy.")] = 3,
    fixed: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE of finetuned_classifier.")] = None,
    from_scratch: Annotated[bool, typer.Option(help="Train the same network from scratch too.")] = True,
    train_images: Annotated[int | None, typer.Option(help="Train on so many images.")] = None,
    device: Annotated[
        str, typer.Option(help="Train on cpu, cuda or cuda:N.", autocompletion=one_of("cpu", "cuda"))
    ] = "cpu",
    seed: Seed = 0,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Train a classifier on the encoder, and the same network from scratch; compare accuracy and time."""
    from analysis import finetune as run
    from models.errors import ProblemCollector
    from tuning.analysing import numerics_on

    problems = ProblemCollector()
    settings = pairs(problems, "--set", fixed)
    problems.raise_if_any()
    options = {"head": head, "frozen": frozen, "epochs": epochs, "patience": patience, "settings": settings}
    options |= {"from_scratch": from_scratch, "seed": seed}
    numerics = numerics_on(device)
    _analyse(
        name,
        runs_dir,
        trial,
        {"source": dataset, "data_dir": data_dir, "train_images": train_images},
        lambda target, told: run(
            target.model,
            target.data,
            numerics=numerics,
            on_progress=told,
            **options,  # type: ignore[arg-type]
        ),
        {**options, **({} if device == "cpu" else {"device": device})},
        out,
        as_json,
    )


def compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Searches.", show_default=False)],
    trials: Annotated[str | None, typer.Option(help="Of one search: their numbers, as 0,3,5.")] = None,
    metric: Annotated[str | None, typer.Option(help="What to compare (default the objective they share).")] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Put trials of one search, or the best of several, side by side."""
    from analysis import Candidate
    from analysis import compare as run
    from analysis.result import plain
    from tuning.analysing import find_targets, keep, tell_mlflow
    from tuning.report import print_comparison
    from tuning.waiting import progress_bar

    targets = find_targets(names, runs_dir, trials, {"data_dir": None if data_dir is None else str(data_dir)})
    candidates = [
        Candidate(label, target.trial, target.model, target.data) for label, target in targets if target.trial
    ]
    with progress_bar(as_json) as told:
        result = run(candidates, metric=metric, on_progress=told)
    options = {"trials": [(target.title, label) for label, target in targets], "metric": result.metric}
    folder, files = keep(result, targets[0][1].folder.parent, options, out)
    for search in {target.search.name: target.search for _, target in targets if target.search}.values():
        _warn(tell_mlflow(search, None, folder, files, {}))
    columns = result.tables()["trials"]
    _show(result, plain(result.summary()), folder, files, as_json, lambda: print_comparison(columns, folder, files))


def reconstruct(
    name: Target_,
    trial: TrialNumber = None,
    split: SplitName = "val",
    count: Annotated[int, typer.Option("--count", help="Images in each picture.")] = 10,
    evolution: Annotated[bool, typer.Option("--evolution", help="Train the trial again, and look on.")] = False,
    epochs: Annotated[str | None, typer.Option("--epochs", help="Of the evolution, such as 1,3,5.")] = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Set originals against reconstructions: each image's error, the best, the worst, and by class."""
    from analysis import reconstruct as run
    from tuning.analysing import follow_trial, parse_epochs

    wanted = parse_epochs(epochs, evolution)

    def both(target: Target, told: Callable[[str, int, int], None]) -> Result:
        followed = follow_trial(target, split, count, wanted, told) if evolution else None
        result = run(target.model, target.data, split=split, count=count, on_progress=told)  # type: ignore[arg-type]
        return replace(result, evolution=followed)

    _analyse(
        name,
        runs_dir,
        trial,
        {"source": dataset, "data_dir": data_dir},
        both,
        {"split": split, "count": count, "evolution": evolution, "epochs": wanted},
        out,
        as_json,
    )


def embed(
    name: Target_,
    trial: TrialNumber = None,
    split: SplitName = "test",
    count: Annotated[int, typer.Option("--count", help="Most images to map.")] = 10_000,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="pca, tsne, umap or all (default pca, tsne).",
            autocompletion=one_of("pca", "tsne", "umap", "all"),
        ),
    ] = None,
    seed: Seed = 0,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Map the latent codes on a plane, and measure how well the classes keep apart in them."""
    from analysis import embed as run

    methods = None if method is None else ("pca", "tsne", "umap") if method == "all" else (method,)
    _analyse(
        name,
        runs_dir,
        trial,
        {"source": dataset, "data_dir": data_dir},
        lambda target, told: run(
            target.model,
            target.data,
            split=split,  # type: ignore[arg-type]
            count=count,
            methods=methods,  # type: ignore[arg-type]
            seed=seed,
            on_progress=told,
        ),
        {"split": split, "count": count, "method": method, "seed": seed},
        out,
        as_json,
    )


def importance(
    name: SearchName,
    values: Annotated[
        str, typer.Option(help="rung: all trials, at the epoch that all reached; complete: complete trials alone.")
    ] = "rung",
    seed: Seed = 0,
    runs_dir: RunsDir = RUNS,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Tell which parameters matter, and draw how a search went: history, rungs, curves, slices."""
    from tuning.api import load_search
    from tuning.search_page import weigh
    from tuning.waiting import progress_bar

    search = load_search(name, runs_dir)
    with progress_bar(as_json) as told:
        result = weigh(search, cast("Values", values), seed, told)
    used = {"values": values, "seed": seed}
    _hand_over(result, search, None, f"search {search.name}", search.run_dir / "analysis", used, out, as_json)


def report(
    name: SearchName,
    runs_dir: RunsDir = RUNS,
    out: Annotated[Path | None, typer.Option(help="File (default report.html in the search's folder).")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page with everything about a search: one HTML file that needs no network."""
    from tuning.analysing import tell_mlflow
    from tuning.api import load_search
    from tuning.report import print_page
    from tuning.search_page import write_page
    from tuning.waiting import progress_bar

    search = load_search(name, runs_dir)
    with progress_bar(as_json) as told:
        path = write_page(search, out, told)
    _warn(tell_mlflow(search, None, path.with_name("report"), (path,), {}))
    if as_json:
        print(json.dumps({"file": str(path), "bytes": path.stat().st_size}))
    else:
        print_page(path)


def _analyse(
    name: str,
    runs_dir: str,
    trial: int | None,
    data: dict[str, Any],
    run: Callable[[Target, Callable[[str, int, int], None]], Result],
    options: dict[str, Any],
    out: Path | None,
    as_json: bool,
) -> None:
    """Find the model, analyse it, keep the result, tell MLflow, and print the numbers and where the files are.

    Args:
        data: what the user gave instead of the search's data options.
        run: the analysis; its second argument is told of progress.
        options: what makes this result another one than that of the same command with other options.
    """
    from tuning.analysing import find_target
    from tuning.waiting import progress_bar

    changed = {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
    target = find_target(name, runs_dir, trial=trial, changed=changed)
    with progress_bar(as_json) as told:
        result = run(target, told)
    used = {"data": target.data.model_dump(mode="json", exclude={"data_dir"}), **options}
    _hand_over(result, target.search, target.trial, target.title, target.folder, used, out, as_json)


def _hand_over(
    result: Result,
    search: SearchResult | None,
    trial: Trial | None,
    title: str,
    folder: Path,
    options: dict[str, Any],
    out: Path | None,
    as_json: bool,
) -> None:
    """Keep a result, tell MLflow, and print the numbers and where the files are."""
    from analysis.result import plain
    from tuning.analysing import keep, tell_mlflow
    from tuning.report import print_analysis

    folder, files = keep(result, folder, options, out)
    summary = plain(result.summary())
    _warn(tell_mlflow(search, trial, folder, files, summary))
    heading = f"{result.name} of {title}"
    _show(result, summary, folder, files, as_json, lambda: print_analysis(heading, summary, folder, files))


def _show(
    result: Result,
    summary: dict[str, Any],
    folder: Path,
    files: Sequence[Path],
    as_json: bool,
    print_table: Callable[[], None],
) -> None:
    """The numbers of a result as one JSON value, or as a table."""
    if as_json:
        print(json.dumps({"analysis": result.name, "folder": str(folder), "files": [f.name for f in files], **summary}))
    else:
        print_table()


def _warn(problem: str | None) -> None:
    if problem is not None:
        say(f"warning: {problem}")


COMMANDS: tuple[tuple[Any, *tuple[str, ...]], ...] = (
    (evaluate, "first", "first --trial 3 --dataset fashion-mnist --data-dir data"),
    (reconstruct, "first", "first --count 20 --evolution --epochs 1,3,9"),
    (embed, "first", "first --method all --count 2000"),
    (finetune, "first", "first --head mlp --frozen encoder --set lr=1e-4"),
    (generate, "first", "first --what samples,interpolation"),
    (robustness, "first", "first --count 500"),
    (filters, "first", "first --layer encoder.0"),
    (compare, "first second", "first --trials 0,3,5"),
    (importance, "first", "first --values complete"),
    (report, "first", "first --out first.html"),
)
"""Each command, and words for its examples."""
