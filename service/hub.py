"""All open streams of this process: who may open one, and what ends them.

Owns the caps, the one pulse that finds what is due (heartbeat, age, a send that hangs), the check
of revoked tokens, and the drain at the end. A subscriber is a cursor and a few times; it has no
queue and no timer of its own. What a stream does about it is written in `stream.py`.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable

from service.auth import Caller, Tokens
from service.config import Settings
from service.errors import Draining, LogUnavailable, TooManyStreams
from service.lease import Hold
from service.metrics import Metrics
from service.window import Window

log = logging.getLogger("causeway.hub")

TOKEN_CHECK_S = 5.0
_MIN_AGE = 0.8  # of the maximum: spreads the reconnects


class _Waiting:
    """What `Subscriber.wait` waits with."""

    __slots__ = ("take", "window", "woken")

    def __init__(
        self, woken: "asyncio.Future[None]", window: Window, take: Callable[[], bool]
    ) -> None:
        self.woken = woken
        self.window = window
        self.take = take


class Subscriber:
    """One open stream: where it stands, and why it should end, if it should."""

    __slots__ = (
        "__weakref__",
        "_waiting",
        "abort",
        "caller",
        "closing",
        "ends_at",
        "hold",
        "id_position",
        "is_heartbeat_due",
        "is_live",
        "is_standing_by",
        "link",
        "opened_s",
        "position",
        "sending_since",
        "sent_at",
    )

    def __init__(
        self, caller: Caller, position: int, now: float, ends_at: float, abort: Callable[[], None]
    ) -> None:
        self.caller = caller
        self.position = position
        self.id_position = position  # what the client would resume with
        # The link at `position`, once it is known: what was sent is of its history.
        self.link: bytes | None = None
        self.opened_s = time.time()
        self.ends_at = ends_at
        self.sent_at = now
        self.sending_since: float | None = None
        self.is_heartbeat_due = False
        self.is_live = False
        self.is_standing_by = False  # behind the holder of a named consumer: it has no place
        self.closing: str | None = None
        self.hold: Hold | None = None  # of a named consumer
        self.abort = abort
        self._waiting: _Waiting | None = None

    def wake(self) -> None:
        """Let `wait` return, unless the stream's `take` can do all there is to do."""
        if self._waiting is None or self._waiting.woken.done():
            return
        waiting = self._waiting
        try:
            is_done = self.closing is None and not self.is_heartbeat_due and waiting.take()
        except Exception as error:  # noqa: BLE001 - it is this stream's, not the one's that woke it
            waiting.woken.set_exception(error)
            return
        if is_done:
            waiting.window.add_waiter(self)
        else:
            waiting.woken.set_result(None)

    def close(self, reason: str) -> None:
        """Ask the stream to end; the first reason counts."""
        self.closing = self.closing or reason
        self.wake()

    def begin(self, hold: Hold) -> None:
        """Become the holder of a named consumer: stand where it stands."""
        self.hold = hold
        self.is_standing_by = False
        self.position = self.id_position = hold.lease.position
        self.link = hold.lease.link

    async def wait(self, window: Window, take: Callable[[], bool] = lambda: False) -> None:
        """Return when there is something to do that `take` cannot do.

        Whenever the window has changed `take` is called at once; True means that nothing is left.
        What it raises is raised here.
        """
        self._waiting = _Waiting(asyncio.get_running_loop().create_future(), window, take)
        window.add_waiter(self)
        try:
            await self._waiting.woken
        finally:
            window.remove_waiter(self)
            self._waiting = None


class Hub:
    """The set of open streams. `pulse` and `check_tokens` are loops for the supervisor."""

    def __init__(self, settings: Settings, tokens: Tokens, metrics: Metrics) -> None:
        self._settings = settings
        self._tokens = tokens
        self._metrics = metrics
        self._subscribers: set[Subscriber] = set()
        self._by_token: Counter[str] = Counter()
        self.is_draining = False
        metrics.stream_subscribers.set_function(lambda: len(self._subscribers))

    def __len__(self) -> int:
        return len(self._subscribers)

    def admit(self, caller: Caller, position: int, abort: Callable[[], None]) -> Subscriber:
        """Open a stream for `caller`. Raises Draining, or TooManyStreams past a cap."""
        if self.is_draining:
            raise Draining("this process is stopping; connect again to reach another")
        if len(self._subscribers) >= self._settings.stream_max:
            raise TooManyStreams("this process has as many streams as it may (CAUSEWAY_STREAM_MAX)")
        if self._by_token[caller.name] >= self._settings.stream_max_per_token:
            raise TooManyStreams(
                "this token has as many streams as it may (CAUSEWAY_STREAM_MAX_PER_TOKEN)"
            )
        now = asyncio.get_running_loop().time()
        age = self._settings.stream_max_age_s * random.uniform(_MIN_AGE, 1.0)  # noqa: S311
        subscriber = Subscriber(caller, position, now, now + age, abort)
        self._subscribers.add(subscriber)
        self._by_token[caller.name] += 1
        return subscriber

    def release(self, subscriber: Subscriber) -> None:
        """Forget a stream that has ended, and count why."""
        self._subscribers.discard(subscriber)
        self._by_token[subscriber.caller.name] -= 1
        if not self._by_token[subscriber.caller.name]:
            del self._by_token[subscriber.caller.name]
        self._metrics.stream_closed.labels(subscriber.closing or "error").inc()

    async def pulse(self) -> None:
        """Find what is due, a few times for each heartbeat, for ever."""
        clock = asyncio.get_running_loop().time
        period = min(1.0, self._settings.heartbeat_s / 4, self._settings.send_timeout_s / 4)
        while True:
            await asyncio.sleep(period)
            self._examine_all(clock())

    def _examine_all(self, now: float) -> None:
        """A function of its own: a loop that sleeps must not hold the last stream it looked at."""
        for subscriber in tuple(self._subscribers):
            self._examine(subscriber, now)

    def _examine(self, subscriber: Subscriber, now: float) -> None:
        began = subscriber.sending_since
        if began is not None:
            if now - began > self._settings.send_timeout_s:
                subscriber.close("send_timeout")
                subscriber.abort()  # its send returns; what was buffered for it is dropped
        elif now >= subscriber.ends_at:
            subscriber.close("max_age")
        elif now - subscriber.sent_at >= self._settings.heartbeat_s:
            subscriber.is_heartbeat_due = True
            subscriber.wake()

    async def check_tokens(self) -> None:
        """End the streams whose token was revoked or has expired, within seconds. A loop."""
        while True:
            await asyncio.sleep(TOKEN_CHECK_S)
            ids = {s.caller.token_id for s in self._subscribers if s.caller.token_id is not None}
            try:
                revoked = await self._tokens.revoked(ids)
            except LogUnavailable:
                continue  # the tail reports that the database is away; tokens stay as they were
            self._close_all_of(revoked)

    def _close_all_of(self, revoked: set[int]) -> None:
        for subscriber in tuple(self._subscribers):
            if subscriber.caller.token_id in revoked:
                subscriber.close("token")

    def close_all(self, reason: str) -> None:
        """Ask every stream to end at once."""
        for subscriber in tuple(self._subscribers):
            subscriber.close(reason)

    async def drain(self, seconds: float) -> None:
        """Admit no more, and end the streams one after another over `seconds`."""
        self.is_draining = True
        subscribers = list(self._subscribers)
        random.shuffle(subscribers)
        clock = asyncio.get_running_loop().time
        began = clock()
        for index, subscriber in enumerate(subscribers):
            due = began + seconds * index / len(subscribers)
            if due > clock():
                await asyncio.sleep(due - clock())
            subscriber.close("drain")
        log.info("streams asked to end", extra={"streams": len(subscribers)})
