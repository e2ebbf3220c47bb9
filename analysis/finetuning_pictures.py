"""Pictures of fine-tuning: losses and accuracies by epoch, accuracy by time."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import BLACK, BLUE, GREY, ORANGE, WIDTH, style
from models.family import Record

Told = tuple[str, Sequence[Record], Record]
"""Name of a run, its records in order, the best of them."""

_LOOKS = ((BLUE, "o"), (ORANGE, "s"))


@style()
def plot_curves(runs: Sequence[Told]) -> Figure:
    """Loss and accuracy by epoch: solid on the validation images, dashed in training; a ring at the weights kept."""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for (name, records, best), (colour, marker) in zip(runs, _LOOKS, strict=False):
        for axes, train, val in (
            (losses, "train_loss", "val_cross_entropy"),
            (accuracies, "train_accuracy", "val_accuracy"),
        ):
            epochs = [record.epoch for record in records]
            look = {"color": colour, "linewidth": 1.8, "marker": marker, "markersize": 3.5}
            axes.plot(epochs, [record.metrics[val] for record in records], **look, label=f"{name}, validation")
            dashed = {"color": colour, "linewidth": 1.3, "linestyle": (0, (4, 2))}
            axes.plot(epochs, [record.metrics[train] for record in records], **dashed, label=f"{name}, training")
            ring = {"s": 90, "facecolors": "none", "edgecolors": colour, "linewidths": 1.5, "zorder": 4}
            axes.scatter([best.epoch], [best.metrics[val]], **ring)
    losses.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="loss")
    accuracies.set(xlabel="epoch", ylabel="accuracy", title="accuracy")
    for axes in (losses, accuracies):
        axes.grid(axis="y")
        axes.set_xlim(left=0)
    losses.set_ylim(bottom=0)
    handles, labels = losses.get_legend_handles_labels()
    handles.append(losses.scatter([], [], s=90, facecolors="none", edgecolors=BLACK, linewidths=1.5))
    labels.append("weights kept")
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


@style()
def plot_time(runs: Sequence[Told], target: float) -> Figure:
    """Validation accuracy by seconds of training, and when each run reached the target."""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for (name, records, _), (colour, marker) in zip(runs, _LOOKS, strict=False):
        seconds = [record.seconds for record in records]
        accuracies = [record.metrics["val_accuracy"] for record in records]
        reached = next((at for at, value in zip(seconds, accuracies, strict=True) if value >= target), None)
        when = "not reached" if reached is None else f"{reached:.3g} s"
        label = f"{name} ({when} to {100 * target:.1f} %)"
        axes.plot(seconds, accuracies, color=colour, marker=marker, markersize=4, linewidth=1.8, label=label)
        if reached is not None:
            axes.plot([reached, reached], [0, target], color=colour, linewidth=1.2, linestyle=":")
    axes.axhline(target, color=GREY, linewidth=1, linestyle="--")
    _name_target(axes, target)
    lowest = min(record.metrics["val_accuracy"] for _, records, _ in runs for record in records)
    axes.set(xlabel="seconds of training and validation", ylabel="validation accuracy", title="accuracy by time")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=max(0.0, lowest - 0.05))
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _name_target(axes: Axes, target: float) -> None:
    axes.annotate(
        f"target {100 * target:.1f} %",
        (1, target),
        xycoords=("axes fraction", "data"),
        xytext=(0, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=9,
        color=BLACK,
    )
