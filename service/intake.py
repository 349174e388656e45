"""Refuses webhooks that would wait too long for their commit, before anything is spent on them.

Where more comes than can be taken, reading, verifying and parsing the excess would cost the others
their time: a refusal here costs a fifth of a webhook. A burst, or a commit that hangs, may fill the
appender's whole queue. Pressure that lasts is overload: then no more may wait than one batch takes,
so that what is accepted is answered after two commits, and all else gets its 503 at once; and no
more is read in one turn of the loop than a commit can bear to wait for, at each of its steps.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache

from service.address import EVERYBODY, AllowList
from service.appender import Appender
from service.errors import Overloaded
from service.metrics import Metrics
from service.problems import RequestIds, spell
from service.sources import DEFAULT_SOURCE, Sources

log = logging.getLogger("causeway.intake")

PATH = b"/webhooks/bridge"
PATIENCE_S = 0.5  # pressure for this long is overload, which is judged anew as often
EXCESS = 0.1  # it is over when no more of the calls than this had to be refused
TURN_READS = 64  # that are looked at in one turn of the loop while there is overload
REPORT_S = 1.0  # one line in the log for all that were refused meanwhile
_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\n%bretry-after: %d\r\ncache-control: no-store\r\n"
    b"content-type: application/json\r\nx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b"
)
_PROBLEM = Overloaded("more webhooks come than can be committed; try again in a moment")

Headers = Sequence[tuple[bytes, bytes]]


class Intake:
    """Asked for each call. Belongs to one event loop, and counts by its turns.

    Invariant: test_intake.py, test_lasting_pressure_is_overload_and_a_burst_is_not.
    """

    def __init__(
        self,
        appender: Appender,
        sources: Sources,
        metrics: Metrics,
        request_ids: RequestIds,
        clock: Callable[[], float] | None = None,
        *,
        allow_list: AllowList = EVERYBODY,
    ) -> None:
        """`clock`: seconds of any beginning; the event loop's by default."""
        self._appender = appender
        self._sources = sources
        self._outcome = cache(metrics.webhooks_received.labels)
        self._request_ids = request_ids
        self._allow_list = allow_list
        self._loop = asyncio.get_running_loop()
        self._clock = clock or self._loop.time
        self._arrived = 0  # let in by this turn of the loop; they are not in the queue yet
        self._is_in_turn = False
        self._reads = 0  # in this turn
        self._put_off: deque[Callable[[], None]] = deque()
        self._pressed_since: float | None = None
        self._overloaded_until = self._judged_at = float("-inf")
        self._calls = 0  # since overload was judged
        self._excess = 0  # of these, those that were refused
        self._refused = 0  # since it was reported

    def is_open(self, url: bytes) -> bool:
        """Let in a call whose headers are there: False if it is a webhook, and one too many."""
        if not url.startswith(PATH):
            return True
        self._begin_turn()
        self._calls += 1
        if self._is_full():
            return False
        self._arrived += 1
        return True

    def may_read(self) -> bool:
        """Count a read of a connection: False if it has to be `put_off`, as the next ones."""
        if not self._is_overloaded():
            return True
        self._begin_turn()
        self._reads += 1
        return self._reads <= TURN_READS

    def put_off(self, read: Callable[[], None]) -> None:
        """Call `read` in a later turn, after those that were put off before."""
        self._begin_turn()
        self._put_off.append(read)

    def check(self) -> None:
        """Raise Overloaded if a webhook that was let in without being asked for is one too many."""
        if self._is_full():
            self._note()
            raise Overloaded(_PROBLEM.message)

    def refusal(
        self, url: bytes, headers: Headers, default_headers: Headers, peer: str | None = None
    ) -> bytes | None:
        """Return the whole answer to a call that is one too many, and count it.

        None if it needs no commit: it is for another path or an unknown source, or `peer` may not
        call.
        """
        source = _source(url)
        if source is None or not self._sources.secrets(source):
            return None
        if not self._allow_list.lets_in(peer, headers):
            return None
        self._outcome(source, _PROBLEM.code).inc()
        self._note()
        identity = self._request_ids.of(headers)
        body = spell(_PROBLEM, identity)
        more = b"".join([b"%b: %b\r\n" % header for header in default_headers])
        return _ANSWER % (more, _PROBLEM.retry_after_s, identity.encode(), len(body), body)

    def _is_full(self) -> bool:
        if self._appender.is_full(self._arrived):
            return True
        return self._is_overloaded() and self._appender.fills_a_batch(self._arrived)

    def _is_overloaded(self) -> bool:
        return self._clock() < self._overloaded_until

    def _begin_turn(self) -> None:
        if not self._is_in_turn:
            self._is_in_turn = True
            self._loop.call_soon(self._end_turn)  # runs before what these calls start

    def _end_turn(self) -> None:
        """Look for pressure: each commit leaves a batch behind, or each turn brings more than one.

        A commit that hangs is none: what waits for it may be gone with the next.
        """
        now = self._clock()
        if now < self._overloaded_until:
            self._judge(now)
        elif not (self._appender.is_behind or self._arrived > self._appender.batch_events):
            self._pressed_since = None
        elif self._pressed_since is None:
            self._pressed_since = now
        elif now - self._pressed_since > PATIENCE_S:
            self._overload(now)
        arrived = self._arrived
        self._is_in_turn = False
        try:
            self._read_on()
        finally:  # only now: what they have started puts them into the queue after this
            self._arrived -= arrived

    def _read_on(self) -> None:
        """Look at what was put off, first come, first served."""
        count = len(self._put_off)
        self._reads = min(count, TURN_READS) if self._is_overloaded() else count
        for _ in range(self._reads):
            self._begin_turn()  # first: whatever one of them does, the others have theirs
            self._put_off.popleft()()

    def _judge(self, now: float) -> None:
        """Does overload last? A refusal now and then is none: calls never come evenly."""
        if now < self._judged_at:
            return
        if self._excess > EXCESS * self._calls:
            self._overload(now)
        else:
            self._overloaded_until, self._pressed_since = now, None

    def _overload(self, now: float) -> None:
        """Begin with it, or go on; without another call to judge it by, it ends by itself."""
        self._judged_at = now + PATIENCE_S
        self._overloaded_until = now + 2 * PATIENCE_S
        self._calls = self._excess = 0

    def _note(self) -> None:
        self._excess += 1
        if not self._refused:
            self._loop.call_later(REPORT_S, self._report)
        self._refused += 1

    def _report(self) -> None:
        log.warning("webhooks refused", extra={"code": _PROBLEM.code, "calls": self._refused})
        self._refused = 0


def _source(url: bytes) -> str | None:
    rest = url[len(PATH) :].partition(b"?")[0]
    if not rest:
        return DEFAULT_SOURCE
    return rest[1:].decode("latin-1") if rest.startswith(b"/") else None
