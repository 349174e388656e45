"""A stream's turn to be a named consumer: which one it asked for, and its way to the lease.

Either it has the lease before the answer begins, or it stands by behind whoever has it, or it is
told that somebody has it (`wait=0`). Having the lease, the consumer's place is checked against the
log, as any reader's is.
"""

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from service.acks import Acks
from service.auth import Caller
from service.consumer import Ack, Consumer, Consumers
from service.cursor import FILTER_PARAMS, START_PARAMS, Params, parse_place, single
from service.errors import (
    AckAhead,
    BadRequest,
    ConsumerHeld,
    Forbidden,
    LogDiverged,
    LogUnavailable,
    PositionAhead,
    PositionPruned,
    ShardsHeld,
    UnknownConsumer,
)
from service.event import checkpoint_block
from service.eventlog import EventLog
from service.filter import Filter
from service.hub import Subscriber
from service.lease import Hold, Leases
from service.writer import HEARTBEAT, Writer

PARAMS = frozenset({"consumer", "shard", "wait"})
MAX_SHARDS = 64
STANDBY_S = 0.5  # a standby looks this often whether the lease is free
LOOKED_FOR = 50  # leases that a process looks for so often; with more, each less often
Lane = tuple[str, int, int]  # a consumer, a shard, of how many
_SHARD = re.compile(r"(\d{1,2})/(\d{1,2})")


@dataclass(frozen=True, slots=True)
class Turn:
    """What a request asked for: a consumer, one of its shards, and whether it would wait."""

    consumer: Consumer
    shard: int
    shards: int
    is_waiting: bool

    @property
    def filter(self) -> Filter:
        """Which events this holder gets."""
        shard = (self.shard, self.shards) if self.shards > 1 else None
        return replace(self.consumer.filter, shard=shard)


class Looks:
    """When this process looks whether a lease is free: one look for all who stand by for it.

    However many streams stand by, the database is asked no more than LOOKED_FOR / STANDBY_S times a
    second: each asking for itself, a token's streams would keep everybody else's reads waiting.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: Counter[Lane] = Counter()
        self._next_at: dict[Lane, float] = {}

    @contextmanager
    def standing_by(self, lane: Lane) -> Iterator[None]:
        """Count one more who waits for a lease."""
        self._waiting[lane] += 1
        try:
            yield
        finally:
            self._waiting[lane] -= 1
            if not self._waiting[lane]:
                del self._waiting[lane]
                self._next_at.pop(lane, None)

    @contextmanager
    def look(self, lane: Lane) -> Iterator[bool]:
        """Give True to whoever is to look now; nobody else does meanwhile."""
        if self._clock() < self._next_at.get(lane, 0.0):
            yield False
            return
        self._next_at[lane] = math.inf
        try:
            yield True
        finally:
            if lane in self._next_at:
                # A little less than a standby sleeps: whoever has slept may look.
                pause_s = STANDBY_S * max(0.9, len(self._waiting) / LOOKED_FOR)
                self._next_at[lane] = self._clock() + pause_s

    def forget(self, lane: Lane) -> None:
        """Let each of the others look for itself, at once: one was told that it cannot have it."""
        self._next_at.pop(lane, None)


class Turns:
    """Finds a request's turn, and takes leases for it."""

    def __init__(
        self, consumers: Consumers, leases: Leases, acks: Acks, eventlog: EventLog
    ) -> None:
        self._consumers = consumers
        self._leases = leases
        self._acks = acks
        self._eventlog = eventlog
        self._looks = Looks(asyncio.get_running_loop().time)

    async def find(self, params: Params, last_event_id: str | None, caller: Caller) -> Turn | None:
        """Return the request's turn, None if it names no consumer.

        With the mode `auto` a `Last-Event-ID` is an acknowledgement: the client says that it got so
        far. Raises BadRequest, Forbidden, UnknownConsumer, and what an acknowledgement can raise.
        """
        name = single(params, "consumer")
        if name is None:
            if unused := sorted(PARAMS & params.keys()):
                raise BadRequest(f"{unused[0]} goes with consumer=NAME")
            return None
        if clash := sorted((FILTER_PARAMS | START_PARAMS) & params.keys()):
            raise BadRequest(
                f"{clash[0]} belongs to the consumer: set it with PUT /consumers/{name}"
            )
        consumer = await self._consumers.read(name)
        if consumer.filter.intersect(caller.limits) != consumer.filter:
            raise Forbidden(f"this token may not see all that the consumer {name} wants")
        shard, shards = parse_shard(single(params, "shard"))
        turn = Turn(consumer, shard, shards, _parse_wait(params))
        if last_event_id and consumer.ack_mode == "auto" and shards == len(consumer.shards):
            place = parse_place(last_event_id, "Last-Event-ID")
            await self._acknowledge(
                Ack(name, place.position, shard, shards, digits=place.link_digits)
            )
        return turn

    async def _acknowledge(self, ack: Ack) -> None:
        """Take a Last-Event-ID for an acknowledgement.

        What the database does not know to be sent is sent again: the process that sent it was
        killed before it said so, or the consumer was reset since.
        """
        try:
            await self._acks.ack(ack)
        except AckAhead:
            await self._eventlog.check(ack.position, ack.digits)

    async def take_now(self, subscriber: Subscriber, turn: Turn) -> list[tuple[bytes, bytes]]:
        """Take the lease if it is free; return the header that says which it is.

        If it is not and the request would wait, nothing: `stand_by` goes on. Raises ConsumerHeld,
        ShardsHeld, UnknownConsumer; LogDiverged, PositionAhead or PositionPruned if the log does
        not continue from the consumer's place.
        """
        try:
            await self._take(subscriber, turn)
        except ConsumerHeld:
            if not turn.is_waiting:
                raise
            subscriber.is_standing_by = True
        hold = subscriber.hold
        return [] if hold is None else [(b"causeway-lease", b"%d" % hold.lease.number)]

    async def stand_by(self, subscriber: Subscriber, turn: Turn, writer: Writer) -> None:
        """Wait until the lease is ours, with comments only; then say which it is."""
        lane = (turn.consumer.name, turn.shard, turn.shards)
        with self._looks.standing_by(lane):
            while subscriber.hold is None and subscriber.closing is None:
                if subscriber.is_heartbeat_due:
                    subscriber.is_heartbeat_due = False
                    await writer.write(HEARTBEAT)
                with self._looks.look(lane) as may_look:
                    is_held = not may_look or await self._look(subscriber, turn, lane)
                if is_held:
                    await asyncio.sleep(STANDBY_S)
        if subscriber.hold is not None:
            lease = subscriber.hold.lease
            await writer.write(checkpoint_block(lease.position, lease.link))
            await writer.control("lease", lease=lease.number, position=lease.position)

    async def _look(self, subscriber: Subscriber, turn: Turn, lane: Lane) -> bool:
        """Take the lease if it is free, else return True; end a stream that cannot have it."""
        try:
            await self._take(subscriber, turn)
            return False
        except (ConsumerHeld, LogUnavailable):
            return True
        except (LogDiverged, PositionAhead):
            subscriber.close("diverged")
        except PositionPruned:
            subscriber.close("pruned")
        except (UnknownConsumer, ShardsHeld):
            subscriber.close("consumer_gone")
        self._looks.forget(lane)
        return False

    async def _take(self, subscriber: Subscriber, turn: Turn) -> None:
        consumer = turn.consumer
        hold = await self._leases.take(
            consumer.name, turn.shard, turn.shards, consumer.lease_s, subscriber.wake
        )
        try:
            await self._eventlog.check(hold.lease.position, hold.lease.link.hex())
            if not consumer.is_like(await self._consumers.read(consumer.name)):
                subscriber.close("lease_lost")  # changed since it was asked for: it comes again
        except BaseException:
            await self._leases.release(hold)
            raise
        subscriber.begin(hold)

    async def release(self, hold: Hold) -> None:
        """Give the lease back."""
        await self._leases.release(hold)


def parse_shard(text: str | None) -> tuple[int, int]:
    """Return (number, of how many) for `i/n`; (0, 1) for None. Raises BadRequest."""
    if text is None:
        return 0, 1
    match = _SHARD.fullmatch(text)
    if match is None or not int(match[1]) < int(match[2]) <= MAX_SHARDS:
        raise BadRequest(
            f"shard={text[:32]!r}: i/n was expected, i from 0 to n - 1 and n up to {MAX_SHARDS}"
        )
    return int(match[1]), int(match[2])


def _parse_wait(params: Params) -> bool:
    wait = single(params, "wait") or "1"
    if wait not in ("0", "1"):
        raise BadRequest(f"wait={wait[:32]!r}: 0 or 1 was expected")
    return wait == "1"
