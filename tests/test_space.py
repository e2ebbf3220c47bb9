"""Search ranges and spaces: what is in them, how they are written, what is walked."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from models.errors import UserError
from models.space import (
    Choice,
    Float,
    Int,
    Range,
    Space,
    bounds_text,
    parse_range,
    parse_value,
    ranges_of,
    read_scalar,
)

Word = Literal["sgd", "adam", "adamw"]
SGD = {"word": ("sgd",)}


class Wide(BaseModel):
    """Fields without narrow bounds, for ranges of any kind."""

    word: Annotated[Word, Choice("sgd", "adam")] = "adam"
    real: Annotated[float, Float(0.0, 1.0, when=SGD)] = 0.5
    whole: Annotated[int, Int(1, 3, when=SGD)] = 2
    flag: Annotated[bool, Choice(False, True, when=SGD)] = False


class Net(BaseModel):
    """A config as families have them."""

    optimizer: Annotated[Word, Choice("sgd", "adam")] = Field("adam", description="rule")
    momentum: Annotated[float, Float(0.0, 0.9, step=0.3, when={"optimizer": ("sgd",)})] = Field(0.6, ge=0, lt=1)
    nesterov: Annotated[bool, Choice(False, True, when={"momentum": (0.3, 0.6, 0.9)})] = False
    depth: Annotated[int, Int(1, 3)] = Field(2, ge=1, le=10)
    lr: Annotated[float, Float(1e-4, 1e-1, log=True)] = Field(1e-3, gt=0, le=1)
    width: int = Field(8, ge=1, le=64)


FINITE = {"lr": "1e-3,1e-2"}


# --- ranges -----------------------------------------------------------------------------------------------------------


@st.composite
def float_ranges(draw: st.DrawFn) -> Float:
    kind = draw(st.sampled_from(["plain", "log", "step"]))
    if kind == "log":
        low = draw(st.floats(1e-9, 1e3))
        return Float(low, low * draw(st.floats(1, 1e6)), log=True)
    low = draw(st.floats(-1e3, 1e3))
    if kind == "plain":
        return Float(low, low + draw(st.floats(0, 1e3)))
    step = draw(st.floats(1e-3, 1e2))
    return Float(low, low + step * draw(st.floats(0, 60)), step=step)


@st.composite
def int_ranges(draw: st.DrawFn) -> Int:
    low, more = draw(st.integers(-1000, 1000)), draw(st.integers(0, 300))
    if draw(st.booleans()):
        return Int(abs(low) + 1, abs(low) + 1 + more, log=True)
    return Int(low, low + more, step=draw(st.integers(1, 50)))


def choices(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Choice]:
    return st.lists(values, min_size=1, max_size=6, unique=True).map(lambda options: Choice(*options))


RANGES: dict[str, st.SearchStrategy[Range]] = {
    "real": st.one_of(float_ranges(), choices(st.floats(-1e9, 1e9).map(lambda x: x + 0.0))),
    "whole": st.one_of(int_ranges(), choices(st.integers(-(10**6), 10**6))),
    "flag": choices(st.booleans()),
    "word": choices(st.sampled_from(get_args(Word))),
}
NAMED_RANGES = st.sampled_from(sorted(RANGES)).flatmap(lambda name: st.tuples(st.just(name), RANGES[name]))
NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False), st.just(10**400))


@given(NAMED_RANGES)
def test_a_range_reads_back_from_its_text(named: tuple[str, Range]) -> None:
    name, known = named
    read = parse_range(Wide, name, str(known))
    assert type(read) is type(known)
    assert vars(read) == {**vars(known), "when": {} if name == "word" else SGD}
    if isinstance(known, Choice):
        assert isinstance(read, Choice)
        assert list(map(type, read.options)) == list(map(type, known.options))


@pytest.mark.parametrize(
    ("name", "given_", "wanted"),
    [
        ("whole", "2..10", Int(2, 10, when=SGD)),
        ("whole", "2..10:log", Int(2, 10, log=True, when=SGD)),
        ("whole", "2..10:step=4", Int(2, 10, step=4, when=SGD)),
        ("whole", "4,8,16", Choice(4, 8, 16, when=SGD)),
        ("whole", [4, "8"], Choice(4, 8, when=SGD)),
        ("whole", 4, Choice(4, when=SGD)),
        ("whole", {"low": 2, "high": 10, "step": 2}, Int(2, 10, step=2, when=SGD)),
        ("whole", {"choice": [4, 8]}, Choice(4, 8, when=SGD)),
        ("real", "1e-5..1e-1:log", Float(1e-5, 1e-1, log=True, when=SGD)),
        ("real", "0..0.5:step=0.1", Float(0.0, 0.5, step=0.1, when=SGD)),
        ("real", {"low": "1e-5", "high": 0.1, "log": True}, Float(1e-5, 0.1, log=True, when=SGD)),
        ("real", "-1..1", Float(-1.0, 1.0, when=SGD)),
        ("real", "1,2e-3", Choice(1.0, 2e-3, when=SGD)),
        ("flag", "true,False", Choice(True, False, when=SGD)),
        ("flag", True, Choice(True, when=SGD)),
        ("word", "adam, adamw", Choice("adam", "adamw")),
    ],
)
def test_ways_to_write_a_range(name: str, given_: object, wanted: Range) -> None:
    read = parse_range(Wide, name, given_)
    assert read == wanted
    assert type(read) is type(wanted)
    assert [type(value) for value in vars(read).values()] == [type(value) for value in vars(wanted).values()]


def around(known: Float | Int) -> st.SearchStrategy[tuple[Float | Int, float]]:
    """The range and a number, mostly one inside it or near."""
    inside = st.floats(-0.2, 1.2).map(lambda part: known.low + part * (known.high - known.low))
    return st.tuples(st.just(known), st.one_of(inside, inside, NUMBERS))


@given(st.one_of(float_ranges(), int_ranges()).flatmap(around))
@example((Float(1 / 3, 1.0, step=1 / 3), 0.0))  # rounding its first member must not push it below the range
@example((Int(1, 10, step=4), math.inf))
@example((Int(1, 10, step=4), 4))
@example((Float(0.0, 1e9, step=1e-3), 0.5))
def test_nearest_is_the_closest_member(known_and_value: tuple[Float | Int, float]) -> None:
    known, value = known_and_value
    nearest = known.nearest(value)
    assert known.contains(nearest)
    assert isinstance(nearest, int if isinstance(known, Int) else float)
    if isinstance(known, Int):
        members: Any = itertools.takewhile(lambda x: x <= known.high, itertools.count(known.low, known.step))
    elif known.step is None:
        members = (known.low, known.high, min(max(known.low, value), known.high))
    elif known.high - known.low > 1e5 * known.step:
        return
    else:
        members = known.values()
    inside = min(max(value, known.low), known.high)
    assert abs(nearest - inside) <= min(abs(member - inside) for member in members) + 1e-9


@given(NAMED_RANGES)
def test_members_are_contained_within_bounds_once_and_their_own_nearest(named: tuple[str, Range]) -> None:
    _, known = named
    values: Any = known.values()
    if values is None:
        assert isinstance(known, Float)
        assert known.step is None
        return
    assert len(set(values)) == len(values) >= 1
    for value in values:
        assert known.contains(value)
        assert known.nearest(value) == value
        if not isinstance(known, Choice):
            assert known.low <= value <= known.high
    if not isinstance(known, Choice):
        assert list(values) == sorted(values)
        assert math.isclose(values[0], known.low, abs_tol=1e-11)


@given(st.integers(-500, 500), st.integers(1, 300), st.integers(0, 200), st.integers(0, 299))
def test_members_of_a_stepped_range_are_exact(low: int, step: int, count: int, rest: int) -> None:
    """In thousandths, so that decimal arithmetic gives the members as a person would write them."""
    high = low + count * step + min(rest, step - 1)
    known = Float(float(Decimal(low) / 1000), float(Decimal(high) / 1000), step=float(Decimal(step) / 1000))
    assert known.values() == tuple(float(Decimal(low + i * step) / 1000) for i in range(count + 1))
    if step > 1:
        assert not known.contains(float(Decimal(low * 10 + 5) / 10_000))
    assert Int(low, high, step=step).values() == range(low, low + count * step + 1, step)


@given(int_ranges(), st.integers(-1100, 1400))
def test_whole_numbers_in_a_range(known: Int, value: int) -> None:
    inside = known.low <= value <= known.high and (value - known.low) % known.step == 0
    assert known.contains(value) == inside


@given(float_ranges())
def test_both_ends_are_in_and_nothing_beyond(known: Float) -> None:
    assert known.contains(known.low)
    assert known.step is not None or known.contains(known.high)
    assert not known.contains(math.nextafter(known.low, -math.inf))
    assert not known.contains(math.nextafter(known.high, math.inf))
    assert not known.contains(math.nan)


@pytest.mark.parametrize(
    ("known", "value"),
    [
        (Int(0, 5), True),
        (Int(0, 5), 2.0),
        (Int(0, 5), "2"),
        (Float(0.0, 5.0), True),
        (Float(0.0, 5.0), "2"),
        (Choice(0, 1), True),
        (Choice(False, True), 1),
        (Choice("1"), 1),
    ],
)
def test_a_value_of_another_type_is_not_a_member(known: Range, value: object) -> None:
    assert not known.contains(value)


@pytest.mark.parametrize(
    ("known", "value", "nearest"),
    [
        (Choice(4, 8, 16), 11, 8),
        (Choice(4, 8, 16), 100, 16),
        (Choice(4, 8, 16), 8, 8),
        (Choice("relu", "gelu"), "gelu", "gelu"),
        (Choice("relu", "gelu"), "elu", "relu"),
        (Choice(True, False), False, False),
        (Choice(True), False, True),
        (Choice("a", 3), 4, "a"),
    ],
)
def test_nearest_of_a_choice(known: Choice, value: object, nearest: object) -> None:
    assert known.nearest(value) == nearest


@pytest.mark.parametrize(
    "make",
    [
        lambda: Float(1.0, 0.0),
        lambda: Float(0.0, math.inf),
        lambda: Float(math.nan, 1.0),
        lambda: Float(0.0, 1.0, log=True),
        lambda: Float(0.1, 1.0, log=True, step=0.1),
        lambda: Float(0.0, 1.0, step=0.0),
        lambda: Float(0.0, 1.0, step=math.nan),
        lambda: Float(0.0, 1.0, step=math.inf),
        lambda: Int(2, 1),
        lambda: Int(0, 4, log=True),
        lambda: Int(1, 4, log=True, step=2),
        lambda: Int(1, 4, step=-1),
        lambda: Choice(),
        lambda: Choice(1, 2, 1),
    ],
)
def test_impossible_ranges_are_refused(make: Any) -> None:
    with pytest.raises(UserError):
        make()


def test_a_condition_must_look_at_an_earlier_field() -> None:
    class Late(BaseModel):
        momentum: Annotated[float, Float(0.0, 1.0, when={"optimizer": ("sgd",)})] = 0.5
        optimizer: Word = "adam"

    with pytest.raises(AssertionError, match="momentum"):
        ranges_of(Late)


# --- what users write -------------------------------------------------------------------------------------------------

PIECES = ("..", ",", ":", "log", "step=", "-", "1", "0.5", "1e-3", "1e400", "9" * 400, "inf", "nan", "true", "sgd", " ")
TEXTS = st.one_of(st.text(max_size=20), st.lists(st.sampled_from(PIECES), max_size=7).map("".join))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.just(10**400))
JSON_LIKE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["low", "high", "log", "step", "choice", "x"]), inner, max_size=4),
        st.fixed_dictionaries({"low": SCALARS, "high": SCALARS}, optional={"log": SCALARS, "step": SCALARS}),
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from([(kind, name) for kind in (Wide, Net) for name in kind.model_fields])


def accepts(config: type[BaseModel], name: str, value: Any) -> bool:
    """Whether pydantic itself takes the value, unchanged."""
    try:
        taken = getattr(config.model_validate({name: value}), name)
    except ValidationError:
        return False
    return bool(taken == value or (taken != taken and value != value))


def read_or_refused(read: Callable[[], Any], label: str) -> Any:
    """What ``read`` returns, or ``None`` where it raises the UserError of that label; another error passes."""
    try:
        return read()
    except UserError as error:
        refusal = error
    assert {problem.field for problem in refusal.problems} == {label}
    assert str(refusal).startswith(f"{label}:")
    return None


@settings(max_examples=1000)
@given(FIELDS, JSON_LIKE)
def test_any_range_is_read_or_refused_by_its_name(field: tuple[type[BaseModel], str], written: object) -> None:
    config, name = field
    known = read_or_refused(lambda: parse_range(config, name, written), f"space.{name}")
    if known is None:
        return
    assert isinstance(known, Float | Int | Choice)
    ends = known.options if isinstance(known, Choice) else (known.low, known.high)
    assert all(accepts(config, name, end) for end in ends)
    assert isinstance(known, Choice) or config.model_fields[name].annotation in (int, float)
    if not any(end != end for end in ends):
        assert parse_range(config, name, str(known)) == known


@settings(max_examples=500)
@given(FIELDS, JSON_LIKE)
def test_any_value_is_read_or_refused_by_its_name(field: tuple[type[BaseModel], str], written: object) -> None:
    config, name = field
    value = read_or_refused(lambda: parse_value(config, name, written), name)
    assert value is None or accepts(config, name, value)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("whole", "1..10:step=2.5"),
        ("whole", "1..10:step=inf"),
        ("whole", "1.5..3"),
        ("whole", "1.." + "9" * 400),
        ("real", "0..1:step=nan"),
        ("real", "0..1:steps=2"),
        ("real", "0.1:log"),
        ("real", "0.1,true"),
        ("real", "1,1.0"),
        ("real", {"low": 0.1}),
        ("real", {"low": 0.1, "high": 1, "log": "no"}),
        ("real", {"low": 0.1, "high": 1, "base": 2}),
        ("real", {"choice": [0.1], "high": 1}),
        ("whole", {"choice": "48"}),
        ("flag", "0..1"),
        ("word", "0..1"),
        ("word", "adam,rmsprop"),
        ("word", []),
        ("nothing", "1..2"),
    ],
)
def test_refused_ranges(name: str, written: object) -> None:
    with pytest.raises(UserError, match=rf"^space\.{name}: got "):
        parse_range(Wide, name, written)


@pytest.mark.parametrize(("name", "written"), [("whole", "2-10"), ("real", "1e-4-1e-2"), ("whole", "2,x")])
def test_how_a_range_is_written_is_told_where_one_was_meant(name: str, written: str) -> None:
    with pytest.raises(UserError, match=r"write 4,8,16 or 2\.\.10 .*\(neither numbers nor a range\)$"):
        parse_range(Wide, name, written)


@pytest.mark.parametrize(
    ("name", "written", "allowed"),
    [
        ("depth", "0..3", "whole number from 1 to 10"),
        ("depth", "3..11", "whole number from 1 to 10"),
        ("lr", "0..0.1", "number above 0 to 1"),
        ("momentum", "0.5,1.0", "number from 0 to below 1"),
        ("optimizer", "sgd,lion", "sgd, adam, adamw"),
        ("nesterov", "maybe", "true or false"),
    ],
)
def test_ranges_outside_a_fields_bounds_say_the_bounds(name: str, written: str, allowed: str) -> None:
    assert bounds_text(Net, name) == allowed
    with pytest.raises(UserError) as caught:
        parse_range(Net, name, written)
    assert f"space.{name}" in str(caught.value)
    assert allowed in str(caught.value)


def test_both_ends_outside_are_told_together() -> None:
    with pytest.raises(UserError) as caught:
        parse_range(Net, "depth", "0..11")
    assert [problem.value for problem in caught.value.problems] == [0, 11]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("7", 7), (" -2 ", -2), ("True", True), ("false", False), ("relu", "relu"), ("", "")],
)
def test_scalars_as_people_write_them(text: str, value: object) -> None:
    assert read_scalar(text) == value
    assert type(read_scalar(text)) is type(value)


def test_a_boolean_is_no_number() -> None:
    with pytest.raises(UserError, match=r"^lr: got 'true'; must be a number"):
        parse_value(Net, "lr", "true")
    with pytest.raises(UserError, match=r"^depth: got True"):
        parse_value(Net, "depth", True)


# --- spaces -----------------------------------------------------------------------------------------------------------


def by_hand(picked: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[str]:
    """The fields of Net that are active, from the rules as written beside them."""
    known = {"optimizer": "adam", "momentum": 0.6, **fixed, **picked}
    active = ["optimizer", "depth", "lr"]
    active += ["momentum"] if known["optimizer"] == "sgd" else []
    active += ["nesterov"] if known["momentum"] in (0.3, 0.6, 0.9) else []
    return [name for name in Net.model_fields if name in active and name not in fixed]


@given(
    st.integers(0, 10**6),
    st.fixed_dictionaries(
        {},
        optional={
            "optimizer": st.sampled_from(["sgd", "adam", "adamw"]),
            "momentum": st.sampled_from([0.0, 0.3]),
            "depth": st.integers(1, 10),
            "width": st.integers(1, 64),
        },
    ),
)
def test_walk_asks_for_active_fields_only_and_never_for_fixed_ones(seed: int, fixed: dict[str, Any]) -> None:
    rng = random.Random(seed)
    space = Space.of(Net, fixed, {"lr": [1e-3, 1e-2]})
    asked: list[str] = []

    def pick(name: str, known: Range) -> object:
        asked.append(name)
        assert known is space.ranges[name]
        return rng.choice(known.values() or ())

    picked = space.walk(pick)
    assert list(picked) == asked == by_hand(picked, fixed)
    assert all(space.ranges[name].contains(value) for name, value in picked.items())
    assert space.fixed == fixed
    Net.model_validate({**space.fixed, **picked})


def test_grid_is_every_combination_once_last_field_fastest() -> None:
    wanted = []
    for optimizer in ("sgd", "adam"):
        for momentum in (0.0, 0.3, 0.6, 0.9) if optimizer == "sgd" else (None,):
            # An inactive momentum has its default 0.6, with which nesterov is active.
            for nesterov in (None,) if momentum == 0.0 else (False, True):
                for depth in (1, 2, 3):
                    for lr in (1e-3, 1e-2):
                        values = (optimizer, momentum, nesterov, depth, lr)
                        names = ("optimizer", "momentum", "nesterov", "depth", "lr")
                        wanted.append({n: value for n, value in zip(names, values, strict=True) if value is not None})
    points = list(Space.of(Net, overrides=FINITE).grid())
    assert points == wanted
    assert len({tuple(point.items()) for point in points}) == len(points) == (7 + 2) * 6


@settings(max_examples=50)
@given(st.fixed_dictionaries({}, optional={"real": RANGES["real"], "whole": RANGES["whole"], "flag": RANGES["flag"]}))
def test_grid_of_unconditional_ranges_is_their_product(ranges: dict[str, Range]) -> None:
    class Free(BaseModel):
        real: float = 0.5
        whole: int = 2
        flag: bool = False

    space = Space.of(Free, overrides={name: str(known) for name, known in ranges.items()})
    endless = [name for name, known in ranges.items() if known.values() is None]
    if endless:
        with pytest.raises(UserError, match=r"^space\.real: .*finite"):
            next(space.grid())
        return
    names = [name for name in Free.model_fields if name in ranges]
    product = itertools.product(*(ranges[name].values() or () for name in names))
    for point, values in itertools.islice(itertools.zip_longest(space.grid(), product), 500):
        assert point == dict(zip(names, values, strict=True))


def test_grid_names_every_endless_range() -> None:
    with pytest.raises(UserError) as caught:
        list(Space.of(Net, overrides={"momentum": "0..0.9"}).grid())
    assert [problem.field for problem in caught.value.problems] == ["space.momentum", "space.lr"]


def test_a_condition_on_a_fixed_field_or_on_its_default() -> None:
    first = lambda name, known: (known.values() or (known.low,))[0]  # noqa: E731
    assert "momentum" in Space.of(Net, {"optimizer": "sgd"}).walk(first)
    assert "momentum" not in Space.of(Net, {"optimizer": "adam"}).walk(first)
    assert "momentum" not in Space.of(Net, overrides={"optimizer": "adam,adamw"}).walk(first)


def test_overrides_keep_the_condition_and_add_fields() -> None:
    space = Space.of(Net, overrides={"width": "8,16", "momentum": "0.1,0.2", "lr": "0.01..0.1"})
    assert space.ranges["momentum"] == Choice(0.1, 0.2, when={"optimizer": ("sgd",)})
    assert space.ranges["lr"] == Float(0.01, 0.1)
    assert list(space.ranges) == list(Net.model_fields)
    assert set(ranges_of(Net)) == set(Net.model_fields) - {"width"}


def test_default_point_is_the_default_config_moved_into_the_space() -> None:
    assert Space.of(Net).default() == {"optimizer": "adam", "nesterov": False, "depth": 2, "lr": 1e-3}
    moved = Space.of(Net, {"depth": 5}, {"optimizer": "sgd", "lr": "0.01..0.1", "momentum": "0..0.5", "width": "2,6,9"})
    assert moved.default() == {"optimizer": "sgd", "momentum": 0.5, "lr": 0.01, "width": 9}


def test_fixed_values_are_read_as_written() -> None:
    space = Space.of(Net, {"lr": "1e-2", "nesterov": "true", "optimizer": "adamw", "depth": "4"})
    assert space.fixed == {"lr": 0.01, "nesterov": True, "optimizer": "adamw", "depth": 4}
    assert list(space.ranges) == ["momentum"]


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Space.of(Net, {"lr": -1, "depht": 3, "width": 8}, {"momentum": "0.5..2", "nope": "1,2", "width": "8,16"})
    assert [problem.field for problem in caught.value.problems] == [
        "set.lr",
        "set.depht",
        "space.momentum",
        "space.nope",
        "space.width",
    ]
    assert "did you mean 'depth'?" in str(caught.value)
    assert "no such field" in caught.value.problems[3].allowed
