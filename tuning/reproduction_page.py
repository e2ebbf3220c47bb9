"""A reproduction as a page, a Markdown table and JSON: each published number and picture beside ours."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from analysis.kept import Picture
from analysis.page import fill
from models.checkpoint import write_atomically
from tuning.experiment import PictureRow, Row
from tuning.paths import matches
from tuning.published_rows import Compared, compare_rows, count_verdicts
from tuning.reproduction import Reproduction
from tuning.versions import versions

ARROWS = {"lower": " ↓", "higher": " ↑", "same": "", "none": ""}


@dataclass(frozen=True)
class Results:
    """Where a reproduction's results are, and what they say."""

    found: Reproduction
    rows: list[Compared]
    page: Path
    table: Path

    def to_json(self) -> dict[str, Any]:
        """The object that ``latentune reproduce --json`` prints."""
        return {
            "report": self.found.name,
            "budget": self.found.budget,
            "seed": self.found.seed,
            "seconds": round(self.found.seconds, 1),
            "verdicts": count_verdicts(self.rows),
            "rows": [_told(row) for row in self.rows],
            "steps": {
                name: {"seconds": done.seconds, "again": done.again, "problem": done.problem or None}
                for name, done in self.found.steps.items()
            },
            "page": str(self.page),
            "table": str(self.table),
        }


def write_results(found: Reproduction) -> Results:
    """Write ``report.html``, ``table.md`` and ``rows.json`` into the reproduction's folder.

    Raises:
        StorageError: a file cannot be written.
    """
    rows = compare_rows(found)
    results = Results(found, rows, found.folder / "report.html", found.folder / "table.md")
    write_atomically(results.page, render_page(found, rows).encode())
    write_atomically(results.table, render_table(found, rows).encode())
    write_atomically(found.folder / "rows.json", (json.dumps(results.to_json(), indent=1) + "\n").encode())
    return results


def render_page(found: Reproduction, rows: Sequence[Compared]) -> str:
    """The HTML page, which needs nothing else."""
    experiment = found.experiment
    counts = count_verdicts(rows)
    compared = sum(row.tolerance is not None or row.verdict == "differs" for row in rows if row.verdict != "missing")
    reached = sum(row.reached for row in rows)
    missing = sum(count for verdict, count in counts.items() if verdict == "missing")
    headlines = [
        (
            "At least as good",
            f"{reached} of {compared}",
            f"{counts.get('better', 0)} better, {counts.get('same', 0)} the same",
        ),
        ("Worse", str(counts.get("worse", 0) + counts.get("differs", 0)), "the reason stands beside each"),
        ("Rows", str(len(rows)), f"{missing} missing" if missing else "none missing"),
        ("Time", duration(found.seconds), f"{len(found.steps)} steps, budget {found.budget}"),
    ]
    parts = [
        {"where": where, "rows": [_cells(row) for row in part]}
        for where, part in groupby(rows, key=lambda row: row.row.where)
    ]
    pictures = [
        (where, [_picture(found, row) for row in part])
        for where, part in groupby(experiment.pictures, key=lambda row: row.where)
    ]
    return fill(
        "reproduction.html",
        title=experiment.title,
        report=experiment.report,
        about=experiment.about,
        budget=found.budget,
        headlines=headlines,
        parts=parts,
        pictures=pictures,
        steps=list(found.steps.values()),
        seed=found.seed,
        reproducibility=[*versions().items()],
        written=time.strftime("%d %B %Y at %H:%M UTC", time.gmtime()),
    )


def render_table(found: Reproduction, rows: Sequence[Compared]) -> str:
    """The rows as Markdown."""
    experiment = found.experiment
    counts = ", ".join(f"{count} {verdict}" for verdict, count in count_verdicts(rows).items())
    lines = [
        f"# {_plain(experiment.title)}",
        "",
        f"{_plain(experiment.report)}. {_plain(experiment.about)}".strip(),
        "",
        f"Budget `{found.budget}`, seed {found.seed}, {duration(found.seconds)} in {len(found.steps)} steps: {counts}. "
        f"Written by `latentune reproduce {found.name} --budget {found.budget}`; ↑ and ↓ say which way is better, a "
        "difference up to the tolerance counts as the same. The time beside a step includes what it works on.",
    ]
    for where, part in groupby(rows, key=lambda row: row.row.where):
        lines += [
            "",
            f"## {_plain(where)}",
            "",
            "| what | published | ours | verdict | difference | tolerance | from step | why |",
            "|---|--:|--:|---|--:|--:|---|---|",
        ]
        lines += ["| " + " | ".join(map(_plain, _cells(row).values())) + " |" for row in part]
    lines += ["", "## Steps", "", "| step | kind | seconds | with | less than at full |", "|---|---|--:|---|---|"]
    for done in found.steps.values():
        told = [f"failed: {done.problem}" if done.problem else done.facts, *done.notes]
        cells = (done.name, done.kind, f"{done.seconds:.1f}", "; ".join(told), done.less)
        lines.append("| " + " | ".join(map(_plain, cells)) + " |")
    return "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    """``41 s``, ``7 min``, ``2 h 5 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def shown_rows(rows: Sequence[Compared]) -> list[dict[str, str]]:
    """Rows as they are shown: column → words."""
    return [_cells(row) for row in rows]


def _cells(row: Compared) -> dict[str, str]:
    unit, wanted = row.row.unit, row.row
    return {
        "what": wanted.what + ARROWS[wanted.better],
        "published": value_text(row.published, wanted, printed=True),
        "ours": value_text(row.ours, wanted),
        "verdict": row.verdict,
        "difference": "" if row.difference is None else _signed(row.difference, unit),
        "tolerance": "" if row.tolerance is None else f"± {_number(row.tolerance, unit)}",
        "step": "" if row.done is None else f"{row.done.name}, {duration(row.seconds)}",
        "why": row.why,
    }


def _told(row: Compared) -> dict[str, Any]:
    return {
        "id": row.row.id or None,
        "what": row.row.what,
        "where": row.row.where,
        "published": row.published,
        "ours": row.ours,
        "difference": row.difference,
        "tolerance": row.tolerance,
        "verdict": row.verdict,
        "why": row.why,
        "step": None if row.done is None else row.done.name,
    }


def value_text(value: Any, row: Row, *, printed: bool = False) -> str:
    """A value with the row's unit: what is ``printed`` digit by digit, ours with five of them."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(value_text(item, row) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return _number(float(value), row.unit, 8 if printed and row.published_over is None else 5)


def _number(value: float, unit: str, digits: int = 4) -> str:
    if not math.isfinite(value):
        return "–"
    if unit == "%":
        return f"{100 * value:.2f} %"
    text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.{digits}g}"
    return f"{text}{unit}" if unit == "×" else f"{text} {unit}".strip()


def _signed(value: float, unit: str) -> str:
    text = _number(abs(value), "" if unit == "×" else unit)
    return f"{'−' if value < 0 else '+'}{text}"


def _plain(text: str) -> str:
    """Words in a cell of a Markdown table, whatever characters they have."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _picture(found: Reproduction, row: PictureRow) -> dict[str, Any]:
    told = {"title": row.title, "published": row.published, "note": row.note, "problem": "", "drawn": None}
    try:
        path = find_picture(found, row)
    except LookupError as error:
        return {**told, "problem": str(error)}
    svg = path.with_suffix(".svg")
    smallest = svg if svg.is_file() and svg.stat().st_size < path.stat().st_size else path
    kind = "png" if smallest.suffix == ".png" else "svg+xml"
    return {
        **told,
        "drawn": Picture(row.title, f"{row.title}; in the report: {row.published}", smallest.read_bytes(), kind),
    }


def find_picture(found: Reproduction, row: PictureRow) -> Path:
    """The file of a picture (PNG).

    Raises:
        LookupError: there is none; the message says why.
    """
    done = found.steps[row.of]
    if done.problem:
        raise LookupError(done.problem)
    known = done.pictures
    if row.trial:
        trials = [t for t in done.summary.get("trials", ()) if matches(t, row.trial)]
        if not trials:
            raise LookupError("no trial has " + ", ".join(f"{k} {v}" for k, v in row.trial.items()))
        names: Iterator[str] = (f"trial-{t['number']:04d}/{row.figure}" for t in trials)
    else:
        names = iter((row.figure, *(name for name in known if name.endswith(f"/{row.figure}"))))
    name = next((name for name in names if name in known), None)
    if name is None:
        raise LookupError(f"{row.of} made no picture {row.figure}; there are: {', '.join(known) or 'none'}")
    return Path(known[name])
