"""Errors as users read them: every problem at once, each with field, value and what is allowed."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from models import errors
from models.errors import LatentuneError, Problem, ProblemCollector, UserError, did_you_mean


class Inner(BaseModel):
    size: int = Field(1, ge=1)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    needed: str
    lr: float = Field(0.1, gt=0)
    inner: Inner = Inner()
    word: str = "fine"

    @field_validator("word")
    @classmethod
    def _short(cls, word: str) -> str:
        if len(word) > 4:
            raise ValueError("at most four letters")
        return word


def problems_of(given: dict[str, object], prefix: str = "") -> dict[str, Problem]:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(given)
    return {problem.field: problem for problem in UserError.from_validation(caught.value, prefix).problems}


def test_message_names_field_value_and_what_is_allowed_of_every_problem() -> None:
    error = UserError(Problem("lr", -1.0, "must be above 0"), Problem("--data-dir", None, "must be given"))
    assert str(error) == "lr: got -1.0; must be above 0\n--data-dir: must be given"
    assert UserError.of("lr", "x", "a number").problems == (Problem("lr", "x", "a number"),)


def test_all_of_a_pydantic_error_is_told() -> None:
    problems = problems_of({"lr": -2, "inner": {"size": 0}, "wrod": "a", "word": "longer"}, prefix="set.")
    assert set(problems) == {"set.needed", "set.lr", "set.inner.size", "set.wrod", "set.word"}
    assert problems["set.needed"].value is None
    assert problems["set.lr"].value == -2
    assert "greater than 0" in problems["set.lr"].allowed
    assert problems["set.inner.size"].value == 0
    assert problems["set.word"] == Problem("set.word", "longer", "at most four letters")


def test_collector_keeps_problems_in_order_and_raises_once() -> None:
    problems = ProblemCollector()
    problems.raise_if_any()
    problems.add("a", 1, "no")
    with problems.gather():
        raise UserError(Problem("b", 2, "no"), Problem("c", 3, "no"))
    with problems.gather():
        pass
    with pytest.raises(UserError) as caught:
        problems.raise_if_any()
    assert [problem.field for problem in caught.value.problems] == ["a", "b", "c"]


def test_collector_hides_no_other_error() -> None:
    problems = ProblemCollector()
    with pytest.raises(ZeroDivisionError), problems.gather():
        raise ZeroDivisionError
    assert problems.problems == []


def test_closest_name_comes_first() -> None:
    assert did_you_mean("optimiser", ["lr", "optimizer"]) == "did you mean 'optimizer'? allowed: lr, optimizer"
    assert did_you_mean("zzz", iter(["lr", "optimizer"])) == "allowed: lr, optimizer"


def test_every_error_has_the_one_root() -> None:
    kinds = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    assert len(kinds) >= 5
    assert all(issubclass(kind, LatentuneError) for kind in kinds)
