"""What all runs of a comparison say together: figures as JSON, tables, and a picture."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.comparing import Spread, best, best_so_far, compare_to_target, compare_walls
from benchmarks.contenders import CONTENDERS, OURS, PEERS
from benchmarks.workloads import WORKLOADS

TITLES = {
    OURS: "latentune",
    "ray-tune": "Ray Tune",
    "ray-tune-reuse": "Ray Tune, actors reused",
    "optuna": "Optuna",
    "syne-tune": "Syne Tune",
}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Per workload: time to target and same work against each peer, and goodput."""
    found: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for run in runs:
        found[run["workload"], run["part"], run["contender"]][run["seed"]] = run
    summary: dict[str, Any] = {}
    for workload in dict.fromkeys(run["workload"] for run in runs):
        objective = WORKLOADS[workload].get_family().objective
        of = {
            (part, name): found[workload, part, name]
            for part in ("search", "same-work")
            for name in CONTENDERS
            if (workload, part, name) in found
        }
        ours, our_work = of.get(("search", OURS), {}), of.get(("same-work", OURS), {})
        summary[workload] = {
            "contenders": {
                f"{part} {name}": _contender(list(them.values()), objective) for (part, name), them in of.items()
            },
            "time_to_target": {
                peer: compare_to_target(
                    {seed: run["trace"] for seed, run in ours.items()},
                    {seed: run["trace"] for seed, run in of["search", peer].items()},
                    objective,
                )
                for peer in PEERS
                if ours.keys() & of.get(("search", peer), {}).keys()
            },
            "same_work": {
                peer: compare_walls(
                    {seed: run["wall_s"] for seed, run in our_work.items()},
                    {seed: run["wall_s"] for seed, run in of["same-work", peer].items()},
                )
                for peer in PEERS
                if our_work.keys() & of.get(("same-work", peer), {}).keys()
            },
        }
    return summary


def _contender(runs: list[dict[str, Any]], objective: Any) -> dict[str, Any]:
    """Medians over seeds of one contender."""
    values = [value for run in runs if (value := best(run["trace"], objective)) is not None]
    epochs = []
    for run in runs:
        furthest: dict[str, float] = {}
        for _, trial, epoch, _ in run["trace"]:
            furthest[trial] = max(furthest.get(trial, 0.0), epoch)
        epochs.append(sum(furthest.values()))
    result = {
        "seeds": len(runs),
        "wall_s": statistics.median(run["wall_s"] for run in runs),
        "best": statistics.median(values) if values else None,
        "epochs": statistics.median(epochs),
        "trials": statistics.median(run["trials"] for run in runs),
    }
    shares = [run["goodput"] for run in runs if "goodput" in run]
    if shares:
        result["goodput"] = {name: statistics.median(share[name] for share in shares) for name in shares[0]}
    return result


def write_summary(summary: dict[str, Any], runs: list[dict[str, Any]], folder: Path, figures: Path) -> str:
    """``summary.json`` and ``summary.md`` in ``folder``, ``benchmark-<workload>.png`` in ``figures``; the tables."""
    text = tables(summary, runs)
    (folder / "summary.json").write_text(json.dumps(_finite(summary), indent=1) + "\n")
    (folder / "summary.md").write_text(text)
    figures.mkdir(parents=True, exist_ok=True)
    for workload in summary:
        searches = [run for run in runs if (run["workload"], run["part"]) == (workload, "search")]
        if searches:
            draw(searches, figures / f"benchmark-{workload}.png")
    return text


def tables(summary: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """In Markdown. A ratio says how many times sooner latentune was; 0 stands for never, and is below any other."""
    lines: list[str] = []
    for workload, parts in summary.items():
        work = WORKLOADS[workload]
        metric = work.get_family().objective.metric
        lines += [
            f"### {workload}: {work.family}, {work.train_images:,} images, {work.trials} trials of up to "
            f"{work.max_epochs} epochs",
            "",
        ]
        if parts["time_to_target"]:
            lines += [
                f"Time to target: seconds from the start of the process to the {metric} that the other has at its end.",
                "",
                "| against | seeds | target | its time | ours | ratio | ours never | without our first trial | never |",
                "|---|---|---|---|---|---|---|---|---|",
            ]
            for peer, row in parts["time_to_target"].items():
                seeds = len(row["seeds"])
                lines.append(
                    f"| {TITLES[peer]} | {seeds} | {row['target']:.5g} | {_seconds(row['seconds_theirs'])} | "
                    f"{_seconds(row['seconds_ours'])} | {_spread(row['ratio'])} | {row['never']} of {seeds} | "
                    f"{_spread(row['without_first'])} | {row['never_without_first']} of {seeds} |"
                )
            lines.append("")
        if parts["same_work"]:
            lines += [
                f"Same work: {len(work.configs(0))} configs, {work.grid_epochs} epochs each, nothing stopped; whole "
                "processes.",
                "",
                "| against | seeds | its time | ours | ratio |",
                "|---|---|---|---|---|",
            ]
            lines += [
                f"| {TITLES[peer]} | {len(row['seeds'])} | {_seconds(row['seconds_theirs'])} | "
                f"{_seconds(row['seconds_ours'])} | {_spread(row['ratio'])} |"
                for peer, row in parts["same_work"].items()
            ]
            lines.append("")
        lines += [
            "Medians of each contender; goodput is the share of the cores' time inside training and validation.",
            "",
            f"| | seeds | trials | epochs | seconds | best {metric} | goodput, searching | goodput, whole process |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for key, row in parts["contenders"].items():
            part, _, name = key.partition(" ")
            share = row.get("goodput", {})
            shown = [f"{share[k]:.2f}" if share else "" for k in ("while_searching", "whole_process")]
            value = "none" if row["best"] is None else f"{row['best']:.5g}"
            lines.append(
                f"| {TITLES[name]}, {part.replace('-', ' ')} | {row['seeds']} | {row['trials']:g} | "
                f"{row['epochs']:.4g} | {_seconds(row['wall_s'])} | {value} | {shown[0]} | {shown[1]} |"
            )
        lines.append("")
    return "\n".join([*lines, *_machines(runs)]) + "\n"


def _machines(runs: list[dict[str, Any]]) -> list[str]:
    """On which machines, with what, and how busy they were before each run."""
    seen = {
        (run["machine"]["processor"], run["machine"]["cores"], json.dumps(run["machine"]["versions"])) for run in runs
    }
    loads = [run["machine"]["load_average"][0] for run in runs]
    lines = []
    for processor, cores, versions in sorted(seen):
        named = ", ".join(f"{name} {version}" for name, version in json.loads(versions).items())
        lines.append(f"{cores} cores of {processor}; {named}.")
    if loads:
        lines.append(f"Load average before a run: median {statistics.median(loads):.1f}, at most {max(loads):.1f}.")
    return lines


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Best value so far against wall time: a thin line a seed, a thick one for the median of a contender."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    objective = WORKLOADS[runs[0]["workload"]].get_family().objective
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    finals, firsts = [], []
    for index, name in enumerate(CONTENDERS):
        curves = [(best_so_far(run["trace"], objective), run["wall_s"]) for run in runs if run["contender"] == name]
        curves = [curve for curve in curves if curve[0]]
        if not curves:
            continue
        grid = np.linspace(0, max(wall for _, wall in curves), 400)
        stepped = np.array([_at(steps, grid) for steps, _ in curves])
        for line in stepped:
            axes.plot(grid, line, color=f"C{index}", linewidth=0.7, alpha=0.35)
        there = ~np.isnan(stepped).any(axis=0)
        median = np.median(stepped[:, there], axis=0)
        axes.plot(grid[there], median, color=f"C{index}", linewidth=2, label=TITLES[name])
        finals += [steps[-1][1] for steps, _ in curves]
        firsts.append(float(median[0]))
    if objective.mode == "min":
        axes.set_yscale("log")
        axes.set_ylim(min(finals) * 0.95, min(max(firsts), 3 * max(finals)))
    else:
        axes.set_ylim(max(min(firsts), min(finals) - 0.1), max(finals) + 0.01)
    axes.set_xlabel("seconds since the process was started")
    axes.set_ylabel(f"best {objective.metric} so far")
    axes.set_xlim(0)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _at(steps: list[tuple[float, float]], grid: Any) -> list[float]:
    """The best value at each time of ``grid``; NaN before the first."""
    return [next((value for at, value in reversed(steps) if at <= time), math.nan) for time in grid]


def _seconds(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"{seconds:.1f} s"


def _spread(spread: Spread) -> str:
    return f"{spread['median']:.1f}× ({spread['low']:.1f}–{spread['high']:.1f})"


def _finite(given: Any) -> Any:
    """JSON knows no infinity: what is never reached is ``null``."""
    if isinstance(given, dict):
        return {key: _finite(value) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return [_finite(value) for value in given]
    return None if isinstance(given, float) and not math.isfinite(given) else given
