"""Search ranges, written beside the fields of a family's config, and the space that they make.

>>> Int(2, 10).contains(10)
True
>>> str(Float(1e-5, 1e-1, log=True))
'1e-05..0.1:log'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from models.errors import ProblemCollector, UserError, did_you_mean

Scalar = bool | int | float | str
Condition = Mapping[str, tuple[Scalar, ...]]


@dataclass(frozen=True)
class Float:
    """Real numbers from ``low`` to ``high``, both included.

    Args:
        low, high: the ends, ``low <= high``; with ``log`` both above 0.
        log: sample the logarithm evenly. Not together with ``step``.
        step: only ``low``, ``low + step``, … up to ``high``.
        when: ``{"optimizer": ("sgd",)}`` searches the field only while the other field has one of those values.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: Condition = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_ends(self)

    def contains(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return self.step is None or math.isclose(value, self.nearest(value), abs_tol=1e-12)

    def nearest(self, value: Any) -> float:
        """The member of the range closest to ``value``."""
        clipped = float(max(self.low, min(self.high, value)))
        return clipped if self.step is None else self._member(round((clipped - self.low) / self.step))

    def values(self) -> tuple[float, ...] | None:
        """All members in order, or ``None`` where there are infinitely many."""
        if self.step is None:
            return (self.low,) if self.low == self.high else None
        return tuple(self._member(i) for i in range(_steps(self.low, self.high, self.step) + 1))

    def _member(self, index: int) -> float:
        assert self.step is not None
        value = self.low + min(index, _steps(self.low, self.high, self.step)) * self.step
        # Rounded so that 0.1 + 0.1 + 0.1 is told as 0.3, but not past the ends.
        return max(self.low, min(self.high, round(value, 12)))

    def __str__(self) -> str:
        return f"{_text(self.low)}..{_text(self.high)}" + _suffix(self)


@dataclass(frozen=True)
class Int:
    """Whole numbers from ``low`` to ``high``, both included; arguments as for :class:`Float`."""

    low: int
    high: int
    log: bool = False
    step: int = 1
    when: Condition = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_ends(self)

    def contains(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value in self.values()

    def nearest(self, value: Any) -> int:
        """The member of the range closest to ``value``."""
        values = self.values()
        clipped: float = max(self.low, min(self.high, value))
        return values[min(round((clipped - self.low) / self.step), len(values) - 1)]

    def values(self) -> range:
        """All members in order."""
        return range(self.low, self.high + 1, self.step)

    def __str__(self) -> str:
        return f"{self.low}..{self.high}" + _suffix(self)


@dataclass(frozen=True, init=False)
class Choice:
    """One of the listed values, without an order between them."""

    options: tuple[Scalar, ...]
    when: Condition = field(default_factory=dict)

    def __init__(self, *options: Scalar, when: Condition | None = None) -> None:
        if not options:
            raise UserError.of("range", "", "a choice needs at least one value")
        if len(set(map(repr, options))) != len(options):
            raise UserError.of("range", options, "every value of a choice may stand in it only once")
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "when", when or {})

    def contains(self, value: object) -> bool:
        return any(value == option and type(value) is type(option) for option in self.options)

    def nearest(self, value: Any) -> Scalar:
        """``value`` where it is a member; else the closest number, or the first member."""
        if self.contains(value):
            return cast(Scalar, value)
        numbers = [o for o in self.options if isinstance(o, int | float) and not isinstance(o, bool)]
        if isinstance(value, int | float) and not isinstance(value, bool) and len(numbers) == len(self.options):
            return min(numbers, key=lambda option: abs(option - value))
        return self.options[0]

    def values(self) -> tuple[Scalar, ...]:
        """All members in the order they were written."""
        return self.options

    def __str__(self) -> str:
        return ",".join(_text(option) for option in self.options)


Range = Float | Int | Choice


def ranges_of(config: type[BaseModel]) -> dict[str, Range]:
    """The search ranges annotated on a config's fields, in field order."""
    ranges: dict[str, Range] = {}
    for name, info in config.model_fields.items():
        for item in info.metadata:
            if isinstance(item, Float | Int | Choice):
                # Walking the fields in order decides a condition only if what it looks at comes first.
                late = [other for other in item.when if other not in config.model_fields or other == name]
                late += [o for o in item.when if o in config.model_fields and _index(config, o) > _index(config, name)]
                assert not late, f"{config.__name__}.{name}: `when` names {late}, which must be fields before it"
                ranges[name] = item
    return ranges


def parse_range(config: type[BaseModel], name: str, given: object) -> Range:
    """The range that a user wrote for field ``name``.

    Args:
        given: ``"2..10"``, ``"1e-5..1e-1:log"``, ``"0..0.5:step=0.1"``, ``"4,8,16"``, a list (a choice), or a mapping
            ``{low, high, log, step}`` / ``{choice: [...]}``.

    Raises:
        UserError: malformed, or not inside the field's bounds.
    """
    try:
        wanted = _read_range(config, name, given)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError.of(
            f"space.{name}", given, f"write 4,8,16 or 2..10 or 1e-5..1e-1:log or 0..0.5:step=0.1 ({error})"
        ) from None
    except UserError as error:
        raise UserError.of(f"space.{name}", given, error.problems[0].allowed) from None
    problems = ProblemCollector()
    for value in wanted.options if isinstance(wanted, Choice) else (wanted.low, wanted.high):
        with problems.gather():
            parse_value(config, name, value, label=f"space.{name}")
    problems.raise_if_any()
    default = ranges_of(config).get(name)
    return replace(wanted, when=default.when) if default and not isinstance(wanted, Choice) else _with(wanted, default)


def parse_value(config: type[BaseModel], name: str, given: object, label: str | None = None) -> Any:
    """A single value for field ``name``, validated against its type and bounds.

    Raises:
        UserError: unknown field, wrong type, or out of bounds.
    """
    info = config.model_fields.get(name)
    if info is None:
        raise UserError.of(label or name, given, f"no such field; {did_you_mean(name, config.model_fields)}")
    value = read_scalar(given) if isinstance(given, str) else given
    # A boolean passes pydantic's number types as 0 or 1; nobody who writes `lr=true` means 1.0.
    if isinstance(value, bool) and info.annotation in (int, float):
        raise UserError.of(label or name, given, f"must be a number ({bounds_text(config, name)})")
    kind: Any = info.annotation
    for item in info.metadata:
        kind = Annotated[kind, item]
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        allowed = UserError.from_validation(error).problems[0].allowed
        if "allowed: " not in allowed:
            allowed += f" (allowed: {bounds_text(config, name)})"
        raise UserError.of(label or name, given, allowed) from None


def bounds_text(config: type[BaseModel], name: str) -> str:
    """What a field accepts, for people: ``1 to 4096``, ``sgd, adam``, ``true or false``."""
    info = config.model_fields[name]
    if info.annotation is bool:
        return "true or false"
    literals = getattr(info.annotation, "__args__", None)
    if literals and all(isinstance(item, str) for item in literals):
        return ", ".join(literals)
    low = high = None
    for item in info.metadata:
        low = getattr(item, "ge", getattr(item, "gt", low))
        high = getattr(item, "le", getattr(item, "lt", high))
    number = "whole number" if info.annotation is int else "number"
    if low is None and high is None:
        return getattr(info.annotation, "__name__", str(info.annotation))
    above, below = (any(hasattr(item, strict) for item in info.metadata) for strict in ("gt", "lt"))
    lower = "" if low is None else f" {'above' if above else 'from'} {low:g}"
    upper = "" if high is None else f" {'to' if lower else 'up to'}{' below' if below else ''} {high:g}"
    return number + lower + upper


@dataclass(frozen=True)
class Space:
    """What a search varies and what it holds fixed, for one family's config.

    Args:
        config: the config class.
        ranges: field name → range, in field order.
        fixed: field name → value; the other fields keep their defaults.
    """

    config: type[BaseModel]
    ranges: Mapping[str, Range]
    fixed: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        config: type[BaseModel],
        fixed: Mapping[str, object] | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> Space:
        """The config's own ranges, less the ``fixed`` fields, with the user's ``overrides``.

        Raises:
            UserError: all unknown fields, bad ranges and bad values at once.
        """
        problems = ProblemCollector()
        values: dict[str, Any] = {}
        for name, given in (fixed or {}).items():
            with problems.gather():
                values[name] = parse_value(config, name, given, label=f"set.{name}")
        ranges = ranges_of(config)
        for name, given in (overrides or {}).items():
            if name in values:
                problems.add(f"space.{name}", given, "the field is also given a fixed value by --set; use one of them")
                continue
            with problems.gather():
                if name not in config.model_fields:
                    parse_value(config, name, given, label=f"space.{name}")
                ranges[name] = parse_range(config, name, given)
        problems.raise_if_any()
        in_order = {name: ranges[name] for name in config.model_fields if name in ranges and name not in values}
        return cls(config, in_order, values)

    def walk(self, pick: Callable[[str, Range], Any]) -> dict[str, Any]:
        """Ask ``pick(name, range)`` for every active field in order; returns the picked values."""
        picked: dict[str, Any] = {}
        for name, known in self.ranges.items():
            if self._active(known, picked):
                picked[name] = pick(name, known)
        return picked

    def default(self) -> dict[str, Any]:
        """The family's default config as a point of this space (moved to the nearest end where it lies outside)."""
        return self.walk(lambda name, known: known.nearest(self._default_of(name)))

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every point once, the last field varying fastest; fields that are inactive at a point are left out.

        Raises:
            UserError: names the ranges that are not finite.
        """
        endless = [(name, known) for name, known in self.ranges.items() if known.values() is None]
        if endless:
            raise UserError(
                *(
                    p
                    for name, known in endless
                    for p in UserError.of(
                        f"space.{name}",
                        str(known),
                        "grid search needs a finite list: give values (1e-3,1e-2) or a step",
                    ).problems
                )
            )

        def extend(names: tuple[str, ...], picked: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if not names:
                yield dict(picked)
            elif not self._active(self.ranges[names[0]], picked):
                yield from extend(names[1:], picked)
            else:
                for value in self.ranges[names[0]].values() or ():
                    yield from extend(names[1:], {**picked, names[0]: value})

        yield from extend(tuple(self.ranges), {})

    def _default_of(self, name: str) -> Any:
        return self.config.model_fields[name].get_default(call_default_factory=True)

    def _active(self, known: Range, picked: Mapping[str, Any]) -> bool:
        return all(
            picked.get(other, self.fixed.get(other, self._default_of(other))) in wanted
            for other, wanted in known.when.items()
        )


def read_scalar(text: str) -> Scalar:
    """A number, boolean or word as a person writes it (``1e-3`` is a number, which YAML 1.1 would not say)."""
    word = text.strip()
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _read_range(config: type[BaseModel], name: str, given: object) -> Range:
    kind = config.model_fields[name].annotation
    if isinstance(given, list | tuple):
        return Choice(*(parse_value(config, name, item, label=f"space.{name}") for item in given))
    if isinstance(given, Mapping):
        if set(given) == {"choice"} and isinstance(given["choice"], list | tuple):
            return _read_range(config, name, given["choice"])
        log, step = given.get("log", False), given.get("step")
        if not {"low", "high"} <= set(given) <= {"low", "high", "log", "step"} or not isinstance(log, bool):
            raise ValueError("a mapping holds either choice: [...] or low, high and perhaps log: true or step")
        ends = (str(given["low"]), str(given["high"]))
    else:
        text, _, option = str(given).partition(":")
        if ".." not in text:
            if option:
                raise ValueError(f"{option!r} needs a range low..high before it")
            parts = text.split(",")
            if kind in (int, float) and any(isinstance(read_scalar(part), str) for part in parts):
                raise ValueError("neither numbers nor a range")
            return _read_range(config, name, parts)
        low, _, high = text.partition("..")
        ends, log = (low, high), option == "log"
        step = read_scalar(option.removeprefix("step=")) if option.startswith("step=") else None
        if option and not log and step is None:
            raise ValueError(f"unknown option {option!r}; allowed: log, step=S")
    if kind is int:
        if step is not None and int(step) != step:
            raise ValueError("step must be a whole number")
        return Int(int(ends[0]), int(ends[1]), log=log, step=1 if step is None else int(step))
    if kind is not float:
        raise ValueError("not a field of numbers: list the values")
    return Float(float(ends[0]), float(ends[1]), log=log, step=None if step is None else float(step))


def _check_ends(known: Float | Int) -> None:
    if not (math.isfinite(known.low) and math.isfinite(known.high) and known.low <= known.high):
        raise UserError.of("range", f"{known.low}..{known.high}", "low <= high must hold, and both be finite")
    if known.log and known.low <= 0:
        raise UserError.of("range", str(known), "a log range must start above 0")
    if known.step is not None and (
        not 0 < known.step < math.inf or (known.log and not (isinstance(known, Int) and known.step == 1))
    ):
        raise UserError.of("range", str(known), "step must be above 0 and cannot be combined with log")


def _with(wanted: Range, default: Range | None) -> Range:
    return Choice(*wanted.options, when=default.when) if default and isinstance(wanted, Choice) else wanted


def _steps(low: float, high: float, step: float) -> int:
    # The tolerance keeps the upper end where 0.5 / 0.1 comes out as 4.999….
    return int((high - low) / step + 1e-9)


def _suffix(known: Float | Int) -> str:
    if known.log:
        return ":log"
    return (
        f":step={_text(known.step)}"
        if known.step is not None and not (isinstance(known, Int) and known.step == 1)
        else ""
    )


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _index(config: type[BaseModel], name: str) -> int:
    return list(config.model_fields).index(name)
