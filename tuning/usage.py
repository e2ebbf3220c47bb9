"""Commands that tell everything that is wrong with their words at once, in the form of all other mistakes."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand

from models.errors import Problem, UserError

CARRIED = "latentune.problems"
"""Key, in a command's context, of problems that the command itself tells with those that it finds."""


class Command(TyperCommand):
    """Parses again without each word that it cannot take, until nothing is left to tell."""

    carries = False
    """Whether the command runs all the same, and takes the problems from its context."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # for completion
            return list(super().parse_args(ctx, args))
        problems: list[Problem] = []
        words = list(args)
        while True:
            try:
                rest = list(super().parse_args(ctx, list(words)))
            except Exception as error:
                found = _problem(error, words)
                if found is None:
                    raise
                problems.append(found[0])
                if found[1] == words:  # nothing to leave out
                    raise UserError(*problems) from error
                words = found[1]
            else:
                if problems and not self.carries:
                    raise UserError(*problems)
                ctx.meta[CARRIED] = problems
                return rest


class CarryingCommand(Command):
    """One that tells the problems of its words together with those that it finds itself."""

    carries = True


def _problem(error: Exception, words: list[str]) -> tuple[Problem, list[str]] | None:
    """What a parser's error says, and the words without what it is about; ``None`` for another kind of error."""
    unknown, param = getattr(error, "option_name", None), getattr(error, "param", None)
    if unknown is not None:
        place = next((i for i, word in enumerate(words) if word.partition("=")[0] == unknown), None)
        near = getattr(error, "possibilities", None)
        if not hasattr(error, "possibilities"):  # the last word, which wants another one
            return Problem(unknown, None, "needs a value"), _without(words, place)
        told = f"no such option; did you mean {' or '.join(sorted(near))}?" if near else "no such option"
        return Problem(unknown, None, told), _without(words, place)
    if param is None:
        return None
    option = param.param_type_name == "option"
    name = max(param.opts, key=len) if option else param.metavar or param.name.upper()
    if type(error).__name__ == "MissingParameter":
        return Problem(name, None, f"must be given: {param.help}"), words
    if not isinstance(error, typer.BadParameter):
        return None
    place = next((i for i, word in enumerate(words) if word.partition("=")[0] in param.opts), None)
    errors = getattr(error.__cause__, "errors", None)  # pydantic's
    given = None if errors is None else errors()[0]["input"]
    return Problem(name, given, _plain(error.message)), _without(words, place)


def _without(words: list[str], place: int | None) -> list[str]:
    """The words without an option and its value."""
    if place is None:
        return words
    alone = "=" in words[place] or place + 1 == len(words) or words[place + 1].startswith("--")
    return words[:place] + words[place + (1 if alone else 2) :]


def _plain(message: str) -> str:
    """What a value must be, in words for people."""
    kinds = {"a valid integer": "a whole number", "a valid number": "a number"}
    for kind, words in kinds.items():
        if message.startswith(f"Input should be {kind}"):
            return f"must be {words}"
    return re.sub(r"^Input should be", "must be", message)
