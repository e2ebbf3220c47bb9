"""How much of the variance each principal component explains."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from analysis.figures import BLACK, BLUE, ORANGE, WIDTH, style

SHOWN = 30
"""Most components in the picture."""


@style()
def plot_scree(ratios: npt.NDArray[np.float64], title: str) -> Figure:
    """Bars for each component, and a line for all up to it together.

    Args:
        ratios: float64 (K,), shares of the variance, descending, sum 1.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    shown = ratios[:SHOWN]
    numbers = np.arange(1, len(shown) + 1)
    axes.bar(numbers, shown, width=0.7, color=BLUE, label="each")
    axes.plot(numbers, np.cumsum(shown), color=ORANGE, marker="o", markersize=5, linewidth=2, label="all up to it")
    if len(shown) <= 12:
        for number, share in zip(numbers, shown, strict=True):
            inside = share > 0.1  # a number above a high bar would meet the line
            axes.annotate(
                f"{share:.1%}",
                (number, share),
                xytext=(0, -6 if inside else 2),
                textcoords="offset points",
                ha="center",
                va="top" if inside else "bottom",
                color="white" if inside else BLACK,
                fontsize=8,
            )
    axes.set(xlabel="principal component", ylabel="share of the variance", ylim=(0, 1.05))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=12, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y")
    axes.set_title(title if len(ratios) <= SHOWN else f"{title} (the first {SHOWN} of {len(ratios)})")
    figure.legend(loc="outside right upper", frameon=False)
    return figure
