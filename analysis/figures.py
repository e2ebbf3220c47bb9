"""How every picture looks, and the one place that writes them.

Figures are made with matplotlib's objects, never with pyplot: no window system is touched, and nothing global is left
behind in the process of whoever asked for a picture.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from models.checkpoint import write_atomically

WIDTH = 8.0
"""Inches of every figure. Shown 800 pixels wide, a point of type is then 1.4 pixels."""

DPI = 150
"""Pixels per inch in the file: 1200 wide, sharp where a README shows it at 800."""

LOW_DPI = 100
"""Instead of it, 800 wide, for a figure that would have more than :data:`LARGE` bytes: photographs hardly compress."""

LARGE = 200_000

BLACK = "#222222"
GREY = "#767676"  # 4.5:1 on white
BLUE = "#0072B2"
SKY = "#56B4E9"
ORANGE = "#E69F00"
RED = "#D55E00"
GREEN = "#009E73"
PINK = "#CC79A7"
"""Okabe and Ito, "Color Universal Design" (2008): told apart with every common kind of colour vision."""

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that pictures are alike on every machine
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    "axes.labelsize": 10.0,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "text.color": BLACK,
    "axes.labelcolor": BLACK,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "savefig.facecolor": "auto",
    "savefig.bbox": None,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.formatter.useoffset": False,  # 12.3001, rather than 0.0001 and "+12.3" in a corner
    "svg.hashsalt": "latentune",
    "text.usetex": False,
    "text.parse_math": False,  # names of searches and metrics are words, whatever characters they have
}


@contextmanager
def style() -> Iterator[None]:
    """Our look for what is drawn inside; also a decorator (``@style()``). Outside, rcParams are as they were."""
    with matplotlib.rc_context(_STYLE):
        yield


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as what ``path`` ends with, ``.png`` or ``.svg``, all of it or nothing. Folders are made.

    Raises:
        StorageError: the file cannot be written.
    """
    write_atomically(path, encode(figure, path.suffix.removeprefix(".")))


def encode(figure: Figure, kind: str) -> bytes:
    """``figure`` as a ``png``, which has :data:`DPI` or :data:`LOW_DPI`, or an ``svg``."""
    content = _rendered(figure, kind, DPI)
    if kind == "png" and len(content) > LARGE:
        content = _rendered(figure, kind, LOW_DPI)
    return content


def _rendered(figure: Figure, kind: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    # Without a date and with seeded ids, so that the same picture is the same file.
    metadata = {"Date": None} if kind == "svg" else {}
    with style():
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()
