"""The checker of `make chaos` finds what it looks for: each kind of violation, planted."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.checker import check
from tests.chaos.history import (
    REPEATABLE,
    Acked,
    Answer,
    Call,
    Callback,
    Handled,
    History,
    Row,
    Seen,
    Sent,
    Shard,
    Subscriber,
    Wanted,
    digest_of,
)

COUNT = 6
SHOP = Wanted(sources=frozenset({"shop"}))


def body(number: int) -> bytes:
    return b"event %d" % number


def row(number: int) -> Row:
    digest = digest_of(body(number))
    source = "shop" if number % 2 else "default"
    return Row(number, source, "item.created", digest, digest, digest_of(digest))


def sent(number: int) -> Sent:
    it = row(number)
    answers = [Answer(number, number + 0.5, 200, 0, number)]
    return Sent(it.source, it.type, number % 2, body(number), it.digest, answers)


def seen(number: int) -> Seen:
    it = row(number)
    return Seen(number, it.id, it.digest, number + 1.0)


def handled(number: int, lease: int = 1) -> Handled:
    return Handled(number, row(number).digest, number % 2, lease, "first", number + 1.0)


def call(number: int, status: int | None = 200) -> Call:
    return Call(number, number % 2, row(number).digest, status)


def good() -> History:
    """A history with nothing wrong in it."""
    numbers = range(1, COUNT + 1)
    shards = [
        Shard("ledger", f"{it}/2", handled=[handled(n) for n in numbers if n % 2 == it])
        for it in (0, 1)
    ]
    return History(
        sent=[sent(n) for n in numbers],
        rows=[row(n) for n in numbers],
        subscribers=[
            Subscriber("all", seen=[seen(n) for n in numbers]),
            Subscriber("shop", SHOP, seen=[seen(n) for n in numbers if n % 2]),
        ],
        shards=shards,
        callbacks=[
            Callback(
                "good",
                1,
                is_ordered=True,
                calls=[call(n) for n in numbers],
                states=dict.fromkeys(numbers, "delivered"),
                cursor=COUNT,
            )
        ],
    )


def kinds(history: History, *, is_final: bool = True) -> set[str]:
    return {violation.kind for violation in check(history, is_final=is_final)}


def test_a_good_history_has_no_violation() -> None:
    assert check(good(), is_final=True) == []
    assert check(good(), is_final=False) == []


def test_a_history_that_is_cut_off_anywhere_has_none_before_the_end() -> None:
    history = good()
    history.sent.append(Sent("shop", "item.created", 1, b"new", digest_of(b"new")))
    history.subscribers[0].seen = [seen(1), seen(2)]
    history.shards[0].handled = []
    history.callbacks[0].states = {}
    assert check(history, is_final=False) == []
    assert kinds(history) == {"never_taken", "missed", "orphan", "undelivered"}


def test_what_was_committed_after_the_log_was_read_is_no_violation() -> None:
    history = good()
    del history.rows[4:]
    assert check(history, is_final=False) == []
    assert "lost" in kinds(history)


def _hole(it: History) -> None:
    it.rows[3:] = [replace(each, position=each.position + 1) for each in it.rows[3:]]


def _double(it: History) -> None:
    it.rows.append(replace(it.rows[0], position=COUNT + 1))


def _two_places(it: History) -> None:
    it.sent[0].answers.append(Answer(9, 9.5, 200, 0, 2))


def _lost(it: History) -> None:
    other = digest_of(b"other")
    it.rows[2] = replace(it.rows[2], digest=other, body_digest=other)


def _changed(it: History) -> None:
    it.rows[2] = replace(it.rows[2], body_digest=digest_of(b"other"))


def _answered(it: History) -> None:
    it.sent[0].answers.append(Answer(9, 9.5, 500, 0))


def _merged(it: History) -> None:
    for each in it.sent[:1]:
        each.type = REPEATABLE
        each.answers *= 2


def _test_doubled(it: History) -> None:
    it.sent[0].type = REPEATABLE
    _double(it)


def _seen(*numbers: int) -> Callable[[History], None]:
    def change(it: History) -> None:
        it.subscribers[0].seen = [seen(number) for number in numbers]

    return change


def _other_id(it: History) -> None:
    it.subscribers[1].seen[0] = replace(it.subscribers[1].seen[0], id="1.00000000")


def _other_bytes(it: History) -> None:
    it.subscribers[0].seen[5] = replace(it.subscribers[0].seen[5], digest=digest_of(b"other"))


def _unfiltered(it: History) -> None:
    it.subscribers[1].seen.insert(1, seen(2))


def _refused(it: History) -> None:
    it.subscribers[0].refusals.append("409 log_diverged for 3.00000000")


def _handled(change: Callable[[list[Handled]], object]) -> Callable[[History], None]:
    return lambda it: (change(it.shards[1].handled), None)[1]


def _after_ack(it: History) -> None:
    it.shards[1].acked.append(Acked(3, 1, 5.0))
    it.shards[1].handled.append(handled(3, lease=2))


def _two_shards(it: History) -> None:
    it.shards[0].handled.append(handled(7 - 2, lease=2))


def _consumer_refused(it: History) -> None:
    it.shards[0].refusals.append("first: Refused")


def _orphan(it: History) -> None:
    del it.callbacks[0].states[2]


def _undelivered(it: History) -> None:
    it.callbacks[0].states[2] = "pending"


def _untrue(it: History) -> None:
    it.callbacks[0].calls = [call(n, 500 if n == 2 else 200) for n in range(1, COUNT + 1)]


def _unordered(it: History) -> None:
    it.callbacks[0].calls = [call(n) for n in (1, 2, 5, 3, 4, 6)]


def _called_otherwise(it: History) -> None:
    calls = [*it.callbacks[0].calls, replace(call(2), digest=digest_of(b"other"))]
    it.callbacks[0].calls = calls


def _disabled(it: History) -> None:
    it.callbacks[0].disabled_reason = "log_diverged"


def _audit(it: History) -> None:
    it.audit = "position 3: the link does not follow"


PLANTED: dict[str, tuple[Callable[[History], None], str]] = {
    "a missing position": (_hole, "hole"),
    "an event twice": (_double, "doubled"),
    "one event at two positions": (_two_places, "doubled"),
    "a 200 that is not in the log": (_lost, "lost"),
    "what was never sent": (_lost, "not_sent"),
    "a body that changed": (_changed, "body_changed"),
    "a 500": (_answered, "answer"),
    "two test events at one position": (_merged, "merged"),
    "a test event that was not sent": (_test_doubled, "doubled"),
    "an event that a subscriber missed": (_seen(1, 2, 4, 5, 6), "missed"),
    "the last event missed": (_seen(1, 2, 3, 4, 5), "missed"),
    "an event that a subscriber got twice": (_seen(1, 2, 2, 3, 4, 5, 6), "again"),
    "one past the end": (_seen(1, 2, 3, 4, 5, 6, 7), "again"),
    "two swapped": (_seen(1, 3, 2, 4, 5, 6), "missed"),
    "another id": (_other_id, "wrong_event"),
    "other bytes": (_other_bytes, "wrong_event"),
    "what the filter should have kept away": (_unfiltered, "again"),
    "a refusal": (_refused, "refused"),
    "an event that a consumer missed": (_handled(lambda it: it.pop()), "missed"),
    "a consumer's events out of order": (_handled(lambda it: it.reverse()), "order"),
    "an event after its acknowledgement": (_after_ack, "after_ack"),
    "an item in two shards": (_two_shards, "two_shards"),
    "a holder that was refused": (_consumer_refused, "refused"),
    "an event that a webhook was owed": (_orphan, "orphan"),
    "an event that a webhook was not given": (_undelivered, "undelivered"),
    "a delivery that was none": (_untrue, "not_delivered"),
    "a webhook's events out of order": (_unordered, "order"),
    "a call with other bytes": (_called_otherwise, "wrong_event"),
    "a webhook that was disabled": (_disabled, "disabled"),
    "an audit that failed": (_audit, "audit"),
    "a process that ended": (lambda it: it.ends.append("replica 0 ended"), "process_ended"),
    "a secret in a log": (lambda it: it.leaks.append("a secret"), "leak"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name: str) -> None:
    change, kind = PLANTED[name]
    history = good()
    change(history)
    assert kind in kinds(history)


def test_what_comes_again_under_a_new_lease_or_to_a_callback_is_at_least_once() -> None:
    history = good()
    history.shards[1].acked.append(Acked(1, 1, 2.0))
    history.shards[1].handled += [handled(3, lease=2), handled(5, lease=2)]
    history.callbacks[0].calls = [call(1, None), call(1), call(2), call(1), *map(call, range(3, 7))]
    history.sent[0].answers.insert(0, Answer(0, 0.5, 503, 0))
    history.sent[0].answers.append(Answer(9, 9.5, 200, 1, 1))
    assert check(history, is_final=True) == []
