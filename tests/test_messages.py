"""How a worker's records come to the driver: together where they come fast, alone where a verdict is awaited."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from studies import record

from models.family import Record
from tuning import trial
from tuning.config import make_config
from tuning.driver import Message
from tuning.stopping import judged_epochs
from tuning.trial import gathered

EPOCHS = (1 / 3, 1.0, 2.0, 3.0, 4.0)
RECORDS = tuple(record(epoch, 1 / epoch) for epoch in EPOCHS)


def told(*, last: Message | None = None) -> Iterator[Message]:
    yield from (Message((one,)) for one in RECORDS[:-1])
    yield last or Message(RECORDS[-1:], "complete")


def parts(judged: tuple[float, ...] | None, last: Message | None = None) -> list[tuple[Record, ...]]:
    """The records of each message, up to the trial's end."""
    messages, seen = told(last=last), list[Message]()
    while not seen or seen[-1].state == "running":
        seen.append(gathered(messages, judged))
    assert next(messages, None) is None
    assert seen[-1].state == (last.state if last else "complete")
    return [message.records for message in seen]


@pytest.mark.parametrize(
    ("judged", "together"),
    [
        ((), [5]),
        (None, [1, 1, 1, 1, 1]),
        ((1 / 3, 1.0, 3.0), [1, 1, 2, 1]),
        ((3 * (1 + 1e-9),), [4, 1]),  # rungs are floats
    ],
)
def test_records_come_together_up_to_the_next_verdict(
    judged: tuple[float, ...] | None, together: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "GATHER_S", 60)
    found = parts(judged)
    assert [len(records) for records in found] == together
    assert sum(found, ()) == RECORDS


def test_slow_records_come_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "GATHER_S", 0)
    assert parts(()) == [(one,) for one in RECORDS]


@pytest.mark.parametrize("state", ["failed", "storage"])
def test_what_came_before_a_failure_is_told_with_it(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "GATHER_S", 60)
    last = dataclasses.replace(Message((), reason="why"), state=state)  # type: ignore[arg-type]
    assert parts((), last) == [RECORDS[:-1]]


@pytest.mark.parametrize(
    ("scheduler", "judged"),
    [("asha", (1.0, 3.0)), ("hyperband", (1.0, 3.0)), ("median", None), ("none", ())],
)
def test_where_a_rule_may_stop_a_trial(scheduler: str, judged: tuple[float, ...] | None) -> None:
    settings = {"family": "conv_autoencoder", "scheduler": scheduler, "max_epochs": 9, "min_epochs": 1}
    assert judged_epochs(make_config(settings)) == judged
