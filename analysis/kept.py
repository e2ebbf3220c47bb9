"""Pictures and numbers that a run folder holds, ready to be put into a page."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.figures import encode

MOST_BYTES = 2_700_000
"""Of all pictures on a page, as they stand in it."""

SMALL = 150_000
"""Bytes of a picture that is not worth drawing a second time, to see whether another format is smaller."""

OWN = ("history",)
"""Pictures in ``figures/`` that a report draws itself."""


@dataclass(frozen=True)
class Picture:
    """An image to be embedded.

    Args:
        kind: ``png`` or ``svg+xml``.
        alt: what it shows, for those who cannot see it.
    """

    title: str
    alt: str
    content: bytes
    kind: str

    @property
    def uri(self) -> str:
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Kept:
    """An analysis whose results lie in a folder.

    Args:
        numbers: (name, value) of its summary, nested ones as ``name key``.
        options: (name, value) that it was made with.
        left_out: names of pictures that would have made the page too large.
        problem: what could not be read; empty where all could.
    """

    title: str
    folder: Path
    numbers: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    pictures: tuple[Picture, ...] = ()
    left_out: tuple[str, ...] = ()
    problem: str = ""


def drawn(figure: Figure, title: str, alt: str) -> Picture:
    """A figure as SVG, or as PNG where that is smaller; a small SVG is taken at once, as each costs time to draw."""
    svg = encode(figure, "svg")
    if len(svg) <= SMALL:
        return Picture(title, alt, svg, "svg+xml")
    png = encode(figure, "png")
    return Picture(title, alt, png, "png") if len(png) <= len(svg) else Picture(title, alt, svg, "svg+xml")


def kept_results(run_dir: Path, best: int | None, room: int = MOST_BYTES) -> tuple[Kept, ...]:
    """What lies in ``figures/`` and in ``analysis/trial-NNNN/*/``, the best trial's results first.

    Args:
        best: number of the best trial.
        room: bytes that pictures may take in base64; the first ones are taken.
    """
    found: list[Kept] = []
    for folder, title in _folders(run_dir, best):
        numbers, options, problem = _numbers(folder)
        pictures, left_out = [], []
        for path in sorted({file.with_suffix("") for ending in ("png", "svg") for file in folder.glob(f"*.{ending}")}):
            if folder.name == "figures" and path.name in OWN:
                continue
            picture = _read(path, title)
            size = -(-len(picture.content) // 3) * 4
            if size > room:
                left_out.append(path.name)
                continue
            room -= size
            pictures.append(picture)
        if numbers or pictures or left_out or problem:
            found.append(Kept(title, folder, numbers, options, tuple(pictures), tuple(left_out), problem))
    return tuple(found)


def _folders(run_dir: Path, best: int | None) -> Iterator[tuple[Path, str]]:
    if (run_dir / "figures").is_dir():
        yield run_dir / "figures", "At the end of the search"
    trials = []
    for folder in (run_dir / "analysis").glob("trial-*"):
        match = re.fullmatch(r"trial-(\d+)", folder.name)
        if match and folder.is_dir():
            trials.append((int(match[1]) != best, int(match[1]), folder))
    for other, number, folder in sorted(trials):
        for one in sorted(path for path in folder.iterdir() if path.is_dir()):
            name = one.name.replace("_", " ").replace("-", " ")
            yield one, f"{name[:1].upper()}{name[1:]} of trial {number}" + ("" if other else ", the best")


def _numbers(folder: Path) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...], str]:
    numbers: list[tuple[str, str]] = []
    options: list[tuple[str, str]] = []
    problems = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            problems.append(f"{path.name} cannot be read: {error}")
            continue
        if isinstance(content, Mapping):
            (options if path.name == "options.json" else numbers).extend(_flat(content))
    return tuple(numbers), tuple(options), "; ".join(problems)


def _flat(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            for key, text in _flat(value):
                yield f"{name} {key}".replace("_", " "), text
        elif isinstance(value, list):
            text = ", ".join(map(shown, value[:8]))
            yield name.replace("_", " "), text + (f" and {len(value) - 8} more" if len(value) > 8 else "")
        elif value is not None:
            yield name.replace("_", " "), shown(value)


def _read(path: Path, title: str) -> Picture:
    """The PNG, or the SVG where there is no PNG or it is the larger of the two."""
    files = [path.parent / f"{path.name}{ending}" for ending in (".png", ".svg")]
    smallest = min((file for file in files if file.is_file()), key=lambda file: file.stat().st_size)
    name = path.name.replace("_", " ")
    kind = "png" if smallest.suffix == ".png" else "svg+xml"
    return Picture(f"{name[:1].upper()}{name[1:]}", f"{name}: {title}", smallest.read_bytes(), kind)


def shown(value: Any) -> str:
    """A value for people: four digits, ``true`` as it is typed, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}".replace("-", "−", value < 0)
