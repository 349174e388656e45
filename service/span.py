"""A span as we know it, and where it belongs: pure.

An event's trace is in its link, which every process reads in the log: the first 16 bytes are the
trace's id, the next 8 the id of its first span. So all that happens to one event, in any replica
and at any time, is one trace, and a sampler that goes by the trace's id takes all of it or nothing.
Nothing is stored and nothing is handed on for it.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

Attribute = str | int | bool


@dataclass(frozen=True, slots=True)
class Span:
    """Something that happened to the event whose chain link is `link`.

    Times are Unix, in nanoseconds. `caller`: a `traceparent` that came with the call. `error`: in a
    word, what went wrong.
    """

    name: str
    kind: str  # server, internal or client
    link: bytes
    span_id: int
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, Attribute]
    error: str | None = None
    caller: str | None = None

    @property
    def is_first(self) -> bool:
        """True for the span that all others of the event are within."""
        return self.span_id == first_span_id(self.link)


def trace_id(link: bytes) -> int:
    """Return the id of the trace of the event with this link."""
    return int.from_bytes(link[:16], "big")


def first_span_id(link: bytes) -> int:
    """Return the id of the trace's first span: the receipt of the event."""
    return int.from_bytes(link[16:24], "big")


def new_span_id() -> int:
    """Return an id for a span that nobody needs to guess; never 0, which is none."""
    return secrets.randbits(64) or 1


def traceparent(link: bytes, span_id: int, *, is_sampled: bool) -> bytes:
    """Return the header that lets whoever is called go on in the trace (W3C Trace Context, 3.2)."""
    return b"00-%032x-%016x-%02x" % (trace_id(link), span_id, is_sampled)
