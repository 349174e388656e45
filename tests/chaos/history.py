"""What everybody saw in a run: the only thing that the checker looks at. Values; no I/O.

Moments are `time.monotonic()` of the harness. A digest is the sha256 of the bytes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

REPEATABLE = "TEST_EVENT"  # each of them is a new event, although their bytes are equal


def digest_of(content: bytes) -> bytes:
    """Return the sha256 of `content`."""
    return hashlib.sha256(content).digest()


@dataclass(frozen=True, slots=True)
class Answer:
    """How one call of Bridge's ended. Status 0: no answer came."""

    began_at: float
    at: float
    status: int
    replica: int
    position: int | None = None


@dataclass(slots=True)
class Sent:
    """An event of Bridge's, and all the answers it got."""

    source: str
    type: str
    item_id: int
    body: bytes
    digest: bytes
    answers: list[Answer] = field(default_factory=list)

    @property
    def accepted(self) -> list[Answer]:
        """The answers that were 200."""
        return [answer for answer in self.answers if answer.status == 200]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the log. `body_digest` is taken from the stored body anew."""

    position: int
    source: str
    type: str
    digest: bytes
    body_digest: bytes
    link: bytes

    @property
    def id(self) -> str:
        """The id that a subscriber must have got."""
        return f"{self.position}.{self.link[:4].hex()}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter: None lets everything pass. `types` are Bridge's of today."""

    types: frozenset[str] | None = None
    sources: frozenset[str] | None = None

    def matches(self, row: Row) -> bool:
        """Tell whether the filter lets an event pass."""
        return (self.types is None or row.type in self.types) and (
            self.sources is None or row.source in self.sources
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """An event as a subscriber got it."""

    position: int
    id: str
    digest: bytes
    at: float


@dataclass(slots=True)
class Subscriber:
    """A plain subscriber: it resumes with the last id that it got."""

    name: str
    wanted: Wanted = Wanted()
    is_slow: bool = False
    seen: list[Seen] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    connections: int = 0
    place: int = 0  # with the ids that came without an event


@dataclass(frozen=True, slots=True)
class Handled:
    """An event as a holder of a consumer got it."""

    position: int
    digest: bytes
    item_id: int
    lease: int
    holder: str
    at: float


@dataclass(frozen=True, slots=True)
class Acked:
    """An acknowledgement that was taken. The next one to be sent lies after it."""

    position: int
    lease: int
    at: float


@dataclass(slots=True)
class Shard:
    """A part of a named consumer: what its holders got, and what they acknowledged."""

    consumer: str
    spelling: str
    wanted: Wanted = Wanted()
    handled: list[Handled] = field(default_factory=list)
    acked: list[Acked] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a callback, and the status it was answered with; None if it was not."""

    position: int
    item_id: int
    digest: bytes
    status: int | None


@dataclass(slots=True)
class Callback:
    """An outgoing webhook: what came to it, and how the database accounts for it."""

    name: str
    webhook_id: int
    wanted: Wanted = Wanted()
    is_ordered: bool = False
    must_finish: bool = True
    calls: Sequence[Call] = ()
    states: dict[int, str] = field(default_factory=dict)
    cursor: int = 0
    disabled_reason: str | None = None


@dataclass(slots=True)
class History:
    """All of it."""

    sent: list[Sent] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    subscribers: list[Subscriber] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    callbacks: list[Callback] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)  # processes that ended, and should not have
    leaks: list[str] = field(default_factory=list)  # secrets, tokens and bodies in what was logged
    audit: str | None = None  # what `causeway audit` found to be wrong
