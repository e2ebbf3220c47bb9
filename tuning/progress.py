"""What a running search shows on stderr: a live view in a terminal, a line for every ended trial elsewhere."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from models.errors import UserError
from models.family import Objective
from tuning.results import Trial
from tuning.verbosity import verbose
from tuning.waiting import somebody_looks

if TYPE_CHECKING:
    from tuning.study import SearchStudy

VIEWS = ("auto", "live", "lines", "none")
STYLE = {"complete": "green", "pruned": "dim", "failed": "red", "running": "cyan", "interrupted": "magenta"}


class View(Protocol):
    """A context manager that is told of trials while it is open."""

    def __enter__(self) -> object: ...
    def __exit__(self, *error: object) -> None: ...
    def trial_changed(self, trial: Trial) -> None: ...
    def stage(self, text: str) -> None:
        """Told what is waited for, until the first trial reports."""


class NoView:
    """Silence."""

    def stage(self, text: str) -> None:
        """Nothing."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None

    def trial_changed(self, trial: Trial) -> None:
        """Nothing."""


class Tally:
    """Counts and the best trial so far, kept from one change to the next.

    The driver changes it while a thread of the live view reads it, hence the copies.
    """

    def __init__(self, study: SearchStudy) -> None:
        self._study, self.objective = study, study.objective
        self.ended = {t.number: t for t in study.ordered() if t.finished_s is not None}
        self.running: dict[int, Trial] = {}
        self.began, self.ended_before = time.monotonic(), len(self.ended)
        self.best: Trial | None = None
        for trial in self.ended.values():
            self._compare(trial)

    @property
    def total(self) -> int:
        return self._study.total

    def take(self, trial: Trial) -> bool:
        """Note a change; whether the trial ended with it."""
        if trial.finished_s is None:
            self.running[trial.number] = trial
            return False
        self.running.pop(trial.number, None)
        self.ended[trial.number] = trial
        self._compare(trial)
        return True

    def count(self, state: str) -> int:
        return sum(trial.state == state for trial in list(self.ended.values()))

    def seconds_left(self) -> float | None:
        """A guess from this run's pace; ``None`` before anything has ended."""
        done = len(self.ended) - self.ended_before
        return None if not done else (time.monotonic() - self.began) / done * (self.total - len(self.ended))

    def _compare(self, trial: Trial) -> None:
        if trial.state == "complete" and trial.value is not None:
            best = self.best.value if self.best else None
            self.best = trial if self.objective.better(trial.value, best) else self.best


class Lines:
    """One line for every trial that ends: for logs and pipes."""

    def __init__(self, study: SearchStudy, console: Console) -> None:
        self._tally, self._console = Tally(study), console

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None

    def stage(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def trial_changed(self, trial: Trial) -> None:
        if not self._tally.take(trial):
            return
        tally = self._tally
        width = len(str(tally.total))
        line = f"[{len(tally.ended):>{width}}/{tally.total}] trial {trial.number} {describe_end(trial)}"
        if tally.best is not None and tally.best.number == trial.number:
            line += "  <- best"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Picture:
    """What a view that is redrawn in place shows: how far, the best, and every running trial."""

    def __init__(self, study: SearchStudy) -> None:
        self._tally = Tally(study)
        self._name = study.config.name
        self._what = f"{study.config.family} on {study.config.data.source}"
        self._max_epochs = study.config.max_epochs
        self._stage = ""
        self._spinner = Spinner("line")

    def stage(self, text: str) -> None:
        self._stage = text

    def _take(self, trial: Trial) -> bool:
        """Note a change; whether the trial ended with it."""
        if trial.records:
            self._stage = ""
        return self._tally.take(trial)

    def _draw(self) -> RenderableType:
        tally = self._tally
        head = Table.grid(padding=(0, 1))
        for _ in range(4):
            head.add_column(no_wrap=True)
        counts = ((state, tally.count(state)) for state in ("complete", "pruned", "failed"))
        head.add_row(
            ProgressBar(total=max(tally.total, 1), completed=len(tally.ended), width=20),
            f"{len(tally.ended)}/{tally.total}",
            "  ".join(f"[{STYLE[state]}]{count} {state}[/]" for state, count in counts if count),
            _left(tally.seconds_left()) if len(tally.ended) < tally.total else "",
        )
        title = Text.assemble((self._name, "bold"), (f"  {self._what}", "dim"))
        parts: list[RenderableType] = [title, head]
        best = tally.best
        if best is not None:
            parts.append(
                Text.assemble(
                    ("best ", "bold green"),
                    f"{tally.objective.metric} {number(best.value)}  trial {best.number}  ",
                    (describe_params(best.params), "dim"),
                )
            )
        if self._stage:
            self._spinner.update(text=Text(self._stage))
            parts.append(self._spinner)
        elif tally.running:
            parts.append(self._running())
        return Group(*parts)

    def _running(self) -> Table:
        table = Table(box=None, padding=(0, 1), show_header=False)
        running = list(self._tally.running.values())
        for trial in sorted(running, key=lambda t: t.number):
            last = trial.curve[-1][1] if trial.curve else None
            table.add_row(
                Text(f"trial {trial.number}", style="cyan"),
                ProgressBar(total=self._max_epochs, completed=trial.epochs, width=12),
                f"{trial.epochs:g}/{self._max_epochs:g}",
                "…" if last is None else number(last),
                Text(describe_params(trial.params), style="dim", no_wrap=True, overflow="ellipsis"),
            )
        return table


class LiveView(Picture):
    """The same, in a terminal."""

    def __init__(self, study: SearchStudy, console: Console) -> None:
        super().__init__(study)
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._draw, transient=False)

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *error: object) -> None:
        self._stage = ""  # what stays on the screen is how the search ended
        self._live.__exit__(None, None, None)

    def trial_changed(self, trial: Trial) -> None:
        if self._take(trial) and trial.state == "failed":
            self._live.console.print(f"[red]trial {trial.number} {escape(describe_end(trial))}[/]", soft_wrap=True)


class NotebookView(Picture):
    """The same, below the cell of a notebook."""

    def __init__(self, study: SearchStudy) -> None:
        from tuning.notebook import Cell

        super().__init__(study)
        self._cell = Cell(self._draw)

    def __enter__(self) -> None:
        self._cell.refresh(now=True)

    def __exit__(self, *error: object) -> None:
        self._cell.refresh(now=True)

    def stage(self, text: str) -> None:
        super().stage(text)
        self._cell.refresh(now=True)

    def trial_changed(self, trial: Trial) -> None:
        self._take(trial)
        self._cell.refresh()


def make_progress(kind: str, study: SearchStudy) -> View:
    """The view of that kind; ``auto`` looks at what stderr is, and whether this is a notebook.

    Raises:
        UserError: unknown kind.
    """
    if kind not in VIEWS:
        raise UserError.of("progress", kind, f"allowed: {', '.join(VIEWS)}")
    from tuning.notebook import in_notebook

    console = Console(stderr=True)
    if kind == "none":
        return NoView()
    if kind in ("auto", "live") and in_notebook():
        return NotebookView(study)
    if kind == "live" or (kind == "auto" and somebody_looks() and not verbose()):
        return LiveView(study, console)
    return Lines(study, console)


def describe_end(trial: Trial) -> str:
    """How a trial ended, on one line, ``complete val_mse 0.0213 after 9 epochs, 12.1 s: lr 0.003, …``."""
    parts: list[str] = [trial.state]
    if trial.value is not None:
        parts.append(f"{trial.objective.metric} {number(trial.value)}")
    parts.append(f"after {trial.epochs:.3g} epochs")
    if trial.seconds is not None:
        parts[-1] += f", {trial.seconds:.1f} s"
    tail = trial.reason if trial.state == "failed" and trial.reason else describe_params(trial.params)
    return " ".join(parts) + (f": {tail}" if tail else "")


def describe_params(params: dict[str, Any]) -> str:
    """``filters 16, lr 0.003, …``, shortened to what a person reads."""
    return ", ".join(f"{name} {number(value) if isinstance(value, float) else value}" for name, value in params.items())


def number(value: float | None) -> str:
    """Four significant digits."""
    return "–" if value is None else "nan" if math.isnan(value) else f"{value:.4g}"


def better_sign(objective: Objective) -> str:
    """``lower is better`` or ``higher is better``."""
    return "lower is better" if objective.mode == "min" else "higher is better"


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"
