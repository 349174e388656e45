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
from service.standing import Standing
from service.words import count, number, span

CRITICAL, WARNING, NOTE = "critical", "warning", "note"
_ORDER = (CRITICAL, WARNING, NOTE)
SILENCE_S = 3 * 3600.0
LATELY = "in the last 5 min"
LATELY_S = 300.0
LAG_EVENTS, LAG_S = 1000, 300.0
SLOW_S = 1.0
EXPIRY = timedelta(days=7)
# Why the relay disabled a webhook by itself.
_REASONS = {
    "gone": "because its callback answered 410 Gone",
    "failing": "because its callback failed for days on end",
    "log_diverged": "because the log was restored or replaced, and does not continue its place",
    "position_pruned": "because what follows its place is no longer kept",
}


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
    the samples at both ends of the last minutes. `uncalled_webhooks` counts those without a key.
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
    webhooks: Sequence[Standing] = ()
    uncalled_webhooks: int = 0


def find_alarms(situation: Situation) -> list[Alarm]:
    """Return what is wrong, the worst first."""
    rules: Iterable[Iterator[Alarm]] = (
        _process(situation),
        _calls(situation),
        _sources(situation),
        _consumers(situation),
        _webhooks(situation),
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


def _webhooks(situation: Situation) -> Iterator[Alarm]:
    if situation.uncalled_webhooks:
        uncalled = count(situation.uncalled_webhooks, "webhook")
        text = f"{uncalled} not called: CAUSEWAY_SECRET_KEY is not set"
        yield Alarm(CRITICAL, text, "/webhooks")
    for standing in situation.webhooks:
        page = f"/webhooks/{standing.webhook.webhook_id}"
        for level, text in _webhook(standing, situation.now):
            yield Alarm(level, f"webhook {standing.name}: {text}", page)


def _webhook(standing: Standing, now: datetime) -> Iterator[tuple[str, str]]:
    webhook, backlog = standing.webhook, standing.backlog
    if standing.orphans:
        lost = count(standing.orphans, "event")
        yield CRITICAL, f"{lost} it was owed has no delivery, which is a defect: replay all events"
    if webhook.disabled_at is not None:
        if webhook.disabled_reason != "admin":
            ago = span((now - webhook.disabled_at).total_seconds())
            yield CRITICAL, f"disabled {ago} ago, {_REASONS[webhook.disabled_reason or '']}"
    elif webhook.unreadable is not None:
        yield CRITICAL, f"not called: {webhook.unreadable}"
    elif webhook.open_until is not None and webhook.failing_since is not None:
        ago = span((now - webhook.failing_since).total_seconds())
        yield (
            WARNING,
            f"its callback has failed for {ago}, {count(webhook.failures, 'call')} in a row",
        )
    oldest_s = backlog.oldest_s or 0.0
    is_late = webhook.disabled_at is None and oldest_s > LAG_S
    if backlog.pending and is_late:
        yield WARNING, f"{number(backlog.pending)} pending, oldest {span(oldest_s)}"
    if backlog.exhausted:
        given_up = count(backlog.exhausted, "event")
        yield WARNING, f"{given_up} given up after the last attempt: replay once it is mended"


def _tokens(situation: Situation) -> Iterator[Alarm]:
    for token in situation.tokens:
        if token.revoked_at is not None or token.expires_at is None:
            continue
        left = token.expires_at - situation.now
        if timedelta(0) < left <= EXPIRY:
            text = f"token {token.name} expires in {span(left.total_seconds())}"
            yield Alarm(NOTE, text, "/tokens")
