"""Published numbers beside ours: difference, and better, the same or worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from tuning.experiment import Row
from tuning.paths import NoValueError
from tuning.reproduction import Done, Reproduction

Verdict = Literal["better", "same", "worse", "differs", "not comparable", "ours alone", "missing"]

TOLERANCE = 0.01
"""Part of a published number that counts as the same where its row does not say more."""


@dataclass(frozen=True)
class Compared:
    """A row with both values.

    Args:
        published, ours: numbers or words; ``None`` where there is none.
        difference: ours - published, of numbers that can be compared.
        tolerance: in the published number's unit.
        why: for what is missing, worse or not comparable.
        done: the step that gave our value.
        seconds: that step took, with those that it works on.
    """

    row: Row
    published: Any
    ours: Any
    difference: float | None
    tolerance: float | None
    verdict: Verdict
    why: str
    done: Done | None
    seconds: float = 0.0

    @property
    def reached(self) -> bool:
        """Whether ours is at least as good as what is published."""
        return self.verdict in ("better", "same")


def compare_rows(found: Reproduction) -> list[Compared]:
    """All rows of an experiment, in their order."""
    summaries = {name: done.summary for name, done in found.steps.items() if not done.problem}
    compared = [_compare(row, summaries, found.steps) for row in found.experiment.rows]
    by_id = {each.row.id: each for each in compared if each.row.id}
    whole = [_in_order(each, [by_id[i] for i in each.row.order]) if each.row.order else each for each in compared]
    return [each if each.done is None else replace(each, seconds=found.seconds_of(each.done.name)) for each in whole]


def count_verdicts(rows: Sequence[Compared]) -> dict[str, int]:
    """How many rows there are of each verdict that occurs."""
    verdicts = [row.verdict for row in rows]
    known: tuple[Verdict, ...] = ("better", "same", "worse", "differs", "not comparable", "ours alone", "missing")
    return {verdict: verdicts.count(verdict) for verdict in known if verdict in verdicts}


def _compare(row: Row, summaries: Mapping[str, Any], steps: Mapping[str, Done]) -> Compared:
    published = row.number if row.number is not None else row.published
    if row.ours is None:
        return Compared(row, 1.0, None, None, 0.0, "missing", "", None)
    done = steps[row.ours.step]
    try:
        ours = row.ours.find(summaries)
        if row.over is not None:
            ours = ours / row.over.find(summaries)
    except NoValueError as error:
        why = done.problem or f"not at this budget: {error}"
        return Compared(row, published, None, None, None, "missing", why, done)
    except (TypeError, ZeroDivisionError):
        return Compared(row, published, None, None, None, "missing", f"{row.ours} is no number to be divided", done)
    if isinstance(ours, Mapping):
        ours = list(ours)
    if isinstance(ours, list) and isinstance(published, list):
        ours = ours[: len(published)]
    if row.magnitude and isinstance(ours, int | float):
        ours = abs(ours)
    if published is None:
        return Compared(row, None, ours, None, None, "ours alone", row.note, done)
    if not isinstance(published, float) or isinstance(ours, str | list | bool):
        same = str(ours).lower() == str(published).lower()
        if row.better == "none":
            return Compared(row, published, ours, None, None, "not comparable", row.note, done)
        return Compared(row, published, ours, None, None, "same" if same else "differs", row.note, done)
    return _numbers(row, published, float(ours), done)


def _numbers(row: Row, published: float, ours: float, done: Done | None) -> Compared:
    difference = ours - published
    if row.better == "none":
        return Compared(row, published, ours, None, None, "not comparable", row.note, done)
    tolerance = TOLERANCE * abs(published) if row.tolerance is None else row.tolerance
    if not math.isfinite(ours):
        return Compared(row, published, ours, None, tolerance, "missing", "our value is not finite", done)
    verdict: Verdict
    if abs(difference) <= tolerance * (1 + 1e-9):
        verdict = "same"
    elif row.better == "same":
        verdict = "differs"
    else:
        verdict = "better" if (difference < 0) == (row.better == "lower") else "worse"
    why = row.note
    if verdict in ("worse", "differs") and done is not None and done.less:
        why = f"{why}{' ' if why else ''}At this budget: {done.less}."
    return Compared(row, published, ours, difference, tolerance, verdict, why, done)


def _in_order(each: Compared, others: Sequence[Compared]) -> Compared:
    """The share of pairs that stand in the published order."""
    pairs = [
        (a.published < b.published, a.ours < b.ours)
        for a, b in combinations(others, 2)
        if a.published != b.published and isinstance(a.ours, float) and isinstance(b.ours, float)
    ]
    wanted = sum(a.published != b.published for a, b in combinations(others, 2))
    done = others[0].done
    if len(pairs) < wanted:
        return Compared(each.row, 1.0, None, None, 0.0, "missing", "some of its rows have no value here", done)
    kept = sum(published == ours for published, ours in pairs) / len(pairs)
    row = each.row.model_copy(update={"tolerance": each.row.tolerance or 0.0, "better": "higher"})
    said = f"{sum(p == o for p, o in pairs)} of {len(pairs)} pairs."
    compared = _numbers(row, 1.0, kept, done)
    return Compared(
        each.row, 1.0, kept, compared.difference, compared.tolerance, compared.verdict, f"{said} {compared.why}", done
    )
