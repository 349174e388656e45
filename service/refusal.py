"""What is answered to bytes that are no request of ours, and what the log says of them.

Strangers send such bytes all the time, in any number: one line in the log tells of many.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

log = logging.getLogger("causeway.refusal")

HEAD_MAX_BYTES = 64 * 1024
HEADERS_MAX = 128
PIPELINE_MAX = 128  # requests that wait for the answer to the one before
REPORT_S = 10.0  # between two lines in the log


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why what came is no request that we would answer: an error's status, code and message."""

    status: int
    code: str
    message: str


class Refused(Exception):
    """Made anew for each connection: an exception keeps the frames that it was raised in."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


UNREADABLE = Refusal(400, "bad_request", "this is not a request in HTTP/1.1")
SLOW = Refusal(408, "head_timeout", "the request's headers were not here in time")
HUGE = Refusal(
    431,
    "head_too_large",
    f"a request's line and headers may have {HEAD_MAX_BYTES} bytes and {HEADERS_MAX} headers "
    "at the most",
)
AHEAD = Refusal(429, "too_many_requests", f"{PIPELINE_MAX} requests wait for their answers")
NO_HOST = Refusal(400, "bad_request", "a request has one Host header")
ENCODED = Refusal(501, "bad_request", "the only Transfer-Encoding is chunked")
TUNNEL = Refusal(405, "method_not_allowed", "this is not a proxy")
BROKEN = Refusal(500, "internal_error", "an error of ours; its log has it")


class Refusals:
    """Tells the log of refusals: the first at once, then one in `REPORT_S` for all meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._untold = 0
        self._silent_until = float("-inf")

    def note(self, refusal: Refusal, peer: str | None) -> None:
        """`peer`: the address that it came from, which may be a proxy's."""
        self._untold += 1
        now = self._clock()
        if now < self._silent_until:
            return
        fields = {"code": refusal.code, "reason": refusal.message, "peer": peer}
        log.warning("no request that can be read", extra={**fields, "calls": self._untold})
        self._untold, self._silent_until = 0, now + REPORT_S


def spell(refusal: Refusal, default_headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the whole answer, in the form of all errors."""
    identity = secrets.token_hex(8)
    error = {"code": refusal.code, "message": refusal.message, "request_id": identity}
    body = orjson.dumps({"error": error})
    lines = [
        *(b"%b: %b\r\n" % header for header in default_headers),
        b"content-type: application/json\r\ncache-control: no-store\r\nconnection: close\r\n",
        b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (identity.encode(), len(body)),
    ]
    return b"".join([STATUS_LINE[refusal.status], *lines, body])
