"""What is wrong, in words: sentences that say what, since when, and what it means. Pure.

Read by a person at night: each names the thing, and leads to the page that shows more. The worst
come first. What no rule knows of is not here: an empty list says that the rules are satisfied.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.auth import StoredToken
from service.consumer import Consumer
from service.sample import Sample, rise
from service.words import count, span

CRITICAL, WARNING, NOTE = "critical", "warning", "note"
_ORDER = (CRITICAL, WARNING, NOTE)
SILENCE_S = 3 * 3600.0
LATELY = "in the last 5 min"
LATELY_S = 300.0
LAG_EVENTS, LAG_S = 1000, 300.0
SLOW_S = 1.0
EXPIRY = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Alarm:
    """One sentence; `page` is where the dashboard shows more, below `/dashboard`."""

    level: str
    text: str
    page: str = ""


@dataclass(frozen=True, slots=True)
class Situation:
    """What the rules look at. `last_events` maps each source to its newest event's receipt.

    `checks` is what `/readyz` says; without `is_log_read` the log could not be asked. `lately` are
    the samples at both ends of the last minutes.
    """

    now: datetime
    checks: Mapping[str, str | None]
    is_damaged: bool
    last_events: Mapping[str, datetime | None]
    is_log_read: bool
    consumers: Sequence[Consumer]
    tokens: Sequence[StoredToken]
    lately: tuple[Sample, Sample] | None
    delivery_p99_s: float | None


def find_alarms(situation: Situation) -> list[Alarm]:
    """Return what is wrong, the worst first."""
    rules: Iterable[Iterator[Alarm]] = (
        _process(situation),
        _calls(situation),
        _sources(situation),
        _consumers(situation),
        _tokens(situation),
    )
    found = [alarm for rule in rules for alarm in rule]
    return sorted(found, key=lambda alarm: _ORDER.index(alarm.level))


def _process(situation: Situation) -> Iterator[Alarm]:
    if situation.is_damaged:
        text = "the log has a hole or another history than before: its streams were ended. Audit it"
        yield Alarm(CRITICAL, text, "/log")
    for name, wrong in situation.checks.items():
        if wrong is not None:
            yield Alarm(CRITICAL, f"{name}: {wrong}; this process is not ready")
    slow = situation.delivery_p99_s
    if slow is not None and slow > SLOW_S:
        text = f"delivery is slow: 1 event of 100 took more than {span(slow)} to its subscriber"
        yield Alarm(WARNING, text)


def _calls(situation: Situation) -> Iterator[Alarm]:
    """Calls that Bridge must make again, and those that were not Bridge's."""
    if situation.lately is None:
        return
    older, newer = situation.lately
    refused = rise(older, newer, "log_unavailable") + rise(older, newer, "overloaded")
    if refused:
        again = "Bridge sends them again for two days"
        text = f"{count(refused, 'call')} could not be committed {LATELY}: {again}"
        yield Alarm(CRITICAL, text, "/sources")
    for source in sorted({key[0] for key in newer.received}):
        forged = rise(older, newer, "bad_signature", source)
        if forged:
            yield Alarm(
                WARNING,
                f"source {source}: {count(forged, 'call')} with a bad signature {LATELY}: "
                "not Bridge's, or the secret was changed",
                "/sources",
            )
    unknown = rise(older, newer, "unknown_source")
    if unknown:
        text = f"{count(unknown, 'call')} to a source that does not exist {LATELY}"
        yield Alarm(WARNING, text, "/sources")
    not_allowed = rise(older, newer, "address_not_allowed")
    if not_allowed:
        text = f"{count(not_allowed, 'call')} from addresses that are not allowed {LATELY}"
        yield Alarm(WARNING, text, "/sources")


def _sources(situation: Situation) -> Iterator[Alarm]:
    for source, last in situation.last_events.items():
        if last is None:
            if situation.is_log_read:
                text = f"source {source}: no event yet. Send a test from Bridge's dashboard"
                yield Alarm(NOTE, text, "/sources")
            continue
        silent_s = (situation.now - last).total_seconds()
        if silent_s > SILENCE_S:
            yield Alarm(WARNING, f"source {source}: no event for {span(silent_s)}", "/sources")


def _consumers(situation: Situation) -> Iterator[Alarm]:
    for consumer in situation.consumers:
        place = consumer.furthest_behind
        oldest_s = max(shard.lag_s for shard in consumer.shards)
        if place.lag_events <= LAG_EVENTS and oldest_s <= LAG_S:
            continue
        free = [shard for shard in consumer.shards if shard.held_by is None]
        holders = "nobody holds it" if len(free) == len(consumer.shards) else "it is held"
        if free and len(free) < len(consumer.shards):
            holders = f"{count(len(free), 'shard')} not held"
        yield Alarm(
            WARNING,
            f"consumer {consumer.name}: {count(place.lag_events, 'event')} behind, the oldest for "
            f"{span(oldest_s)}; {holders}",
            "/consumers",
        )


def _tokens(situation: Situation) -> Iterator[Alarm]:
    for token in situation.tokens:
        if token.revoked_at is not None or token.expires_at is None:
            continue
        left = token.expires_at - situation.now
        if timedelta(0) < left <= EXPIRY:
            text = f"token {token.name} expires in {span(left.total_seconds())}"
            yield Alarm(NOTE, text, "/tokens")
