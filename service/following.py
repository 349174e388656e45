"""The assembly of what follows the log in a process: which tail, and what readers read below it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from service.base import Base
from service.erase import Erasures
from service.errors import ConfigError
from service.eventlog import EventLog
from service.follower import Follower, WindowFollower
from service.head import Head
from service.listen import Listener
from service.ops import Note
from service.readable import ReadableLog
from service.roles import Role
from service.tail import Tail


@dataclass(frozen=True, slots=True)
class Following:
    """The tail, the log for readers that are not within the window, and what it says of itself."""

    tail: WindowFollower
    log: ReadableLog
    notes: Mapping[str, Note] = field(default_factory=dict)


def make_following(base: Base, on_changed: Callable[[], None]) -> Following:
    """Make the tail of the settings; `on_changed` is called if the log has another history."""
    tail = Tail(
        EventLog(base.database.tail),
        base.window,
        base.metrics,
        poll_s=base.settings.poll_s,
        preload_events=base.settings.window_events,
        on_changed=on_changed,
        on_read=None if base.traces is None else base.traces.streamed,
    )
    if base.settings.tail == "postgres":
        return Following(tail, base.eventlog)
    return _follow_nats(base, tail)


def _follow_nats(base: Base, tail: Tail) -> Following:
    """Put a tail that follows the mirror before `tail`. Its library comes with an extra."""
    try:
        from service.nats import check_login
        from service.nats_log import MirroredLog
        from service.nats_tail import NatsTail
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"{missing.name} is missing, CAUSEWAY_TAIL=nats needs it: install causeway[server,nats]"
        ) from missing
    settings, database = base.settings, base.database
    check_login(settings)
    # For the relay one listens all the time; for the tail only while it follows Postgres.
    is_heard = Role.RELAY in settings.roles
    listener = None if is_heard else Listener(database.direct_dsn, tail.hear)
    eventlog = EventLog(database.tail)
    nats_tail = NatsTail(tail, eventlog, base.window, base.metrics, settings, listener)
    erasures = Erasures(database.readers)
    log = MirroredLog(base.eventlog, erasures, nats_tail, settings.nats_stream)
    return Following(nats_tail, log, {"tail": nats_tail.says})


def follow(base: Base, tail: WindowFollower, wake_relay: Callable[[], None]) -> Follower:
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
