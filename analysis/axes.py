"""Axes that pictures of a search share: of the objective, and of a searched parameter whatever its range is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from models.space import Choice, Int, Range

WORD = 12
"""Characters of a value that fit below an axis."""


def range_shown(values: npt.NDArray[np.float64], mode: Literal["min", "max"]) -> tuple[float, float]:
    """Lowest and highest of the finite ``values`` (M,) to show: all but those far on the worse side.

    Far is more than three interquartile ranges from the middle half, in logarithms where all are positive.
    """
    if not len(values):
        return 0.0, 1.0
    scaled = np.log10(values) if values.min() > 0 else values
    lower, upper = np.percentile(scaled, (25, 75))
    reach = 3 * (upper - lower) or math.inf  # most values are the same: no measure of far
    near = values[scaled <= upper + reach] if mode == "min" else values[scaled >= lower - reach]
    return float(near.min()), float(near.max())


def is_log(low: float, high: float) -> bool:
    """Whether values from ``low`` to ``high`` are shown on a logarithmic axis: positive, over a factor of 10."""
    return low > 1e-300 and high > 10 * low  # what is less could not be divided by anything


def scale_values(axes: Axes, low: float, high: float) -> None:
    """Scale, limits and ticks of the y axis for values from ``low`` to ``high``, with room at both ends."""
    if is_log(low, high):
        room = min((high / low) ** 0.1, 100)
        axes.set_yscale("log")
        axes.set_ylim(low / room, high * room)
        # Over few decades their starts are too few ticks.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        label_plainly(axes.yaxis)
    else:
        room = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)


def label_plainly(axis: Axis) -> None:
    """Label a logarithmic axis with ``0.01``; by default it would be a formula, whose markup our pictures show."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@dataclass(frozen=True)
class Parameter:
    """A searched field and its range, as positions on an axis.

    A number stands at itself or, in a logarithmic range, at its decimal logarithm; the options of a choice at 0, 1, ….
    """

    name: str
    known: Range

    @property
    def is_choice(self) -> bool:
        return isinstance(self.known, Choice)

    @property
    def log(self) -> bool:
        return not isinstance(self.known, Choice) and self.known.log

    @property
    def varies(self) -> bool:
        """Whether the range has more than one value."""
        low, high = self.limits
        return high > low

    @property
    def limits(self) -> tuple[float, float]:
        """Positions of the range's ends."""
        if isinstance(self.known, Choice):
            return 0.0, len(self.known.options) - 1.0
        ends = float(self.known.low), float(self.known.high)
        return (math.log10(ends[0]), math.log10(ends[1])) if self.log else ends

    @property
    def condition(self) -> str:
        """When it is searched at all, ``optimizer is sgd``; empty where always."""
        return " and ".join(f"{name} is {' or '.join(map(str, among))}" for name, among in self.known.when.items())

    def position(self, value: Any) -> float:
        """Where ``value`` stands; NaN where it cannot stand in the range."""
        if isinstance(self.known, Choice):
            same = [i for i, option in enumerate(self.known.options) if repr(option) == repr(value)]
            return float(same[0]) if same else math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            return math.nan
        return math.log10(value) if self.log and value > 0 else math.nan if self.log else float(value)

    def ticks(self, most: int = 5) -> tuple[list[float], list[str]]:
        """Positions and labels of at most about ``most`` ticks; every option of a choice."""
        if isinstance(self.known, Choice):
            labels = [word(option) for option in self.known.options]
            return [float(i) for i in range(len(labels))], labels
        low, high = self.limits
        slack = 1e-9 + 1e-6 * (high - low)
        if self.log:
            subs = (1, 2, 5) if high - low < 1.5 else (1,)
            decades = range(math.floor(low) - 1, math.ceil(high) + 1)
            values = [sub * 10.0**decade for decade in decades for sub in subs]
            inside = [value for value in values if low - slack <= math.log10(value) <= high + slack]
            inside = inside[:: -(-len(inside) // most)] if inside else [10**low, 10**high]
            return [math.log10(value) for value in inside], [f"{value:g}" for value in inside]
        locator = MaxNLocator(most, integer=isinstance(self.known, Int), min_n_ticks=1, steps=[1, 2, 2.5, 5, 10])
        at = [float(tick) for tick in locator.tick_values(low, high) if low - slack <= tick <= high + slack]
        return at, [f"{tick:g}" for tick in at]


def word(value: Any) -> str:
    """A value as a label: short, and ``true`` as it is typed."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= WORD else text[: WORD - 1] + "…"
