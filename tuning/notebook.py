"""How searches and trials look in a notebook: the live view below the cell, results as HTML."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType

from tuning.progress import better_sign, number

if TYPE_CHECKING:
    import pandas as pd

    from tuning.results import SearchResult, Trial

REDRAW_S = 0.5
COLUMNS = 110
LEADERS = 10


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


class Cell:
    """A place below the cell that is drawn anew, by means that every notebook has: no widgets."""

    def __init__(self, draw: Callable[[], RenderableType]) -> None:
        self._draw, self._drawn = draw, 0.0
        self._handle: Any = None

    def refresh(self, now: bool = False) -> None:
        """Draw what there is to see; not too often, unless it is to be ``now``."""
        from IPython.display import HTML, display

        if not now and time.monotonic() - self._drawn < REDRAW_S:
            return
        self._drawn = time.monotonic()
        page = HTML(as_html(self._draw()))
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)


def as_html(shown: RenderableType) -> str:
    """What a terminal would show, as HTML."""
    console = Console(
        file=io.StringIO(),
        record=True,
        width=COLUMNS,
        force_terminal=True,
        force_jupyter=False,
        color_system="truecolor",
    )
    console.print(shown)
    layout = '<pre style="line-height: 1.3; font-family: Menlo, DejaVu Sans Mono, Consolas, monospace">{code}</pre>'
    return console.export_html(inline_styles=True, code_format=layout)


def table(result: SearchResult) -> pd.DataFrame:
    """A row for each trial; see :meth:`tuning.results.SearchResult.table`."""
    import pandas as pd

    proposed = list(dict.fromkeys(name for trial in result.trials for name in trial.params))
    rows = [
        {
            "state": trial.state,
            result.objective.metric: trial.value,
            "epochs": trial.epochs,
            "seconds": _seconds(trial),
            **{name: trial.params.get(name) for name in proposed},
            "reason": trial.reason,
        }
        for trial in result.trials
    ]
    columns = ["state", result.objective.metric, "epochs", "seconds", *proposed, "reason"]
    index = pd.Index([trial.number for trial in result.trials], name="trial")
    return pd.DataFrame(rows, index=index, columns=columns).astype({result.objective.metric: "float64"})


def result_html(result: SearchResult) -> str:
    """A search: what it is, how many trials ended how, and the best of them."""
    counts = ", ".join(f"{count} {state}" for state, count in result.counts().items() if state != "total")
    leaders = result.leaderboard()[:LEADERS]
    proposed = list(dict.fromkeys(name for trial in leaders for name in trial.params))
    rows = [
        [str(trial.number), number(trial.value), f"{trial.epochs:g}", *(_word(trial.params.get(p)) for p in proposed)]
        for trial in leaders
    ]
    best = _table(["trial", result.objective.metric, "epochs", *proposed], rows) if rows else "no trial is complete yet"
    what = f"{result.config.family} on {result.config.data.source}"
    sign = f"{result.objective.metric}, {better_sign(result.objective)}"
    return (
        f"<div><b>{escape(result.name)}</b> · {escape(what)} · {escape(sign)}<br>"
        f"{len(result.trials)} trials ({escape(counts)})</div>{best}"
    )


def trial_html(trial: Trial) -> str:
    """A trial: how it ended, and its config."""
    value = "" if trial.value is None else f" · {trial.objective.metric} <b>{number(trial.value)}</b>"
    reason = f"<br>{escape(trial.reason)}" if trial.reason else ""
    fields = [[name, _word(value), "yes" if name in trial.params else ""] for name, value in trial.config.items()]
    return (
        f"<div><b>trial {trial.number}</b> · {trial.state}{value} · {trial.epochs:.3g} epochs{reason}</div>"
        + _table(["field", "value", "proposed"], fields)
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def _word(value: Any) -> str:
    return "" if value is None else number(value) if isinstance(value, float) else str(value)


def _seconds(trial: Trial) -> float | None:
    if trial.started_s is None or trial.finished_s is None:
        return None
    return trial.finished_s - trial.started_s
