"""The deliveries of outgoing webhooks: claim what may be sent, write down how it ended.

The only caller of `sql/delivery.sql`. The log is the queue: a webhook's cursor moves as fast as its
callback takes events, and a delivery is a row once the cursor has passed it. At least once: what is
claimed and not recorded within the lease is due again. Errors of a database that is away leave as
LogUnavailable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter

from service.db import Querier, fetch, statements
from service.event import event_id

_SQL = statements("delivery")
CLAIM_BYTES = 4 * 1024 * 1024
SCAN_POSITIONS = 50_000
OPEN_AFTER = 5  # failures in a row
OPEN_MAX_S = 60.0  # between two probes of a dead callback
_COLUMNS = tuple(
    attrgetter(name)
    for name in (
        *("webhook_id", "position", "claim", "number", "state", "step", "due_in_s", "started_at"),
        *("duration_ms", "status", "error", "answer", "pause_s", "link"),
    )
)


@dataclass(frozen=True, slots=True)
class Room:
    """What a relay knows of a webhook when it claims.

    Its version, how many more calls may be open, and up to where it saw that nothing matches, with
    the link there: in another history the place counts for nothing.
    """

    webhook_id: int
    version: int
    room: int
    scanned_to: int
    scanned_link: bytes | None


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that is ours to send, until the lease ends. `body` is None if the event is gone.

    `attempt` counts from 1. `step` attempts of its schedule were made before. `early_s`: it is a
    probe, so long before its time. `is_measured`: it tells of our latency (no replay, no history).
    """

    webhook_id: int
    claim: int
    position: int
    attempt: int
    step: int
    early_s: float | None
    is_measured: bool
    link: bytes | None
    received_at: datetime | None
    body: bytes | None

    @property
    def id(self) -> str:
        return event_id(self.position, self.link or b"")


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a claim says of one webhook.

    `outcome` is `idle` (for `wait_s`, or until there is news), `more`, `busy`, `changed` or
    `disabled`; see the function `claim_deliveries`.
    """

    outcome: str
    reason: str | None
    wait_s: float | None
    scanned_to: int | None
    scanned_link: bytes | None


@dataclass(frozen=True, slots=True)
class Ended:
    """How one attempt ended. `answer` is the first bytes of what came back.

    `link` is the event's, None if it was gone: in another history its position is another event's.
    """

    webhook_id: int
    position: int
    claim: int
    number: int
    state: str
    step: int
    due_in_s: float | None
    started_at: datetime
    duration_ms: int
    status: int | None
    error: str | None
    answer: bytes
    pause_s: float | None
    link: bytes | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """How a webhook stands. `oldest_s`: since when the oldest pending event waits; None: none."""

    webhook_id: int
    pending: int
    oldest_s: float | None
    exhausted: int
    is_open: bool
    cursor_position: int
    accounted_from: int
    version: int


class Deliveries:
    """The deliveries of all webhooks."""

    def __init__(self, database: Querier) -> None:
        self._database = database

    async def claim(
        self, rooms: Sequence[Room], *, lease_s: float, backfill_per_s: float
    ) -> tuple[list[Claimed], Mapping[int, Outlook]]:
        """Claim what may be sent now; return it, and what is known of each enabled webhook.

        Of one webhook in the order of positions, retries before new ones.
        """
        rows = await fetch(
            self._database,
            _SQL.claim,
            [room.webhook_id for room in rooms],
            [room.version for room in rooms],
            [room.room for room in rooms],
            [room.scanned_to for room in rooms],
            [room.scanned_link for room in rooms],
            lease_s,
            CLAIM_BYTES,
            SCAN_POSITIONS,
            backfill_per_s,
        )
        claimed = [Claimed(row[0], *row[6:]) for row in rows if row[1] == "claimed"]
        return claimed, {row[0]: Outlook(*row[1:6]) for row in rows if row[1] != "claimed"}

    async def record(
        self, ended: Sequence[Ended], *, disable_after_s: float
    ) -> list[tuple[int, str]]:
        """Write down how attempts ended, in one commit; return what changed, by webhook.

        A change is `opened` or `closed` (its circuit), `gone` or `failing` (it was disabled).
        """
        columns = [[get(one) for one in ended] for get in _COLUMNS]
        rows = await fetch(
            self._database, _SQL.record, *columns, OPEN_AFTER, OPEN_MAX_S, disable_after_s
        )
        return [(row["hook"], row["change"]) for row in rows]

    async def backlog(self) -> list[Backlog]:
        """Return how every webhook stands."""
        return [Backlog(*row) for row in await fetch(self._database, _SQL.backlog, SCAN_POSITIONS)]

    async def orphans(self, webhook_id: int, after: int, until: int) -> tuple[int, int | None]:
        """Return how many matching events of a range have no delivery, and the first position.

        The range is cut to what the webhook's cursor has passed and accounts for. At most
        SCAN_POSITIONS long, or the statement takes long.
        """
        [row] = await fetch(self._database, _SQL.orphans, webhook_id, after, until)
        return row["orphans"], row["first_position"]

    async def prune(self, before: datetime, *, limit: int) -> int:
        """Forget delivered ones of events received before `before`, and deleted webhooks.

        At most `limit` deliveries; returns how many.
        """
        [row] = await fetch(self._database, _SQL.prune, before, limit)
        forgotten: int = row["forgotten"]
        return forgotten
