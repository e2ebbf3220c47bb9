"""Pictures of a search's parameters: their importance, and the objective along one, two and all of them."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.tri import Triangulation

from analysis.axes import Parameter, is_log, range_shown, scale_values
from analysis.figures import BLACK, BLUE, GREEN, GREY, ORANGE, RED, WIDTH, style

if TYPE_CHECKING:
    from analysis.importance import Importance, Points

MOST_BARS = 15
MOST_AXES = 12
MOST_SLICES = 12
TITLES = {"fanova": "fANOVA", "ped_anova": "PED-ANOVA"}
_HATCHES = {"fanova": "", "ped_anova": "////"}
_COLOURS = {"fanova": BLUE, "ped_anova": ORANGE}


@style()
def plot_importance(result: Importance) -> Figure:
    """A pair of bars for each parameter, with the spread over resampled trials and what chance gives."""
    order = result.order[:MOST_BARS]
    points = result.points
    figure = Figure(figsize=(WIDTH, 1.75 + 0.44 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.36
    for row, (method, weights) in enumerate(result.weights.items()):
        at = np.arange(len(order)) + (row - 0.5) * height
        share = weights.share[order]
        reach = np.abs(np.array([share - np.minimum(weights.low[order], share), weights.high[order] - share]))
        reach[1] = np.maximum(weights.high[order] - share, 0)
        axes.barh(at, share, height, color=_COLOURS[method], hatch=_HATCHES[method], edgecolor="white", linewidth=0)
        axes.errorbar(share, at, xerr=reach, fmt="none", ecolor=BLACK, elinewidth=1.1, capsize=2.5)
        axes.vlines(weights.chance[order], at - height / 2, at + height / 2, color=RED, linewidth=2.2)
    names = [points.parameters[i].name for i in order]
    axes.set_yticks(range(len(order)), names)
    axes.set_ylim(len(order) - 0.45, -0.55)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    axes.set_xlim(0, None)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"share of the importance for {points.label}, {len(points.numbers)} trials")
    more = len(result.order) - len(order)
    axes.set_title("importance of parameters" + (f" (the first {len(order)} of {len(order) + more})" if more else ""))
    handles: list[Any] = [
        Patch(facecolor=_COLOURS[m], hatch=_HATCHES[m], edgecolor="white", linewidth=0, label=TITLES[m])
        for m in result.weights
    ]
    handles.append(axes.errorbar([], [], xerr=[], fmt="none", ecolor=BLACK, label="10 to 90 % of resampled trials"))
    (chance,) = axes.plot([], [], color=RED, linewidth=2.2, label="chance reaches so far")
    figure.legend(
        handles=[*handles, chance],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        columnspacing=1.4,
        handletextpad=0.5,
    )
    return figure


@style()
def plot_slices(points: Points, order: list[int]) -> Figure:
    """A panel for each parameter, the most important first: value against parameter, a mark a trial.

    Values far worse than the others stand at the edge, and so do failed trials, as crosses.
    """
    chosen = order[:MOST_SLICES]
    columns = min(len(chosen), 4)
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(WIDTH, 0.95 + 1.95 * rows + (0.6 if rows == 1 else 0)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    low, high = range_shown(points.values, points.mode)
    spread = np.random.default_rng(0).uniform(-0.16, 0.16, len(points.values) + len(points.failed))
    values = np.clip(points.values, low, high)
    size = 26 if len(values) < 80 else 14
    for axes, i in zip(grid.flat, chosen, strict=False):
        parameter = points.parameters[i]
        shift = spread if parameter.is_choice else np.zeros_like(spread)
        across = points.positions[:, i] + shift[: len(values)]
        for complete in (False, True):
            mine = points.active[:, i] & (points.complete == complete)
            look: dict[str, Any] = (
                {"color": BLUE, "edgecolors": "white", "linewidths": 0.4}
                if complete
                else {"facecolors": "white", "edgecolors": GREY, "linewidths": 1.1}
            )
            axes.scatter(across[mine], values[mine], s=size, zorder=3 if complete else 2, **look)
        scale_values(axes, low, high)
        if len(points.failed):
            edge = np.full(len(points.failed), 0.97 if points.mode == "min" else 0.03)
            failed = points.failed[:, i] + shift[len(values) :]
            axes.scatter(
                failed,
                edge,
                marker="x",
                s=24,
                color=RED,
                linewidths=1.4,
                transform=axes.get_xaxis_transform(),
                zorder=4,
            )
        best = int(np.argmin(points.values) if points.mode == "min" else np.argmax(points.values))
        if points.active[best, i]:
            axes.scatter(
                across[best], values[best], marker="*", s=130, color=GREEN, edgecolors="white", linewidths=0.7, zorder=5
            )
        _parameter_axis(axes, parameter, most=4)
        axes.grid(axis="y")
    for axes in grid.flat[len(chosen) :]:
        axes.set_axis_off()
    figure.supylabel(points.label, fontsize=10)
    more = f" (the first {len(chosen)} of {len(order)} parameters)" if len(order) > len(chosen) else ""
    figure.suptitle(f"{points.label} along each parameter{more}", x=0.01, ha="left", fontsize=11)
    marks = grid.flat[0]
    handles = [
        marks.scatter([], [], s=30, color=BLUE, label=f"complete ({points.complete.sum()})"),
        marks.scatter(
            [], [], s=26, facecolors="white", edgecolors=GREY, label=f"not complete ({(~points.complete).sum()})"
        ),
        marks.scatter([], [], s=110, marker="*", color=GREEN, label="best of these values"),
    ]
    if len(points.failed):
        handles.append(marks.scatter([], [], s=26, marker="x", color=RED, label=f"failed ({len(points.failed)})"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, handletextpad=0.4)
    return figure


@style()
def plot_parallel(points: Points, order: list[int]) -> Figure:
    """An axis for each parameter, the most important next to the value; a line a trial, the darker the better.

    A line has a gap where a parameter was not searched in that trial.
    """
    chosen = order[:MOST_AXES][::-1]
    figure = Figure(figsize=(WIDTH, 4.4))
    crowded = len(chosen) > 5
    bottom = 0.2 if crowded else 0.1
    left = 0.05 + 0.0085 * len(points.parameters[chosen[0]].name) if crowded else 0.1  # its name leans to the left
    axes = figure.add_axes((left, bottom, 0.915 - left, 0.9 - bottom))
    low, high = range_shown(points.values, points.mode)
    norm = LogNorm(low, high) if is_log(low, high) else Normalize(low, high if high > low else low + 1e-9)
    last = len(chosen)
    heights = np.full((len(points.values), last + 1), np.nan)
    for column, i in enumerate(chosen):
        start, end = points.parameters[i].limits
        heights[:, column] = np.where(points.active[:, i], (points.positions[:, i] - start) / (end - start), np.nan)
    shown = np.clip(points.values, low, high)
    heights[:, last] = np.asarray(norm(shown)).astype(float)
    ranked = np.argsort(points.values if points.mode == "max" else -points.values, kind="stable")
    spread = np.random.default_rng(0).uniform(-0.02, 0.02, heights.shape)
    for column, i in enumerate(chosen):  # lines through one option would else be one line
        if points.parameters[i].is_choice:
            heights[:, column] += spread[:, column]
    thin, faint = float(np.clip(30 / len(ranked), 0.7, 1.5)), float(np.clip(40 / len(ranked), 0.2, 0.75))
    shades = _shades()(np.linspace(1, 0, len(ranked)))  # by rank: most values lie close together
    for place, row in enumerate(ranked):
        best = place == len(ranked) - 1
        axes.plot(
            range(last + 1),
            heights[row],
            color=GREEN if best else shades[place],
            linewidth=2.6 if best else thin,
            alpha=1 if best else 0.85 if place > 0.9 * len(ranked) else faint,
            zorder=6 if best else 2 + place / len(ranked),
        )
    for column, i in enumerate(chosen):
        parameter = points.parameters[i]
        start, end = parameter.limits
        at, labels = parameter.ticks(5)
        axes.axvline(column, color=BLACK, linewidth=0.8, zorder=7)
        for position, label in zip(at, labels, strict=True):
            height = (position - start) / (end - start)
            axes.plot([column, column + 0.05], [height, height], color=BLACK, linewidth=0.8, zorder=7)
            axes.annotate(
                label,
                (column, height),
                (6, 0),
                textcoords="offset points",
                fontsize=7.5,
                va="center",
                zorder=8,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            )
    _value_axis(axes, last, low, high, norm)
    names = [points.parameters[i].name for i in chosen]
    axes.set_xticks(range(last + 1), [*names, points.metric], rotation=25 if crowded else 0)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("right" if crowded else "center")
    axes.set(xlim=(-0.1, last + 0.02), ylim=(-0.05, 1.05), yticks=[])
    axes.tick_params(axis="x", length=0)
    axes.spines[:].set_visible(False)
    more = f" (the first {len(chosen)} of {len(order)} parameters)" if len(order) > len(chosen) else ""
    axes.set_title(f"{len(points.values)} trials by {points.label}; dark is better, green is best{more}")
    return figure


@style()
def plot_contour(points: Points, first: int, second: int) -> Figure:
    """The value over two parameters: a mark a trial, and between trials a surface through them.

    Where a parameter is a choice, or the trials lie on one line, there is nothing between them, and no surface.
    """
    across, up = points.parameters[first], points.parameters[second]
    figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
    axes = figure.add_subplot()
    both = points.active[:, first] & points.active[:, second]
    at = points.positions[both][:, [first, second]]
    low, high = range_shown(points.values, points.mode)
    values = np.clip(points.values[both], low, high)
    colours = _colours(points)
    surface = not (across.is_choice or up.is_choice) and _surface(axes, at, values, points)
    spread = np.random.default_rng(0).uniform(-0.2, 0.2, at.shape)
    at = at + spread * np.array([float(across.is_choice), float(up.is_choice)])
    complete = points.complete[both]
    for kind, marker, label in ((True, "o", "complete"), (False, "s", "not complete")):
        mine = complete == kind
        if mine.any():
            axes.scatter(
                at[mine, 0],
                at[mine, 1],
                color=colours.to_rgba(values[mine]),
                marker=marker,
                s=52 if kind else 34,
                edgecolors="white",
                linewidths=1.1,
                zorder=4,
            )
            axes.scatter([], [], marker=marker, s=52 if kind else 34, color=GREY, label=f"{label} ({mine.sum()})")
    if len(values):
        best = int(np.argmin(values) if points.mode == "min" else np.argmax(values))
        look: dict[str, Any] = {"marker": "*", "s": 210, "color": GREEN, "edgecolors": "white", "linewidths": 1}
        axes.scatter(*at[best], **look, zorder=5, label="best of these values")
    _parameter_axis(axes, across, most=7)
    start, end = up.limits
    ticks, labels = up.ticks(7)
    axes.set_yticks(ticks, labels)
    room = 0.5 if up.is_choice else 0.04 * (end - start)
    axes.set(ylim=(start - room, end + room), ylabel=up.name + (" (log)" if up.log else ""))
    bar = figure.colorbar(colours, ax=axes, pad=0.02)
    bar.set_label(f"{points.label} ({'lower' if points.mode == 'min' else 'higher'} is better)")
    bar.outline.set_visible(False)
    if is_log(low, high):
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    between = "; the surface only joins the trials" if surface else ""
    axes.set_title(f"{across.name} and {up.name}{between}")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, handletextpad=0.4)
    return figure


def _shades() -> ListedColormap:
    """From dark to light; never so light that it is lost on white."""
    return ListedColormap(colormaps["viridis"](np.linspace(0, 0.93, 256)))


def _colours(points: Points) -> ScalarMappable:
    """Dark for good values, light for bad ones."""
    low, high = range_shown(points.values, points.mode)
    cmap = _shades() if points.mode == "min" else _shades().reversed()
    norm = LogNorm(low, high) if is_log(low, high) else Normalize(low, high if high > low else low + 1e-9)
    return ScalarMappable(norm, cmap)


def _surface(axes: Axes, at: Any, values: Any, points: Points) -> bool:
    """Fill what lies between the trials; ``False`` where it cannot be done."""
    unique, where = np.unique(at, axis=0, return_inverse=True)
    spans = np.ptp(at, axis=0) if len(at) else np.zeros(2)
    if len(unique) < 4 or not spans.all():
        return False
    scaled = (unique - unique.min(axis=0)) / spans
    if np.linalg.svd(scaled - scaled.mean(axis=0), compute_uv=False)[-1] < 1e-3:
        return False
    means = np.array([values[where.ravel() == i].mean() for i in range(len(unique))])
    colours = _colours(points)
    triangles = Triangulation(*scaled.T).triangles
    # Lighter than the marks. Not by transparency, which shows the seams of the triangles.
    pale = ListedColormap(1 - 0.5 * (1 - colours.cmap(np.linspace(0, 1, 256))[:, :3]))
    axes.tripcolor(
        *unique.T,
        triangles,
        means,
        shading="gouraud",
        cmap=pale,
        norm=colours.norm,
        zorder=1,
        rasterized=True,
    )
    return True


def _parameter_axis(axes: Axes, parameter: Parameter, most: int) -> None:
    """Ticks, limits and label of the x axis."""
    low, high = parameter.limits
    at, labels = parameter.ticks(most)
    crowded = sum(map(len, labels)) > (13 if most < 5 else 70)
    axes.set_xticks(at, labels, rotation=35 if crowded and parameter.is_choice else 0)
    if crowded and parameter.is_choice:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    room = 0.5 if parameter.is_choice else 0.05 * (high - low)
    axes.set_xlim(low - room, high + room)
    name = "\n".join(textwrap.wrap(parameter.name, 20, break_long_words=True)) if most < 5 else parameter.name
    condition = f"if {parameter.condition}" if parameter.condition and most < 5 else ""
    axes.set_xlabel("\n".join([name + (" (log)" if parameter.log else ""), *textwrap.wrap(condition, 26)]))


def _value_axis(axes: Axes, at: float, low: float, high: float, norm: Normalize) -> None:
    """The right-most axis of parallel coordinates, with the objective's ticks."""
    locator: Locator = LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)) if is_log(low, high) else MaxNLocator(6)
    right = axes.twinx()
    right.spines[:].set_visible(False)
    right.set_ylim(axes.get_ylim())
    values = [float(v) for v in locator.tick_values(low, high) if low <= v <= high] or [low]
    right.set_ylim(-0.05, 1.05)
    right.set_yticks([float(norm(value)) for value in values], [f"{value:.4g}" for value in values])
    right.yaxis.set_minor_locator(NullLocator())
    right.spines["right"].set_visible(True)
