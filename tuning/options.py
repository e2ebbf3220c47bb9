"""What several commands share: options and arguments, and reading ``FIELD=VALUE`` words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from models.errors import ProblemCollector

RUNS = "runs"
RunsDir = Annotated[
    str, typer.Option("--runs-dir", envvar="LATENTUNE_RUNS_DIR", help="Where searches are kept: a folder, or s3://…")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of a table.")]
SearchName = Annotated[str, typer.Argument(metavar="NAME", help="Name of a search.", show_default=False)]


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
