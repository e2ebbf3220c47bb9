"""What several commands share: options and arguments, their completion, and reading ``FIELD=VALUE`` words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning.verbosity import be_verbose

if TYPE_CHECKING:
    from models.errors import ProblemCollector

RUNS = "runs"


def one_of(*words: str) -> Callable[[str], list[str]]:
    """Completion by fixed words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def families(incomplete: str) -> list[str]:
    """Completion by the names of families."""
    from models.family import FAMILIES

    return [name for name in FAMILIES if name.startswith(incomplete)]


def datasets(incomplete: str) -> list[str]:
    """Completion by the names of data sets, and the forms for one's own."""
    from models.published import DATASETS

    return [name for name in (*DATASETS, "idx:", "images:", "mnist-mat:") if name.startswith(incomplete)]


def searches(ctx: Any, incomplete: str) -> list[str]:
    """Completion by the searches in the folder that is named, or the usual one. Buckets are not looked into."""
    from tuning.store import ADDRESS_FILE, JOURNAL_FILE

    folder = Path(ctx.params.get("runs_dir") or RUNS)
    found = {path.parent.name for file in (JOURNAL_FILE, ADDRESS_FILE) for path in folder.glob(f"*/{file}")}
    return sorted(name for name in found if name.startswith(incomplete))


def _verbose(wanted: bool) -> None:
    if wanted:
        be_verbose()


RunsDir = Annotated[
    str, typer.Option("--runs-dir", envvar="LATENTUNE_RUNS_DIR", help="Where searches are kept: a folder, or s3://…")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of a table.")]
SearchName = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a search.", show_default=False, autocompletion=searches)
]
Verbose = Annotated[
    bool, typer.Option("--verbose", callback=_verbose, help="Show what Ray and MLflow log, and tracebacks of errors.")
]


def pairs(
    problems: ProblemCollector, option: str, given: Sequence[str] | None, form: str = "FIELD=VALUE"
) -> dict[str, str]:
    """``FIELD=VALUE`` words as a mapping; the last one of a field wins, and words of another form are problems.

    Args:
        form: what the words look like, for the message.
    """
    found = {}
    for word in given or ():
        field, equals, value = word.partition("=")
        if field and equals and value:
            found[field] = value
        else:
            problems.add(option, word, f"write it as {form}")
    return found
