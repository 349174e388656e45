"""Judges a history. Pure: the promises of the README, one function for each.

`is_final` says that everybody was given the time to come to the end: then nothing may be missing.
Before it, a history may end anywhere, but what is there must be right.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.chaos.history import REPEATABLE, Callback, History, Row, Sent, Shard, Subscriber

# What Bridge may be answered: it was committed, or cannot be now; 0: the connection broke.
ANSWERS = frozenset({200, 503, 0})
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken: `kind` is stable, `text` says where."""

    kind: str
    text: str


def check(history: History, *, is_final: bool) -> list[Violation]:
    """Return everything that is wrong in a history; the log's own faults first."""
    found = [*check_log(history, is_final=is_final), *check_answers(history.sent)]
    for subscriber in history.subscribers:
        found += check_subscriber(subscriber, history.rows, is_final=is_final)
    for name in dict.fromkeys(shard.consumer for shard in history.shards):
        shards = [shard for shard in history.shards if shard.consumer == name]
        found += check_consumer(name, shards, history.rows, is_final=is_final)
    if is_final:
        for callback in history.callbacks:
            found += check_callback(callback, history.rows)
        if history.audit is not None:
            found.append(Violation("audit", history.audit))
    found += [Violation("process_ended", text) for text in history.ends]
    found += [Violation("leak", text) for text in history.leaks]
    return found


def check_log(history: History, *, is_final: bool) -> Iterator[Violation]:
    """Every 200 is in the log once, nothing else is, positions are dense, bytes are Bridge's."""
    rows = history.rows
    for expected, row in enumerate(rows, start=1):
        if row.position != expected:
            yield Violation("hole", f"position {expected} is missing; {row.position} follows")
            break
    changed = [row.position for row in rows if row.body_digest != row.digest]
    if changed:
        yield Violation("body_changed", f"the bodies at {_some(changed)} are not what was received")
    places: dict[tuple[str, bytes], list[int]] = defaultdict(list)
    for row in rows:
        places[row.source, row.digest].append(row.position)
    sent = {(it.source, it.digest): it for it in history.sent}
    unknown = [where[0] for key, where in places.items() if key not in sent]
    if unknown:
        yield Violation("not_sent", f"Bridge never sent what is at {_some(unknown)}")
    head = rows[-1].position if rows else 0
    for key, event in sent.items():
        yield from _check_event(event, places.get(key, []), head, is_final=is_final)


def _check_event(
    event: Sent, where: Sequence[int], head: int, *, is_final: bool
) -> Iterator[Violation]:
    answers = event.accepted
    told = [answer.position for answer in answers if answer.position is not None]
    # A row that was committed after the log was read is missing from the picture, not from the log.
    lost = [
        position for position in told if position not in where and (is_final or position <= head)
    ]
    if lost or (is_final and answers and not where):
        yield Violation("lost", f"an event answered 200 at {_some(told)} is in the log at {where}")
    if event.type == REPEATABLE:
        if len(set(told)) < len(told):
            yield Violation("merged", f"two test events got one position: {sorted(told)}")
        if len(where) > len(event.answers):
            yield Violation("doubled", f"{len(where)} test events, {len(event.answers)} calls")
    elif len(where) > 1:
        yield Violation("doubled", f"one event is in the log at {list(where)}")
    elif len(set(told)) > 1:
        yield Violation("doubled", f"one event was answered with {sorted(set(told))}")
    if is_final and not answers:
        yield Violation("never_taken", f"no 200 for an event of {event.type} to the very end")


def check_answers(sent: Iterable[Sent]) -> Iterator[Violation]:
    """Bridge is answered 200 or 503, whatever happens."""
    statuses = Counter(answer.status for event in sent for answer in event.answers)
    for status, count in statuses.items():
        if status not in ANSWERS:
            yield Violation("answer", f"Bridge was answered {status}, {count} times")


def check_subscriber(
    subscriber: Subscriber, rows: Sequence[Row], *, is_final: bool
) -> Iterator[Violation]:
    """A subscriber got each event of its filter once, in order, with the right bytes."""
    name, seen = f"subscriber {subscriber.name}", subscriber.seen
    expected = [row for row in rows if subscriber.wanted.matches(row)]
    for text in subscriber.refusals:
        yield Violation("refused", f"{name}: {text}")
    for got, row in zip(seen, expected, strict=False):
        if got.position != row.position:
            kind = "again" if got.position < row.position else "missed"
            yield Violation(kind, f"{name} got {got.position} where {row.position} was due")
            return
        if (got.id, got.digest) != (row.id, row.digest):
            yield Violation("wrong_event", f"{name} got {got.id}, the log has {row.id}")
            return
    if is_final and len(seen) > len(expected):
        yield Violation("again", f"{name} got {seen[len(expected)].position} past the end")
    if is_final and len(seen) < len(expected):
        yield Violation("missed", f"{name} never got {expected[len(seen)].position}")


def check_consumer(
    name: str, shards: Sequence[Shard], rows: Sequence[Row], *, is_final: bool
) -> Iterator[Violation]:
    """A named consumer got each event at least once, its items in order, none after its ack."""
    for shard in shards:
        yield from _check_shard(shard, rows)
    owners: dict[int, str] = {}
    for shard in shards:
        for handled in shard.handled:
            if owners.setdefault(handled.item_id, shard.spelling) != shard.spelling:
                yield Violation("two_shards", f"consumer {name}: item {handled.item_id} has two")
                return
    if is_final and shards:
        got = {handled.position for shard in shards for handled in shard.handled}
        expected = {row.position for row in rows if shards[0].wanted.matches(row)}
        if missed := sorted(expected - got):
            yield Violation("missed", f"consumer {name} never got {_some(missed)}")
        if strange := sorted(got - expected):
            yield Violation("wrong_event", f"consumer {name} got {_some(strange)}")


def _check_shard(shard: Shard, rows: Sequence[Row]) -> Iterator[Violation]:
    name = f"consumer {shard.consumer} {shard.spelling}"
    for text in shard.refusals:
        yield Violation("refused", f"{name}: {text}")
    digests = {row.position: row.digest for row in rows}
    head = rows[-1].position if rows else 0
    last: dict[tuple[str, int], int] = {}
    places = sorted((acked.lease, acked.position) for acked in shard.acked)
    for handled in shard.handled:
        position, key = handled.position, (handled.holder, handled.lease)
        if position <= last.get(key, 0):
            yield Violation("order", f"{name}: {position} after {last[key]} in one lease")
        if position <= head and digests.get(position) != handled.digest:
            yield Violation("wrong_event", f"{name}: {position} has other bytes than the log")
        done = max((at for lease, at in places if lease < handled.lease), default=0)
        if position <= done:
            yield Violation("after_ack", f"{name}: {position} came after {done} was acknowledged")
        last[key] = position


def check_callback(callback: Callback, rows: Sequence[Row]) -> Iterator[Violation]:
    """Every delivery is accounted for; delivered means that the callback took those bytes."""
    name = f"webhook {callback.name}"
    if callback.disabled_reason is not None:
        yield Violation("disabled", f"{name} was disabled: {callback.disabled_reason}")
    owed = [row for row in rows if callback.wanted.matches(row)]
    digests = {row.position: row.digest for row in owed}
    wrong = {it.position for it in callback.calls if digests.get(it.position) != it.digest}
    if wrong:
        yield Violation("wrong_event", f"{name} was called with other bytes: {_some(wrong)}")
    orphans = [
        row.position
        for row in owed
        if row.position <= callback.cursor and row.position not in callback.states
    ]
    if orphans:
        yield Violation("orphan", f"{name} has no delivery of {_some(orphans)}")
    taken = {call.position for call in callback.calls if call.status == 200}
    done = {position for position, state in callback.states.items() if state == "delivered"}
    if untrue := done - taken:
        yield Violation("not_delivered", f"{name} never took {_some(untrue)}, which is `delivered`")
    if callback.must_finish and (left := digests.keys() - done):
        yield Violation("undelivered", f"{name} was not given {_some(left)} in the end")
    if callback.is_ordered:
        yield from _check_callback_order(name, callback)


def _check_callback_order(name: str, callback: Callback) -> Iterator[Violation]:
    """The first success of each event comes in the order of its item's events."""
    last: dict[int, int] = defaultdict(int)
    taken: set[int] = set()
    for call in callback.calls:
        if call.status != 200 or call.position in taken:
            continue
        taken.add(call.position)
        if call.position < last[call.item_id]:
            yield Violation("order", f"{name}: {call.position} after {last[call.item_id]}")
        last[call.item_id] = call.position


def _some(positions: Iterable[int]) -> str:
    """Say positions; not more than a few of them."""
    ordered = sorted(positions)
    rest = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(map(str, ordered[:SHOWN])) + rest
