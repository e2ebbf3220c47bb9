"""What is shown on stderr while something else than trials is waited for: loading, reading images, an analysis."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Told = Callable[[str, int, int], None]
"""Called with a text, how much of it is done, and how much there is (0 where nobody knows)."""


def somebody_looks() -> bool:
    """Whether stderr is a terminal that can be drawn on, and no log of a CI.

    Asked instead of rich, to which ``FORCE_COLOR`` makes a terminal of any file.
    """
    ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown") and not ci


@contextmanager
def progress_bar(quiet: bool, text: str = "", *, lines: bool = False) -> Iterator[Told]:
    """A bar on stderr, which goes away afterwards.

    Args:
        text: what it says before it is told anything.
        lines: where nobody looks, print each new text on a line of its own, instead of nothing.
    """
    if quiet or not somebody_looks():
        yield _Lines() if lines and not quiet else lambda text, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(text, total=None)
        yield lambda text, done, total: progress.update(task, description=text, completed=done, total=total or None)


def say(text: str, *, markup: bool = False) -> None:
    """A message for people, on stderr, wrapped by their terminal and not by us."""
    from rich.console import Console

    Console(stderr=True).print(text, markup=markup, highlight=False, soft_wrap=True)


class _Lines:
    """Each text once."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, text: str, done: int, total: int) -> None:
        if text != self._last:
            self._last = text
            print(text, file=sys.stderr, flush=True)
