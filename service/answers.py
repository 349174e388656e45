"""What an answer of the service means to a client: go on, wait and ask again, or stop.

Pure. Whatever passes by itself is waited for; the rest is one of these, and final.

    SubscribeError
    ├── Refused       the service said no, and would say no again: status, code, message
    ├── LeaseLost     another holder has the consumer, or the shard, now: it is sent the event again
    ├── OtherFilter   the consumer exists, and wants other events than were asked for
    ├── Diverged      the log is not the one this reader read before (409): read from the start
    ├── Pruned        the events after the reader's place are gone (410)
    ├── Hole          a position is missing or came twice: the log or the way to it is damaged
    ├── Unreachable   a single call got no answer, or 503; a subscription waits instead
    └── Unreadable    what came is not Causeway's: is the address right?
"""

import json
import random
from collections.abc import Callable

BACKOFF_BASE_S = 1.0  # the server's `retry:` replaces it
BACKOFF_CAP_S = 30.0
_RETRY_FLOOR_S = 0.01
_RETRY_AFTER_CAP_S = 3600.0  # a broken proxy must not silence a subscriber for days
_SPREAD = 0.25  # of Retry-After, so that all who were sent away together come back apart
_TRANSIENT = frozenset({408, 425, 429})
_HELD = frozenset({"consumer_held", "shards_held"})  # until their holders are gone


class SubscribeError(Exception):
    """The root of what ends a subscription. Whatever passes by itself is retried instead."""


class Refused(SubscribeError):
    """The server refused, and asking again would not help: `status`, stable `code`, `message`."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"the server answered {status} {code}: {message}")
        self.status, self.code, self.message = status, code, message


class LeaseLost(SubscribeError):
    """The event was received under a lease that has ended: it will be sent again, perhaps to you.

    Or the process that sent it was killed before it wrote that down. Nothing was acknowledged, and
    nothing is lost: go on with the loop.
    """


class OtherFilter(SubscribeError):
    """The consumer exists with another filter: change it with `put_consumer`, or give none."""


class Diverged(SubscribeError):
    """The log has another history than the one that gave out the id, or ends before it."""


class Pruned(SubscribeError):
    """The log no longer has the events that follow the id; the message says what is left."""


class Hole(SubscribeError):
    """The log's positions are dense, but the next one received was not the next one."""

    def __init__(self, expected: int, received: int) -> None:
        super().__init__(f"expected position {expected}, received {received}: the log is damaged")
        self.expected, self.received = expected, received


class Unreachable(SubscribeError):
    """The service did not answer a single call, or cannot do it now: try again later."""


class Unreadable(SubscribeError):
    """What came is not a stream of Causeway: is the address right?"""


def refusal(status: int, body: bytes) -> SubscribeError | None:
    """Return the error that an answer other than 2xx means, or None if asking again may help."""
    if status >= 500 or status in _TRANSIENT:
        return None
    code, message = problem(body)
    if code in _HELD:
        return None
    if code == "lease_lost":
        return LeaseLost(message)
    if code in ("log_diverged", "position_ahead"):
        return Diverged(message)
    if status == 410:
        return Pruned(message)
    return Refused(status, code, message)


def problem(body: bytes) -> tuple[str, str]:
    """Return the stable code and the message of an error answer, whoever wrote it."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "unknown", "no reason in Causeway's form: is the address right?"


def retry_after_s(value: str | None) -> float | None:
    """Return the seconds in a Retry-After header; None if there is none, or if it is a date."""
    if value is None or not (value.isascii() and value.isdigit()):
        return None
    return min(float(value), _RETRY_AFTER_CAP_S)


def backoff(tries: int, base_s: float, draw: float, cap_s: float = BACKOFF_CAP_S) -> float:
    """Return the seconds to wait after `tries` vain tries: doubling, capped, from half to whole.

    `draw` in [0, 1) spreads those who lost their connections together.
    """
    return float(min(cap_s, base_s * 2 ** min(tries, 32))) * (0.5 + draw / 2)


class Patience:
    """How long to wait before the next try: doubling with each vain one."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._tries = 0
        self._base_s = BACKOFF_BASE_S
        self._draw = draw

    def begin_with(self, base_s: float) -> None:
        """Let the first wait be this one; within reason."""
        self._base_s = min(max(base_s, _RETRY_FLOOR_S), BACKOFF_CAP_S)

    def renew(self) -> None:
        """A try succeeded: the next wait is the first again."""
        self._tries = 0

    def next_s(self, retry_after_s: float | None = None) -> float:
        """Count a vain try, and return the seconds before the next; never less than Retry-After."""
        wait_s = backoff(self._tries, self._base_s, self._draw())
        self._tries += 1
        if retry_after_s is None:
            return wait_s
        return max(wait_s, retry_after_s * (1 + _SPREAD * self._draw()))
