"""The assembly of what follows the log in a process: which tail, and what readers read below it."""

from collections.abc import Callable
from dataclasses import dataclass

from service.base import Base
from service.erase import Erasures
from service.eventlog import EventLog
from service.follower import Follower
from service.head import Head
from service.listen import Listener
from service.nats_log import MirroredLog
from service.nats_tail import NatsTail
from service.readable import ReadableLog
from service.roles import Role
from service.tail import Tail


@dataclass(frozen=True, slots=True)
class Following:
    """The tail, and the log for readers that are not within the window."""

    tail: Tail | NatsTail
    log: ReadableLog


def make_following(base: Base, on_changed: Callable[[], None]) -> Following:
    """Make the tail of the settings; `on_changed` is called if the log has another history."""
    settings, window, metrics = base.settings, base.window, base.metrics
    tail = Tail(
        EventLog(base.database.tail),
        window,
        metrics,
        poll_s=settings.poll_s,
        preload_events=settings.window_events,
        on_changed=on_changed,
        on_read=None if base.traces is None else base.traces.streamed,
    )
    if settings.tail == "postgres":
        return Following(tail, base.eventlog)
    # For the relay one listens all the time; for the tail only while it follows Postgres.
    is_heard = Role.RELAY in settings.roles
    listener = None if is_heard else Listener(base.database.direct_dsn, tail.hear)
    nats_tail = NatsTail(tail, EventLog(base.database.tail), window, metrics, settings, listener)
    erasures = Erasures(base.database.readers)
    log = MirroredLog(base.eventlog, erasures, nats_tail, settings.nats_stream)
    return Following(nats_tail, log)


def follow(base: Base, tail: Tail | NatsTail, wake_relay: Callable[[], None]) -> Follower:
    """Run what follows the log for the roles; return which of it knows how far behind it is."""
    is_streaming = Role.STREAM in base.settings.roles
    is_relaying = Role.RELAY in base.settings.roles

    def hear(head: int) -> None:
        if is_streaming:
            tail.hear(head)
        if is_relaying:
            wake_relay()

    if is_relaying or (is_streaming and isinstance(tail, Tail)):
        base.supervisor.start("listen", Listener(base.database.direct_dsn, hear).run)
    if is_streaming:
        base.supervisor.start("tail", tail.run)
        return tail
    head = Head(EventLog(base.database.tail), base.metrics, base.settings.poll_s)
    base.supervisor.start("head", head.run)
    return head
