"""Looks at everything that the alarms' rules need. Below the endpoints: it knows no HTTP."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from service.alarms import LATELY_S, Situation
from service.auth import StoredToken, Tokens
from service.consumer import Consumer, Consumers
from service.errors import LogUnavailable, WebhooksOff
from service.event import timestamp
from service.follower import Follower
from service.history import History, LastEvent
from service.sources import DEFAULT_SOURCE, Sources
from service.standing import Standing, Standings
from service.stats import Stats

CACHED_S = 2.0  # many open pages ask at once: the database is asked this often at the most
SECRETS = ("current", "previous")

Check = Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class Source:
    """A source, with what its calls came to in this process, since its start and in its last hour.

    `outcomes` and `matches` (by secret) are since the start, `matches_lately` of the last hour.
    """

    name: str
    secrets: int
    last: LastEvent | None
    outcomes: Mapping[str, int]
    matches: Mapping[str, int]
    matches_lately: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return it as the API spells it."""
        last = self.last and {
            "id": self.last.id,
            "position": self.last.position,
            "type": self.last.type,
            "received_at": timestamp(self.last.received_at),
        }
        return {
            "name": self.name,
            "secrets": self.secrets,
            "last_event": last,
            "outcomes": dict(self.outcomes),
            "signature_matches": dict(self.matches),
        }


class Overview:
    """The state of the whole, as one process sees it."""

    def __init__(
        self,
        stats: Stats,
        history: History,
        sources: Sources,
        consumers: Consumers,
        tokens: Tokens,
        follower: Follower,
        checks: Mapping[str, Check],
        standings: Standings,
    ) -> None:
        self.stats = stats
        self._history = history
        self._sources = sources
        self._consumers = consumers
        self._tokens = tokens
        self._follower = follower
        self._checks = checks
        self._standings = standings
        self._lock = asyncio.Lock()
        self._situation: tuple[float, Situation] | None = None

    async def situation(self) -> Situation:
        """Return what the alarms' rules look at, at most CACHED_S old."""
        clock = asyncio.get_running_loop().time
        async with self._lock:
            if self._situation is None or clock() - self._situation[0] > CACHED_S:
                self._situation = clock(), await self._look()
            return self._situation[1]

    async def _look(self) -> Situation:
        last: dict[str, datetime | None] = {}
        consumers: Sequence[Consumer] = ()
        tokens: Sequence[StoredToken] = ()
        webhooks: Sequence[Standing] = ()
        uncalled = 0
        is_log_read = True
        try:
            for source in await self.sources():
                last[source.name] = source.last.received_at if source.last else None
            consumers = await self._consumers.all()
            tokens = await self._tokens.all()
            uncalled = await self._standings.uncalled()
            webhooks = await self._standings.all()
        except WebhooksOff:
            pass  # `uncalled` counts those there are
        except LogUnavailable:
            is_log_read = False  # `checks` says so, in words
        return Situation(
            now=datetime.now(UTC),
            checks={name: check() for name, check in self._checks.items()},
            is_damaged=self._follower.is_damaged,
            last_events=last,
            is_log_read=is_log_read,
            consumers=consumers,
            tokens=tokens,
            lately=self.stats.window(LATELY_S),
            delivery_p99_s=self.stats.newest()["delivery_p99_s"],
            webhooks=webhooks,
            uncalled_webhooks=uncalled,
        )

    async def sources(self) -> list[Source]:
        """Return every source by name, `default` first."""
        names = sorted(self._sources.names(), key=lambda name: (name != DEFAULT_SOURCE, name))
        return [await self._source(name) for name in names]

    async def _source(self, name: str) -> Source:
        secrets = self._sources.secrets(name) or ()
        window = self.stats.window(3600.0)
        outcomes, matches, lately = {}, {}, {}
        if window is not None:
            older, newer = window
            outcomes = {key[1]: int(n) for key, n in newer.received.items() if key[0] == name and n}
            matches = {key[1]: int(n) for key, n in newer.matches.items() if key[0] == name}
            lately = {
                secret: int(n - older.matches.get((name, secret), 0.0))
                for secret in SECRETS
                if (n := newer.matches.get((name, secret))) is not None
            }
        last = await self._history.last_of_source(name)
        return Source(name, len(secrets), last, outcomes, matches, lately)
