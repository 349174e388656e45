"""Leases in a process: renewed in time, lost in time, and never believed for too long."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.consumer import Consumers, Held, Lease
from service.errors import LogUnavailable
from service.lease import FLUSH_S, RENEWALS, Hold, Leases
from service.metrics import Metrics
from tests.consuming import NAME, assert_no_event, expire, look, make, open_consumers
from tests.logkeeping import Owner, append_many, positions
from tests.reader import reading
from tests.running import WITHIN_S, Database, Running, eventually

LINK = bytes(32)
Start = Callable[..., Awaitable[Running]]


def hold(
    position: int = 0, sent_before: int = 0, lease_s: int = 30, now: float = 0.0
) -> tuple[Hold, list[float]]:
    """Return a hold that was taken at `now`, and the list that grows when it wakes its stream."""
    woken: list[float] = []
    lease = Lease(NAME, 0, 1, 7, position, LINK, sent_before)
    made = Hold(lease, lease_s, now, lambda: woken.append(now))
    woken.clear()
    return made, woken


# One hold.


def test_a_lease_is_good_for_its_time_from_the_moment_it_was_asked_for() -> None:
    one, _ = hold(lease_s=30, now=100.0)
    assert one.is_good(100.0)
    assert one.is_good(129.999)
    assert not one.is_good(130.0)
    assert one.renew_at == 100.0 + 30 / RENEWALS


def test_renewing_makes_a_lease_good_again_and_wakes_its_stream() -> None:
    one, woken = hold(lease_s=30)
    assert not one.is_good(40.0)
    one.renewed(40.0, 0)
    assert one.is_good(69.9)
    assert woken


def test_a_lost_lease_is_never_good_again_and_wakes_its_stream() -> None:
    one, woken = hold()
    one.lose()
    assert woken
    assert not one.is_good(0.0)
    one.renewed(0.0, 0)
    assert not one.is_good(0.0)


def test_what_matched_nothing_is_done_unless_something_before_is_unacknowledged() -> None:
    one, _ = hold(position=10)
    one.note(20, ())
    assert one.done == 20
    one.note(30, (25, 28))
    assert one.done == 0
    one.note(40, ())
    assert one.done == 0
    one.renewed(0.0, 25)
    assert one.done == 0
    one.renewed(0.0, 28)
    assert one.done == 40


def test_what_an_earlier_holder_was_sent_is_sent_again_and_counted() -> None:
    one, _ = hold(position=10, sent_before=14)
    assert one.note(13, (11, 13)) == 2
    assert one.note(16, (14, 15, 16)) == 1
    assert one.note(18, (17, 18)) == 0


@given(
    st.lists(st.tuples(st.lists(st.booleans(), max_size=6), st.integers(0, 40)), max_size=12),
)
def test_a_place_never_passes_an_event_that_was_sent_and_not_acknowledged(
    steps: list[tuple[list[bool], int]],
) -> None:
    one, _ = hold()
    matched: list[int] = []
    position = place = 0
    for matches, acked in steps:
        new = [position + n for n, is_match in enumerate(matches, 1) if is_match]
        position += len(matches)
        matched += new
        one.note(position, new)
        place = max(place, min(acked, position), one.done)  # as the database does
        one.renewed(0.0, place)
        unacknowledged = [p for p in matched if p > place]
        assert one.done in (0, position)
        if unacknowledged:
            assert one.done < unacknowledged[0]


# All holds of a process, with a database of its own making.


class Scripted(Consumers):
    """Consumers whose renewals the test decides: `places` None is a database that is away."""

    def __init__(self) -> None:
        self.places: dict[tuple[str, int, int], int] | None = {}
        self.renewals: list[list[Held]] = []
        self.released: list[Lease] = []

    async def take(self, name: str, shard: int, shards: int, holder: str) -> Lease:
        return Lease(name, shard, shards, 7, 5, LINK, 5)

    async def renew(self, held: Sequence[Held]) -> dict[tuple[str, int, int], int]:
        self.renewals.append(list(held))
        if self.places is None:
            raise LogUnavailable("away")
        return self.places

    async def release(self, lease: Lease) -> None:
        self.released.append(lease)


@pytest.fixture
async def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
async def leases(scripted: Scripted) -> AsyncIterator[Leases]:
    leases = Leases(scripted, Metrics())
    task = asyncio.create_task(leases.renew())
    yield leases
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_was_sent_is_written_down_once_and_soon(
    leases: Leases, scripted: Scripted
) -> None:
    scripted.places = {(NAME, 0, 7): 5}
    one = await leases.take(NAME, 0, 1, 3600, lambda: None)
    one.note(6, (6,))
    one.note(8, (8,))
    await eventually(lambda: scripted.renewals)
    assert scripted.renewals == [[(NAME, 0, 7, 8, 0, None)]]
    await asyncio.sleep(3 * FLUSH_S)  # nothing is new, nothing is due
    assert len(scripted.renewals) == 1


async def test_a_lease_is_renewed_a_few_times_in_its_time(
    leases: Leases, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.places = {(NAME, 0, 7): 5}
    lease_s = 3600
    monkeypatch.setattr("service.lease.RENEWALS", RENEWALS * 600)  # not to wait for 20 minutes
    clock = asyncio.get_running_loop().time
    began = clock()
    one = await leases.take(NAME, 0, 1, lease_s, lambda: None)
    await eventually(lambda: scripted.renewals)
    assert clock() >= began + lease_s / (RENEWALS * 600)
    assert clock() < began + lease_s, "before its end"
    assert one.is_good(began + lease_s), "and past it"
    assert len(scripted.renewals) <= (clock() - began) * RENEWALS * 600 / lease_s + 1


async def test_a_database_that_is_away_ends_no_lease_but_time_does(
    leases: Leases, scripted: Scripted
) -> None:
    scripted.places = None
    one = await leases.take(NAME, 0, 1, 1, lambda: None)
    clock = asyncio.get_running_loop().time
    await eventually(lambda: scripted.renewals and not one.is_good(clock()))
    assert not one.is_lost
    scripted.places = {(NAME, 0, 7): 5}
    await eventually(lambda: one.is_good(clock()))


async def test_a_lease_that_another_has_is_lost(leases: Leases, scripted: Scripted) -> None:
    scripted.places = {}
    one = await leases.take(NAME, 0, 1, 1, lambda: None)
    await eventually(lambda: one.is_lost)


async def test_giving_back_writes_what_was_sent_first_and_renews_no_more(
    leases: Leases, scripted: Scripted
) -> None:
    scripted.places = {(NAME, 0, 7): 5}
    one = await leases.take(NAME, 0, 1, 1, lambda: None)
    one.note(9, ())
    await leases.release(one)
    assert scripted.renewals == [[(NAME, 0, 7, 9, 9, None)]]
    assert scripted.released == [one.lease]
    await asyncio.sleep(0.6)
    assert len(scripted.renewals) == 1


async def test_a_lease_is_not_given_back_before_a_renewal_under_way_has_ended(
    leases: Leases, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The renewal would land after the release, and hold the shard for nobody."""
    done: list[str] = []
    go_on = asyncio.Event()

    async def renew(_held: Sequence[Held]) -> dict[tuple[str, int, int], int]:
        done.append("begun")
        await go_on.wait()
        done.append("renewed")
        return {(NAME, 0, 7): 5}

    async def release(_lease: Lease) -> None:
        done.append("released")

    monkeypatch.setattr(scripted, "renew", renew)
    monkeypatch.setattr(scripted, "release", release)
    one = await leases.take(NAME, 0, 1, 3600, lambda: None)
    one.note(9, ())
    await eventually(lambda: done == ["begun"])
    giving_back = asyncio.create_task(leases.release(one))
    await asyncio.sleep(0.05)
    assert done == ["begun"], "the release waits its turn"
    go_on.set()
    await giving_back
    assert done == ["begun", "renewed", "begun", "renewed", "released"]


async def test_a_lost_lease_is_not_given_back(leases: Leases, scripted: Scripted) -> None:
    one = await leases.take(NAME, 0, 1, 3600, lambda: None)
    one.lose()
    await leases.release(one)
    assert (scripted.renewals, scripted.released) == ([], [])


# The stream of a holder whose renewals do not get through.


class Way:
    """The renewals' way to the database: while it is cut none gets there; all else does."""

    def __init__(self) -> None:
        self.is_cut = False
        self.under_way = 0

    async def run_out(self, service: Running) -> Hold:
        """Cut it; return the hold of the only stream once its lease is not good any more."""
        self.is_cut = True
        # What got through before the cut may make the lease good once more.
        await eventually(lambda: not self.under_way)
        [subscriber] = service.service.hub._subscribers
        held = subscriber.hold
        assert held is not None
        clock = asyncio.get_running_loop().time
        await eventually(lambda: not held.is_good(clock()))
        return held


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Way:
    way = Way()
    real = Leases._write

    async def write(self: Leases, holds: list[Hold]) -> None:
        if way.is_cut:
            raise LogUnavailable("away")
        way.under_way += 1
        try:
            await real(self, holds)
        finally:
            way.under_way -= 1

    monkeypatch.setattr(Leases, "_write", write)
    return way


async def test_a_holder_that_cannot_renew_sends_nothing_more_until_it_can(
    start: Start, way: Way
) -> None:
    service = await start(heartbeat_s=0.2)
    await append_many(service, 3)
    await make(service.url, lease_s=1)
    async with reading(service.url, f"consumer={NAME}") as reader:
        await reader.events(3)
        held = await way.run_out(service)
        await append_many(service, 2)
        await assert_no_event(reader)
        way.is_cut = False
        assert positions(await reader.events(2)) == [4, 5]
    assert not held.is_lost


async def test_a_holder_that_finds_its_lease_taken_ends_its_stream(
    start: Start, database: Database, way: Way, owner: Owner
) -> None:
    service = await start(heartbeat_s=0.2)
    await append_many(service, 3)
    await make(service.url, lease_s=1)
    async with reading(service.url, f"consumer={NAME}&control=1") as reader:
        await reader.events(3)
        await way.run_out(service)
        async with open_consumers(database) as consumers:
            await expire(owner)
            await owner.execute("UPDATE causeway.consumer SET lease_s = 3600")
            await consumers.take(NAME, 0, 1, "process/2")
        await append_many(service, 2)
        way.is_cut = False
        async with asyncio.timeout(WITHIN_S):
            blocks = await reader.rest()
        [shard] = (await look(service.url))["shards"]
    assert not any(block.is_event for block in blocks)
    assert blocks[-2].json() == {"reason": "lease_lost"}
    assert shard["held_by"] == "process/2"  # its end has not given back what is another's
