"""What the command that reproduces experiments prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tuning.config import read_yaml
from tuning.experiment import BUDGETS, Budget, ExperimentFile, shipped

if TYPE_CHECKING:
    from tuning.reproduction_page import Results


def say(line: str) -> None:
    """A line of progress, on stderr."""
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def print_experiments(as_json: bool) -> None:
    """The experiments that come with latentune. Their files are read, not checked: a list must not wait for that."""
    told = []
    for name, path in shipped().items():
        content = read_yaml(path)
        told.append(
            {
                "name": name,
                "title": content["title"],
                "report": content["report"],
                "steps": len(content["steps"]),
                "rows": len(content["rows"]),
                "file": str(path),
            }
        )
    if as_json:
        print(json.dumps(told))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "steps", "rows", "what"):
        table.add_column(column, justify="right" if column in ("steps", "rows") else "left", overflow="fold")
    for one in told:
        table.add_row(str(one["name"]), str(one["steps"]), str(one["rows"]), str(one["title"]))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"budgets: {', '.join(BUDGETS)}; or a YAML file of your own", markup=False)


def print_steps(file: ExperimentFile, budget: Budget) -> None:
    """What would be done."""
    from tuning.reproduction import describe, less_than_full

    table = Table(box=None, pad_edge=False)
    for column in ("step", "what", "less than at full"):
        table.add_column(column, overflow="fold")
    experiment = file.at[budget]
    for name, step in experiment.steps.items():
        table.add_row(name, describe(step), less_than_full(experiment, file.at["full"], name))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{len(experiment.rows)} rows, {len(experiment.pictures)} pictures", markup=False)


def print_results(results: Results) -> None:
    """Every row, and where the page is."""
    from tuning.reproduction_page import shown_rows

    table = Table(box=None, pad_edge=False)
    for column in ("what", "published", "ours", "verdict"):
        table.add_column(column, justify="right" if column in ("published", "ours") else "left", overflow="fold")
    for cells in shown_rows(results.rows):
        table.add_row(cells["what"], cells["published"], cells["ours"], cells["verdict"])
    console = Console(highlight=False, markup=False)
    console.print(table)
    for done in results.found.steps.values():
        if done.problem:
            console.print(f"failed: {done.name}: {done.problem}", soft_wrap=True)
    for label, path in (("page", results.page), ("table", results.table)):
        console.print(f"{label:<8}{path}", soft_wrap=True)
