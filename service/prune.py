"""Takes the oldest partitions out of the log: by age, by size, and past nobody without saying so.

The only caller of `sql/prune.sql`. Runs as the owner; the service's role can take nothing out.
What goes is whole partitions, each in one commit that also moves the log's anchor: a reader sees
all of it or none, and whoever still stands before the anchor is told 410.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.db import Connection, fetch, statements
from service.errors import ConfigError

_SQL = statements("prune")
BATCH = 5000


@dataclass(frozen=True, slots=True)
class Partition:
    """A part of the log. `last_received_at` is None unless it is full and events follow it."""

    first_position: int
    end_position: int
    bytes: int
    last_received_at: datetime | None


@dataclass(frozen=True, slots=True)
class Behind:
    """Somebody who needs what would go: a `consumer`, `webhook`, `replay`, or its `deliveries`.

    `place` is how far it got, or the first of `events` deliveries that are pending or exhausted.
    """

    kind: str
    name: str
    place: int
    events: int | None

    def __str__(self) -> str:
        if self.events is not None:
            return (
                f"{self.events} deliveries of the webhook {self.name} that are pending or "
                f"exhausted, the first at position {self.place}"
            )
        return f"the {self.kind} {self.name}, at position {self.place}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What may go: events older than `older_than`, or the oldest of more than `keep_bytes`.

    Never what is younger than `keep_at_least`: while Bridge may send it again, it must be known.
    """

    older_than: timedelta | None
    keep_bytes: int | None
    keep_at_least: timedelta

    def chosen(self, partitions: Sequence[Partition], now: datetime) -> list[Partition]:
        """Return those of `partitions` (all, oldest first) that go."""
        left = sum(partition.bytes for partition in partitions)
        chosen: list[Partition] = []
        for partition in partitions:
            if partition.last_received_at is None:
                break
            age = now - partition.last_received_at
            is_old = self.older_than is not None and age >= self.older_than
            is_too_much = self.keep_bytes is not None and left > self.keep_bytes
            if age < self.keep_at_least or not (is_old or is_too_much):
                break
            chosen.append(partition)
            left -= partition.bytes
        return chosen


@dataclass(frozen=True, slots=True)
class Pruning:
    """What went (or would go), and who is left behind by it, or held the rest back."""

    gone: list[Partition]
    behind: list[Behind]
    is_held: bool


async def prune(
    owner: Connection,
    rule: Rule,
    now: datetime,
    *,
    is_forced: bool = False,
    is_dry_run: bool = False,
) -> Pruning:
    """Drop the partitions that `rule` lets go, oldest first.

    Stops before the first that somebody still needs, unless it `is_forced`: then a consumer that is
    left behind gets 410, a webhook is disabled with `position_pruned`, and a delivery ends with
    `event_gone`. Raises ConfigError if the login is not the owner's, LogUnavailable if readers give
    no chance for a minute: what went before is gone, the rest is there.
    """
    if not (await fetch(owner, _SQL.is_owner))[0]["is_owner"]:
        raise ConfigError("DATABASE_URL: only the owner of the schema causeway may prune its log")
    rows = await fetch(owner, _SQL.partitions)
    gone: list[Partition] = []
    behind: list[Behind] = []
    for partition in rule.chosen([Partition(*row) for row in rows], now):
        found = await fetch(owner, _SQL.behind, partition.end_position - 1)
        behind = [Behind(*row) for row in found] or behind
        if found and not is_forced:
            return Pruning(gone, behind, is_held=True)
        if not is_dry_run:
            await fetch(owner, _SQL.prune, partition.first_position)
        gone.append(partition)
    if gone and not is_dry_run:
        await _settle(owner)
    return Pruning(gone, behind, is_held=False)


async def _settle(owner: Connection) -> None:
    """Let those who were left behind know, and forget what nobody can send any more."""
    await fetch(owner, _SQL.disable)
    while (await fetch(owner, _SQL.forget_gone, BATCH))[0]["forgotten"] == BATCH:
        pass
