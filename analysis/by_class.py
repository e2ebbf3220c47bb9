"""A number of each image, seen class by class: its spread as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from analysis.figures import BLUE, GREY, ORANGE, WIDTH, style

SHOWN = 24
"""Most classes in a picture: of more, the half with the lowest and the half with the highest means."""

LONGEST_NAME = 24


def table_of_classes(
    values: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """Columns with a row a class: how many images, mean, standard deviation and quartiles; NaN without images.

    Args:
        values: float64 (N,), finite.
        labels: int64 (N,), indices into ``class_names``.
    """
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=len(class_names))
    groups = np.split(values[order], np.cumsum(counts)[:-1])
    nothing = np.full(5, np.nan)
    rows = np.array([(g.mean(), g.std(), *np.percentile(g, (25, 50, 75))) if len(g) else nothing for g in groups])
    return {
        "label": np.arange(len(class_names)),
        "class_name": np.array(class_names),
        "images": counts,
        **dict(zip(("mean", "std", "q25", "median", "q75"), rows.T, strict=True)),
    }


@style()
def plot_classes(
    values: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], class_names: Sequence[str], axis: str, title: str
) -> Figure:
    """A box a class, the lowest mean on top: quartiles, whiskers over 5 to 95 % of the images, a diamond for the mean.

    Args:
        axis: what the values are, with their unit.
    """
    table = table_of_classes(values, labels, class_names)
    present = np.flatnonzero(table["images"])
    order = present[np.argsort(table["mean"][present], kind="stable")]
    left_out = len(order) - SHOWN
    if left_out > 0:
        order = np.concatenate([order[: SHOWN // 2], order[-SHOWN // 2 :]])
        title += f" ({left_out} classes in the middle left out)"
    empty = len(class_names) - len(present)
    if empty:
        title += f" ({empty} without images)"
    figure = Figure(figsize=(WIDTH, 1.3 + 0.3 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    line = {"color": BLUE, "linewidth": 1.3}
    axes.boxplot(
        [values[labels == label] for label in order],
        orientation="horizontal",
        whis=(5, 95),
        widths=0.6,
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        boxprops={"facecolor": "#D6E8F4", "edgecolor": BLUE, "linewidth": 1.3},
        medianprops={**line, "linewidth": 2},
        whiskerprops=line,
        capprops=line,
        meanprops={"marker": "D", "markersize": 5, "markerfacecolor": ORANGE, "markeredgecolor": "white"},
    )
    axes.axvline(float(values.mean()), color=GREY, linewidth=1, linestyle="--", zorder=0)
    names = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in table["class_name"]]
    axes.set_yticks(range(1, len(order) + 1), [f"{names[i]} ({table['images'][i]})" for i in order])
    axes.invert_yaxis()
    axes.set_xlabel(
        f"{axis}\nbox: quartiles and median; whiskers: 5 to 95 %; diamond: mean; dashed: mean of all images"
    )
    axes.set_title(title)
    axes.grid(axis="x")
    return figure
