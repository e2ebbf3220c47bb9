"""Every error that latentune raises on purpose.

User mistakes are :class:`UserError`: a list of problems, each naming the field, the value and what is
allowed, so that one run of a command tells everything that has to be changed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


class LatentuneError(Exception):
    """Root of all errors raised on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing that a user has to change.

    Args:
        field: the name the user knows it by (``lr``, ``--data-dir``, ``space.lr``).
        value: what was given; ``None`` where nothing was.
        allowed: what would be accepted, as a phrase.
    """

    field: str
    value: object
    allowed: str

    def __str__(self) -> str:
        given = "" if self.value is None else f" got {self.value!r};"
        return f"{self.field}:{given} {self.allowed}"


class UserError(LatentuneError):
    """One or more mistakes in what the user asked for. Shown in full; exit code 2."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))

    @classmethod
    def of(cls, field: str, value: object, allowed: str) -> UserError:
        """The usual case of a single problem."""
        return cls(Problem(field, value, allowed))

    @classmethod
    def from_validation(cls, error: ValidationError, prefix: str = "") -> UserError:
        """Our form of a pydantic error: field by field, values shown."""
        return cls(
            *(
                Problem(
                    prefix + ".".join(str(part) for part in item["loc"] if part != "function-after"),
                    item["input"] if item["type"] != "missing" else None,
                    _allowed(item),
                )
                for item in error.errors(include_url=False)
            )
        )


@dataclass
class ProblemCollector:
    """Gathers the problems of several checks so that they are told together.

    >>> problems = ProblemCollector()
    >>> with problems.gather():
    ...     raise UserError.of("lr", -1.0, "must be above 0")
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    models.errors.UserError: lr: got -1.0; must be above 0
    """

    problems: list[Problem] = field(default_factory=list)

    def add(self, field: str, value: object, allowed: str) -> None:
        self.problems.append(Problem(field, value, allowed))

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Keep the problems of a :class:`UserError` raised inside, and go on."""
        try:
            yield
        except UserError as error:
            self.problems.extend(error.problems)

    def raise_if_any(self) -> None:
        if self.problems:
            raise UserError(*self.problems)


class TrainingFailedError(LatentuneError):
    """A trial cannot succeed any more; the message says why."""


class NonFiniteError(TrainingFailedError):
    """A loss or a metric became NaN or infinite."""


class CheckpointError(LatentuneError):
    """A file is not a usable latentune checkpoint, or is damaged."""


class StorageError(LatentuneError):
    """A file could not be written: full disk, quota, read-only file system."""


def _allowed(item: ErrorDetails) -> str:
    """What one of pydantic's errors says would be accepted."""
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        return did_you_mean(item["input"], re.findall(r"'([^']*)'", item["ctx"]["expected"]))
    return item["msg"].removeprefix("Value error, ")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``allowed`` text for a name that must be one of ``known``, with the closest one first."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    return f"{suggestion}allowed: {', '.join(known)}" if known else "there are none"
