"""How a search and its trials are called and described in MLflow: names, and notes in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from models.family import Objective
from tuning.progress import better_sign, number
from tuning.report import continue_command, report_command

if TYPE_CHECKING:
    from tuning.config import SearchConfig
    from tuning.results import Trial

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""

NAME_CHARS = 50


def trial_name(trial: Trial) -> str:
    """``007 lr=0.0031 latent_dim=10``: fractions, then whole numbers, then words; cut where it gets long."""
    words = [f"{trial.number:03d}"]
    kinds = {float: 0, int: 1}
    for name, value in sorted(trial.params.items(), key=lambda item: kinds.get(type(item[1]), 2)):
        word = f"{name}={number(value) if isinstance(value, float) else value}"
        if len(" ".join([*words, word])) > NAME_CHARS:
            break
        words.append(word)
    return " ".join(words)


def trial_note(trial: Trial) -> str:
    """How an ended trial did, and why it ended where that was not its full budget."""
    metric = trial.objective.metric
    value = "" if trial.value is None else f" with {metric} {number(trial.value)}"
    epochs = f"after {trial.epochs:.3g} epochs"
    ending = {
        "complete": f"**Complete**{value} {epochs}.",
        "pruned": f"**Pruned** at the rung of {trial.epochs:.3g} epochs{value}.",
        "failed": f"**Failed** {epochs}.",
    }.get(trial.state, "")
    return ending + (f"\n\n{_code(trial.reason)}" if trial.reason and ending else "")


def search_note(
    config: SearchConfig,
    objective: Objective,
    counts: Mapping[str, int],
    best: Trial | None,
    champion: str | None,
    page: str | None = None,
) -> str:
    """What a search is, its space, the best so far, and how to go on.

    Args:
        champion: the registered model's address.
        page: where MLflow shows the search's report.
    """
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    lines: list[str] = []
    if best is not None:
        lines.append(f"**Best so far: {objective.metric} {number(best.value)}**, trial {best.number}.")
    if told:
        lines.append(f"Trials: {told}.")
    if page is not None:
        lines.append(f"[**Report**]({page}) with curves, importance of the parameters and pictures.")
    lines.append("")
    lines += [
        f"{_plain(config.family)} on {_plain(config.data.source)}, ranked by {objective.metric} "
        f"({better_sign(objective)}): {config.sampler} proposes, {config.scheduler} stops the poor ones; "
        f"{config.max_epochs:g} epochs a trial.",
        "",
    ]
    if best is not None and best.params:
        lines += [*_table("field", "best value", best.params), ""]
    if champion is not None:
        lines += [
            "The best model, where this store is the tracking URI:",
            "",
            "```python",
            f'mlflow.pyfunc.load_model("{champion}").predict(batch)',
            "```",
            "",
        ]
    lines += ["Searched:", "", *_table("field", "range", config.space), ""]
    lines += [
        "The child runs are the trials; pictures are in `figures` among the artifacts. To go on with the search (or "
        "give it more `--trials`), and to put a page with everything about it into `analysis/report`:",
        "",
        "```bash",
        continue_command(config, "latentune"),
        report_command(config),
        "```",
    ]
    return "\n".join(lines)


def _table(left: str, right: str, rows: Mapping[str, Any]) -> list[str]:
    shown = [(name, number(value) if isinstance(value, float) else str(value)) for name, value in rows.items()]
    return [f"| {left} | {right} |", "|---|---|", *(f"| {_plain(name)} | {_plain(value)} |" for name, value in shown)]


def _plain(text: str) -> str:
    """Text that Markdown and HTML take as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", " ".join(str(text).split()))


def _code(text: str) -> str:
    """A block in which nothing is markup, whatever a trial's reason holds."""
    return "\n".join(f"    {line}" for line in text.splitlines())
