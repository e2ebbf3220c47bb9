"""Tables and picture of compared searches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

SHOWN, COMPARED = (2, 4, 6, 8), (4, 8)
"""Which budgets in epochs the tables show: a quarter of the largest to all of it; of pairs, 5/12 and all."""

PAIRS = (
    ("latentune", "Ray's pair"),
    ("latentune", "Ray's pair, default first"),
    ("latentune", "random + ASHA"),
    ("latentune", "told COMPLETE"),
    ("latentune", "rungs 1, 3"),
    ("rungs 1, 3", "Ray's pair, default first"),
    ("promotion", "latentune"),
    ("promotion, paused as PRUNED", "latentune"),
    ("random + promotion", "random + ASHA"),
    ("random + promotion, default whole", "latentune"),
    ("random + promotion, default whole", "random + ASHA"),
    ("promotion, paused as PRUNED, default whole", "latentune"),
    ("rung 3", "latentune"),
    ("no constant liar", "latentune"),
    ("not multivariate", "latentune"),
    ("5 random trials first", "latentune"),
)

LINES: dict[str, dict[str, Any]] = {
    "latentune": {"color": "#0b6e4f", "lw": 2.2, "zorder": 3},
    "told COMPLETE": {"color": "#0b6e4f", "ls": ":"},
    "Ray's pair": {"color": "#c1440e"},
    "Ray's pair, default first": {"color": "#c1440e", "ls": "--"},
    "random + ASHA": {"color": "#7a7a7a"},
    "promotion, paused as PRUNED": {"color": "#3f51b5", "ls": "--"},
}


def tables(result: Mapping[str, Any]) -> str:
    """All of it in Markdown."""
    parts: list[str] = []
    for kind, found in result["sets"].items():
        seconds = found["seconds"]
        head = [kind, *(f"{result['epochs'][i]} epochs" for i in SHOWN), *(f"{s:.0f} s" for s in seconds), "trials"]
        rows = [
            [
                method,
                *(_spread(values["by_epochs"][i]) for i in SHOWN),
                *(_spread(values["by_seconds"][i]) for i in range(len(seconds))),
                f"{np.median(values['trials']):.0f}",
            ]
            for method, values in found["methods"].items()
        ]
        parts.append(_markdown(head, rows))
    head = [
        "better of the two",
        *(f"{kind}, {result['epochs'][i]} epochs" for kind in result["sets"] for i in COMPARED),
    ]
    rows = []
    for first, second in PAIRS:
        known = [found["methods"] for found in result["sets"].values()]
        if all(first in methods and second in methods for methods in known):
            cells = [wins(m[first]["by_epochs"][i], m[second]["by_epochs"][i]) for m in known for i in COMPARED]
            rows.append([f"**{first}** against {second}", *cells])
    parts.append(_markdown(head, rows))
    return "\n\n".join(parts)


def wins(first: Sequence[float | None], second: Sequence[float | None]) -> str:
    """How often and by how much the first is better (lower) on the same seeds.

    Share of seeds that it won, of those that were not even, with its exact 95 % interval; then the mean difference in
    percentage points, above 0 where the first is better, with the 95 % interval of 2,000 bootstrap samples.
    """
    a, b = _numbers(first), _numbers(second)
    won, lost = int((a < b).sum()), int((a > b).sum())
    if not won + lost:
        return "even"
    interval = binomtest(won, won + lost).proportion_ci()
    text = f"{100 * won / (won + lost):.0f} % ({100 * interval.low:.0f}–{100 * interval.high:.0f})"
    both = np.isfinite(a) & np.isfinite(b)
    gain = (b - a)[both]
    means = np.random.default_rng(0).choice(gain, (2000, len(gain))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{text}; {gain.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def write(result: Mapping[str, Any], path: Path) -> None:
    """As JSON, a line a method."""
    content = dict(result)
    sets = {
        kind: {**found, "methods": {name: json.dumps(values) for name, values in found["methods"].items()}}
        for kind, found in content.pop("sets").items()
    }
    text = json.dumps({**content, "sets": sets}, indent=1)
    for found in sets.values():
        for line in found["methods"].values():
            text = text.replace(json.dumps(line), line)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Medians over seeds against epochs trained, a panel a set; the band has half of the service's seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

    figure = Figure(figsize=(4 * len(result["sets"]), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(result["sets"]), squeeze=False, sharey=True)[0]
    for ax, (kind, found) in zip(axes, result["sets"].items(), strict=True):
        for method, style in LINES.items():
            if method in found["methods"]:
                rows = [_numbers(row) for row in found["methods"][method]["by_epochs"]]
                ax.plot(result["epochs"], [np.median(row) for row in rows], label=method, **style)
                if method == "latentune":
                    low, high = (([np.quantile(row, q) for row in rows]) for q in (0.25, 0.75))
                    ax.fill_between(result["epochs"], low, high, color=style["color"], alpha=0.12, lw=0)
        ax.set(title=kind, xlabel="epochs trained", yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(ScalarFormatter())
        ax.yaxis.set_minor_locator(LogLocator(subs=()))
        ax.grid(alpha=0.3, lw=0.5)
    axes[0].set_ylabel(f"% above the best known value\n(median of {result['seeds']} seeds)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _numbers(row: Sequence[float | None]) -> np.ndarray:
    return np.array([np.inf if value is None else value for value in row])


def _spread(row: Sequence[float | None]) -> str:
    """Median and quartiles; of the values themselves, as some are infinite."""
    values = np.quantile(_numbers(row), (0.5, 0.25, 0.75), method="nearest")
    return "{:.1f} ({:.1f}–{:.1f})".format(*values) if np.isfinite(values).all() else "–"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
