"""Paths to values in what steps give: ``tuned.test_accuracy``, ``grid.trials[lr=0.01,latent_dim=5].val_mse``.

The first word is a step. After a dot stands a name; in brackets a place in a list, from its end where negative, or
what an item of it has: itself or in its ``config``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.space import read_scalar

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_PART = re.compile(r"\.([A-Za-z0-9_-]+)|\[([^\[\]]+)\]")


class NoValueError(LookupError):
    """There is nothing at a path; the message says where it ends."""


@dataclass(frozen=True)
class Path:
    """A parsed path.

    Args:
        parts: names; places; or conditions, (field, value) pairs.
    """

    text: str
    step: str
    parts: tuple[str | int | tuple[tuple[str, Any], ...], ...]

    def __str__(self) -> str:
        return self.text

    def find(self, results: Mapping[str, Any]) -> Any:
        """The value in what the steps gave, by step.

        Raises:
            NoValueError: there is none.
        """
        if self.step not in results:
            raise NoValueError(f"{self.step} gave no result")
        value = results[self.step]
        for part in self.parts:
            value = _next(value, part)
        if value is None:
            raise NoValueError(f"{self.text} is empty")
        return value


def parse_path(text: str) -> Path:
    """A path as it is written.

    Raises:
        ValueError: it is malformed.
    """
    start = _NAME.match(text)
    parts: list[str | int | tuple[tuple[str, Any], ...]] = []
    end = start.end() if start else 0
    while start and end < len(text) and (match := _PART.match(text, end)):
        name, inside = match.groups()
        parts.append(name if name is not None else _inside(inside))
        end = match.end()
    if start is None or end < len(text):
        raise ValueError("write a path as step.name, step.list[0].name or step.list[field=value,…].name")
    return Path(text, start.group(), tuple(parts))


def _inside(text: str) -> int | tuple[tuple[str, Any], ...]:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    pairs = []
    for word in text.split(","):
        field, equals, value = word.partition("=")
        if not (field.strip() and equals and value.strip()):
            raise ValueError(f"in brackets stands a place in a list, or field=value: not {word!r}")
        pairs.append((field.strip(), read_scalar(value)))
    return tuple(pairs)


def _next(value: Any, part: str | int | tuple[tuple[str, Any], ...]) -> Any:
    if isinstance(part, str):
        if not isinstance(value, Mapping) or part not in value:
            raise NoValueError(f"there is no {part}")
        return value[part]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise NoValueError("there is no list")
    if isinstance(part, int):
        if not -len(value) <= part < len(value):
            raise NoValueError(f"there are only {len(value)}")
        return value[part]
    for item in value:
        if isinstance(item, Mapping) and matches(item, dict(part)):
            return item
    raise NoValueError("there is none with " + ", ".join(f"{field} {wanted}" for field, wanted in part))


def matches(item: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether an item has these values, itself or in its ``config``."""
    known = {**(item.get("config") or {}), **item}
    return all(field in known and known[field] == value for field, value in wanted.items())
